"""A sweep of one of our lines and one external policy, killed while it trains and continued."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import run

from begun_command import begin
from external_policies import make_policy
from orchestrator.checkpoints.record import read_records
from orchestrator.cli.main import main
from orchestrator.evaluation.outcome_ledger import Ledger
from orchestrator.storage.base import open_storage
from orchestrator.sweep.state import SweepState

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.sim, pytest.mark.full]

EPISODES = 2
SLOW = """
for step in range(first + 1, job["steps"] + 1):
    time.sleep(0.4)
    if stopped or step % job["checkpoint_every"] == 0 or step == job["steps"]:
        save(step, 1 / step)
        if stopped:
            sys.exit()
"""
"""Trains to the end, slowly enough to be killed in between."""


def sweep_file(folder: Path, store: Path, *ours: str) -> str:
    """Write a sweep of our lines and the external one."""
    policy = make_policy(folder / "counter", SLOW)
    path = folder / "sweep.yaml"
    path.write_text(f"""
name: lines
data: {{episodes: {store}, demo_count: [2]}}
policy: {{lines: [{", ".join([*ours, str(policy)])}]}}
train: {{mode: action_only, steps: 12, batch_size: 4, checkpoint_every: 4, warmup_steps: 2, match: epochs}}
suite: {{tasks: [Lift], episodes: {EPISODES}, horizon: 16, video_clips: 0}}
rollout_actors: 1
storage: {folder / "runs"}
""")
    return str(path)


def outcomes(folder: Path) -> dict[tuple[str, int, str], Any]:
    """Return every finished episode by name of the arm, step and episode."""
    storage, found = open_storage(str(folder / "runs")), {}
    state = SweepState.named("lines", storage.uri)
    for arm_id, arm in state.arms().items():
        for step, record in read_records(storage, arm_id).items():
            ledger = Ledger(storage, record.fingerprint, state.protocol_of("nominal", arm))
            for episode, outcome in ledger.read().items():
                found[arm.name, step, episode] = outcome.played
    return found


def written(folder: Path) -> dict[Path, int]:
    """Return the objects that hold outcomes and checkpoints, and the time at which each was written."""
    root = folder / "runs"
    files = [*root.glob("outcomes/**/*.parquet"), *root.glob("arms/counter_*/step_*/**/*.json")]
    return {file.relative_to(root): file.stat().st_mtime_ns for file in files}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, lift_store: Path) -> tuple[Path, dict[Path, int]]:
    """Run a sweep, kill its driver after the external line's first checkpoint, run the same command again;
    return its folder and what was there when it was killed.
    """
    folder = tmp_path_factory.mktemp("killed")
    begin(
        ["-m", "orchestrator", "run", sweep_file(folder, lift_store, "video_action")],
        folder / "killed",
        ready=lambda: [*folder.glob("runs/checkpoints/counter_demos-2_*/*.json")],
    ).kill()
    before = written(folder)
    done = run("-m", "orchestrator", "run", str(folder / "sweep.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, before


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, lift_store: Path) -> Path:
    """Run the external line without interruption; return its folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run("-m", "orchestrator", "run", sweep_file(folder, lift_store))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_killed_sweep_with_an_external_line_loses_and_repeats_nothing(
    killed: tuple[Path, dict[Path, int]], undisturbed: Path
) -> None:
    folder, before = killed
    after = written(folder)
    assert before.items() <= after.items(), "nothing is written again"
    played = outcomes(folder)
    assert {(name, step) for name, step, _ in played} == {
        (f"{line}demos-2_ratio-0_seed-0", step) for line in ("", "counter_") for step in (4, 8, 12)
    }
    assert len(played) == 2 * 3 * EPISODES
    external = {key: outcome for key, outcome in played.items() if key[0].startswith("counter")}
    assert external == outcomes(undisturbed)


def test_killed_training_of_an_external_line_resumes_from_its_checkpoint(
    killed: tuple[Path, dict[Path, int]],
) -> None:
    folder, _ = killed
    (arm,) = (folder / "runs/arms").glob("counter_demos-2_*")
    weights = {
        file.parent.parent.name: json.loads(file.read_text())["from"] for file in arm.rglob("weights.json")
    }
    assert weights["step_000004"] == 0
    assert weights["step_000012"] in (4, 8)
    assert len(list(arm.glob("logs/*.log"))) >= 1


def test_curve_shows_each_line_by_name_and_what_arms_have_in_common(
    killed: tuple[Path, dict[Path, int]],
) -> None:
    storage = str(killed[0] / "runs")
    done = CliRunner().invoke(main, ["curve", "lines", "--storage", storage, "--json"])
    assert done.exit_code == 0, done.stderr
    curve = json.loads(done.stdout)
    assert curve["match"] == "epochs"
    assert [line["label"] for line in curve["lines"]] == ["video_action", "counter"]
    assert {(point["policy"], point["demo_count"]) for point in curve["points"]} == {
        (policy, 2) for policy in ("video_action", "counter")
    }
    assert all(point["cost"]["cpu_hours"] > 0 for point in curve["points"])
    told = CliRunner().invoke(main, ["curve", "lines", "--storage", storage]).stdout
    assert "every arm is trained for as many passes over its demos" in told
    assert "counter" in CliRunner().invoke(main, ["status", "lines", "--storage", storage]).stdout


def test_same_command_again_trains_and_plays_an_added_shift_alone(
    killed: tuple[Path, dict[Path, int]],
) -> None:
    """Only the last checkpoints are scored under the shift, and the curve is unchanged."""
    folder, _ = killed
    before, storage = written(folder), str(folder / "runs")

    def told(command: str) -> Any:
        done = CliRunner().invoke(main, [command, "lines", "--storage", storage, "--json"])
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)

    points = told("curve")["points"]
    done = run("-m", "orchestrator", "run", str(folder / "sweep.yaml"), "--set", "suite.shifts=[camera]")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "already trained, not trained again: counter_demos-2_ratio-0_seed-0" in done.stdout
    assert "not played again" in done.stdout
    assert "after 12 steps, camera shifted: " in done.stdout
    after = written(folder)
    assert before.items() <= after.items()
    ledgers = {file.with_suffix("").parts[:3] for file in before if file.parts[0] == "outcomes"}
    added = {file.with_suffix("").parts[:3] for file in after.keys() - before.keys()}
    assert len(added) == 2, "one per arm"
    assert not added & ledgers
    assert [arm["shifted"]["camera"]["episodes"] for arm in told("status")["arms"]] == [EPISODES] * 2
    for point in (*points, *(later := told("curve")["points"])):
        del point["cost"]
    assert later == points
