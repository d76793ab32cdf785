"""The progress file of a run, of this version and of earlier ones."""

import json
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator.cli.main import main
from orchestrator.cli.status_commands import Progress
from orchestrator.cost import Cost
from orchestrator.evaluation.scores import Score
from orchestrator.sweep.driver_lease import Lease
from orchestrator.sweep.live_status import LiveStatus
from orchestrator.sweep.state import SweepState
from orchestrator.sweep.status import ArmLine
from sweep_runs import sweep

WRITTEN_BEFORE = """{
 "host": "node-1", "pid": 7, "written": 1764000000.5, "over": false, "ending": "",
 "arms": [{"arm": "demos-1_ratio-0_seed-0", "state": "scoring", "step": 9, "steps": 9, "stage_1_step": 0,
  "loss": 0.25, "episodes_played": 50, "episodes_listed": 120,
  "scores": {"3": {"successes": 4, "episodes": 40, "errors": 0, "interval": [0.0396, 0.2306],
   "complete": true, "decided": ""}},
  "last_score": "4/40 = 0.10 [0.04, 0.23]", "shifted": {"camera": {"successes": 1, "episodes": 40}},
  "stopped_after": null, "failure": "", "cost": {"train_gpu_s": 0.0, "train_cpu_s": 1.5, "infer_gpu_s": 0.0,
   "infer_cpu_s": 0.0, "sim_cpu_s": 20.0, "control_steps": 2000, "frames": 500, "bytes_read": 0,
   "episodes": 50}}],
 "training": ["demos-2_ratio-0_seed-0_0123456789abcdef"], "episodes_to_play": 70, "workers": 4,
 "cost": {"train_cpu_s": 1.5, "sim_cpu_s": 20.0, "episodes": 50}, "wall_s": 61.5, "left_s": null}"""


def test_live_status_of_an_earlier_version_round_trips() -> None:
    data = json.loads(WRITTEN_BEFORE)
    live = LiveStatus.from_json(data)
    (arm,) = live.arms
    assert (arm.scores[3].successes, arm.scores[3].interval) == (4, (0.0396, 0.2306))
    assert (arm.shifted["camera"].episodes, arm.cost.sim_cpu_s, live.cost.episodes) == (40, 20.0, 50)
    data["cost"] = Cost.from_json(data["cost"]).to_json()
    data["arms"][0] |= {"trained_on": [], "report": None, "unit": "steps"}
    assert json.loads(json.dumps(live.to_json())) == data
    assert LiveStatus.from_json(live.to_json()) == live


def test_live_status_ignores_unknown_fields_and_defaults_missing_ones() -> None:
    data = json.loads(WRITTEN_BEFORE) | {"of_a_later_version": 1}
    del data["left_s"], data["workers"], data["arms"][0]["shifted"], data["arms"][0]["stage_1_step"]
    live = LiveStatus.from_json(data)
    assert (live.left_s, live.workers, live.arms[0].shifted) == (None, 0, {})


@pytest.mark.parametrize("ago_s", [0, 60])
def test_status_shows_a_fresh_live_status_and_else_the_storage(
    folder: Path, store: str, ago_s: float
) -> None:
    state = SweepState.open(sweep(folder, store), pin=True)
    data = json.loads(WRITTEN_BEFORE) | {"written": time.time() - ago_s}
    LiveStatus.from_json(data).write(state.storage, folder.name)
    done = CliRunner().invoke(
        main, ["status", folder.name, "--storage", str(folder), "--json"], catch_exceptions=False
    )
    told = json.loads(done.stdout)
    assert told["running"] == (ago_s == 0)
    assert len(told["arms"]) == (4 if ago_s else 1)
    assert {*told["arms"][0]} == {*data["arms"][0], "trained_on", "report", "unit"}
    summary = Progress.of(state).summary()
    assert ("running  on node-1 (process 7) for 1:01 min" in summary) == (ago_s == 0)


@pytest.mark.parametrize("runs", [True, False])
def test_status_rebuild_goes_by_the_lease_whatever_the_clocks_say(
    folder: Path, store: str, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[bool]()
    monkeypatch.setattr(
        "orchestrator.sweep.republish.republish", lambda *_, may_run: asked.append(may_run) or 0
    )
    state = SweepState.open(sweep(folder, store), pin=True)
    clock = time.time() + (-3600 if runs else 3600)  # of the driver's machine
    LiveStatus.from_json(json.loads(WRITTEN_BEFORE) | {"written": clock}).write(state.storage, folder.name)
    with Lease(state.storage, folder.name, lambda _: None).claim() if runs else nullcontext():
        done = CliRunner().invoke(main, ["status", folder.name, "--storage", str(folder), "--rebuild"])
    assert (done.exit_code, asked) == (0, [runs])


def test_arm_line_counts_the_episodes_of_all_checkpoints(folder: Path, store: str) -> None:
    board = SweepState.open(sweep(folder, store)).board()
    arm = next(iter(board.arms.values()))
    arm.scoring = {3: (40, 40), 6: (10, 40)}
    arm.scores = {3: Score(4, 36, 0, 40, 5, 4)}
    line = ArmLine.of(arm)
    assert (line.episodes_played, line.episodes_listed) == (50, 80)
    assert (line.scores[3].interval, line.last_score) == ((0.0349, 0.2316), "4/40 = 0.10 [0.03, 0.23]")
