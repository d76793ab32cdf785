"""Scoring one policy, without a sweep: what the ledger has is not played again, what is played is in the ledger at once."""

import json
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.evaluation.outcome_ledger import Ledger, Portraits
from orchestrator.evaluation.policy_ref import Subject
from orchestrator.evaluation.scorer import Scorer
from orchestrator.evaluation.scores import Score, ScoringJob, portraits_of, protocol_key, score_so_far
from orchestrator.evaluation.sequential_rule import Rule
from orchestrator.storage.base import Storage, check_conditional_writes
from sim_workers.checkout import file_hashes
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.rollout_video import Filmed
from sim_workers.rollout.suite import EpisodeSpec, Suite

if TYPE_CHECKING:
    from sim_workers.rollout.pool import RolloutPool

POLL_S = 0.1
ORDER = tuple(field.name for field in fields(EpisodeSpec))


@dataclass(frozen=True)
class Simulators:
    """How many simulators a run has, and the logical CPUs of each."""

    number: int
    cpus: float

    @classmethod
    def fit(cls, cpus: float, number: int | None = None) -> "Simulators":
        """Return `number` simulators on `cpus` logical CPUs; one per CPU by default."""
        number = number or max(1, int(cpus))
        # More of them than cores share the cores; half their share, so that they fit nodes of any size.
        return cls(number, 1.0 if number <= cpus else math.floor(50 * cpus / number) / 100)


def rollout_cpus() -> float:
    """Return the logical CPUs that simulators may use on the connected Ray."""
    from orchestrator.cluster.ray_runtime import resources, set_apart

    return set_apart("rollouts").get("CPU") or resources().get("CPU", 1.0)


def rollout_pool(simulators: Simulators, gl: str, portraits: Portraits) -> "RolloutPool":
    """Return a pool of these simulators on the connected Ray."""
    from orchestrator.cluster.ray_runtime import nodes_of
    from sim_workers.rollout.pool import RolloutPool

    nodes = nodes_of("rollouts", CPU=simulators.number * simulators.cpus)
    return RolloutPool(simulators.number, simulators.cpus, gl, portraits, nodes=nodes, code=file_hashes())


