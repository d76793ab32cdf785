"""Checkpoint -> rollout pool -> Score. Every checkpoint meets the same list of episodes; what is finished is never played again."""

import queue
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from orchestrator.films import episodes_to_film
from orchestrator.ledger import Ledger
from orchestrator.provenance import SCORING_CODE, code_fingerprint, digest
from orchestrator.stats import wilson
from orchestrator.storage import Storage
from policy.config import SamplerConfig
from policy.interface import Contract
from sim_workers.backends import unfit
from sim_workers.rollout import Outcome
from sim_workers.sources import PolicySource
from sim_workers.suite import Suite
from sim_workers.worker import RolloutJob


class ProtocolError(Exception):
    """One sentence: the policy and the simulator disagree about a convention."""


@dataclass(frozen=True)
class Score:
    """Successes out of the suite's episodes. Complete only when every listed episode ended in success or failure."""

    outcomes: tuple[Outcome, ...]
    listed: int
    """Episodes in the suite."""

    @property
    def successes(self) -> int:
        return sum(outcome.result == "success" for outcome in self.outcomes)

    @property
    def errors(self) -> int:
        return sum(outcome.result == "error" for outcome in self.outcomes)

    @property
    def episodes(self) -> int:
        """Episodes that say something about the policy: the denominator."""
        return len(self.outcomes) - self.errors

    @property
    def complete(self) -> bool:
        return self.episodes == self.listed

    @property
    def success_rate(self) -> float:
        return self.successes / self.episodes if self.episodes else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson, 95 %."""
        return wilson(self.successes, self.episodes)

    def __str__(self) -> str:
        low, high = self.interval
        errors = f", {self.errors} errors" if self.errors else ""
        partial = "" if self.complete else f" (PARTIAL: {self.listed} listed)"
        return f"{self.successes}/{self.episodes} = {self.success_rate:.2f} [{low:.2f}, {high:.2f}]{errors}{partial}"


def protocol_fingerprint(suite: Suite, contract: Contract, sampler: SamplerConfig, gl: str) -> str:
    """Of everything besides the weights that shapes an outcome.

    Episodes, rules, conventions, how looks become actions, the GL backend, the simulator and its code.
    """
    return digest([suite.fingerprint(), contract.to_json(), sampler.model_dump(mode="json"), gl, code_fingerprint(SCORING_CODE)])


def check_contract(policy: Contract, tasks: Iterable[str]) -> None:
    """ProtocolError if a task's simulator on this machine cannot give the policy what it was trained on."""
    for task in tasks:
        if different := unfit(policy, task):
            raise ProtocolError(f"the policy cannot be scored on {task} here. " + "; ".join(different))


@dataclass(frozen=True)
class ScoringJob:
    """One checkpoint to score on one suite."""

    arm_id: str
    step: int
    uri: str
    fingerprint: str
    suite: Suite
    protocol: str
    source: PolicySource
    films: bool = False
    """Film the first success and the first failure of every task."""

    @property
    def key(self) -> str:
        return f"{self.uri} under {self.protocol}"


@dataclass
class _Open:
    job: ScoringJob
    ledger: Ledger
    outcomes: dict[str, Outcome]
    missing: set[str] = field(default_factory=set)
    unfilmed: set[str] = field(default_factory=set)


