"""Checkpoint -> rollout pool -> score. Every checkpoint is scored on the same list of episodes; finished
episodes are never played again.
"""

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.evaluation.outcome_ledger import Ledger
from orchestrator.evaluation.priority import EvalPriority
from orchestrator.evaluation.score_events import (
    OutcomesRecorded,
    RolloutVideoStored,
    ScoreConcluded,
    ScorerEvent,
)
from orchestrator.evaluation.scores import EvalJob, Score, check_contract
from orchestrator.evaluation.sequential_rule import Verdict, blocks, decide, prefix, to_play
from orchestrator.evaluation.video_selection import select_episodes_to_record
from orchestrator.storage.base import Storage
from policy.interface import Contract
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.rollout_video import RecordedVideo
from sim_workers.rollout.suite import EpisodeSpec
from sim_workers.rollout.worker import RolloutJob

POLL_S = 0.2
"""Seconds over which finished outcomes are collected and then recorded as one part."""


@dataclass
class _PendingEval:
    """A checkpoint with outcomes or films missing."""

    job: EvalJob
    ledger: Ledger
    outcomes: dict[str, Outcome]
    missing: set[str]
    """Listed episodes without an outcome that may still be played."""
    cut: list[list[EpisodeSpec]]
    """The list, cut into the blocks that are played one after another."""
    pooled: set[str] = field(default_factory=set)
    """Episodes queued or running in the pool."""
    verdict: Verdict | None = None
    """Verdict of an earlier run; None if there is none."""
    unfilmed: set[str] = field(default_factory=set)
    withdrawn: bool = False
    """Whether some of its episodes will not be played, so that there will be no score."""


