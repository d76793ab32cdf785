"""How many outcomes a second can the engine take in, and does its memory stay flat?

    python -m bench.ledger                 100,000 outcomes into a folder, and 10,000 into SeaweedFS where there is one
    python -m bench.ledger --quick         10,000 and 2,000

Episodes take no time here: what is left is the scorer, the ledger and the account of costs. The peer is the disk: as many outcomes as Parquet
objects of the same size, written one after another by a bare loop.
"""

import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click
import psutil

from bench import harness
from bench.pretend import PretendedPool
from bench.seaweed import BUCKET, NoServerError, started
from bench.servo import cameras
from orchestrator import metrics
from orchestrator.cost import Spending, of_outcome
from orchestrator.ledger import Ledger
from orchestrator.score import Score, ScoringJob
from orchestrator.scorer import Scorer
from orchestrator.storage import Storage, open_storage
from policy.interface import Contract
from sim_workers.rollout import Outcome
from sim_workers.sources import InProcess
from sim_workers.suite import Rules, Suite
from sim_workers.video import Filmed
from sim_workers.worker import RolloutJob

EPISODES = 50  # of a checkpoint


def play(job: RolloutJob) -> Outcome:
    won = job.spec.scene_seed % 3 > 0
    return Outcome(job.spec, "success" if won else "failure", 40, 5, 0.4, 0.1, 30 if won else None, won, worker="node/1")


class Accountant:
    """Hears the scorer and keeps the account, as a sweep does; looks at the memory now and then."""

    def __init__(self, spending: Spending) -> None:
        self._spending = spending
        self.heard, self.scores = 0, 0
        self.rss: list[float] = []

    def on_outcomes(self, job: ScoringJob, outcomes: Sequence[Outcome], done: int) -> None:
        for (task, result), number in Counter((outcome.spec.task, outcome.result) for outcome in outcomes).items():
            metrics.EPISODES.record(number, "bench", task=task, result=result)
        for outcome in outcomes:
            self._spending.add(job.arm_id, of_outcome(outcome, 1))
        self.heard += len(outcomes)

    def on_score(self, job: ScoringJob, score: Score, outcomes: Sequence[Outcome]) -> None:
        assert score.complete
        self.scores += 1
        self.rss.append(psutil.Process().memory_info().rss / 2**20)

    def on_film(self, job: ScoringJob, episode: str, film: Filmed) -> None: ...

    def say(self, line: str) -> None: ...


def through_the_engine(storage: Storage, policy: Contract, outcomes: int) -> tuple[float, list[float]]:
    """Outcomes a second, and the process' MiB after every score."""
    suite = Suite(("Lift",), EPISODES, Rules(100))
    spending = Spending(storage, "bench", "run")
    accountant = Accountant(spending)
    scorer = Scorer(storage, policy, PretendedPool(play), accountant)
    began = time.perf_counter()
    for i in range(outcomes // EPISODES):
        scorer.submit(ScoringJob(f"arm-{i % 100}", i, f"arms/{i}", f"checkpoint{i}", suite, "protocol", InProcess(lambda: None)))  # type: ignore[arg-type, return-value]
    scorer.drain()
    seconds = time.perf_counter() - began
    scorer.close()
    spending.close()
    assert accountant.heard == outcomes
    assert len(Ledger(storage, "checkpoint0", "protocol").read()) == EPISODES
    return outcomes / seconds, accountant.rss


def bare(storage: Storage, outcomes: int) -> float:
    """Outcomes a second of a loop that only writes: a part and a sealed object per checkpoint."""
    suite = Suite(("Lift",), EPISODES, Rules(100))
    policy = cameras("fast")
    played = [play(RolloutJob(spec, suite.rules, policy, InProcess(lambda: None))) for spec in suite.episode_list()]  # type: ignore[arg-type, return-value]
    began = time.perf_counter()
    for i in range(outcomes // EPISODES):
        ledger = Ledger(storage, f"bare{i}", "protocol")
        ledger.record(played)
        ledger.seal(played)
    return outcomes / (time.perf_counter() - began)


@click.command()
@click.option("--quick", is_flag=True, help="A short look.")
def main(quick: bool) -> None:
    """Print a table and, last, one line of JSON."""
    number, far = (10_000, 2_000) if quick else (100_000, 10_000)
    policy = cameras("fast")
    with tempfile.TemporaryDirectory() as name:
        storage = open_storage(name)
        limit = bare(storage, far)
        rate, rss = through_the_engine(storage, policy, number)
    warm = rss[len(rss) // 10]
    print(f"{'outcomes/s':<32}{'engine':>10}{'only writing':>14}")
    print(f"{f'folder, {number:,} outcomes':<32}{rate:>10.0f}{limit:>14.0f}")
    told = {"bench": "ledger", "outcomes_per_s": round(rate, 1), "ratio_to_writing": round(rate / limit, 3)}
    try:
        with tempfile.TemporaryDirectory() as name, started(Path(name)) as variables:
            os.environ.update(variables)
            storage = open_storage(f"s3://{BUCKET}/bench")
            limit, (rate, _) = bare(storage, far), through_the_engine(storage, policy, far)
        print(f"{f'SeaweedFS, {far:,} outcomes':<32}{rate:>10.0f}{limit:>14.0f}")
        told |= {"s3_outcomes_per_s": round(rate, 1), "s3_ratio_to_writing": round(rate / limit, 3)}
    except NoServerError as error:
        print(f"SeaweedFS: {error}")
    growth = rss[-1] - warm
    print(f"\nmemory {warm:.0f} MiB after a tenth of the outcomes, {rss[-1]:.0f} MiB in the end, at most {max(rss):.0f}")
    print(json.dumps(told | {"growth_mib": round(growth, 1), "outcomes": number, "quick": quick}))


if __name__ == "__main__":
    harness.run(main)
