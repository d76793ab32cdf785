"""What a running sweep does every so often: share the cluster, keep to its budget, write down how far it is."""

import json
import os
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from orchestrator.cost import exceeded
from orchestrator.credentials import redacted_in
from orchestrator.metrics import QUEUED_EPISODES, ROLLOUT_WORKERS, UNSCORED_CHECKPOINTS, UNTOLD_RECORDS
from orchestrator.placement import Placement
from orchestrator.sharing import sweeps
from orchestrator.storage import StorageError

if TYPE_CHECKING:
    from orchestrator.sweep import SweepRun

BEAT_S = 0.5
SHARE_S = 5.0
WRITE_S = 3.0
"""What `demoscale status` shows of a run is at most so old."""


class Pulse:
    """A thread, while the context is open."""

    def __init__(self, run: "SweepRun", placement: Placement) -> None:
        self._run, self._placement = run, placement
        self._began, self._at_first = time.monotonic(), self._todo()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)
        self._sweeps, self._present = sweeps(), 1
        self._identity = f"{run.state.storage.uri} {run.state.sweep.name}"

    def __enter__(self) -> "Pulse":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._closing.set()
        self._thread.join()
        self._sweeps.gone.remote(self._identity)
        self._write(over=True)

    def _beat(self) -> None:
        shared = written = float("-inf")
        while not self._closing.wait(BEAT_S):
            if self._run.evaluation.scorer.failed:
                self._run.end("scoring failed")
            elif self._run.interrupted:
                self._run.end("stopped")
            elif reached := exceeded(self._run.state.sweep.budget, self._run.spending):
                self._run.end(reached)
            now = time.monotonic()
            if now - shared > SHARE_S:
                self._share()
                shared = now
            if now - written > WRITE_S:
                self._write()
                written = now

    def _share(self) -> None:
        """Of several sweeps on one cluster each takes its part: at least one training run and one simulator."""
        import ray

        present: int = ray.get(self._sweeps.present.remote(self._identity))
        if present != self._present:
            others = f"{present - 1} other sweep{'s' if present > 2 else ''}" if present > 1 else "no other sweep any more"
            self._run.say(f"shares the cluster with {others}")
            self._present = present
        self._run.training.slots = max(1, self._placement.concurrent_arms // present)
        self._run.evaluation.scorer.use(max(1, self._run.state.sweep.rollout_actors // present))

    def _measure(self, over: bool) -> None:
        """Of a run that is over nobody waits for anything any more."""
        run, name = self._run, self._run.state.sweep.name
        scorer = run.evaluation.scorer
        for metric, value in ((QUEUED_EPISODES, scorer.waiting), (UNSCORED_CHECKPOINTS, scorer.unscored), (ROLLOUT_WORKERS, run.evaluation.workers)):
            metric.record(0 if over else value, name)
        with suppress(OSError, ValueError):  # journals come and go
            UNTOLD_RECORDS.record(run.untold, name)

    def _write(self, over: bool = False) -> None:
        """For onlookers. A storage that is away for a moment is no reason to stop: whoever needs it will say so."""
        run = self._run
        self._measure(over)
        run.board.charge(run.spending.by_arm())
        news = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "written": time.time(),
            "over": over,
            "ending": run.ending,
            "arms": run.board.lines(),
            "training": sorted(run.training.running),
            "episodes_to_play": run.evaluation.scorer.waiting,
            "workers": run.evaluation.workers,
            "cost": run.spending.total().to_json(),
            "wall_s": time.monotonic() - self._began,
            "left_s": self._left_s(),
        }
        with suppress(StorageError):
            run.state.storage.put(f"live/{run.state.sweep.name}.json", json.dumps(redacted_in(news)).encode())

    def _left_s(self) -> float | None:
        """How long it will take at the pace so far, if no arm is stopped; None before there is a pace."""
        wall_s = time.monotonic() - self._began
        paces = [(todo, before - todo) for todo, before in zip(self._todo(), self._at_first, strict=True) if todo]
        if any(made <= 0 for _, made in paces):
            return None
        return max((wall_s * todo / made for todo, made in paces), default=0.0)

    def _todo(self) -> tuple[int, int]:
        """Optimiser steps and episodes that are left."""
        sweep, board = self._run.state.sweep, self._run.board
        listed = len(sweep.checkpoint_steps()) * sweep.suite.listed
        with board.lock:
            going_on = [arm for arm in board.arms.values() if arm.stopped is None and not arm.failure]
            played = (sum(done + sweep.suite.listed - of for done, of in arm.scoring.values()) for arm in going_on)
            return sum(arm.steps - arm.step for arm in going_on), listed * len(going_on) - sum(played)
