"""The commands of docs/recordings.md, in their order: from two data sets to a curve."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from documentation import blocks
from orchestrator.cli.main import main

pytestmark = [pytest.mark.full, pytest.mark.e2e, pytest.mark.ray, pytest.mark.sim]


def printed(*arguments: str) -> str:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, f"{arguments}: {done.output}"
    return done.stdout


def test_page_of_recordings_leads_from_two_data_sets_to_a_curve(
    tmp_path: Path, lift_store: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(lift_store, "data/recorded")  # what the page's first command records
    said = {}
    for block in blocks("recordings.md"):
        if block.title:
            Path(block.title).write_text(block.text)
        for program, *arguments in block.commands() if block.language == "sh" else ():
            assert program == "demoscale"
            said[" ".join(arguments)] = printed(*arguments)
    assert len(said) == 15
    assert "6 episodes" in said["import lift.hdf5 data/robomimic --dry-run"]
    for store in ("data/robomimic", "data/lerobot"):
        assert printed("data", "ls", store).count("Lift") >= 6
    (first, second) = json.loads(printed("curve", "recordings", "--json"))["points"]
    assert [point["demo_count"] for point in (first, second)] == [2, 4]
    assert [point["episodes"] for point in (first, second)] == [4, 4]
    assert Path("curve.png").read_bytes()[:4] == b"\x89PNG"
    assert "<script" not in Path("curve.html").read_text()
    assert "already trained" in printed("run", "recordings.yaml")
