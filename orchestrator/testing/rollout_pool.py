"""A rollout pool that plays in the caller's thread."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

from sim_workers.rollout.autoscaler import PoolLoad
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.pool_state import OnRetry, Usage
from sim_workers.rollout.references import References, ReferencesInMemory
from sim_workers.rollout.rollout_video import RecordedVideo
from sim_workers.rollout.worker import RolloutJob

PERMIT_WAIT_S = 0.05
"""Seconds that results() of a paused pool waits at most for release() or resume()."""


class FakeRolloutPool:
    """The calls of `sim_workers.rollout.pool.RolloutPool`, without processes: `play` returns the outcome of
    each episode.

    As with the real pool, one thread owns it; release() and resume() may be called from any thread.
    """

    def __init__(
        self,
        play: Callable[[RolloutJob], Outcome],
        num_workers: int = 64,
        order: Callable[[RolloutJob], float] | None = None,
        paused: bool = False,
        on_retry: OnRetry = lambda kind, job, why: None,
    ) -> None:
        """Create a pool without jobs.

        Args:
            play: returns the outcome of a job; called in results(), so it may block.
            num_workers: number of workers that the pool reports; it plays one episode after another.
            order: sort key of the queued jobs, applied at the start of results(); None: jobs end in the order
                of their submission.
            paused: whether results() plays nothing until release() or resume().
            on_retry: never called by the pool; a test may call it.
        """
        self.play, self.num_workers, self.most_workers = play, num_workers, num_workers
        self._order = order
        self._permits = threading.Semaphore(0)
        self._running = threading.Event()
        if not paused:
            self._running.set()
        self.queue: list[RolloutJob] = []
        """Jobs that have not been played yet."""
        self.played: list[RolloutJob] = []
        """Jobs that were played, without those that only make a film."""
        self.references: References = ReferencesInMemory()
        self.usage = Usage()
        self.on_retry = on_retry

    def use_servers(self, servers: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return no server: episodes query none."""
        return ()

    def release(self, episodes: int = 1) -> None:
        """Permit a paused pool to play `episodes` further episodes, at most one per call of results()."""
        self._permits.release(episodes)

    def resume(self) -> None:
        """Permit a paused pool to play all jobs from now on."""
        self._running.set()

    def submit(self, job: RolloutJob) -> None:
        """Append a job to the queue."""
        self.queue.append(job)

    def withdraw(self, key: str) -> list[RolloutJob]:
        """Remove the queued jobs whose key is `key`; return them."""
        gone = [job for job in self.queue if job.key == key]
        self.queue = [job for job in self.queue if job.key != key]
        return gone

    @property
    def placed(self) -> int:
        """Number of workers: all of them, as none needs a node."""
        return self.num_workers

    @property
    def waiting(self) -> int:
        """Return the number of queued jobs."""
        return len(self.queue)

    @property
    def unfinished(self) -> int:
        """Number of queued jobs."""
        return len(self.queue)

    def results(
        self, timeout_s: float | None = None
    ) -> Iterator[tuple[RolloutJob, Outcome, RecordedVideo | None]]:
        """Play the queued jobs; a paused pool waits up to `PERMIT_WAIT_S`, regardless of `timeout_s`, and
        plays at most one released episode.
        """
        paused = not self._running.is_set()
        if not self.queue or (
            paused and not (self._permits.acquire(timeout=PERMIT_WAIT_S) or self._running.is_set())
        ):
            return
        if self._order:
            self.queue.sort(key=self._order)
        while self.queue:
            job = self.queue.pop(0)
            if not job.film:
                self.played.append(job)
            yield job, self.play(job), RecordedVideo(b"film") if job.film else None
            if paused:
                return

    def rebalance(self) -> PoolLoad | None:
        """Return None: the fake pool measures nothing."""
        return None

    def resize(self, num_workers: int) -> None:
        """Set the number of workers."""
        self.num_workers = num_workers

    def close(self) -> None:
        """Empty the queue."""
        self.queue = []
