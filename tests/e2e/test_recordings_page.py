"""The commands of docs/recordings.md, in their order: from two data sets to a curve."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHECKOUT

from documentation import blocks

pytestmark = [pytest.mark.full, pytest.mark.e2e, pytest.mark.ray, pytest.mark.sim]

ONE_AFTER_ANOTHER = """
import json, sys
from click.testing import CliRunner
from orchestrator.cli.main import main
for arguments in json.load(sys.stdin):
    done = CliRunner().invoke(main, arguments)
    print(json.dumps([" ".join(arguments), done.exit_code, done.output]), flush=True)
"""
"""Commands in one process, so that packages are imported, and Ray is started, once for all of them."""


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
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ONE_AFTER_ANOTHER],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        input=json.dumps(asked),
        capture_output=True,
        text=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(answers) == len(asked) == 18, done.stderr
    failed = [answer for answer in answers if answer[1]]
    assert [command for command, _, _ in failed] == ["data check data/robomimic"], failed  # it has findings
    said = {command: output for command, _, output in answers}
    assert "6 episodes to import" in said["import lift.hdf5 data/robomimic"]
    for store in ("data/robomimic", "data/lerobot"):
        assert said[f"data ls {store}"].count("Lift") == 6
    first, second = json.loads(said["curve recordings --json"])["points"]
    assert [point["demo_count"] for point in (first, second)] == [2, 4]
    assert [point["episodes"] for point in (first, second)] == [4, 4]
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert "<script" not in (tmp_path / "curve.html").read_text()
