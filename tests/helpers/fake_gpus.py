"""A sweep on one machine that Ray takes for one with eight GPUs: real schedulers, heartbeat, scorer, pool and
fleet; training, simulators and policies are fakes that hold what they claim. Prints what happened as JSON.

Run by test_placement.py in a process of its own, since Ray joins one cluster per process.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.cluster.placement import SHARED_GPU, ResourcePlan
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.evaluation.outcome_ledger import RenderReferences
from orchestrator.evaluation.ray_actors import RayServerHost
from orchestrator.evaluation.server_fleet import ServerFleet
from orchestrator.sweep.eval_scheduler import EvalBackend
from orchestrator.sweep.run import SweepRun
from orchestrator.sweep.state import SweepState
from orchestrator.testing.episodes import make_episode_store
from orchestrator.testing.fake_policy_server import FakePolicyServer
from orchestrator.testing.fake_trainer import FakeTrainer
from orchestrator.training.control_channel import ANSWER_S
from orchestrator.training.train_events import Reported
from policy.config import AS_RUNG
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.pool import RolloutPool
from sim_workers.rollout.pool_state import OnRetry
from sim_workers.rollout.ray_policy_client import RayServedPolicy
from sim_workers.rollout.worker import Played, RolloutJob, Said

EPISODE_S, STEP_S = 0.15, 0.25
GPUS, SIMULATORS = 8, 12


class Simulator:
    """Plays an episode in EPISODE_S; its outcome names the GPUs of the policy server that it queried."""

    def __init__(self, most_episodes: int, label: str) -> None:
        self._label = label

    def play(self, job: RolloutJob) -> Iterator[Said]:
        assert isinstance(job.source, RayServedPolicy)
        time.sleep(EPISODE_S)
        (server,) = job.source.servers
        told = json.dumps(ray.get(server.gpu.remote()))
        yield Played(Outcome(job.spec, "success", 40, 5, 0.1, 0.1, 30, True, message=told), None, False)


class Server(FakePolicyServer):
    """A policy server that knows its GPU."""

    def gpu(self) -> list[Any]:
        return [*ray.get_gpu_ids(), ray.get_runtime_context().get_assigned_resources()["GPU"]]


class Host(RayServerHost):
    """Starts such servers, and notes when."""

    def __init__(self) -> None:
        super().__init__("", "fake", AS_RUNG)
        self.events: list[tuple[float, str, float]] = []
        self._claims: dict[Any, float] = {}

    def start(self, gpus: float) -> Any:
        self.events.append((time.time(), "start", gpus))
        server = ray.remote(Server).options(num_cpus=0, num_gpus=gpus, max_restarts=-1).remote()
        self._claims[server] = gpus
        return server

    def end(self, server: Any) -> None:
        self.events.append((time.time(), "end", self._claims.pop(server)))
        super().end(server)


@ray.remote
class Claim:
    """Holds the resources of a training worker."""

    def gpu(self) -> Any:
        return ray.get_gpu_ids()[0]


class HoldingTrainer(FakeTrainer):
    """Holds as many workers as the job has while it trains, and writes when it did to its folder."""

    def __call__(
        self, job: Any, folder: str, resources: dict[str, float], channel: Any, attempts: int = 1
    ) -> list[Reported]:
        claims = {
            "num_cpus": resources["CPU"],
            "num_gpus": resources["GPU"],
            "scheduling_strategy": "DEFAULT",  # outside the placement group of the trial
        }
        workers = [Claim.options(**claims).remote() for _ in range(job.train.workers)]
        gpus = ray.get([worker.gpu.remote() for worker in workers], timeout=10 * ANSWER_S)
        began = time.time()
        reported = super().__call__(job, folder, resources, channel, attempts)
        for worker in workers:
            ray.kill(worker)
        note = {"began": began, "ended": time.time(), "gpus": gpus, "claim": resources["GPU"]}
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{job.arm_id}.json").write_text(json.dumps(note))
        return reported


def main(folder: Path) -> dict[str, Any]:
    """Run the sweep and return its events. A second node of eight GPUs joins while the first arms train."""
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # a busy machine starts it slowly
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 32, "num_gpus": GPUS, "include_dashboard": False}
    )
    ray.init(address=cluster.address, namespace="demoscale", log_to_driver=False)
    host = Host()

    def players(
        state: SweepState, placement: ResourcePlan, portraits: RenderReferences, on_retry: OnRetry
    ) -> EvalBackend:
        fleet = ServerFleet(host, SHARED_GPU)
        pool = RolloutPool(SIMULATORS, 0.1, references=portraits, worker=Simulator, on_retry=on_retry)

        def source(checkpoint: CheckpointRef, imagines: bool) -> RayServedPolicy:
            return RayServedPolicy((), checkpoint)

        return EvalBackend(pool, source, fleet.work, placement.server_gpus, fleet)

    sweep = SweepConfig.model_validate(
        {
            "name": "fake-gpus",
            "seeds": [0, 1, 2],
            "data": {"episodes": make_episode_store(folder / "store", 4), "demo_count": [2]},
            "train": {"steps": 60, "checkpoint_every": 20, "batch_size": 8, "workers": GPUS},
            "suite": {"tasks": ["Lift"], "episodes": 60, "horizon": 50, "video_clips": 0},
            "rollout_actors": SIMULATORS,
            "storage": str(folder / "runs"),
        }
    )
    lines = list[str]()

    def say(line: str) -> None:
        lines.append(line)
        if line.startswith("score") and len(cluster.worker_nodes) == 0:
            cluster.add_node(num_cpus=32, num_gpus=GPUS)

    run = SweepRun(sweep, say, fit=HoldingTrainer(STEP_S), players=players)
    curve = run.run()
    notes = [json.loads(file.read_text()) for file in (folder / "runs/arms").glob("*.json")]
    ray.shutdown()
    cluster.shutdown()
    return {
        "complete": curve is not None and all(arm.steps in arm.scores for arm in run.board.arms.values()),
        "training": sorted(notes, key=lambda note: note["began"]),
        "servers": host.events,
        "lines": lines,
        "train_gpu_s": run.spending.total().train_gpu_s,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
