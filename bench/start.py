"""What does the start of one arm's training through Ray Train cost, process by process and import by import?

    python -m bench.start              two minutes
    python -m bench.start --quick

Tiny arms of two steps, one after another in one Ray. Of a long run the first is not counted: it starts what
arms share. CPU seconds of all processes; imports are those of a process of their own, interpreter included.
"""

import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import psutil

from bench import harness
from orchestrator.testing.episodes import make_episode_store

ROUNDS = 3
SAMPLE_S = 0.1
IMPORTS = {
    "the interpreter": "pass",
    "ray": "import ray",
    "ray.train": "import ray.train",
    "ray.train.torch": "import ray.train.torch",
    "ray.data": "import ray.data",
    "torch": "import torch",
    "the policy (torch, diffusers)": "import policy.model",
}
NAMES = {
    "RayTrainWorker": "training worker",
    "TrainController": "Ray Train's controller",
    "SynchronizationActor": "Ray Train's synchronisation",
    "DatasetManager": "Ray Train's data sets",
    "PlacementGroupCleaner": "Ray Train's clean-up",
    "MapWorker": "Ray Data's fetching actor",
    "ControlChannel": "control channel",
    "spawn_main": "caller",
    "bench.start": "caller",
}
OTHER = "Ray's own processes and others"
SHORT = ("ray.train", "the policy (torch, diffusers)")
"""Imports of the last line; a short run measures no others."""


class Usage:
    """CPU seconds of this process and its descendants, by kind of process. Unlike with `harness.Sampler`,
    each counts whole as what its title said last: Ray names a worker after it has imported for its actor.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, float], tuple[str, float]] = {}
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._closing.wait(SAMPLE_S):
            self.seconds()

    def seconds(self) -> dict[tuple[int, float], tuple[str, float]]:
        """Return kind and CPU seconds so far of every process, dead ones included."""
        with self._lock:
            for use in harness.uses(psutil.Process()):
                self._seconds[use.identity] = _kind(use.title), use.cpu_s
            return dict(self._seconds)

    def close(self) -> None:
        self._closing.set()
        self._thread.join()


def _kind(title: str) -> str:
    return next((kind for part, kind in NAMES.items() if part in title), OTHER)


def used_by(usage: Usage, work: Callable[[], None]) -> dict[str, float]:
    """Return the CPU seconds, by kind of process, while `work` runs and until its processes have ended."""
    before = usage.seconds()
    work()
    threading.Event().wait(2.0)  # actors end
    spent: dict[str, float] = defaultdict(float)
    for process, (kind, seconds) in usage.seconds().items():
        spent[kind] += seconds - before.get(process, ("", 0.0))[1]
    return spent


def cpu_s_of(code: str) -> float:
    """Return the CPU seconds of a Python process that runs `code`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@harness.command("start")
def main(quick: bool) -> dict[str, object]:
    """Print two tables; return the values of the last line."""
    rounds, uncounted = (1, 0) if quick else (ROUNDS, 1)
    # first: later the children of this process are Ray's
    imports = {
        name: median(cpu_s_of(code) for _ in range(rounds))
        for name, code in IMPORTS.items()
        if name in SHORT or not quick
    }
    os.environ["DEMOSCALE_RAY_DASHBOARD"] = "0"
    import ray

    from orchestrator.cluster.ray_runtime import connect, quiet
    from orchestrator.config.arms import Arm
    from orchestrator.config.schema import Train
    from orchestrator.data.episode_store import load_manifest
    from orchestrator.data.subset import select_episodes
    from orchestrator.storage.base import open_storage
    from orchestrator.training import ray_train
    from orchestrator.training.control_channel import open_control_channel
    from orchestrator.training.loop import TrainJob
    from policy.presets import PRESETS

    quiet()
    spent: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = make_episode_store(folder / "store", 8, length=3, size=128)
        arm = Arm(4, 1.0, 0)
        subset = select_episodes(load_manifest(open_storage(store)), arm)
        settings = Train(steps=2, batch_size=4, checkpoint_every=2)
        job = TrainJob(arm, "bench-start", store, 1, subset, PRESETS["tiny"], settings, "joint", "none")
        connect()
        usage = Usage()
        with open_control_channel() as channel:

            def train(number: int) -> None:
                own = replace(job, arm_id=f"bench-start-{number}")
                ray.get(channel.put_job.remote(own.arm_id, own))
                ray_train.fit(own, str(folder / "arms"), {"CPU": 0.5}, channel)

            for number in range(rounds + uncounted):
                spent.append(used_by(usage, lambda number=number: train(number)))  # type: ignore[misc]
        usage.close()
        ray.shutdown()
    counted = spent[uncounted:]
    total = median(sum(one.values()) for one in counted)
    print(f"{'CPU s of one arm, medians':<34}")
    for kind in dict.fromkeys([*NAMES.values(), OTHER]):
        if (seconds := median(one.get(kind, 0.0) for one in counted)) >= 0.05:
            print(f"{kind:<34}{seconds:>8.1f}")
    print(f"{'together':<34}{total:>8.1f}\n\n{'CPU s of an import':<34}")
    for name, seconds in imports.items():
        print(f"{name:<34}{seconds:>8.2f}")
    return {
        "cpu_s_per_arm": total,
        "cpu_s_import_policy": imports[SHORT[1]],
        "cpu_s_import_ray_train": imports[SHORT[0]],
        "rounds": rounds,
    }


if __name__ == "__main__":
    harness.run(main)
