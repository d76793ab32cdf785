"""Scoring of one policy without a sweep: outcomes in the ledger are not played again, and new ones are
recorded as they come.
"""

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

from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.code_fingerprint import learner_code, run_files
from orchestrator.evaluation.outcome_ledger import Ledger, RenderReferences
from orchestrator.evaluation.policy_ref import PolicyRef
from orchestrator.evaluation.score_events import OutcomesRecorded, ScoreConcluded, ScorerEvent
from orchestrator.evaluation.scorer import Scorer
from orchestrator.evaluation.scores import EvalJob, Score, protocol_key, render_references_of, score_so_far
from orchestrator.evaluation.sequential_rule import StoppingRule
from orchestrator.storage.base import Storage, check_conditional_writes
from sim_workers.checkout import Files
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.suite import EpisodeSpec, Suite

if TYPE_CHECKING:
    from sim_workers.rollout.pool import RolloutPool

POLL_S = 0.1
ORDER = tuple(field.name for field in fields(EpisodeSpec))


@dataclass(frozen=True)
class Simulators:
    """Number of simulators of a run, and the logical CPUs of each."""

    number: int
    cpus: float

    @classmethod
    def fit(cls, cpus: float, number: int | None = None) -> "Simulators":
        """Return `number` simulators on `cpus` logical CPUs; one per CPU by default."""
        number = number or max(1, int(cpus))
        # More simulators than CPUs share them; half the share each, so that they fit nodes of any size.
        return cls(number, 1.0 if number <= cpus else math.floor(50 * cpus / number) / 100)


def rollout_cpus() -> float:
    """Return the logical CPUs that simulators may use on the connected Ray."""
    from orchestrator.cluster.ray_runtime import dedicated_resources, resources

    return dedicated_resources("rollouts").get("CPU") or resources().get("CPU", 1.0)


def rollout_pool(simulators: Simulators, gl: str, portraits: RenderReferences, code: Files) -> "RolloutPool":
    """Return a pool of these simulators on the connected Ray. code: the driver's files."""
    from orchestrator.cluster.ray_runtime import node_selector
    from sim_workers.rollout.pool import RolloutPool

    nodes = node_selector("rollouts", CPU=simulators.number * simulators.cpus)
    return RolloutPool(simulators.number, simulators.cpus, gl, portraits, nodes=nodes, code=code)


