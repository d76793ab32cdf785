"""Where the processor's time goes while a sweep runs: is it training and rollouts that keep the cores busy, or the machinery?

    python -m bench.loop                 the quickstart (about thirteen minutes)
    python -m bench.loop --quick         the same sweep, cut to seconds: shows that the bench works, its share means little

Samples the CPU time of every process below a running `demoscale run`, from the first clip fetched to the last score.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import click

from bench.sampler import Sampler
from orchestrator.provenance import CHECKOUT

# By process title, first match. The policy server computes the actions of rollouts, so it is part of them.
KINDS = {
    "RayTrainWorker": "training",
    "RolloutWorker": "rollouts: simulator",
    "PolicyServer": "rollouts: policy",
    "MapWorker": "streaming (Ray Data)",
    "MapBatches": "streaming (Ray Data)",
    "ray::": "Ray Train and Tune actors, idle workers",
    "raylet": "Ray system",
    "gcs_server": "Ray system",
    "dashboard": "Ray system",
    "ray": "Ray system",
    "orchestrator": "driver (Tune, scorer, MLflow)",
}
USEFUL = ("training", "rollouts: simulator", "rollouts: policy")


def kind_of(title: str) -> str:
    """The row a process belongs to."""
    return next((kind for word, kind in KINDS.items() if word in title), "other")


@click.command()
@click.option("--quick", is_flag=True, help="End within a minute or two.")
@click.option("--store", default="data/lift", show_default=True, help="An episode store large enough for the quickstart; `make demo` makes it.")
@click.option("--storage", help="Keep the sweep's results in this folder, which must not hold them yet; by default they are thrown away.")
def main(quick: bool, store: str, storage: str | None) -> None:
    """Print the split of CPU time and, last, one line of JSON."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"storage={Path(storage or folder).absolute()}", f"data.episodes={Path(store).absolute()}"]
        if quick:
            settings += ["data.demo_count=[2]", "data.action_free_ratio=[0]", "train.steps=20", "train.checkpoint_every=10", "suite.episodes=4"]
        command = [sys.executable, "-m", "orchestrator", "run", "jobs/quickstart.yaml", *(f"--set={setting}" for setting in settings)]
        process = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
        sampler, scored = Sampler(process.pid, kind_of), threading.Event()
        first_clip: float | None = None
        at_last_score: tuple[float, dict[str, float]] = time.monotonic(), {}

        def listen() -> None:
            assert process.stdout
            for line in process.stdout:
                print(line, end="", file=sys.stderr)
                if "] score " in line:
                    scored.set()

        threading.Thread(target=listen, daemon=True).start()
        while process.poll() is None:
            sampler.sample()
            if first_clip is None and any(kind.startswith("streaming") for kind in sampler.seconds):
                first_clip = time.monotonic()
                sampler.seconds.clear()
            if scored.is_set():
                scored.clear()
                at_last_score = time.monotonic(), dict(sampler.seconds)
            time.sleep(0.5)
        if process.returncode or first_clip is None or not at_last_score[1]:
            sys.exit(f"the sweep did not run to its end (exit code {process.returncode})")
    end, seconds = at_last_score
    wall, total, cores = end - first_clip, sum(seconds.values()), len(os.sched_getaffinity(0))
    print(f"\n{'from first clip to last score':<42} CPU s   share of CPU time   share of {cores} cores")
    for kind, used in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"{kind:<42} {used:5.0f}   {used / total:17.1%}   {used / (wall * cores):16.1%}")
    print(f"{'all':<42} {total:5.0f}   {'':17}   {total / (wall * cores):16.1%}   in {wall:.0f} s")
    useful = sum(seconds.get(kind, 0.0) for kind in USEFUL)
    print(
        json.dumps(
            {
                "bench": "loop",
                "share_training_and_rollouts": round(useful / total, 3),
                "share_of_cores": round(useful / (wall * cores), 3),
                "wall_s": round(wall, 1),
                "cores": cores,
                "quick": quick,
            }
        )
    )


if __name__ == "__main__":
    main()
