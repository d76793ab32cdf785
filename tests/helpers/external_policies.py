"""External policies that train and serve in a fraction of a second, and their training jobs."""

from pathlib import Path
from typing import Any

from orchestrator.config.arms import Arm
from orchestrator.config.policy_manifest import load
from orchestrator.config.schema import Train
from orchestrator.data.episode_store import load_manifest
from orchestrator.data.subset import select_episodes
from orchestrator.external.job import ExternalJob
from orchestrator.storage.base import open_storage

MANIFEST = """
name: counter
environment: this
train: [python, -S, train.py]
serve: [python, serve.py]
data: lerobot_v3
options: {rate: 0.5}
"""
LIMITS = "limits: {stop_s: 5, start_s: 30, silent_s: 20, answer_s: 5}\n"

# `-S` saves the time of importing site-packages: standard library alone
TRAIN = """
import json, os, pathlib, signal, sys, time
job = json.loads(pathlib.Path(os.environ["DEMOSCALE_TRAIN"]).read_text())
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
def report(**line):
    with open(job["report"], "a") as file:
        file.write(json.dumps(line) + "\\n")
def save(step, loss=0.25):
    folder = pathlib.Path(job["checkpoints"], f"step_{step:06d}")
    folder.mkdir(exist_ok=True)
    (folder / "weights.json").write_text(json.dumps({"step": step, "seed": job["seed"], "from": first}))
    report(step=step, loss=loss, checkpoint=folder.name)
first = json.loads(pathlib.Path(job["resume"], "weights.json").read_text())["step"] if job["resume"] else 0
assert first == job["first_step"]
print("training from", first, flush=True)
"""
WHOLE = """
for step in range(first + 1, job["steps"] + 1):
    if stopped or step % job["checkpoint_every"] == 0 or step == job["steps"]:
        save(step, 1 / step)
        if stopped:
            sys.exit()
    else:
        report(step=step, loss=1 / step, extra={"unknown": [1]})
"""
"""Trains to the end."""

SERVE = """
import json, os, pathlib
import numpy as np
from policy.http_server import serve
from policy.interface import ActionChunk, Contract
job = json.loads(pathlib.Path(os.environ["DEMOSCALE_SERVE"]).read_text())
weights = json.loads(pathlib.Path(job["checkpoint"], "weights.json").read_text())
class Constant:
    contract = Contract.from_json(job["contract"])
    def act(self, observations):
        values = np.full((2, len(self.contract.action)), weights["step"] / 100, np.float32)
        return [ActionChunk(values, 2) for _ in observations]
print("serving step", weights["step"], flush=True)
"""
SERVES = 'serve(Constant(), job["host"], job["port"])\n'


def make_policy(folder: Path, train: str = WHOLE, serve: str = SERVES, manifest: str = "") -> Path:
    """Write a policy's folder; `train` and `serve` follow what its programs have in common, `manifest` its
    fields.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "policy.yaml").write_text(MANIFEST + ("" if "limits:" in manifest else LIMITS) + manifest)
    (folder / "train.py").write_text(TRAIN + train)
    (folder / "serve.py").write_text(SERVE + serve)
    return folder


def make_job(policy: Path, store: str, keeps: Path | str, steps: int = 6, **changes: Any) -> ExternalJob:
    """Return the training job of an arm of three demonstrations and three videos, seed 1."""
    arm = Arm(3, 1.0, 1, "counter")
    loaded = load(policy)
    fields: dict[str, Any] = {
        "arm": arm,
        "arm_id": "counter_demos-3",
        "episodes": store,
        "version": 1,
        "subset": select_episodes(load_manifest(open_storage(store)), arm),
        "policy": loaded,
        "options": loaded.manifest.with_options({}),
        "train": Train(steps=steps, batch_size=4, checkpoint_every=2),
        "storage": str(keeps),
    }
    return ExternalJob(**{**fields, **changes})
