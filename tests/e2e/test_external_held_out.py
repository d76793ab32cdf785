"""A sweep on recordings alone, of one of our lines and an external one, which are trained by time and see a
part of the proprioception.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import CHECKOUT

from command_session import outputs
from orchestrator.checkpoints.external_card import ExternalCard
from orchestrator.checkpoints.record import read_records
from orchestrator.evaluation.action_error_ledger import ActionErrorLedger
from orchestrator.storage.base import open_storage
from orchestrator.sweep.state import SweepState
from orchestrator.testing.episodes import make_episode_store
from policy.checkpoint import load_card

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.stress]

SECONDS = 2


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Run the sweep twice, and the commands that show it; return its folder and what they printed."""
    folder = tmp_path_factory.mktemp("held-out")
    store = make_episode_store(folder / "store", 16, length=24)
    (folder / "sweep.yaml").write_text(f"""
name: recorded
data: {{episodes: {store}, demo_count: [8]}}
policy:
  lines:
    - diffusion_policy
    - {{name: linear, policy: {CHECKOUT}/policies/skeleton, options: {{chunk: 16, execute: 8}}}}
train: {{match: gpu_seconds, seconds: {SECONDS}, checkpoint_every: 1, batch_size: 8, warmup_steps: 2}}
suite: {{held_out: 0.25, video_clips: 0, proprio: [gripper_qpos, eef_pos]}}
storage: {folder / "runs"}
""")
    shown, again = ("recorded", "--storage", str(folder / "runs")), ("run", str(folder / "sweep.yaml"))
    return folder, outputs([again, again, ("curve", *shown, "--json"), ("curve", *shown), ("status", *shown)])


@pytest.fixture(scope="module")
def swept(told: tuple[Path, list[str]]) -> Path:
    return told[0]


def test_every_line_is_measured_on_the_same_recordings(swept: Path) -> None:
    storage = open_storage(str(swept / "runs"))
    state = SweepState.named("recorded", storage.uri)
    assert len(state.held_out) == 4
    compared = dict[str, list[int]]()
    for arm_id, arm in state.arms().items():
        records = read_records(storage, arm_id)
        assert sorted(records) == [1, SECONDS]
        for record in records.values():
            errors = ActionErrorLedger(storage, record.fingerprint, state.protocol_of("nominal", arm)).read()
            assert errors.keys() == set(state.held_out)
        compared[arm.kind] = [errors[episode].steps for episode in state.held_out]
    assert compared["linear"] == compared["diffusion_policy"]


def test_every_arm_was_trained_for_its_time_on_the_chosen_proprioception(swept: Path) -> None:
    storage = open_storage(str(swept / "runs"))
    state = SweepState.named("recorded", storage.uri)
    for arm_id, arm in state.arms().items():
        folder = swept / f"runs/arms/{arm_id}/step_{SECONDS:06d}"
        card: Any = (
            ExternalCard.read(open_storage(str(folder))) if arm.kind == "linear" else load_card(folder)
        )
        assert [name[:7] for name in card.contract.proprio] == ["finger_"] * 2 + [
            "eef_x_m",
            "eef_y_m",
            "eef_z_m",
        ]
        # a step may have been in progress, on a busy machine a slow one
        assert SECONDS <= card.provenance["seconds"] < SECONDS + 10
        record = read_records(storage, arm_id)[SECONDS]
        assert record.optimiser_steps == card.provenance["optimiser_steps"] > 1


def test_curve_and_status_say_what_was_equal(told: tuple[Path, list[str]]) -> None:
    _, (_, _, numbers, text, status) = told
    curve = json.loads(numbers)
    assert curve["match"] == "gpu_seconds"
    assert (
        f"every arm trained for {SECONDS} seconds of its training process, without a GPU" in curve["caption"]
    )
    assert [line["policy"] for line in curve["lines"]] == ["diffusion_policy", "linear"]
    assert "every arm is trained for as many seconds of its training process" in text
    assert "seconds" in status.splitlines()[0]
    assert f"{SECONDS}/{SECONDS}" in status


def test_same_command_again_trains_and_measures_nothing(told: tuple[Path, list[str]]) -> None:
    _, (_, again, *_) = told
    assert "already trained, not trained again: diffusion_policy_demos-8_ratio-0_seed-0, " in again
    assert "already scored, not measured again: 4 checkpoints" in again
