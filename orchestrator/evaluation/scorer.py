"""Checkpoint -> rollout pool -> score. Every checkpoint meets the same list of episodes; what is finished is never played again."""

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from orchestrator.evaluation.outcome_ledger import Ledger
from orchestrator.evaluation.priority import Urgency
from orchestrator.evaluation.scores import Score, ScoringJob, check_contract
from orchestrator.evaluation.sequential_rule import Verdict, beginning, blocks, decide, to_play
from orchestrator.evaluation.video_selection import episodes_to_film
from orchestrator.storage.base import Storage
from policy.interface import Contract
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.rollout_video import Filmed
from sim_workers.rollout.suite import EpisodeSpec
from sim_workers.rollout.worker import RolloutJob

POLL_S = 0.2
"""Outcomes that come within this time are written down together."""


class Listener(Protocol):
    """Who hears of what is scored, in the scorer's thread."""

    def on_outcomes(self, job: ScoringJob, outcomes: Sequence[Outcome], done: int) -> None:
        """These were played and written down; `done` of the listed episodes have an outcome now."""

    def on_score(self, job: ScoringJob, score: Score, outcomes: Sequence[Outcome]) -> None:
        """Every listed episode has an outcome, or as many as the job's rule asks for. outcomes: those that the score counts."""

    def on_film(self, job: ScoringJob, episode: str, film: Filmed) -> None: ...

    def say(self, line: str) -> None:
        """One line worth telling."""


@dataclass
class _Open:
    """A checkpoint that has not all its outcomes, or films."""

    job: ScoringJob
    ledger: Ledger
    outcomes: dict[str, Outcome]
    missing: set[str]
    """Listed episodes without an outcome, as far as they may still be played."""
    cut: list[list[EpisodeSpec]]
    """The list in the parts that are played one after another."""
    pooled: set[str] = field(default_factory=set)
    """Episodes in the pool, played or waiting."""
    verdict: Verdict | None = None
    """That an earlier run came to."""
    unfilmed: set[str] = field(default_factory=set)
    withdrawn: bool = False
    """Some of its episodes will not be played: there will be no score."""


