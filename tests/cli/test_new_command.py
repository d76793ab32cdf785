"""`demoscale new policy` writes a policy that trains, resumes, acts, and is a line of a sweep."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import CHECKOUT

from orchestrator.cli.main import main
from orchestrator.config.lines import Line
from orchestrator.config.policy_manifest import load


@pytest.mark.full
def test_new_policy_passes_its_own_test(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["new", "policy", "mine", "--folder", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert load(tmp_path / "mine").name == "mine"
    line = Line.model_validate({"policy": str(tmp_path / "mine")})
    assert (line.name, line.swept) == ("mine", False)
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path / "mine")],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_new_policy_refuses_a_folder_that_is_there_and_a_name_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name, told in (
        ("mine", "is there already"),
        ("video_action", "cannot name a policy"),
        ("a b", "a b"),
    ):
        done = CliRunner().invoke(main, ["new", "policy", name, "--folder", str(tmp_path)])
        assert done.exit_code == 2
        assert told in done.output
    assert not [*(tmp_path / "mine").iterdir()]
