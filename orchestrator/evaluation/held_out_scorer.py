"""Checkpoint -> policy queries on recorded observations -> action error. Every checkpoint is measured on the
same held-out episodes; a measured episode is never measured again.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

from orchestrator.data.action_error import ActionError
from orchestrator.data.manifest import EpisodeEntry
from orchestrator.evaluation.action_error_ledger import ActionErrorLedger
from orchestrator.evaluation.action_error_score import ActionErrorBenchmark, ActionErrorScore, Measured
from orchestrator.evaluation.priority import EvalPriority
from orchestrator.evaluation.score_events import ActionErrorScored, ActionErrorsRecorded, HeldOutEvent
from orchestrator.evaluation.scores import HeldOutJob
from orchestrator.infrastructure import cause_of
from orchestrator.storage.base import Storage
from sim_workers.rollout.policy_clients import PolicySource
from sim_workers.rollout.worker import one_line

ActionErrors = Callable[[ActionErrorBenchmark, PolicySource], Iterator[tuple[list[Measured], float]]]
"""(test, policy) -> the results of its episodes in parts, as they arrive, each with its CPU seconds."""


class HeldOutScorer:
    """Measures checkpoints in a thread of its own, one after another and the most urgent first, so that
    training never waits. It has the methods of `Scorer`, in whose place a sweep of held-out episodes has it.

    A score is reported only after its episodes are in the ledger.
    """

    def __init__(
        self,
        storage: Storage,
        test: ActionErrorBenchmark,
        measure: ActionErrors,
        on_event: Callable[[HeldOutEvent], None],
        decides: Callable[[int], bool] = lambda _: False,
    ) -> None:
        """Start the thread, which alone calls `measure` and `on_event`; an error that they raise ends it.

        decides: as for `Scorer`.
        """
        self._storage, self._test, self._measure, self._on_event = storage, test, measure, on_event
        self._todo: queue.Queue[HeldOutJob | None] = queue.Queue()  # None: no more follow
        self._open: dict[str, HeldOutJob] = {}  # by the job's key; written by the thread alone
        self._urgency = EvalPriority(decides)
        self._dropped: set[str] = set()
        self._left: dict[str, int] = {}  # episodes to measure, by the job's key
        self._accepting, self._ending = True, False
        self.failure: BaseException | None = None
        """Exception that ended the thread; None while there is none."""
        self._thread = threading.Thread(target=self._run, name="held-out scorer", daemon=True)
        self._thread.start()

    def submit(self, job: HeldOutJob) -> None:
        """Enqueue a checkpoint."""
        self._todo.put(job)

    def drop(self, arm_id: str) -> None:
        """Measure no more episodes of the arm."""
        self._dropped.add(arm_id)

    def use(self, workers: int) -> None:
        """Do nothing: there are no simulators whose number could be limited."""

    def wind_down(self) -> None:
        """Finish the running queries and begin no other."""
        self._ending = True
        self._todo.put(None)

    def drain(self) -> None:
        """Wait until every submitted checkpoint is measured. Raises the exception that ended the thread, if
        any.
        """
        self._todo.put(None)
        while self._thread.is_alive():
            self._thread.join(0.5)
        self.check()

    def check(self) -> None:
        """Raise the exception that ended the thread, if any."""
        if self.failure:
            raise self.failure

    def close(self) -> None:
        """Stop at once; the next run measures the episodes that are not in the ledger."""
        self.wind_down()
        self._thread.join(5)

    @property
    def waiting(self) -> int:
        """Number of episodes to measure."""
        return sum([*self._left.values()])

    @property
    def unscored(self) -> int:
        """Number of checkpoints without a score."""
        return len(self._left)

    def _run(self) -> None:
        try:
            while not self._ending and (self._accepting or self._open):
                self._take_in()
                if self._open and not self._ending:
                    job = self._urgency.first([*self._open.values()])
                    self._score(job)
                    del self._open[job.key]
                    self._left.pop(job.key, None)
        except BaseException as error:
            self.failure = error

    def _take_in(self) -> None:
        """Take in what was submitted; wait for it if there is nothing to measure."""
        while self._accepting and (not self._open or not self._todo.empty()):
            job = self._todo.get()
            if job is None:
                self._accepting = False
            elif job.key not in self._open and job.arm_id not in self._dropped:
                self._open[job.key] = job
                self._left[job.key] = len(self._test.entries)
                self._urgency.opened(job)

    def _score(self, job: HeldOutJob) -> None:
        entries, listed = self._test.entries, len(self._test.entries)
        ledger = ActionErrorLedger(self._storage, job.checkpoint.fingerprint, job.protocol)
        known = ledger.read()
        found = {one.episode_id: known[one.episode_id] for one in entries if one.episode_id in known}
        causes: dict[str, str] = {}
        self._urgency.begun(job)
        self._record(job, found, [], 0.0)
        for measured, cpu_s in self._parts(job, [one for one in entries if one.episode_id not in found]):
            fresh = [one.error for one in measured if one.error]
            causes |= {one.episode: one.message for one in measured if not one.error}
            ledger.record(fresh)
            found |= {error.episode: error for error in fresh}
            self._record(job, found, fresh, cpu_s)
            if self._ending or job.arm_id in self._dropped:
                return
        score = ActionErrorScore.of(found.values(), listed, causes)
        if score.complete:
            score = ActionErrorScore.of(ledger.seal(score.errors), listed)
        self._on_event(ActionErrorScored(job, score))

    def _parts(self, job: HeldOutJob, missing: list[EpisodeEntry]) -> Iterator[tuple[list[Measured], float]]:
        """Yield the results of the missing episodes in parts. If the policy as a whole cannot be measured, as
        a checkpoint that cannot be loaded, its error is the result of those that are left.
        """
        if not missing:
            return
        left = {entry.episode_id for entry in missing}
        parts = self._measure(replace(self._test, entries=tuple(missing)), job.source)
        while left:
            try:
                measured, cpu_s = next(parts)
            except StopIteration:
                return
            except Exception as error:
                if cause_of(error):
                    raise
                yield [Measured(episode, None, one_line(error)) for episode in sorted(left)], 0.0
                return
            left -= {one.episode for one in measured}
            yield measured, cpu_s

    def _record(
        self, job: HeldOutJob, found: dict[str, ActionError], fresh: list[ActionError], cpu_s: float
    ) -> None:
        listed = len(self._test.entries)
        self._left[job.key] = listed - len(found)
        self._on_event(ActionErrorsRecorded(job, tuple(fresh), len(found), listed, cpu_s))
