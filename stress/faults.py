"""Test of rollouts whose workers and policy server are killed repeatedly: no outcome may be lost, doubled or
different.

    python -m stress.faults               200 episodes, a kill every 10 s, one hanging simulator; about eight
                                          minutes
    python -m stress.faults --quick       20 episodes

Lift with an untrained `tiny` checkpoint behind the real policy server. First undisturbed; then one worker is
suspended so that it hangs, followed by `kill -9` of a worker, a worker and the server in turn. Exit code 1 if
an outcome differs, is missing or came twice.
"""

import json
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import psutil

from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.evaluation.policy_server import PolicyServer
from orchestrator.testing.checkpoints import make_checkpoint
from orchestrator.testing.episodes import CONTRACT
from orchestrator.testing.processes import titled_processes
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.suite import EpisodeRules, Suite

WORKERS, KILL_EVERY_S = 2, 10.0


class Killer(threading.Thread):
    """Thread that suspends one worker, waits until it is gone, then kills processes in turn until `over` is
    set.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.kills: Counter[str] = Counter()
        self.hang_s: float | None = None
        self.over = threading.Event()

    def run(self) -> None:
        """Suspend one worker, then kill a process every KILL_EVERY_S seconds until `over` is set."""
        victims = ("ray::RolloutWorker", "ray::RolloutWorker", "ray::PolicyServer")
        number = 0
        self._hang()
        while not self.over.wait(KILL_EVERY_S):
            title = victims[number % len(victims)]
            if processes := titled_processes(title):
                processes[number % len(processes)].kill()
                self.kills[title.removeprefix("ray::")] += 1
            number += 1

    def _hang(self) -> None:
        if processes := titled_processes("ray::RolloutWorker.play"):
            processes[0].suspend()
            began = time.monotonic()
            time.sleep(0.5)  # a signal takes a moment
            while (
                processes[0].is_running()
                and processes[0].status() == psutil.STATUS_STOPPED
                and not self.over.wait(0.2)
            ):
                pass
            self.hang_s = time.monotonic() - began


def play(suite: Suite, checkpoint: str, killer: Killer | None = None) -> tuple[list[Outcome], dict[str, int]]:
    """Play the suite and return its outcomes and the number of replaced workers by cause."""
    import ray

    from sim_workers.rollout.pool import RolloutPool
    from sim_workers.rollout.ray_policy_client import RayServedPolicy
    from sim_workers.rollout.worker import RolloutJob

    options: dict[str, Any] = {
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": -1,
        "max_concurrency": 1000,
    }
    server = ray.remote(PolicyServer).options(**options).remote(1, "cpu")
    pool = RolloutPool(WORKERS, num_cpus=0.1)
    for spec in suite.episode_list():
        pool.submit(
            RolloutJob(spec, suite.rules, CONTRACT, RayServedPolicy((server,), CheckpointRef(checkpoint)))
        )
    outcomes: list[Outcome] = []
    for _, outcome, _ in pool.results():
        outcomes.append(outcome)
        if killer and len(outcomes) == 2 * WORKERS:  # every worker plays now
            killer.start()
    if killer:
        killer.over.set()
        killer.join()
    pool.close()
    ray.kill(server)
    return outcomes, pool.usage.replaced


@click.command()
@click.option("--quick", is_flag=True, help="A short look.")
def main(quick: bool) -> None:
    """Print what was killed and, last, one line of JSON."""
    from orchestrator.cluster.ray_runtime import connect, quiet

    quiet()
    connect()
    suite = Suite(("Lift",), 20 if quick else 200, EpisodeRules(48))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(make_checkpoint(Path(folder) / "checkpoint"))
        undisturbed, _ = play(suite, checkpoint)
        killer = Killer()
        disturbed, replaced = play(suite, checkpoint, killer)
    came = Counter(outcome.spec.episode_id for outcome in disturbed)
    reference = {outcome.spec.episode_id: outcome.played for outcome in undisturbed}
    answers = {
        "episodes": len(reference),
        "lost": len(reference.keys() - came.keys()),
        "double": sum(count - 1 for count in came.values()),
        "different": sum(outcome.played != reference[outcome.spec.episode_id] for outcome in disturbed),
        "kills": dict(killer.kills),
        "hang_replaced_after_s": killer.hang_s and round(killer.hang_s, 1),
        "workers_replaced": replaced,
    }
    print("\n".join(f"{name.replace('_', ' '):<24}{value}" for name, value in answers.items()) + "\n")
    print(json.dumps({"bench": "faults", **answers, "quick": quick}))
    sys.exit(bool(answers["lost"] or answers["double"] or answers["different"]))


if __name__ == "__main__":
    main()
