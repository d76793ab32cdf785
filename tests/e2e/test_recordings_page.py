"""The commands of docs/recordings.md, in their order: from two data sets to a curve."""

import json
import shutil
from pathlib import Path

import pytest

from command_session import answers
from documentation import blocks

pytestmark = [pytest.mark.stress, pytest.mark.e2e, pytest.mark.ray, pytest.mark.sim]


def test_page_of_recordings_leads_from_two_data_sets_to_a_curve(tmp_path: Path, lift_store: Path) -> None:
    shutil.copytree(lift_store, tmp_path / "data/recorded")  # what the page's first command records
    commands = []
    for block in blocks("recordings.md"):
        if block.title:
            (tmp_path / block.title).write_text(block.text)
        commands += list(block.commands()) if block.language == "sh" else []
    assert {words[0] for words in commands} == {"demoscale"}
    asked = [
        *(words[1:] for words in commands),
        ["data", "ls", "data/robomimic"],
        ["data", "ls", "data/lerobot"],
        ["curve", "recordings", "--json"],
    ]
    assert len(asked) == 18
    told = answers(asked, tmp_path)
    failed = [answer for answer in told if answer.exit_code]
    assert [answer.command for answer in failed] == ["data check data/robomimic"], failed  # it has findings
    said = {answer.command: answer.stdout for answer in told}
    assert "6 episodes to import" in said["import lift.hdf5 data/robomimic"]
    for store in ("data/robomimic", "data/lerobot"):
        assert said[f"data ls {store}"].count("Lift") == 6
    first, second = json.loads(said["curve recordings --json"])["points"]
    assert [point["demo_count"] for point in (first, second)] == [2, 4]
    assert [point["episodes"] for point in (first, second)] == [4, 4]
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert "<script" not in (tmp_path / "curve.html").read_text()
