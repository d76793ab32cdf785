"""Recordings of a real robot from import to curve, on a machine without any simulator."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CHECKOUT

from command_session import outputs
from dataset_layouts import lerobot_v21
from orchestrator.data.episode_store import commit, load_manifest, put_episode
from orchestrator.storage.base import open_storage
from orchestrator.testing.episodes import CAMERA, CONTRACT, make_episode, make_episode_store
from robosuite_recordings import CAMERAS, VECTORS, Recorded

pytestmark = [pytest.mark.e2e, pytest.mark.ray]

EPISODES = 10


def recorded(seed: int) -> Recorded:
    """Return an episode whose actions are visible in its pictures: the brightness of each half is one of
    them.
    """
    rng, length = np.random.default_rng(seed), 20 + seed
    phase = rng.uniform(0, 2 * np.pi) + np.linspace(0, 6, length)
    action = np.stack([np.sin(phase + i) for i in range(7)], 1).astype(np.float32)
    pictures = np.zeros((length, 64, 64, 3), np.uint8)
    pictures[:, :32] = (128 + 100 * action[:, 0]).astype(np.uint8)[:, None, None, None]
    pictures[:, 32:] = (128 + 100 * action[:, 1]).astype(np.uint8)[:, None, None, None]
    widths = dict(zip(VECTORS, (3, 4, 2), strict=True))
    vectors = {key: np.tile(np.cos(phase)[:, None], (1, width)) for key, width in widths.items()}
    return Recorded({camera: pictures for camera in CAMERAS}, vectors, action)


@pytest.fixture(scope="module")
def without_simulators(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the variables of an environment in which robosuite and MuJoCo cannot be imported, by any process."""
    folder = tmp_path_factory.mktemp("without")
    for name in ("robosuite", "mujoco"):
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} is not on this machine')")
    return {"PYTHONPATH": f"{folder}:{CHECKOUT}"}


def films(folder: Path, first: int = 0) -> Path:
    """Write a store of another robot's films: one camera of another size, without actions."""
    storage, contract = open_storage(str(folder)), replace(CONTRACT, cameras=("hand",), image_size=(32, 32))
    episodes = [
        replace(make_episode(seed, 16, labelled=False, size=32), proprio=None, task="pour")
        for seed in range(first, first + 8)
    ]
    entries = [
        put_episode(storage, replace(one, frames={"hand": next(iter(one.frames.values()))}), 20.0)
        for one in episodes
    ]
    commit(storage, contract, entries)
    return folder


@pytest.mark.full
def test_parts_of_several_stores_are_trained_together_and_measured(
    tmp_path: Path, without_simulators: dict[str, str]
) -> None:
    storage = tmp_path / "runs"
    file = tmp_path / "sweep.yaml"
    file.write_text(f"""
name: parts
data:
  episodes:
    - {{store: {make_episode_store(tmp_path / "a", 6)}, success: true, weight: 1}}
    - {{store: {make_episode_store(tmp_path / "b", 6, length=14)}, source: [test], weight: 3}}
    - {{store: {films(tmp_path / "films")}, action_free_only: true, weight: 1, cameras: {{hand: {CAMERA}}}}}
    - {{store: {films(tmp_path / "more", 8)}, action_free_only: true, weight: 1, cameras: {{hand: {CAMERA}}}, name: more}}
  demo_count: [4]
  action_free_ratio: [1]
policy: {{lines: [video_action, {{name: more, policy: video_action, data: {{videos: more}}}}]}}
train: {{mode: joint, steps: 6, batch_size: 4, checkpoint_every: 6, warmup_steps: 2}}
suite: {{held_out: 4, video_clips: 0}}
storage: {storage}
""")
    shown = ("curve", "parts", "--storage", str(storage), "--json")
    commands = [("plan", str(file)), ("run", str(file)), shown, ("run", str(file))]
    planned, _, curve, again = outputs(commands, variables=without_simulators)
    assert "6 of 6 episodes" in planned
    assert "already trained, not trained again" in again
    arms = json.loads(curve)["arms"]
    cards = [json.loads(card.read_text()) for card in storage.glob("arms/*/step_000006/checkpoint.json")]
    assert {arm["policy"] for arm in arms} == {"video_action", "more"}
    for learnt in (card["provenance"] for card in cards):
        seen = {episode.partition(":")[0] for episode in learnt["action_free"]}
        assert seen == {"more" if learnt["arm"]["kind"] == "more" else "films"}
        assert learnt["action_free_ratio_consumed"] == 1
        for arm in arms:
            assert {one["episode"].partition(":")[0] for one in arm["episodes"]} <= {"a", "b"}
            assert not {one["episode"] for one in arm["episodes"]} & {
                *learnt["demos"],
                *learnt["action_free"],
            }
    assert len({tuple(card["provenance"]["demos"]) for card in cards}) == 1
    assert len(cards) == 2


@pytest.mark.stress
def test_recordings_of_a_robot_become_a_curve_without_a_simulator(
    tmp_path: Path, without_simulators: dict[str, str]
) -> None:
    (tmp_path / "pick").mkdir()
    source = lerobot_v21(tmp_path / "pick", [recorded(seed) for seed in range(EPISODES)])
    store, storage = tmp_path / "store", tmp_path / "runs"
    file = tmp_path / "sweep.yaml"
    file.write_text(f"""
name: recordings
data: {{episodes: {store}, demo_count: [5], action_free_ratio: [0]}}
train: {{mode: action_only, steps: 8, batch_size: 4, checkpoint_every: 4, warmup_steps: 2}}
suite: {{held_out: 0.3, video_clips: 1}}
storage: {storage}
""")
    page, shown = tmp_path / "curve.html", ("recordings", "--storage", str(storage))
    commands = [
        ("import", str(source), str(store), "--task", "pick the cup", "--cameras", "agentview"),
        ("plan", str(file)),
        ("run", str(file)),
        ("run", str(file)),
        ("curve", *shown, "--json"),
        ("curve", *shown, "--html", str(page), "--save", str(tmp_path / "curve.png")),
        ("status", *shown, "--json"),
    ]
    _, planned, said, again, curve, _, state = outputs(commands, variables=without_simulators)
    assert "held out       3 episodes" in planned
    assert "action error" in said
    assert "constant action" in said
    assert "already scored, not measured again: 2 checkpoints" in again

    told: dict[str, Any] = json.loads(curve)
    assert told["measure"] == "action error on held-out episodes"
    assert [(point["policy"], point["demo_count"]) for point in told["points"]] == [("video_action", 5)]
    held_out = json.loads((storage / "sweeps/recordings.json").read_text())["held_out"]
    for arm in told["arms"]:
        assert [one["episode"] for one in arm["episodes"]] == held_out
        assert arm["loss"] > 0
        assert arm["cost"]["episodes"] == 0
    manifest = load_manifest(open_storage(str(store)))
    assert set(held_out) < set(manifest.episode_ids)
    assert "pick the cup" in page.read_text()
    status = json.loads(state)
    assert {arm["state"] for arm in status["arms"]} == {"scored"}
    assert all(
        score["measure"] == told["measure"] for arm in status["arms"] for score in arm["scores"].values()
    )
