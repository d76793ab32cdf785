"""A sweep whose only arm is trained by one worker on each of two Ray nodes that share the model (FSDP); then the
same sweep with more steps, which resumes. Prints the results as JSON: python two_node_sweep.py STORE FOLDER

Run by test_sharded_sweep.py in a process of its own, since Ray joins one cluster per process.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from orchestrator.cluster.ray_runtime import connect, quiet
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.sweep.run import SweepRun
from orchestrator.testing.players import FakeEvalBackend
from orchestrator.training import ray_train
from orchestrator.training.loop import TrainJob
from orchestrator.training.train_events import Reported


def fit(
    job: TrainJob, folder: str, resources: dict[str, float], channel: Any, attempts: int = 1
) -> list[Reported]:
    """Train as a sweep does, and write what each worker claims to a file next to the checkpoints."""
    reported = ray_train.fit(job, folder, resources, channel, attempts)
    Path(folder, "claims.json").write_text(json.dumps(resources))
    return reported


def sweep(store: str, folder: str, steps: int) -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "name": "sharded",
            "data": {"episodes": store, "demo_count": [4]},
            "policy": {"weights": "none"},
            "train": {
                "steps": steps,
                "checkpoint_every": 2,
                "batch_size": 4,
                "workers": 2,
                "sharding": "fsdp",
                "precision": "bf16",
                "schedule": "constant",
            },
            "suite": {"tasks": ["Lift"], "episodes": 4, "horizon": 8, "video_clips": 0},
            "rollout_actors": 1,
            "storage": folder,
        }
    )


def main(store: str, folder: str) -> None:
    quiet()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    os.environ["RAY_ADDRESS"] = cluster.address
    connect()
    cluster.wait_for_nodes()
    told: dict[str, Any] = {"runs": []}
    for steps in (2, 4):
        run = SweepRun(sweep(store, folder, steps), lambda line: None, fit=fit, players=FakeEvalBackend())
        run.run()
        (arm,) = run.board.arms
        kept = sorted(Path(folder, "arms", arm).glob("step_*"))
        told["runs"].append(
            {
                "arm": arm,
                "state": run.board.arms[arm].state,
                "written": {path.name: path.stat().st_mtime_ns for path in kept},
            }
        )
    told["claims"] = json.loads(Path(folder, "arms", "claims.json").read_text())
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
