"""The sweep file of exchange rates: its plan, and what each of its lines learns from."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import CHECKOUT

from orchestrator.config.sweep_config import SweepConfig, manifest_of
from orchestrator.data.episode_store import commit, put_episode
from orchestrator.planning.plan import make_plan
from orchestrator.storage.base import open_storage
from orchestrator.testing.episodes import CAMERA, CONTRACT, make_episode

STORES = {
    "lift": (90, "Lift", CAMERA, True),
    "nut": (72, "NutAssemblySquare", CAMERA, True),
    "lift_sawyer": (72, "Lift", CAMERA, True),
    "lift_agentview": (72, "Lift", "agentview", True),
    "lift_failed": (72, "Lift", CAMERA, False),
}
"""Of each store that the file's comment tells to collect: episodes, task, camera, success."""


def test_exchange_sweep_file_differs_in_videos_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.config.sweep_config.unfit", lambda contract, task: [])
    raw = yaml.safe_load((CHECKOUT / "jobs/lift_exchange.yaml").read_text()) | {"storage": str(tmp_path)}
    for number, (name, (count, task, camera, success)) in enumerate(STORES.items()):
        storage = open_storage(str(tmp_path / name))
        one = replace(put_episode(storage, make_episode(number), 20.0), cameras=(camera,), success=success)
        listed = [replace(one, episode_id=f"{task}-{i}", task=task) for i in range(count)]
        commit(storage, replace(CONTRACT, cameras=(camera,)), listed)
        assert raw["data"]["episodes"][number]["store"] == f"data/{name}"
        raw["data"]["episodes"][number]["store"] = storage.uri
    sweep = SweepConfig.model_validate(raw)
    assert make_plan(sweep).arms == 3 * 3 * 6
    merged = manifest_of(sweep.data)
    subsets = {line.name: sweep.select(merged, sweep.largest(line=line.name)) for line in sweep.lines}
    assert len({subset.demos for subset in subsets.values()}) == 1
    videos = {name: {one.partition(":")[0] for one in own.action_free} for name, own in subsets.items()}
    assert videos == {
        "no_videos": set(),
        "same_task": {"lift"},
        "other_task": {"nut"},
        "other_robot": {"lift_sawyer"},
        "other_camera": {"lift_agentview"},
        "failed_rollouts": {"lift_failed"},
    }
    assert {len(own.action_free) for name, own in subsets.items() if name != "no_videos"} == {72}
