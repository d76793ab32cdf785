"""How a sweep handles the events of its training runs: with its real state, and no Ray."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.storage.base import StorageError
from orchestrator.sweep.arm_search import GridSearch
from orchestrator.sweep.run import SweepRun
from orchestrator.sweep.train_scheduler import TrainScheduler
from orchestrator.training.control_channel import StopRequest
from orchestrator.training.train_events import Failed, Finished, Reported, Retried
from orchestrator.training.worker_usage import WorkerUsage
from sweep_runs import sweep


class Recorded:
    """Records every call of a method as (name, arguments)."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.calls.append((name, arguments))


def report(run: str, step: int, checkpoint: str = "fingerprint") -> Reported:
    return Reported(
        run=run,
        step=step,
        loss=1 / step,
        loss_video=0.0,
        loss_action=1 / step,
        clips_with_actions=step,
        clips_action_free=0,
        action_free_ratio_consumed=0.0,
        usage=WorkerUsage(cpu_s=2.0, wall_s=3.0, bytes_read=5),
        checkpoint=checkpoint,
    )


class Driver:
    """A sweep of one arm in training, with an evaluation, a publisher and a channel that record their
    calls.
    """

    def __init__(self, folder: Path, store: str) -> None:
        self.lines: list[str] = []
        self.run = SweepRun(sweep(folder, store, data={"demo_count": [2]}), self.lines.append)
        self.state, self.evaluation, self.publisher = self.run.state, Recorded(), Recorded()
        self.stop_requests: list[tuple[str, StopRequest]] = []
        channel = SimpleNamespace(
            request_stop=SimpleNamespace(remote=lambda *request: self.stop_requests.append(request))
        )
        self.run.evaluation = self.evaluation  # type: ignore[assignment]
        self.run.__dict__["_publisher"] = self.publisher
        self.run.training = TrainScheduler(
            self.state,
            self.run.board,
            self.publisher,
            GridSearch([]),
            channel,
            1,
            lambda job: {"GPU": 0.5},
            False,
        )  # type: ignore[arg-type]
        ((self.arm_id, self.arm),) = self.run.board.arms.items()
        self.run.training._running[self.arm_id] = self.state.job(self.arm.arm)

    def calls(self, of: Recorded) -> list[str]:
        return [name for name, _ in of.calls]


@pytest.fixture
def driver(folder: Path, store: str) -> Iterator[Driver]:
    made = Driver(folder, store)
    yield made
    made.run.spending.close()


def test_report_updates_status_costs_storage_publisher_and_scorer(driver: Driver) -> None:
    driver.run.handle(report(driver.arm_id, 3))
    driver.run.handle(report(driver.arm_id, 4, checkpoint=""))
    assert (driver.arm.step, driver.arm.loss) == (4, 0.25)
    cost = driver.run.spending.of(driver.arm_id)
    assert (cost.train_cpu_s, cost.train_gpu_s, cost.bytes_read) == (4.0, 6.0, 10), "a whole GPU"
    assert [*driver.state.checkpoints(driver.arm_id)] == [3]
    assert driver.calls(driver.publisher) == ["training", "trained_on", "checkpoint", "training"]
    assert driver.evaluation.calls == [("submit", (driver.arm_id, 3, "fingerprint"))]


def test_finished_run_records_unknown_checkpoints_without_charging_them(driver: Driver) -> None:
    driver.run.handle(report(driver.arm_id, 3))
    checkpoints = tuple(report(driver.arm_id, step) for step in (3, 6, 9))
    driver.run.handle(Finished(driver.arm_id, checkpoints))
    assert [*driver.state.checkpoints(driver.arm_id)] == [3, 6, 9]
    assert driver.run.spending.of(driver.arm_id).train_cpu_s == 2.0
    assert [arguments[1] for _, arguments in driver.evaluation.calls] == [3, 6, 9]
    assert driver.run.training.running == []
    assert driver.lines == [f"trained {driver.arm.name}"]


def test_paused_run_is_neither_trained_nor_failed(driver: Driver) -> None:
    driver.run.handle(Finished(driver.arm_id, (report(driver.arm_id, 5),)))
    assert driver.run.training.running == []
    assert driver.lines == []
    assert not driver.state.checkpoints(driver.arm_id), "step 5 is no checkpoint of the sweep file"


def test_error_in_a_training_event_pauses_training_and_is_raised_at_its_end(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise StorageError("the storage is away")

    monkeypatch.setattr("orchestrator.sweep.state.SweepState.record_checkpoint", away)
    driver.run.handle(report(driver.arm_id, 3))
    assert driver.stop_requests == [(driver.arm_id, StopRequest.PAUSE)]
    assert driver.run.training.running == [driver.arm_id], "its end is still to come"
    driver.run.handle(Finished(driver.arm_id, (report(driver.arm_id, 3),)))
    assert driver.run.training.finished, "no further event of the run will come"
    with pytest.raises(StorageError, match="the storage is away"):
        driver.run._check_training()


def test_failure_is_recorded_and_infrastructure_failure_suspends_the_sweep(driver: Driver) -> None:
    driver.run.handle(Retried(driver.arm_id, "Traceback:\nValueError: no"))
    driver.run.handle(Failed(driver.arm_id, "Traceback:\nOSError: [Errno 28] No space left on device"))
    assert driver.lines[:2] == [
        f"training {driver.arm.name} again: ValueError: no",
        f"paused {driver.arm.name}: the disk is full",
    ]
    assert driver.run.ending == "the disk is full"
    assert not driver.state.failures()
    driver.run.training._running[driver.arm_id] = driver.state.job(driver.arm.arm)
    driver.run.handle(Failed(driver.arm_id, "Traceback:\nValueError: no"))
    assert driver.arm.failure == driver.state.failures()[driver.arm_id]
    assert driver.arm.failure.startswith("ValueError: no (whole trace in")


def test_events_of_an_ended_run_are_ignored(driver: Driver) -> None:
    driver.run.training.leave(driver.arm_id)
    for event in (report(driver.arm_id, 3), Failed(driver.arm_id, "no"), Finished(driver.arm_id, ())):
        driver.run.handle(event)
    assert driver.lines == []
    assert driver.evaluation.calls == []


def test_report_of_a_video_model_updates_every_arm_that_waits_for_it(folder: Path, store: str) -> None:
    driver = Driver(folder, store)
    video = replace(driver.run.training._running.pop(driver.arm_id), arm_id="video-1")
    driver.run.training._running["video-1"] = video
    driver.run.training._waiting["video-1"] = [driver.state.job(driver.arm.arm)]
    driver.run.handle(report("video-1", video.train.steps))
    assert (driver.arm.step, driver.arm.video_step) == (0, video.train.steps)
    assert driver.calls(driver.publisher) == ["stage_one"]
    assert driver.evaluation.calls == []
    driver.run.handle(Finished("video-1", (report("video-1", video.train.steps),)))
    assert driver.lines == [f"trained the video model of {driver.arm.name}"]
    assert not driver.run.training.finished
    (ready,) = driver.run.training._ready
    assert ready.video_model == driver.state.checkpoint_uri("video-1", video.train.steps)
    driver.run.spending.close()