class Scorer:
    """Scores checkpoints in a thread of its own, many at once and the most telling first, so that training never waits.

    A score is told only after its outcomes are in the ledger. Finished episodes are never played again.
    """

    def __init__(self, storage: Storage, contract: Contract, pool: Any, listener: Listener, decides: Callable[[int], bool] = lambda _: False) -> None:
        """decides: whether a decision about the arm waits for the score of its checkpoint of this step."""
        self._storage, self._contract, self._pool, self._listener = storage, contract, pool, listener
        self._todo: queue.Queue[Callable[[], None]] = queue.Queue()  # for the thread: it alone touches what follows
        self._urgency = Urgency(decides)
        self._open: dict[str, _Open] = {}  # by the job's key
        self._references: dict[tuple[str, int], dict[str, Outcome]] = {}  # outcomes that others are held against, by arm and step
        self._dropped: set[str] = set()
        self._accepting = True
        self.failure: BaseException | None = None
        """What ended the thread before its time."""
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="scorer", daemon=True)
        self._thread.start()

    def submit(self, job: ScoringJob) -> None:
        """ProtocolError if its policy cannot be scored on the suite here."""
        check_contract(self._contract, job.suite.tasks)
        self._todo.put(lambda: self._begin(job))

    def drop(self, arm_id: str) -> None:
        """Play no more episodes of the arm, now or later; those being played are finished and kept."""
        self._todo.put(lambda: self._drop(arm_id))

    def use(self, workers: int) -> None:
        """Have at most so many workers from now on."""
        self._todo.put(lambda: self._use(workers))

    def wind_down(self) -> None:
        """Finish the episodes being played, and begin no other."""
        self._todo.put(self._wind_down)

    def drain(self) -> None:
        """Wait until everything submitted is scored and filmed; raises what went wrong in the thread."""
        self._todo.put(self._expect_no_more)
        while self._thread.is_alive():
            self._thread.join(0.5)
        self.check()

    def check(self) -> None:
        """Raise what went wrong in the thread, if anything did."""
        if self.failure:
            raise self.failure

    @property
    def failed(self) -> bool:
        return self.failure is not None

    def close(self) -> None:
        """Stop at once; what was not finished is found missing by the next run."""
        self._closing = True
        self._thread.join(5)
        self._pool.close()

    @property
    def waiting(self) -> int:
        """Episodes that are still to be played or being played."""
        return sum(len(entry.missing) for entry in [*self._open.values()])

    @property
    def unscored(self) -> int:
        """Checkpoints that wait for a score, of the nominal suite or a shifted one."""
        return len({entry.job.uri for entry in [*self._open.values()] if entry.missing})

    def _run(self) -> None:
        try:
            while (self._accepting or self._open) and not self._closing:
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
        """Give the pool the most telling checkpoint whenever a worker could soon be idle; what waits in there has been decided."""
        while self._pool.waiting < max(1, self._pool.placed):
            compared = {(entry.job.arm_id, entry.job.step) for entry in self._open.values() if entry.job.reference and entry.missing}
            waiting = (entry.job for entry in self._open.values() if entry.missing and not entry.pooled)
            ready = [job for job in waiting if not job.rule or (job.rule.against, job.step) not in compared]
            if not ready:
                return
            entry = self._open[self._urgency.first(ready).key]
            self._urgency.begun(entry.job)
            if entry.job.rule and entry.job.rule.against and self._conclude(entry):  # what it is held against may have come meanwhile
                continue
            for spec in to_play(entry.cut, entry.outcomes):
                entry.pooled.add(spec.episode_id)
                self._pool.submit(_rollout(entry.job, spec, self._contract))

    def _collect(self) -> None:
        """Hear the pool for a moment, then write down what came and tell of it."""
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

    def _begin(self, job: ScoringJob) -> None:
        if job.key in self._open or job.arm_id in self._dropped or not self._accepting:
            return
        ledger, specs = Ledger(self._storage, job.fingerprint, job.protocol), job.suite.episode_list()
        known = ledger.read()
        outcomes = {spec.episode_id: known[spec.episode_id] for spec in specs if spec.episode_id in known}
        missing = {spec.episode_id for spec in specs} - outcomes.keys()
        entry = self._open[job.key] = _Open(job, ledger, outcomes, missing, [specs])
        if job.rule:
            entry.cut, entry.verdict = blocks(specs, job.rule.look_every), ledger.verdict(job.rule.key)
        if job.reference:
            self._references[job.arm_id, job.step] = outcomes
        self._urgency.opened(job)
        self._progress(entry, ())

    def _progress(self, entry: _Open, fresh: Sequence[Outcome]) -> None:
        self._listener.on_outcomes(entry.job, fresh, len(entry.outcomes))
        if entry.withdrawn or entry.pooled or not self._conclude(entry):
            self._close_if_done(entry)

    def _conclude(self, entry: _Open) -> bool:
        """Tell the score if there is one now: no more is played then."""
        job, rule, counted, verdict = entry.job, entry.job.rule, [*entry.outcomes.values()], None
        if rule:
            others = self._references.get((rule.against, job.step), {})
            verdict = decide(rule, entry.cut, entry.outcomes, others, entry.verdict)
        if rule and verdict:
            verdict = entry.ledger.keep_verdict(rule.key, verdict)
            counted = beginning(entry.cut, entry.outcomes, verdict.episodes)
        if not verdict and to_play(entry.cut, entry.outcomes):
            return False
        entry.missing.clear()
        self._urgency.begun(job)
        score = Score.of(counted, sum(map(len, entry.cut)), rule, verdict)
        if score.episodes == score.listed and not entry.ledger.sealed:
            entry.ledger.seal(counted)
        self._listener.on_score(job, score, counted)
        if balance := self._pool.rebalance():
            self._listener.say(f"rollouts: {balance}" + (f"; now {self._pool.num_workers}" if self._pool.num_workers != balance.workers else ""))
        if entry.job.films:
            have = entry.ledger.films()
            for spec in episodes_to_film(counted):
                if spec.episode_id not in have:
                    entry.unfilmed.add(spec.episode_id)
                    self._pool.submit(_rollout(entry.job, spec, self._contract, film=True))
        self._close_if_done(entry)
        return True

    def _filmed(self, entry: _Open, outcome: Outcome, film: Filmed | None) -> None:
        episode, before = outcome.spec.episode_id, entry.outcomes[outcome.spec.episode_id]
        entry.unfilmed.remove(episode)
        if film is None:
            self._listener.say(f"no film of {episode} of {entry.job}: {outcome.message}")
        elif (outcome.result, outcome.steps) != (before.result, before.steps):
            self._listener.say(
                f"no film of {episode} of {entry.job}: played again it ended as a {outcome.result} after {outcome.steps} steps, not as the recorded "
                f"{before.result} after {before.steps}; the policy does not answer the same twice"
            )
        else:
            entry.ledger.keep_film(episode, film)
            self._listener.on_film(entry.job, episode, film)
        self._close_if_done(entry)

    def _close_if_done(self, entry: _Open) -> None:
        if not entry.missing and not entry.unfilmed:
            self._open.pop(entry.job.key, None)

    def _drop(self, arm_id: str) -> None:
        self._dropped.add(arm_id)
        for entry in [entry for entry in self._open.values() if entry.job.arm_id == arm_id]:
            self._withdraw(entry)

    def _withdraw(self, entry: _Open) -> None:
        """Forget what of a checkpoint no worker plays yet."""
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
        self._accepting = False
        for entry in [*self._open.values()]:
            self._withdraw(entry)

    def _expect_no_more(self) -> None:
        self._accepting = False


def _rollout(job: ScoringJob, spec: EpisodeSpec, contract: Contract, film: bool = False) -> RolloutJob:
    return RolloutJob(spec, job.suite.rules, contract, job.source, job.key, film, str(job))