class StandaloneEval:
    """Scoring of one policy on a list of suites, one per shift, each with its own score; listener of its
    scorer.
    """

    def __init__(
        self,
        subject: PolicyRef,
        suites: Sequence[Suite],
        gl: str,
        rule: StoppingRule | None,
        storage: Storage,
        cpus: Callable[[], float] = rollout_cpus,
        make_pool: Callable[[Simulators, str, RenderReferences, Files], "RolloutPool"] = rollout_pool,
        device: str = "cpu",
    ) -> None:
        """Read the outcomes in the ledger. Raises StorageError if they are damaged, PluginError if the
        policy's package is not installed.

        rule: when to stop scoring the nominal suite; shifted ones are always played whole. storage: keeps the
        outcomes by the policy's fingerprint (or its name) and the protocol's, as a sweep's. cpus, make_pool:
        called by `play` for the CPUs that simulators may use and for the rollout pool. device: device class
        of the policy servers, part of a checkpoint's protocol.
        """
        self.subject, self._gl, self._storage = subject, gl, storage
        self._cpus, self._make_pool = cpus, make_pool
        self.suites = {suite.shift: suite for suite in suites}
        self.device = device
        code = learner_code(subject.learner)
        self.keys = [
            protocol_key(suite, subject.contract, subject.sampler, gl, device, learner_code=code)
            for suite in suites
        ]
        self.protocols = {suite.shift: key.fingerprint for suite, key in zip(suites, self.keys, strict=True)}
        self.rules = {suite.shift: rule if suite.shift == "nominal" else None for suite in suites}
        self.checkpoint = subject.fingerprint or re.sub(r"[^\w.:-]+", "_", subject.name)[-100:]
        self._ledgers = {
            shift: Ledger(storage, self.checkpoint, protocol) for shift, protocol in self.protocols.items()
        }
        self.interrupted = False
        """Set to True to make `play` finish the running episodes and begin no other."""
        self.played = 0
        """Number of episodes played by this object."""
        self._errors: dict[str, list[Outcome]] = {suite.shift: [] for suite in suites}
        self._read()

    def _read(self) -> None:
        self._known = {
            shift: score_so_far(self._ledgers[shift], suite, self.rules[shift])
            for shift, suite in self.suites.items()
        }

    @property
    def complete(self) -> bool:
        """Whether every suite has a complete score."""
        return all(score.complete for score, _ in self._known.values())

    @property
    def listed(self) -> int:
        """Number of episodes of all suites."""
        return sum(score.listed for score, _ in self._known.values())

    @property
    def counted(self) -> int:
        """Number of episodes that the scores count now."""
        return sum(score.episodes for score, _ in self._known.values())

    @property
    def causes(self) -> list[str]:
        """Distinct messages of the errors of this run, sorted."""
        return sorted({outcome.message for errors in self._errors.values() for outcome in errors})

    def lines(self) -> list[tuple[str, Score]]:
        """Return scores with titles: one per task and shift; one for all tasks of a shift that a rule decided
        together.
        """
        told = []
        for shift, suite in self.suites.items():
            score, counted = self._known[shift]
            outcomes = [*counted, *self._errors[shift]]
            if score.rule:
                told.append(
                    (
                        f"{', '.join(suite.tasks)}, {shift}",
                        Score.of(outcomes, score.listed, score.rule, score.verdict),
                    )
                )
                continue
            for task in suite.tasks:
                told.append(
                    (
                        f"{task}, {shift}",
                        Score.of((o for o in outcomes if o.spec.task == task), suite.episodes),
                    )
                )
        return told

    def play(self, workers: int | None, on_progress: Callable[[int], None]) -> None:
        """Play the missing episodes on the connected Ray.

        workers: number of simulators; one per CPU by default. on_progress: receives the number of newly
        recorded episodes. Returns when every suite has a score, or when interrupted; finished episodes are in
        the ledger in both cases. Raises ProtocolError if the policy cannot be scored here.
        """
        check_conditional_writes(self._storage)
        for key in self.keys:
            key.keep(self._storage)
        simulators = Simulators.fit(self._cpus(), workers)
        source = self.subject.reach(simulators.number)
        tasks = [task for suite in self.suites.values() for task in suite.tasks]
        processors = next(iter(self.suites.values())).processors
        portraits = render_references_of(self._storage, self._gl, tasks, processors)
        pool = self._make_pool(simulators, self._gl, portraits, run_files(tasks))
        checkpoint = CheckpointRef(self.subject.name, self.checkpoint)
        self._on_progress, self._over = on_progress, set[str]()
        scorer = Scorer(self._storage, self.subject.contract, pool, self._on_event)
        try:
            for shift, suite in self.suites.items():
                name, protocol = self.subject.name, self.protocols[shift]
                scorer.submit(EvalJob(name, 0, checkpoint, suite, protocol, source, rule=self.rules[shift]))
            while len(self._over) < len(self.suites) and not scorer.failed and not self.interrupted:
                time.sleep(POLL_S)
            if self.interrupted:
                scorer.wind_down()
            scorer.drain()
        finally:
            scorer.close()
        self._read()

    def _on_event(self, event: ScorerEvent) -> None:
        """Count outcomes and note concluded suites; called in the scorer's thread."""
        if isinstance(event, OutcomesRecorded):
            errors = [outcome for outcome in event.outcomes if outcome.result == "error"]
            self._errors[event.job.suite.shift] += errors
            self.played += len(event.outcomes)
            if event.outcomes:
                self._on_progress(len(event.outcomes))
        elif isinstance(event, ScoreConcluded):
            self._over.add(event.job.suite.shift)

    # -- output ----------------------------------------------------------------------------------------------

    def save(self, file: Path) -> None:
        """Write one row per episode, sorted by spec: .jsonl for `StagedOutcome.from_json`, any other suffix
        as Parquet with the ledger's columns.
        """
        outcomes = {shift: [*self._known[shift][1], *self._errors[shift]] for shift in self.suites}
        if file.suffix == ".jsonl":
            everything = sorted(
                (outcome for some in outcomes.values() for outcome in some), key=lambda outcome: outcome.spec
            )
            file.write_text("".join(json.dumps(outcome.to_json()) + "\n" for outcome in everything))
        else:
            tables = [self._ledgers[shift].table(some) for shift, some in outcomes.items()]
            pq.write_table(pa.concat_tables(tables).sort_by([(name, "ascending") for name in ORDER]), file)

    def to_json(self) -> dict[str, Any]:
        """Return the scores with the policy's fingerprint and protocols."""
        return {
            "policy": self.subject.name,
            "fingerprint": self.subject.fingerprint,
            "simulator": self.subject.contract.simulator,
            "protocols": self.protocols,
            "episodes_played": self.played,
            "scores": [{"of": of, **_told(score)} for of, score in self.lines()],
        }


def _told(score: Score) -> dict[str, Any]:
    """Return counts, interval and success rate; the rate is None without episodes."""
    low, high = score.interval
    rate = score.success_rate if score.episodes else None
    counts = {
        "successes": score.successes,
        "failures": score.failures,
        "errors": score.errors,
        "listed": score.listed,
    }
    return counts | {
        "success_rate": rate,
        "low": low,
        "high": high,
        "complete": score.complete,
        "decided": score.decided,
    }
