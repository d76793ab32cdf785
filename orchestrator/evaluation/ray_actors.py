"""Ray actors that a score needs besides the simulators: policy servers, and the process that measures generated video."""

from typing import Any

from orchestrator.cluster.ray_runtime import nodes_of, nodes_with_cores
from orchestrator.evaluation.policy_server import PolicyServer
from orchestrator.evaluation.scores import ProtocolError
from orchestrator.evaluation.video_score import VideoJudge
from sim_workers.checkout import file_hashes
from sim_workers.rollout.policy_clients import PolicySource
from sim_workers.rollout.worker import one_line

LOAD_S = 1800.0
"""Seconds after which a policy server that has not loaded a checkpoint is given up."""


def policy_servers(number: int, gpus: float, rung: str, sweep: str = "") -> tuple[Any, ...]:
    """Handles of so many policy servers of a connected Ray, each with its share of a GPU; one that dies starts again and is asked again."""
    import ray

    server = ray.remote(PolicyServer).options(**server_options(number, gpus), runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})
    return tuple(server.remote(1, "cuda" if gpus else "cpu", rung, sweep, file_hashes()) for _ in range(number))


def server_options(number: int, gpus: float) -> dict[str, Any]:
    """Ray's options of each of so many policy servers: evenly over the nodes that may have them, and never given up."""
    # Kept off the trainers' GPUs, which may be dearer, and of which every one is counted on.
    where = nodes_of("servers", GPU=number * gpus) | ({} if gpus else nodes_with_cores())
    # Of actors that claim nothing at all, Ray puts several on one node and none on another; a byte is enough.
    spread = {"num_cpus": 0, "num_gpus": gpus, "memory": 1, "scheduling_strategy": "SPREAD", "label_selector": where or None}
    return spread | {"max_restarts": -1, "max_task_retries": -1, "max_concurrency": 1000}


def serving(servers: tuple[Any, ...], uri: str) -> PolicySource:
    """The policy of one checkpoint behind such servers, loaded by the first of them: raises what is wrong with it before anybody asks.

    ProtocolError if the server itself cannot start.
    """
    import ray

    from sim_workers.rollout.ray_policy_client import Served

    try:
        ray.get(servers[0].load.remote(uri), timeout=LOAD_S)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayActorError as error:
        raise ProtocolError(f"no policy server starts: {one_line(error)}") from None
    except ray.exceptions.GetTimeoutError:
        raise ProtocolError(f"no policy server has loaded {uri} within {LOAD_S / 60:.0f} minutes; does the cluster have room for one?") from None
    return Served(servers, uri)


def video_judge() -> Any:
    """A handle of a process of a connected Ray that measures generated video."""
    import ray

    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}}
    return ray.remote(VideoJudge).options(**options).remote(file_hashes())