class Scorer:
    """Scores checkpoints in a thread of its own, several at once and the most urgent first, so that training
    never waits.

    A score is reported only after its outcomes are in the ledger. Finished episodes are never played again.
    """

    def __init__(
        self,
        storage: Storage,
        contract: Contract,
        pool: Any,
        on_event: Callable[[ScorerEvent], None],
        say: Callable[[str], None] = lambda _: None,
        decides: Callable[[int], bool] = lambda _: False,
    ) -> None:
        """Start the thread, which alone calls `on_event` and `say`; an error that they raise ends it.

        say: called with one line per event for the log. decides: whether a decision about an arm waits for
        the score of its checkpoint at the given step.
        """
        self._storage, self._contract, self._pool = storage, contract, pool
        self._on_event, self._say = on_event, say
        # for the thread, which alone accesses the attributes below
        self._todo: queue.Queue[Callable[[], None]] = queue.Queue()
        self._urgency = EvalPriority(decides)
        self._open: dict[str, _PendingEval] = {}  # by the job's key
        # outcomes that others are compared with, by arm and step
        self._references: dict[tuple[str, int], dict[str, Outcome]] = {}
        self._dropped: set[str] = set()
        self._accepting = self._expecting = True
        self.failure: BaseException | None = None
        """Exception that ended the thread; None while there is none."""
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="scorer", daemon=True)
        self._thread.start()

    def submit(self, job: EvalJob) -> None:
        """Enqueue a checkpoint. Raises ProtocolError if its policy cannot be scored on the suite's tasks
        here.
        """
        check_contract(self._contract, job.suite.tasks)
        self._todo.put(lambda: self._begin(job))

    def drop(self, arm_id: str) -> None:
        """Play no more episodes of the arm, now or later; running ones are finished and recorded."""
        self._todo.put(lambda: self._drop(arm_id))

    def use(self, workers: int) -> None:
        """Set the maximum number of rollout workers."""
        self._todo.put(lambda: self._use(workers))

    def use_servers(self, servers: tuple[Any, ...], on_used: Callable[[Collection[Any]], None]) -> None:
        """Have the simulators query these policy servers, from their next episodes on. on_used: called by the
        scorer's thread with those that simulators query now.
        """
        self._todo.put(lambda: on_used(self._pool.use_servers(servers)))

    @property
    def alive(self) -> bool:
        """Whether the thread runs, so that what is requested of it is done."""
        return self._thread.is_alive()

    def wind_down(self) -> None:
        """Finish the running episodes and begin no other."""
        self._todo.put(self._wind_down)

    def drain(self) -> None:
        """Wait until every submitted checkpoint is scored and filmed. Raises the exception that ended the
        thread, if any.
        """
        self._todo.put(self._expect_no_more)
        while self._thread.is_alive():
            self._thread.join(0.5)
        self.check()

    def check(self) -> None:
        """Raise the exception that ended the thread, if any."""
        if self.failure:
            raise self.failure

    @property
    def failed(self) -> bool:
        """Whether an exception ended the thread."""
        return self.failure is not None

    def close(self) -> None:
        """Stop at once, without finishing the running episodes; the next run plays them."""
        self._closing = True
        self._thread.join(5)
        self._pool.close()

    @property
    def waiting(self) -> int:
        """Number of episodes queued or running."""
        return sum(len(entry.missing) for entry in [*self._open.values()])

    @property
    def to_play(self) -> int:
        """Number of episodes queued or running, those for films too."""
        return sum(len(entry.missing) + len(entry.unfilmed) for entry in [*self._open.values()])

    @property
    def unscored(self) -> int:
        """Number of checkpoints without a score, on the nominal suite or a shifted one."""
        return len({entry.job.checkpoint.uri for entry in [*self._open.values()] if entry.missing})

    def _run(self) -> None:
        try:
            # what handles a score may submit another checkpoint of the arm, while `drain` waits, too
            while (self._expecting or self._open or not self._todo.empty()) and not self._closing:
                self._take_in(wait_s=0 if self._pool.unfinished else POLL_S)
                self._feed()
                self._collect()
                self._feed()  # the next block follows at once
        except BaseException as error:
            self.failure = error

    def _take_in(self, wait_s: float) -> None:
        try:
            self._todo.get(timeout=wait_s or None, block=wait_s > 0)()
            while True:
                self._todo.get_nowait()()
        except queue.Empty:
            pass

    def _feed(self) -> None:
        """Submit the most urgent checkpoint's episodes when a worker may soon be idle; jobs in the pool are
        not reordered.
        """
        while self._pool.waiting < max(1, self._pool.placed):
            compared = {
                (entry.job.arm_id, entry.job.step)
                for entry in self._open.values()
                if entry.job.reference and entry.missing
            }
            waiting = (entry.job for entry in self._open.values() if entry.missing and not entry.pooled)
            ready = [job for job in waiting if not job.rule or (job.rule.against, job.step) not in compared]
            if not ready:
                return
            entry = self._open[self._urgency.first(ready).key]
            self._urgency.begun(entry.job)
            # the outcomes of the other arm may be complete by now
            if entry.job.rule and entry.job.rule.against and self._conclude(entry):
                continue
            for spec in to_play(entry.cut, entry.outcomes):
                entry.pooled.add(spec.episode_id)
                self._pool.submit(_rollout(entry.job, spec, entry.job.contract or self._contract))

    def _collect(self) -> None:
        """Collect results from the pool for up to POLL_S, then record the outcomes and report them."""
        until, heard = time.monotonic() + POLL_S, defaultdict[str, list[Outcome]](list)
        for rollout, outcome, film in self._pool.results(timeout_s=POLL_S):
            entry = self._open[rollout.key]
            if rollout.film:
                self._filmed(entry, outcome, film)
            else:
                entry.missing.discard(outcome.spec.episode_id)
                entry.pooled.discard(outcome.spec.episode_id)
                heard[rollout.key].append(outcome)
            if self._closing or time.monotonic() > until:
                break
        for key, fresh in heard.items():
            entry = self._open[key]
            entry.ledger.record(fresh)
            entry.outcomes |= {outcome.spec.episode_id: outcome for outcome in fresh}
            self._progress(entry, fresh)

    def _begin(self, job: EvalJob) -> None:
        if job.key in self._open or job.arm_id in self._dropped or not self._accepting:
            return
        ledger = Ledger(self._storage, job.checkpoint.fingerprint, job.protocol)
        specs = job.suite.episode_list()
        known = ledger.read()
        outcomes = {spec.episode_id: known[spec.episode_id] for spec in specs if spec.episode_id in known}
        missing = {spec.episode_id for spec in specs} - outcomes.keys()
        entry = self._open[job.key] = _PendingEval(job, ledger, outcomes, missing, [specs])
        if job.rule:
            entry.cut, entry.verdict = blocks(specs, job.rule.look_every), ledger.verdict(job.rule.key)
        if job.reference:
            self._references[job.arm_id, job.step] = outcomes
        self._urgency.opened(job)
        self._progress(entry, ())

    def _progress(self, entry: _PendingEval, fresh: Sequence[Outcome]) -> None:
        self._on_event(OutcomesRecorded(entry.job, tuple(fresh), len(entry.outcomes)))
        if entry.withdrawn or entry.pooled or not self._conclude(entry):
            self._close_if_done(entry)

    def _conclude(self, entry: _PendingEval) -> bool:
        """Report the score if it is complete, and play no more then; return whether it is."""
        job, rule, counted, verdict = entry.job, entry.job.rule, [*entry.outcomes.values()], None
        if rule:
            others = self._references.get((rule.against, job.step), {})
            verdict = decide(rule, entry.cut, entry.outcomes, others, entry.verdict)
        if rule and verdict:
            verdict = entry.ledger.keep_verdict(rule.key, verdict)
            counted = prefix(entry.cut, entry.outcomes, verdict.episodes)
        if not verdict and to_play(entry.cut, entry.outcomes):
            return False
        entry.missing.clear()
        self._urgency.begun(job)
        listed = sum(map(len, entry.cut))
        score = Score.of(counted, listed, rule, verdict)
        if score.episodes == listed and not entry.ledger.sealed:
            counted = entry.ledger.seal(counted)
            # those that a driver which has lost the lease sealed at the same moment
            entry.outcomes |= {outcome.spec.episode_id: outcome for outcome in counted}
            score = Score.of(counted, listed, rule, verdict)
        self._on_event(ScoreConcluded(job, score, tuple(counted)))
        if balance := self._pool.rebalance():
            self._say(
                f"rollouts: {balance}"
                + (f"; now {self._pool.num_workers}" if self._pool.num_workers != balance.workers else "")
            )
        if entry.job.films:
            have = entry.ledger.films()
            for spec in select_episodes_to_record(counted):
                if spec.episode_id not in have:
                    entry.unfilmed.add(spec.episode_id)
                    self._pool.submit(_rollout(entry.job, spec, self._contract, film=True))
        self._close_if_done(entry)
        return True

    def _filmed(self, entry: _PendingEval, outcome: Outcome, film: RecordedVideo | None) -> None:
        episode, before = outcome.spec.episode_id, entry.outcomes[outcome.spec.episode_id]
        entry.unfilmed.remove(episode)
        if film is None:
            self._say(f"no film of {episode} of {entry.job}: {outcome.message}")
        elif (outcome.result, outcome.steps) != (before.result, before.steps):
            self._say(
                f"no film of {episode} of {entry.job}: the replay ended as a {outcome.result} after"
                f" {outcome.steps} steps, the recorded episode as a {before.result} after {before.steps}; the"
                " policy is not deterministic"
            )
        else:
            entry.ledger.keep_film(episode, film)
            self._on_event(RolloutVideoStored(entry.job, episode, film))
        self._close_if_done(entry)

    def _close_if_done(self, entry: _PendingEval) -> None:
        if not entry.missing and not entry.unfilmed:
            self._open.pop(entry.job.key, None)

    def _drop(self, arm_id: str) -> None:
        self._dropped.add(arm_id)
        for entry in [entry for entry in self._open.values() if entry.job.arm_id == arm_id]:
            self._withdraw(entry)

    def _withdraw(self, entry: _PendingEval) -> None:
        """Remove the episodes of a checkpoint that no worker plays yet."""
        gone = self._pool.withdraw(entry.job.key)
        entry.unfilmed -= {rollout.spec.episode_id for rollout in gone if rollout.film}
        entry.pooled -= {rollout.spec.episode_id for rollout in gone if not rollout.film}
        entry.withdrawn |= bool(entry.missing - entry.pooled)
        entry.missing &= entry.pooled
        self._close_if_done(entry)

    def _use(self, workers: int) -> None:
        if workers != self._pool.most_workers:
            self._pool.most_workers = workers
            self._pool.resize(workers)

    def _wind_down(self) -> None:
        self._accepting = self._expecting = False
        for entry in [*self._open.values()]:
            self._withdraw(entry)

    def _expect_no_more(self) -> None:
        self._expecting = False


def _rollout(job: EvalJob, spec: EpisodeSpec, contract: Contract, film: bool = False) -> RolloutJob:
    return RolloutJob(
        spec,
        job.suite.rules_of(spec.task),
        contract,
        job.source,
        job.key,
        film,
        str(job),
        reset=job.suite.reset,
    )