class Scorer:
    """Scores checkpoints in a thread of its own, so that training never waits. Finished episodes are never played again.

    on_progress(job, done, listed), on_score(job, score), on_film(job, episode id, film) and say(one line) are called from that thread.
    """

    def __init__(
        self,
        storage: Storage,
        contract: Contract,
        pool: Any,
        on_progress: Callable[[ScoringJob, int, int], None],
        on_score: Callable[[ScoringJob, Score], None],
        on_film: Callable[[ScoringJob, str, bytes], None] = lambda *_: None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._storage, self._contract, self._pool = storage, contract, pool
        self._on_progress, self._on_score, self._on_film, self._say = on_progress, on_score, on_film, say
        self._jobs: queue.Queue[ScoringJob | None] = queue.Queue()
        self._open: dict[str, _Open] = {}  # by the job's key
        self._failure: BaseException | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="scorer", daemon=True)
        self._thread.start()

    def submit(self, job: ScoringJob) -> None:
        """ProtocolError if its policy cannot be scored on the suite here."""
        check_contract(self._contract, job.suite.tasks)
        self._jobs.put(job)

    def drain(self) -> None:
        """Wait until everything submitted is scored and filmed; raises what went wrong in the thread."""
        self._jobs.put(None)
        while self._thread.is_alive():
            self._thread.join(0.5)
        if self._failure:
            raise self._failure

    def close(self) -> None:
        """Stop at once; what was not finished is found missing by the next run."""
        self._closing = True
        self._thread.join(5)
        self._pool.close()

    def _run(self) -> None:
        try:
            accepting = True
            while (accepting or self._pool.unfinished) and not self._closing:
                block = not self._pool.unfinished
                try:
                    while True:
                        job = self._jobs.get(timeout=0.5 if block else 0)
                        block = False
                        if job is None:
                            accepting = False
                        else:
                            self._begin(job)
                except queue.Empty:
                    pass
                for rollout, outcome, film in self._pool.results(timeout_s=0.2):
                    self._finish(self._open[rollout.key], rollout, outcome, film)
                    if self._closing or not self._jobs.empty():
                        break
        except BaseException as error:
            self._failure = error

    def _begin(self, job: ScoringJob) -> None:
        if job.key in self._open:
            return
        ledger = Ledger(self._storage, job.fingerprint, job.protocol)
        specs = job.suite.episode_list()
        known = ledger.read()
        entry = _Open(job, ledger, {spec.episode_id: known[spec.episode_id] for spec in specs if spec.episode_id in known})
        entry.missing = {spec.episode_id for spec in specs} - entry.outcomes.keys()
        self._open[job.key] = entry
        for spec in specs:
            if spec.episode_id in entry.missing:
                self._pool.submit(RolloutJob(spec, job.suite.rules, self._contract, job.source, job.key))
        self._report(entry)

    def _finish(self, entry: _Open, rollout: RolloutJob, outcome: Outcome, film: bytes | None) -> None:
        episode = rollout.spec.episode_id
        if not rollout.film:
            entry.missing.remove(episode)
            entry.outcomes[episode] = outcome
            entry.ledger.record([outcome])
            self._report(entry)
            return
        entry.unfilmed.remove(episode)
        if film is None:
            self._say(f"no film of {episode}: {outcome.message}")
        elif (outcome.result, outcome.steps) != (entry.outcomes[episode].result, entry.outcomes[episode].steps):
            before = entry.outcomes[episode]
            self._say(
                f"no film of {episode}: played again it ended as a {outcome.result} after {outcome.steps} steps, not as the recorded "
                f"{before.result} after {before.steps}; the policy does not answer the same twice"
            )
        else:
            entry.ledger.keep_film(episode, film)
            self._on_film(entry.job, episode, film)
        self._close_if_done(entry)

    def _report(self, entry: _Open) -> None:
        listed = len(entry.missing) + len(entry.outcomes)
        self._on_progress(entry.job, len(entry.outcomes), listed)
        if entry.missing:
            return
        score = Score(tuple(entry.outcomes.values()), listed)
        self._on_score(entry.job, score)
        if balance := self._pool.rebalance():
            self._say(f"rollouts: {balance}" + (f"; now {self._pool.num_workers}" if self._pool.num_workers != balance.workers else ""))
        if entry.job.films:
            have = entry.ledger.films()
            for spec in episodes_to_film(score.outcomes):
                if spec.episode_id not in have:
                    entry.unfilmed.add(spec.episode_id)
                    self._pool.submit(RolloutJob(spec, entry.job.suite.rules, self._contract, entry.job.source, entry.job.key, film=True))
        self._close_if_done(entry)

    def _close_if_done(self, entry: _Open) -> None:
        if not entry.missing and not entry.unfilmed:
            self._open.pop(entry.job.key, None)
