"""The example package: push-T of gymnasium and an own robosuite task, from collection to a score."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from conftest import CHECKOUT

from command_session import outputs
from installed_package import install_own_tasks

PACKAGE = CHECKOUT / "examples" / "own_tasks"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder in which the example package is installed, as far as its metadata are concerned."""
    install_own_tasks(tmp_path / "site")
    return tmp_path


def demoscale(folder: Path, *commands: Sequence[str]) -> list[str]:
    """Run commands with the package; return what they printed."""
    path = f"{CHECKOUT}:{PACKAGE}:{folder / 'site'}:{os.environ.get('PYTHONPATH', '')}"
    return outputs(commands, folder, {"PYTHONPATH": path})


def recorded_in(store: str) -> tuple[str, ...]:
    return "--store", store, "--workers", "1"


def smaller(folder: Path, file: str, **suite: object) -> str:
    """Write the example's sweep with one arm, fewer steps and episodes; return its path."""
    sweep = yaml.safe_load((PACKAGE / file).read_text())
    sweep["data"]["demo_count"] = [2]
    sweep["train"] |= {"steps": 6, "checkpoint_every": 6, "batch_size": 2}
    sweep["suite"] |= {"episodes": 2, **suite}
    sweep["rollout_actors"] = 1
    (folder / file).write_text(yaml.safe_dump(sweep))
    return str(folder / file)


@pytest.mark.pusht
@pytest.mark.ray
@pytest.mark.e2e
def test_push_t_is_checked_collected_swept_and_scored(folder: Path) -> None:
    checked, collected, _, scored = demoscale(
        folder,
        ("task", "check", "own_tasks/PushT"),
        ("collect", "--task", "own_tasks/PushT", "--episodes", "4", *recorded_in("data/push_t")),
        ("run", smaller(folder, "push_t.yaml", horizon=30)),
        ("score", "demos-2_ratio-0_seed-0", "--sweep", "push-t", "--episodes", "3", "--workers", "1"),
    )
    assert "FAILED" not in checked
    assert "recorded 4 episodes of own_tasks/PushT" in collected
    assert "0/3" in scored or "/3 = " in scored


@pytest.mark.stress
@pytest.mark.ray
@pytest.mark.sim
@pytest.mark.e2e
def test_own_robosuite_task_is_swept_with_another_robot_controller_and_cameras(folder: Path) -> None:
    """Its sweep file asks for a Sawyer, absolute poses, two configured cameras and no proprioception."""
    file = smaller(folder, "lift_high.yaml", horizon=30)
    recording = ("--suite", file, "--episodes", "3", "--image-size", "32", *recorded_in("data/lift_high"))
    checked, collected, planned, _, status = demoscale(
        folder,
        ("task", "check", "own_tasks/LiftHigh"),
        ("collect", "--task", "own_tasks/LiftHigh", *recording),
        ("plan", file),
        ("run", file),
        ("status", "lift-high"),
    )
    assert "FAILED" not in checked
    assert "3 successful" in collected
    assert "robosuite's own, several times slower: the lean step supports" in planned
    assert "2/2" in status
