"""Training by a budget of time: what it counts, which checkpoints are due, and how it resumes."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint_folder import CheckpointFolder
from orchestrator.config.arms import Arm
from orchestrator.config.schema import Train
from orchestrator.data.episode_store import latest_version
from orchestrator.storage.base import open_storage
from orchestrator.training import loop
from orchestrator.training.control_channel import StopRequest
from orchestrator.training.loop import TrainJob, train
from orchestrator.training.progress import Progress
from policy.checkpoint import load_card, load_trainer
from policy.config import DIFFUSION_POLICY, Recipe
from policy.presets import policy_config
from policy.trainer import learning_rate_factor
from selected_episodes import selected


def budget(seconds: int = 10, every: int = 4, **train: Any) -> Train:
    return Train(match="gpu_seconds", seconds=seconds, checkpoint_every=every, batch_size=4, **train)


def ticking(seconds: float = 1.0) -> Callable[[], float]:
    """Return a clock that is `seconds` further at every call."""
    times = count()
    return lambda: next(times) * seconds


@pytest.mark.parametrize(
    ("step_s", "devices", "due"),
    [
        (1, 1, [[], [], [], [4], [], [], [], [8], [], [10]]),
        (3, 1, [[], [4], [8], [10]]),
        (3, 3, [[4, 8], [10]]),
        (50, 1, [[4, 8, 10]]),
    ],
)
def test_budget_is_due_at_its_seconds_of_all_devices(step_s: int, devices: int, due: list[list[int]]) -> None:
    progress = Progress(budget(), 0, 0, devices=devices, clock=ticking(step_s))
    found = []
    while not progress.ended:
        progress.run_clock()
        progress.stepped()
        found.append(progress.due(pause=False))
    assert found == due
    assert (progress.position, progress.step, progress.share) == (10, len(due), 1.0)


def test_budget_counts_no_time_between_stop_and_run() -> None:
    now = [0.0]
    progress = Progress(budget(), 0, 0, clock=lambda: now[0])
    for at, running in ((0.0, True), (2.5, True), (100.0, False), (102.0, True)):
        now[0] = at
        if running:
            progress.run_clock()
            progress.stepped()
        else:
            progress.stop_clock()
    assert progress.seconds == 2.5
    now[0] = 104.0
    progress.stepped()
    assert (progress.seconds, progress.due(pause=True)) == (4.5, [4])
    assert progress.due(pause=True) == [], "one checkpoint per second"


def test_steps_are_due_as_before() -> None:
    progress = Progress(Train(steps=7, checkpoint_every=3), 2, 2)
    assert progress.share is None
    found = []
    while not progress.ended:
        progress.stepped()
        found.append((progress.due(pause=progress.step == 4), progress.passed(2)))
    assert found == [([3], False), ([4], True), ([], False), ([6], True), ([7], False)]


def test_learning_rate_follows_the_time_as_it_follows_the_steps() -> None:
    recipe = Recipe(warmup_steps=2)
    shares = [learning_rate_factor(step, recipe, 10, share=step / 8) for step in range(9)]
    assert shares == pytest.approx([learning_rate_factor(step, recipe, 8) for step in range(9)])


def job(store: str, train: Train) -> TrainJob:
    version = latest_version(open_storage(store))
    arm = Arm(3, 1.0, 0)
    return TrainJob(
        arm,
        "arm",
        store,
        version,
        selected(store, arm),
        policy_config("tiny", DIFFUSION_POLICY),
        train,
        "action",
        "",
    )


def test_train_by_a_budget_resumes_as_if_uninterrupted(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "STRETCH", 3)
    torch.set_num_threads(1)
    folders = {name: CheckpointFolder(tmp_path / name) for name in ("whole", "paused")}
    for kept in folders.values():
        kept.folder.mkdir()
    timed = job(store, budget(seconds=20, every=8, warmup_steps=2))
    train(timed, 0, 1, None, folders["whole"], clock=ticking(2.5))
    saved = [
        (step, metrics["optimiser_steps"])
        for step, metrics in folders["whole"].reports
        if "checkpoint" in metrics
    ]
    assert saved == [(8, 4), (16, 7), (20, 8)]
    card = load_card(tmp_path / "whole" / "step_000016").provenance
    assert (card["step"], card["optimiser_steps"], card["seconds"]) == (16, 7, 17.5)
    requests = iter([None] * 4 + [StopRequest.PAUSE])
    train(timed, 0, 1, None, folders["paused"], stop_request=lambda: next(requests), clock=ticking(2.5))
    assert folders["paused"].reports[-1][0] == 12
    train(timed, 0, 1, tmp_path / "paused" / "step_000012", folders["paused"], clock=ticking(2.5))
    ours, theirs = (load_trainer(tmp_path / name / "step_000020") for name in ("whole", "paused"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    train(timed, 0, 1, tmp_path / "whole" / "step_000020", folders["whole"], clock=ticking(2.5))
    assert [step for step, metrics in folders["whole"].reports if "checkpoint" in metrics] == [8, 16, 20]