class Scoring:
    """A policy on a list of suites, one per shift, each a score of its own; a sweep's listener and driver in one, for a single checkpoint."""

    def __init__(
        self,
        subject: Subject,
        suites: Sequence[Suite],
        gl: str,
        rule: Rule | None,
        storage: Storage,
        cpus: Callable[[], float] = rollout_cpus,
        make_pool: Callable[[Simulators, str, Portraits], "RolloutPool"] = rollout_pool,
        device: str = "cpu",
    ) -> None:
        """rule: when the nominal suite has been played enough; shifted ones are always played whole.

        storage: where the outcomes are, by the policy's fingerprint (or its name) and the protocol's, as a sweep's are. StorageError if what is
        there is damaged. cpus and make_pool: called by `play`, for the CPUs that simulators may use and for the pool that plays. device: the class
        of what a checkpoint acts on, part of the protocol.
        """
        self.subject, self._gl, self._storage = subject, gl, storage
        self._cpus, self._make_pool = cpus, make_pool
        self.suites = {suite.shift: suite for suite in suites}
        self.device = device
        self.keys = [protocol_key(suite, subject.contract, subject.sampler, gl, device) for suite in suites]
        self.protocols = {suite.shift: key.fingerprint for suite, key in zip(suites, self.keys, strict=True)}
        self.rules = {suite.shift: rule if suite.shift == "nominal" else None for suite in suites}
        self.checkpoint = subject.fingerprint or re.sub(r"[^\w.:-]+", "_", subject.name)[-100:]
        self._ledgers = {shift: Ledger(storage, self.checkpoint, protocol) for shift, protocol in self.protocols.items()}
        self.interrupted = False
        """Set it to have the episodes in progress finished and no other begun."""
        self.played = 0
        """Episodes, by this object."""
        self._errors: dict[str, list[Outcome]] = {suite.shift: [] for suite in suites}
        self._read()

    def _read(self) -> None:
        self._known = {shift: score_so_far(self._ledgers[shift], suite, self.rules[shift]) for shift, suite in self.suites.items()}

    @property
    def complete(self) -> bool:
        """Nothing is left to play."""
        return all(score.complete for score, _ in self._known.values())

    @property
    def listed(self) -> int:
        """Episodes, of all suites."""
        return sum(score.listed for score, _ in self._known.values())

    @property
    def counted(self) -> int:
        """Those of them that the scores count now."""
        return sum(score.episodes for score, _ in self._known.values())

    @property
    def causes(self) -> list[str]:
        """Why episodes ended in an error in this run, each cause once."""
        return sorted({outcome.message for errors in self._errors.values() for outcome in errors})

    def lines(self) -> list[tuple[str, Score]]:
        """The scores a person wants to see, and what of: every task under every shift; all tasks together where a rule judged them together."""
        told = []
        for shift, suite in self.suites.items():
            score, counted = self._known[shift]
            outcomes = [*counted, *self._errors[shift]]
            if score.rule:
                told.append((f"{', '.join(suite.tasks)}, {shift}", Score.of(outcomes, score.listed, score.rule, score.verdict)))
                continue
            for task in suite.tasks:
                told.append((f"{task}, {shift}", Score.of((o for o in outcomes if o.spec.task == task), suite.episodes)))
        return told

    def play(self, workers: int | None, on_progress: Callable[[int], None]) -> None:
        """Play what is missing on a connected Ray: on so many simulators, one per core by default. on_progress hears of every few more episodes.

        Returns when every episode has its outcome, or when interrupted; either way, what was played is in the ledger. ProtocolError if the
        policy cannot be scored here.
        """
        check_conditional_writes(self._storage)
        for key in self.keys:
            key.keep(self._storage)
        simulators = Simulators.fit(self._cpus(), workers)
        source = self.subject.reach(simulators.number)
        pool = self._make_pool(simulators, self._gl, portraits_of(self._storage, self._gl))
        self._on_progress, self._over = on_progress, set[str]()
        scorer = Scorer(self._storage, self.subject.contract, pool, self)
        try:
            for shift, suite in self.suites.items():
                name, protocol = self.subject.name, self.protocols[shift]
                scorer.submit(ScoringJob(name, 0, name, self.checkpoint, suite, protocol, source, rule=self.rules[shift]))
            while len(self._over) < len(self.suites) and not scorer.failed and not self.interrupted:
                time.sleep(POLL_S)
            if self.interrupted:
                scorer.wind_down()
            scorer.drain()
        finally:
            scorer.close()
        self._read()

    # -- what the scorer tells, in its thread -------------------------------------------------------------------------------------------

    def on_outcomes(self, job: ScoringJob, outcomes: Sequence[Outcome], done: int) -> None:
        self._errors[job.suite.shift] += [outcome for outcome in outcomes if outcome.result == "error"]
        self.played += len(outcomes)
        if outcomes:
            self._on_progress(len(outcomes))

    def on_score(self, job: ScoringJob, score: Score, outcomes: Sequence[Outcome]) -> None:
        self._over.add(job.suite.shift)

    def on_film(self, job: ScoringJob, episode: str, film: Filmed) -> None: ...

    def say(self, line: str) -> None: ...

    # -- what is handed on --------------------------------------------------------------------------------------------------------------

    def save(self, file: Path) -> None:
        """A line per episode, in the order of their specs: .jsonl as `Outcome.from_json` reads it, .parquet as in the ledger."""
        outcomes = {shift: [*self._known[shift][1], *self._errors[shift]] for shift in self.suites}
        if file.suffix == ".jsonl":
            everything = sorted((outcome for some in outcomes.values() for outcome in some), key=lambda outcome: outcome.spec)
            file.write_text("".join(json.dumps(outcome.to_json()) + "\n" for outcome in everything))
        else:
            tables = [self._ledgers[shift].table(some) for shift, some in outcomes.items()]
            pq.write_table(pa.concat_tables(tables).sort_by([(name, "ascending") for name in ORDER]), file)

    def to_json(self) -> dict[str, Any]:
        """The scores, and what they are known by."""
        return {
            "policy": self.subject.name,
            "fingerprint": self.subject.fingerprint,
            "protocols": self.protocols,
            "episodes_played": self.played,
            "scores": [{"of": of, **_told(score)} for of, score in self.lines()],
        }


def _told(score: Score) -> dict[str, Any]:
    """Counts, and a rate that is null where there is no episode to go by."""
    low, high = score.interval
    rate = score.success_rate if score.episodes else None
    counts = {"successes": score.successes, "failures": score.failures, "errors": score.errors, "listed": score.listed}
    return counts | {"success_rate": rate, "low": low, "high": high, "complete": score.complete, "decided": score.decided}
