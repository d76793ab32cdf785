"""Periodic work of a running sweep: share the cluster, check the budget, publish progress."""

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.placement import Demand, ResourcePlan, share_out, training_bundles
from orchestrator.cluster.ray_runtime import nodes, request_capacity
from orchestrator.cluster.sharing import present
from orchestrator.cost import exceeded
from orchestrator.infrastructure import cause_of
from orchestrator.planning.plan import planned_arms
from orchestrator.prometheus import QUEUED_EPISODES, ROLLOUT_WORKERS, UNSCORED_CHECKPOINTS, UNTOLD_RECORDS
from orchestrator.storage.base import StorageError
from orchestrator.sweep.live_status import LiveStatus

if TYPE_CHECKING:
    from orchestrator.sweep.run import SweepRun

BEAT_S = 0.5
SHARE_S = 5.0
WRITE_S = 3.0
"""Seconds between two writes of the progress that `demoscale status` shows."""
PATIENCE_S = 10.0
"""Seconds that the end of a run waits for each thread."""


class Heartbeat:
    """Three threads with one periodic task each, while the context is open.

    One polls for a request to end, a reached budget and failed threads; it needs neither Ray nor the storage.
    One shares the cluster, one writes the run's progress; each reports an infrastructure failure once and
    retries. Any other error in a thread ends the run.
    """

    def __init__(self, run: "SweepRun", placement: ResourcePlan) -> None:
        self._run, self._placement = run, placement
        self._began, self._at_first = time.monotonic(), self._todo()
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._guarded,
                args=one,
                name=f"heartbeat{one[0].__name__.replace('_', '-')}",
                daemon=True,
            )
            for one in self._tasks
        ]
        self._present = 1
        self._arms = len(planned_arms(run.state.sweep)) if placement.server_gpus else 0
        self._asked_for: list[dict[str, float]] = []
        self._failure: BaseException | None = None

    @property
    def _tasks(self) -> tuple[tuple[Callable[[], None], float], ...]:
        """Each task and the seconds between two executions."""
        return (self._watch, BEAT_S), (self._share, SHARE_S), (self._write, WRITE_S)

    def __enter__(self) -> "Heartbeat":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)  # bounded: a thread may be blocked by a storage or Ray
        with suppress(StorageError):
            self._write(over=True)
        if self._asked_for:
            with suppress(Exception):  # the cluster may be gone
                request_capacity([])
        if self._failure and not kind:
            raise self._failure

    def _guarded(self, task: Callable[[], None], pause_s: float) -> None:
        """Repeat the task. An infrastructure failure is reported once; any other error ends the run and is
        raised at its end.
        """
        said, closing = "", False
        while not closing:
            try:
                task()
                said = ""
            except BaseException as error:
                cause = cause_of(error)
                if not cause:
                    self._failure = error
                    return self._run.end(
                        f"a fault of demoscale's own ({type(error).__name__} in"
                        f" {threading.current_thread().name})"
                    )
                if cause != said:
                    self._run.say(f"{threading.current_thread().name}: {cause}; tries again")
                said = cause
            closing = self._closing.wait(pause_s)

    def _watch(self) -> None:
        if name := self._run.failed_thread():
            self._run.end(f"{name} failed")
        elif self._run.taken_over:
            self._run.suspend(self._run.taken_over)
        elif self._run.interrupted:
            self._run.end("stopped")
        elif reached := exceeded(self._run.state.sweep.budget, self._run.spending):
            self._run.end(reached)

    def _share(self) -> None:
        """Limit this sweep to its share of the cluster: at least one training run and one simulator."""
        number = max(1, present())
        if number != self._present:
            others = (
                f"{number - 1} other sweep{'s' if number > 2 else ''}"
                if number > 1
                else "no other sweep any more"
            )
            self._run.say(f"shares the cluster with {others}")
            self._present = number
        if self._placement.server_gpus:
            demand = self._demand()
            shares = share_out(nodes(), demand, number)
            self._ask_for_nodes(demand if number == 1 else replace(demand, runs=0))
            self._run.training.limit(max(1, shares.runs))
            self._run.evaluation.place(shares)
        else:
            self._run.training.limit(max(1, self._placement.concurrent_arms // number))
        self._run.evaluation.scorer.use(max(1, self._run.state.sweep.rollout_actors // number))

    def _ask_for_nodes(self, demand: Demand) -> None:
        """Tell an autoscaler how many training workers could run at once. Only a sweep that is alone does:
        requests of several would replace each other.
        """
        bundles = training_bundles(demand, self._placement.trainer, self._arms)
        if bundles != self._asked_for:
            request_capacity(bundles)
            self._asked_for = bundles

    def _demand(self) -> Demand:
        """Return what the sweep could use now."""
        sweep = self._run.state.sweep
        return Demand(
            runs=self._run.training.demand,
            workers=sweep.train.workers,
            episodes=self._run.evaluation.demand,
            simulators=sweep.scoring_processes,
            score=max(1, len(self._run.state.held_out) or sweep.suite.listed),
        )

    def _measure(self, over: bool) -> None:
        """Record the queue lengths and workers as metrics; zero when the run is over."""
        run, name = self._run, self._run.state.sweep.name
        scorer = run.evaluation.scorer
        for metric, value in (
            (QUEUED_EPISODES, scorer.waiting),
            (UNSCORED_CHECKPOINTS, scorer.unscored),
            (ROLLOUT_WORKERS, run.evaluation.workers),
        ):
            metric.record(0 if over else value, name)
        with suppress(OSError, ValueError):  # journals come and go
            UNTOLD_RECORDS.record(run.untold, name)

    def _write(self, over: bool = False) -> None:
        """Write the run's progress for `demoscale status`. An unavailable storage is ignored: code that needs
        it reports the error.
        """
        run = self._run
        self._measure(over)
        run.board.charge(run.spending.by_arm())
        status = LiveStatus(
            host=socket.gethostname(),
            pid=os.getpid(),
            written=time.time(),
            over=over,
            ending=run.ending,
            arms=tuple(run.board.lines()),
            training=tuple(run.training.running),
            episodes_to_play=run.evaluation.scorer.waiting,
            workers=run.evaluation.workers,
            cost=run.spending.total(),
            wall_s=time.monotonic() - self._began,
            left_s=self._left_s(),
        )
        with suppress(StorageError):
            status.write(run.state.storage, run.state.sweep.name)

    def _left_s(self) -> float | None:
        """Return the seconds left at the pace so far, if no arm is stopped; None before there is a pace."""
        wall_s = time.monotonic() - self._began
        paces = [
            (todo, before - todo) for todo, before in zip(self._todo(), self._at_first, strict=True) if todo
        ]
        if any(made <= 0 for _, made in paces):
            return None
        return max((wall_s * todo / made for todo, made in paces), default=0.0)

    def _todo(self) -> tuple[int, int]:
        """Return the optimiser steps and the episodes that are left."""
        state, board = self._run.state, self._run.board
        of_each = len(state.held_out) or state.sweep.suite.listed
        with board.lock:
            going_on = [arm for arm in board.arms.values() if arm.stopped is None and not arm.failure]
            played = (sum(done + of_each - of for done, of in arm.scoring.values()) for arm in going_on)
            listed = sum(len(state.sweep.scored_steps(arm.arm)) * of_each for arm in going_on)
            return sum(arm.steps - arm.step for arm in going_on), listed - sum(played)
