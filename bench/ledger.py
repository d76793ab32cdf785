"""How many outcomes a second do the scorer and the ledger take in, and does their memory stay flat?

    python -m bench.ledger                 100,000 outcomes into a folder, and 10,000 into SeaweedFS where
                                           there is one
    python -m bench.ledger --quick         10,000 and 2,000

Episodes take no time here: the scorer, the ledger and the cost ledger remain. The peer is the disk: as many
outcomes as Parquet objects of the same size, written one after another by a bare loop. Both are measured by
turns, a slice of checkpoints each.
"""

import os
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from statistics import median

import psutil

from bench import harness
from orchestrator import prometheus as metrics
from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.cost import CostLedger, of_outcome
from orchestrator.evaluation.outcome_ledger import Ledger
from orchestrator.evaluation.score_events import OutcomesRecorded, ScoreConcluded, ScorerEvent
from orchestrator.evaluation.scorer import Scorer
from orchestrator.evaluation.scores import EvalJob, Score
from orchestrator.storage.base import Storage, open_storage
from orchestrator.testing.rollout_pool import FakeRolloutPool
from orchestrator.testing.seaweedfs import BUCKET, NoServerError, started
from orchestrator.testing.servo import cameras
from policy.interface import Contract
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.policy_clients import InProcessPolicy
from sim_workers.rollout.suite import EpisodeRules, Suite
from sim_workers.rollout.worker import RolloutJob

EPISODES = 50  # of a checkpoint
SLICE = 4  # checkpoints
NO_POLICY = InProcessPolicy(lambda: None)  # type: ignore[arg-type, return-value]


def play(job: RolloutJob) -> Outcome:
    won = job.spec.scene_seed % 3 > 0
    return Outcome(
        job.spec, "success" if won else "failure", 40, 5, 0.4, 0.1, 30 if won else None, won, worker="node/1"
    )


class Accountant:
    """Receiver of the scorer's events that records costs, as a sweep does, and reads the process' memory at
    every score.
    """

    def __init__(self, spending: CostLedger) -> None:
        self._spending = spending
        self.heard, self.scores = 0, 0
        self.rss: list[float] = []
        self._scored = threading.Condition()

    def on_event(self, event: ScorerEvent) -> None:
        if isinstance(event, OutcomesRecorded):
            self._on_outcomes(event)
        elif isinstance(event, ScoreConcluded):
            self._on_score(event.score)

    def _on_outcomes(self, event: OutcomesRecorded) -> None:
        for (task, result), number in Counter(
            (outcome.spec.task, outcome.result) for outcome in event.outcomes
        ).items():
            metrics.EPISODES.record(number, "bench", task=task, result=result)
        for outcome in event.outcomes:
            self._spending.add(event.job.arm_id, of_outcome(outcome, 1))
        self.heard += len(event.outcomes)

    def _on_score(self, score: Score) -> None:
        assert score.complete
        with self._scored:
            self.scores += 1
            self.rss.append(psutil.Process().memory_info().rss / 2**20)
            self._scored.notify()

    def wait(self, scorer: Scorer, scores: int) -> None:
        """Wait for `scores` scores; raise an error of the scorer's thread."""
        with self._scored:
            while self.scores < scores:
                self._scored.wait(1.0)
                scorer.check()


@dataclass(frozen=True)
class Rates:
    """Outcomes per second."""

    engine: float
    writing: float
    ratio: float
    """Engine to writing: median over pairs of successive slices."""
    rss: list[float]
    """MiB of the process after every score."""


def measured(storage: Storage, policy: Contract, outcomes: int) -> Rates:
    """Measure `outcomes` outcomes through the engine, and as many that are only written."""
    suite = Suite(("Lift",), EPISODES, EpisodeRules(100))
    spending = CostLedger(storage, "bench", "run")
    accountant = Accountant(spending)
    scorer = Scorer(storage, policy, FakeRolloutPool(play), accountant.on_event)
    played = [play(RolloutJob(spec, suite.rules, policy, NO_POLICY)) for spec in suite.episode_list()]
    scored, written = count(), count()

    def through_the_engine() -> float:
        began = time.perf_counter()
        for i in islice(scored, SLICE):
            scorer.submit(
                EvalJob(
                    f"arm-{i % 100}",
                    i,
                    CheckpointRef(f"arms/{i}", f"checkpoint{i}"),
                    suite,
                    "protocol",
                    NO_POLICY,
                )
            )
        accountant.wait(scorer, i + 1)
        return time.perf_counter() - began

    def writing() -> float:
        """Write a part and a sealed object per checkpoint."""
        began = time.perf_counter()
        for i in islice(written, SLICE):
            ledger = Ledger(storage, f"bare{i}", "protocol")
            ledger.record(played)
            ledger.seal(played)
        return time.perf_counter() - began

    seconds = harness.interleaved(
        {"engine": through_the_engine, "writing": writing}, outcomes // EPISODES // SLICE
    )
    scorer.drain()
    scorer.close()
    spending.close()
    assert accountant.heard == outcomes
    assert len(Ledger(storage, "checkpoint0", "protocol").read()) == EPISODES
    engine, only_writing = (SLICE * EPISODES / median(seconds[name]) for name in ("engine", "writing"))
    return Rates(
        engine, only_writing, harness.median_ratio(seconds["writing"], seconds["engine"]), accountant.rss
    )


@harness.command("ledger")
def main(quick: bool) -> dict[str, object]:
    """Print a table; return the values of the last line."""
    number, far = (10_000, 2_000) if quick else (100_000, 10_000)
    policy = cameras("fast")
    with tempfile.TemporaryDirectory() as name:
        here = measured(open_storage(name), policy, number)
    rss = here.rss
    warm = rss[len(rss) // 10]
    print(f"{'outcomes/s':<32}{'engine':>10}{'only writing':>14}")
    print(f"{f'folder, {number:,} outcomes':<32}{here.engine:>10.0f}{here.writing:>14.0f}")
    answer: dict[str, object] = {
        "outcomes_per_s": round(here.engine, 1),
        "ratio_to_writing": here.ratio,
    }
    answer |= {"s3_outcomes_per_s": None, "s3_ratio_to_writing": None}
    try:
        with tempfile.TemporaryDirectory() as name, started(Path(name)) as variables:
            os.environ.update(variables)
            there = measured(open_storage(f"s3://{BUCKET}/bench"), policy, far)
        print(f"{f'SeaweedFS, {far:,} outcomes':<32}{there.engine:>10.0f}{there.writing:>14.0f}")
        answer |= {"s3_outcomes_per_s": round(there.engine, 1), "s3_ratio_to_writing": there.ratio}
    except NoServerError as error:
        print(f"SeaweedFS: {error}")
    growth = rss[-1] - warm
    print(
        f"\nmemory {warm:.0f} MiB after a tenth of the outcomes, {rss[-1]:.0f} MiB in the end, at most"
        f" {max(rss):.0f}"
    )
    return answer | {"growth_mib": round(growth, 1), "outcomes": number}


if __name__ == "__main__":
    harness.run(main)
