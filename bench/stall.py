"""Does training wait for scoring? Optimiser steps with simulators at work on another core, and without.

    python -m bench.stall                  five minutes
    python -m bench.stall --quick

The real training loop on one core, the real pool and policy server on the other: so what is left is what
cores of one machine share.
"""

import multiprocessing
import os
import shutil
import tempfile
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

from bench import harness
from orchestrator.testing.episodes import make_episode_store
from orchestrator.testing.servo import cameras

BLOCK, QUICK_BLOCK = 20, 3  # steps
WORKERS = 2


def train_in_blocks(pipe: Connection, store: str, block: int, steps: int, keep: str) -> None:
    """In a process of its own, train `block` steps per message and answer with seconds per step: wall clock
    and CPU time.

    The first block is not measured: it loads the model. The checkpoint of the last of `steps` is kept in
    `keep`.
    """
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import time

    import torch

    from orchestrator.config.arms import Arm
    from orchestrator.config.schema import Train
    from orchestrator.data.episode_store import load_manifest
    from orchestrator.data.subset import select_episodes
    from orchestrator.storage.base import open_storage
    from orchestrator.training.loop import TrainJob, train
    from orchestrator.training.train_events import Reported
    from policy.presets import PRESETS

    torch.set_num_threads(1)
    settings = Train(steps=steps, batch_size=16, checkpoint_every=steps)
    arm = Arm(4, 1.0, 0)
    subset = select_episodes(load_manifest(open_storage(store)), arm)
    job = TrainJob(arm, "bench-stall", store, 1, subset, PRESETS["tiny"], settings, "joint", "none")
    began = time.perf_counter(), time.process_time()

    def report(event: Reported, checkpoint: Path | None) -> None:
        nonlocal began
        if checkpoint:
            shutil.copytree(checkpoint, keep)
        if event.step % block == 0:
            pipe.send(((time.perf_counter() - began[0]) / block, (time.process_time() - began[1]) / block))
            pipe.recv()
            began = time.perf_counter(), time.process_time()

    train(job, 0, 1, None, report)


class Scoring:
    """Rollouts of a checkpoint, on all cores but the first, whenever `on` is set."""

    def __init__(self, checkpoint: str) -> None:
        # whatever Ray starts inherits it
        os.sched_setaffinity(0, os.sched_getaffinity(0) - {min(os.sched_getaffinity(0))})
        from orchestrator.checkpoints.ref import CheckpointRef
        from orchestrator.cluster.ray_runtime import connect, quiet
        from orchestrator.evaluation.ray_actors import policy_servers
        from sim_workers.rollout.pool import RolloutPool
        from sim_workers.rollout.ray_policy_client import RayServedPolicy

        quiet()
        connect()
        self._pool = RolloutPool(WORKERS, num_cpus=0.1)
        self._source = RayServedPolicy(policy_servers(1, 0.0, ""), CheckpointRef(checkpoint))
        self.on, self._closing, self.episodes = threading.Event(), False, 0
        self._thread = threading.Thread(target=self._play, daemon=True)
        self._thread.start()

    def _play(self) -> None:
        from sim_workers.rollout.suite import EpisodeRules, EpisodeSpec
        from sim_workers.rollout.worker import RolloutJob

        seed, policy = 0, cameras("fast")
        while not self._closing:
            while self.on.is_set() and self._pool.waiting < 2 * WORKERS:
                self._pool.submit(
                    RolloutJob(EpisodeSpec("Lift", seed, seed), EpisodeRules(60), policy, self._source)
                )
                seed += 1
            for _, outcome, _ in self._pool.results(timeout_s=0.2):
                assert outcome.result != "error", outcome.message
                self.episodes += 1
                if self.on.is_set():
                    break

    def check(self) -> None:
        assert self._thread.is_alive(), "the rollouts ended"

    def settle(self) -> None:
        """Off, and all episodes finished."""
        self.on.clear()
        while self._pool.unfinished:
            self.check()
            threading.Event().wait(0.1)

    def close(self) -> None:
        self.settle()
        self._closing = True
        self._thread.join()
        self._pool.close()


@harness.command("stall", digits=4)
def main(quick: bool) -> dict[str, object]:
    """Print a table; return the values of the last line."""
    from orchestrator.training.loop import PROGRESS_REPORTS

    rounds, block = PROGRESS_REPORTS // 2 - 1, QUICK_BLOCK if quick else BLOCK
    with tempfile.TemporaryDirectory() as name:
        store = make_episode_store(Path(name) / "store", 8, length=3, size=128)
        spawn = multiprocessing.get_context("spawn")

        def trainer(steps: int, keep: str) -> Any:
            ours, theirs = spawn.Pipe()
            process = spawn.Process(
                target=train_in_blocks, args=(theirs, store, block, steps, keep), daemon=True
            )
            process.start()
            ours.recv()  # the block that loads
            return ours, process

        checkpoint = str(Path(name) / "checkpoint")
        pipe, process = trainer(block, checkpoint)
        pipe.send("go")
        process.join()
        pipe, process = trainer(block * PROGRESS_REPORTS, "")
        scoring = Scoring(checkpoint)
        scoring.on.set()
        while scoring.episodes < 2 * WORKERS:  # simulators and the policy are loaded
            scoring.check()
            threading.Event().wait(0.5)
        steps: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
        for turn in range(2 * rounds):
            busy = turn % 4 in (1, 2)  # off, on, on, off: what drifts with time falls on both
            if busy:
                scoring.on.set()
                threading.Event().wait(1.0)
            else:
                scoring.settle()
            pipe.send("go")
            steps[busy].append(pipe.recv())
        played = scoring.episodes
        scoring.close()
        process.kill()
    (wall_off, cpu_off), (wall_on, cpu_on) = (
        [median(values) for values in zip(*steps[busy], strict=True)] for busy in (False, True)
    )
    print(f"{'ms a step, medians':<28}{'clock':>8}{'processor':>11}")
    print(f"{'training alone':<28}{1000 * wall_off:>8.1f}{1000 * cpu_off:>11.1f}")
    print(f"{'beside scoring':<28}{1000 * wall_on:>8.1f}{1000 * cpu_on:>11.1f}")
    print(
        f"\n{rounds} rounds of {block} steps each; {played} episodes played;"
        f" {len(os.sched_getaffinity(0)) + 1} cores, training on one of them"
    )
    wall_ratio, cpu_ratio = (  # of turns that follow each other
        harness.median_ratio(on, off)
        for on, off in zip(zip(*steps[True], strict=True), zip(*steps[False], strict=True), strict=True)
    )
    return {"ratio_step_time": wall_ratio, "cpu_ratio_step_time": cpu_ratio, "rounds": rounds}


if __name__ == "__main__":
    harness.run(main)
