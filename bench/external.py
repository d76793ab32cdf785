"""What does a sweep add to an external policy's own training command?

    python -m bench.external                  a quarter of an hour
    python -m bench.external --quick          half a minute: start-up dominates, its ratio means little

One training command, run by itself on episodes that lie ready, and as a sweep runs it: as a task of a running
Ray, on episodes that are exported first, with its report followed, its log kept and its checkpoints stored.
"""

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import harness
from orchestrator.config.arms import Arm
from orchestrator.config.policy_manifest import load
from orchestrator.config.schema import Train
from orchestrator.data.episode_store import load_manifest
from orchestrator.data.subset import select_episodes
from orchestrator.external.environment import prepare
from orchestrator.external.fit import TRAIN_VARIABLE, fit_external
from orchestrator.external.job import ExternalJob
from orchestrator.external.subset_export import exported
from orchestrator.storage.base import open_storage
from orchestrator.testing.episodes import make_episode_store

ROUNDS, QUICK_ROUNDS = 2, 1
STEPS, QUICK_STEPS = 900, 20
CHECKPOINTS = 5
MEGABYTES = 50
"""Size of a checkpoint."""
STEP_S = 0.2
"""Seconds of computing in one step."""

MANIFEST = """
name: busy
environment: this
train: [python, train.py]
serve: [python, train.py]
data: lerobot_v3
"""
TRAIN = f'''
import json, os, pathlib, time
import numpy as np
job = json.loads(pathlib.Path(os.environ["{TRAIN_VARIABLE}"]).read_text())
rng = np.random.default_rng(job["seed"])
weights, one = rng.bytes({MEGABYTES} << 20), rng.normal(size=(256, 256))
for step in range(1, job["steps"] + 1):
    until = time.process_time() + {STEP_S}
    while time.process_time() < until:
        one = np.tanh(one @ one)
    line = {{"step": step, "loss": 1 / step}}
    if step % job["checkpoint_every"] == 0:
        folder = pathlib.Path(job["checkpoints"], f"step_{{step:06d}}")
        folder.mkdir()
        (folder / "weights.bin").write_bytes(weights)
        line["checkpoint"] = folder.name
    with open(job["report"], "a") as file:
        file.write(json.dumps(line) + "\\n")
'''


def bare(job: ExternalJob, folder: Path, niceness: int) -> float:
    """Run the command by itself, with the niceness of Ray's workers; return its seconds."""
    folder.mkdir()
    episodes = open_storage(job.episodes)
    for name in ("policy", "checkpoints", "node"):
        (folder / name).mkdir()
    manifest, keeps = load_manifest(episodes), open_storage(str(folder / "kept"))
    export = exported(episodes, manifest, job.subset, "lerobot_v3", False, keeps, folder / "node")
    job.policy.write(folder / "policy")
    described = {
        "data": str(export.data),
        "checkpoints": str(folder / "checkpoints"),
        "report": str(folder / "report.jsonl"),
        "steps": job.train.steps,
        "checkpoint_every": job.train.checkpoint_every,
        "seed": job.arm.seed,
    }
    (folder / "train.json").write_text(json.dumps(described))
    launch = prepare(job.policy).launch(
        job.policy.manifest.train,
        folder / "policy",
        folder,
        {TRAIN_VARIABLE: str(folder / "train.json"), "OMP_NUM_THREADS": "1"},
    )
    began = time.perf_counter()
    words = ["nice", "-n", str(niceness - os.nice(0)), *launch.words]
    subprocess.run(words, cwd=launch.folder, env=dict(launch.variables), check=True)
    return time.perf_counter() - began


def as_line(job: ExternalJob, folder: Path, channel: Any) -> float:
    """Train as a sweep does; return its seconds."""
    arms = open_storage(str(folder / "arms")).uri
    began = time.perf_counter()
    reports = fit_external(job, arms, {"CPU": 1.0}, channel)
    seconds = time.perf_counter() - began
    assert [report.step for report in reports][-1] == job.train.steps
    return seconds


@harness.command("external", digits=4)
def main(quick: bool) -> dict[str, object]:
    """Print a table; return the values of the last line."""
    import ray

    from orchestrator.cluster.ray_runtime import connect, quiet
    from orchestrator.training.control_channel import open_control_channel, receiving

    rounds, steps = (QUICK_ROUNDS, QUICK_STEPS) if quick else (ROUNDS, STEPS)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "policy").mkdir()
        (root / "policy" / "policy.yaml").write_text(MANIFEST)
        (root / "policy" / "train.py").write_text(TRAIN)
        store = make_episode_store(root / "store", 60, length=60)
        quiet()
        connect()
        niceness = ray.get(ray.remote(lambda: os.nice(0)).remote())

        def job(number: int) -> ExternalJob:
            arm = Arm(50, 0.0, number, "busy")  # of other episodes in each round, which are exported first
            return ExternalJob(
                arm=arm,
                arm_id=f"busy-{os.getpid()}-{number}",
                episodes=store,
                version=1,
                subset=select_episodes(load_manifest(open_storage(store)), arm),
                policy=load(root / "policy"),
                options={},
                train=Train(steps=steps, batch_size=1, checkpoint_every=steps // CHECKPOINTS),
                storage=str(root / f"line-{number}"),
            )

        walls: dict[str, list[float]] = {"bare": [], "line": []}
        with open_control_channel() as channel, receiving(channel, lambda event: None):
            for number in range(rounds):
                for kind in ("line", "bare")[:: -1 if number % 2 else 1]:
                    place = root / f"{kind}-{number}"
                    seconds = (
                        bare(job(number), place, niceness)
                        if kind == "bare"
                        else as_line(job(number), place, channel)
                    )
                    walls[kind].append(seconds)
    print(f"{steps} steps of {STEP_S} s, {CHECKPOINTS} checkpoints of {MEGABYTES} MiB, {rounds} rounds\n")
    print(f"{'seconds':<24}{'medians':>10}")
    for kind, title in (("bare", "the command by itself"), ("line", "as a line of a sweep")):
        print(f"{title:<24}{sorted(walls[kind])[len(walls[kind]) // 2]:>10.1f}")
    more = [line - alone for line, alone in zip(walls["line"], walls["bare"], strict=True)]
    print(f"{'more':<24}{sorted(more)[len(more) // 2]:>10.1f}")
    return {
        "ratio_to_bare_command": harness.median_ratio(walls["line"], walls["bare"]),
        "seconds_bare": sorted(walls["bare"])[len(walls["bare"]) // 2],
        "seconds_more": sorted(more)[len(more) // 2],
        "rounds": rounds,
    }


if __name__ == "__main__":
    harness.run(main)
