"""The Ray actors that scoring needs in addition to the simulators: policy servers, and those that read
held-out episodes.
"""

from collections.abc import Collection, Iterable
from contextlib import suppress
from functools import lru_cache
from typing import Any

from orchestrator.checkpoints.external_card import CARD, ExternalCard
from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.cluster.ray_runtime import node_selector, nodes_with_cores
from orchestrator.code_fingerprint import run_files
from orchestrator.evaluation.held_out_actor import HeldOutActor
from orchestrator.evaluation.policy_server import PolicyServer
from orchestrator.evaluation.scores import ProtocolError
from orchestrator.storage.base import NoObject, open_storage
from policy import checkpoint_files
from policy.checkpoint_files import needs_in
from policy.config import AS_RUNG, SamplerSettings
from policy.interface import PRESENT_ONLY, PolicyNeeds
from sim_workers.checkout import file_hashes
from sim_workers.rollout.autoscaler import ServerUsage
from sim_workers.rollout.policy_clients import PolicySource
from sim_workers.rollout.worker import one_line

LOAD_S = 1800.0
"""Seconds after which loading a checkpoint on a policy server times out."""


def policy_servers(
    number: int,
    gpus: float,
    rung: str,
    sweep: str = "",
    learners: Iterable[str] = (),
    sampler: SamplerSettings = AS_RUNG,
) -> tuple[Any, ...]:
    """Start policy servers on the connected Ray, each with `gpus` GPUs; return their handles. Ray restarts a
    dead one and retries its calls.

    rung: of the policies' ladders. sampler: values in place of the rung's. sweep: its name, for metrics and
    logs. learners: names of the policies of installed packages that they may serve, whose code they must
    share with this process.
    """
    import ray

    server = ray.remote(PolicyServer).options(
        **server_options(number, gpus), runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}}
    )
    files = run_files(learners=learners)
    return tuple(
        server.remote(1, "cuda" if gpus else "cpu", rung, sweep, files, sampler) for _ in range(number)
    )


class RayServerHost:
    """Starts and ends a fleet's policy servers on the connected Ray."""

    READY_S = 1.0
    """Seconds that a call waits for servers' answers."""

    def __init__(
        self, rung: str, sweep: str, sampler: SamplerSettings, learners: Collection[str] = ()
    ) -> None:
        """Configure the servers, as for `policy_servers`."""
        self._rung, self._sweep, self._sampler, self._learners = rung, sweep, sampler, learners

    def start(self, gpus: float) -> Any:
        """Start a server that claims this number of GPUs; return its handle at once."""
        return policy_servers(1, gpus, self._rung, self._sweep, self._learners, self._sampler)[0]

    def ready(self, servers: Collection[Any]) -> list[Any]:
        """Return those of the servers that answer within READY_S."""
        import ray

        asked = {server.answered.remote(None): server for server in servers}
        if not asked:
            return []
        done, _ = ray.wait([*asked], num_returns=len(asked), timeout=self.READY_S)
        answered = []
        for reply in done:
            with suppress(ray.exceptions.RayError):
                ray.get(reply)
                answered.append(asked[reply])
        return answered

    def work(self, server: Any) -> dict[CheckpointRef | None, ServerUsage]:
        """Return the work of a server; empty if it does not answer within READY_S."""
        import ray

        with suppress(ray.exceptions.RayError):  # also a timeout
            told: dict[CheckpointRef | None, ServerUsage] = ray.get(
                server.work.remote(), timeout=self.READY_S
            )
            return told
        return {}

    def end(self, server: Any) -> None:
        """End a server."""
        import ray

        ray.kill(server)


def server_options(number: int, gpus: float) -> dict[str, Any]:
    """Return the Ray options of each of `number` policy servers: spread over the eligible nodes, restarted
    and retried without limit.
    """
    # Kept off the trainers' GPUs, which may be more expensive and are all planned for.
    where = node_selector("servers", GPU=number * gpus) | ({} if gpus else nodes_with_cores())
    # Ray does not spread actors that request no resource; one byte of memory is enough.
    spread = {
        "num_cpus": 0,
        "num_gpus": gpus,
        "memory": 1,
        "scheduling_strategy": "SPREAD",
        "label_selector": where or None,
    }
    return spread | {"max_restarts": -1, "max_task_retries": -1, "max_concurrency": 1000}


def serving(servers: tuple[Any, ...], checkpoint: CheckpointRef) -> PolicySource:
    """Return the source of one checkpoint's policy on these servers, after the first of them has loaded it.

    Raises the error of a checkpoint that cannot be loaded, and ProtocolError if the server cannot start or
    does not load it within LOAD_S.
    """
    import ray

    from sim_workers.rollout.ray_policy_client import RayServedPolicy

    try:
        ray.get(servers[0].load.remote(checkpoint), timeout=LOAD_S)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayActorError as error:
        raise ProtocolError(f"no policy server could start: {one_line(error)}") from None
    except ray.exceptions.GetTimeoutError:
        raise ProtocolError(
            f"no policy server has loaded {checkpoint} within {LOAD_S / 60:.0f} minutes; does the cluster"
            " have room for one?"
        ) from None
    return RayServedPolicy(servers, checkpoint, needs=needs_of_checkpoint(checkpoint))


@lru_cache(maxsize=1024)
def needs_of_checkpoint(checkpoint: CheckpointRef) -> PolicyNeeds:
    """Return what a checkpoint's policy needs besides the present observation, as its card states it.

    Raises StorageError, or CheckpointError for a damaged card of an external policy.
    """
    storage = open_storage(checkpoint.uri)
    if storage.exists(CARD):
        return ExternalCard.read(storage).needs
    # the policy server reports a damaged card
    with suppress(NoObject, ValueError, TypeError, LookupError):
        return needs_in(storage.get(checkpoint_files.CARD))
    return PRESENT_ONLY


def held_out_actor() -> Any:
    """Start an actor that reads held-out episodes on the connected Ray; return its handle."""
    import ray

    options = {
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": -1,
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}},
    }
    return ray.remote(HeldOutActor).options(**options).remote(file_hashes())
