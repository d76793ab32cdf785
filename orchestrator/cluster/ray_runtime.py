"""Connection to a Ray cluster, or to one started on this machine, and queries of its nodes and resources."""

import logging
import os
import signal
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.worker_logs import redact_output
from orchestrator.storage.base import PATIENCE
from policy.errors import RESUMABLE, DemoscaleError
from sim_workers.checkout import CHECKOUT

if TYPE_CHECKING:
    from orchestrator.cluster.placement import Node

# Ray reads these when it is imported or a process starts, so they are set before.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # a report waits for the controller's next poll of its workers
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # on one machine it only logs that there is nothing to watch
    # a sweep is many small processes; Ray warns when they outnumber the cores
    "RAY_worker_maximum_startup_concurrency": "8",
    # those that Ray starts beforehand lack this project's environment variables, so that nothing runs in them
    "RAY_prestart_worker_first_driver": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths stay valid
    "RAY_AIR_NEW_OUTPUT": "0",  # demoscale's own table shows the sweep
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C stops the whole sweep, not only its training
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a simulator without a GPU of its own may still render on one
}
CPU = "cpu"
"""Device class of policies that act without a GPU."""
ROLE = "demoscale-role"
"""Ray label of dedicated nodes: `rollouts` for simulators, `servers` for policy servers (deploy/)."""

DASHBOARD = "DEMOSCALE_RAY_DASHBOARD"
"""Environment variable. `0`: Ray starts on this machine without its dashboard's processes."""

STARTS = 3
"""Attempts to start Ray: it gives its node 30 s, which is too short on a very busy machine."""
SLOW_START = "timed out during startup"
"""Part of the message of Ray's exception then, which has no type of its own."""


class RayStartError(DemoscaleError):
    """Ray did not start on this machine."""

    exit_code = RESUMABLE


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, or start Ray on this machine; does nothing when already
    connected. Raises RayStartError if Ray does not start in time.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return
    # On this machine the workers import the driver's checkout, regardless of its working directory.
    checkout = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH", "")]))
    # The storage has answered the driver by now, so workers retry an unavailable storage even if it never
    # answered them.
    variables = {"PYTHONPATH": checkout, "PYTHONWARNINGS": "ignore", PATIENCE: "1"}
    # by default Ray would join the instance last started on this machine, dead or alive
    address = os.environ.get("RAY_ADDRESS", "local")
    without_dashboard = address == "local" and os.environ.get(DASHBOARD) == "0"
    terminated = signal.getsignal(signal.SIGTERM)
    for attempt in range(1, STARTS + 1):
        try:
            ray.init(
                address=address,
                include_dashboard=False if without_dashboard else None,
                namespace="demoscale",
                log_to_driver="DEMOSCALE_RAY_LOGS" in os.environ,
                logging_level=logging.ERROR,
                runtime_env={
                    "env_vars": variables,
                    "worker_process_setup_hook": "orchestrator.cluster.ray_runtime.set_up_worker",
                },
            )
            break
        except Exception as error:
            if SLOW_START not in str(error):
                raise
            if attempt == STARTS:
                raise RayStartError(
                    f"Ray did not start on this machine, {STARTS} times: it is too busy; run the command"
                    " again when there is less other work"
                ) from None
    # Ray replaces the SIGTERM handler; an earlier one is restored.
    if threading.current_thread() is threading.main_thread() and terminated not in (
        signal.SIG_DFL,
        signal.SIG_IGN,
        None,
    ):
        signal.signal(signal.SIGTERM, terminated)


def set_up_worker() -> None:
    """Redact what this worker process of Ray prints, and name its cluster: Ray's
    `worker_process_setup_hook`.
    """
    import ray

    redact_output()
    # Without an address Ray's state API asks the cluster last started on this machine. Ray Train's
    # PlacementGroupCleaner takes an actor that this one does not know for dead and ends a running training.
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address


def resources() -> dict[str, float]:
    """Return the connected cluster's total of each resource."""
    import ray

    total: dict[str, float] = ray.cluster_resources()
    return total


def nodes() -> "tuple[Node, ...]":
    """Return the connected cluster's nodes."""
    import ray

    # here, since every worker process imports this module and this one imports the sweep file's with it
    from orchestrator.cluster.placement import Node

    return tuple(
        Node(
            node["Resources"].get("CPU", 0.0),
            int(node["Resources"].get("GPU", 0.0)),
            node["Labels"].get(ROLE, ""),
        )
        for node in ray.nodes()
        if node["Alive"]
    )


def this_node_is_alive() -> bool:
    """Return whether the connected cluster counts this process' node among those that live."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == own and node["Alive"] for node in ray.nodes())


def node_selector(role: str, **needed: float) -> dict[str, str]:
    """Return the label selector of the connected cluster's nodes that are dedicated to a role.

    Empty, which admits any node, if there are none, or if they have less in total than `needed`, e.g. CPU=15.
    """
    apart = dedicated_resources(role)
    return (
        {ROLE: role}
        if apart and all(apart.get(kind, 0.0) >= amount for kind, amount in needed.items())
        else {}
    )


def nodes_with_cores() -> dict[str, str]:
    """Return the label selector of the connected cluster's nodes with CPUs, empty if all have some; a head
    without work has none.
    """
    import ray

    bare = sorted(
        node["NodeID"] for node in ray.nodes() if node["Alive"] and not node["Resources"].get("CPU")
    )
    return {"ray.io/node-id": f"!in({','.join(bare)})"} if bare else {}


def request_capacity(bundles: list[dict[str, float]]) -> None:
    """Ask the cluster's autoscaler for nodes with room for all of these at once, in place of what was asked
    before; none: for nothing. Without an autoscaler nothing happens.
    """
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=bundles)


def on_driver_node() -> dict[str, Any]:
    """Return the options of an actor on this process' node: placed elsewhere, it could be lost with a node
    that the driver outlives.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {
        "num_cpus": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        ),
    }


def dedicated_resources(role: str) -> dict[str, float]:
    """Return the total of each resource on the connected cluster's nodes dedicated to a role; empty if there
    are none.
    """
    import ray

    nodes = (node["Resources"] for node in ray.nodes() if node["Alive"] and node["Labels"].get(ROLE) == role)
    return dict(sum((Counter(has) for has in nodes), Counter()))


def acting_device(server_gpus: float) -> str:
    """Return the device class of the connected cluster's policy servers: `cpu`, or Ray's name of their GPUs,
    such as H200.

    server_gpus: GPUs that each of them claims. GPUs of several classes form a class of their own, their names
    joined by `+`.
    """
    import ray

    if not server_gpus:
        return CPU
    having = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    apart = [node for node in having if node["Labels"].get(ROLE) == "servers"]
    kinds = {
        kind.partition(":")[2]
        for node in apart or having
        for kind in node["Resources"]
        if kind.startswith("accelerator_type:")
    }
    return "+".join(sorted(kinds)) or "gpu"


def device_here() -> str:
    """Return the device class that `acting_device` would, if Ray were started on this machine."""
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return CPU
    from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager as Manager

    visible = Manager.get_current_process_visible_accelerator_ids()
    return Manager.get_current_node_accelerator_type() or "gpu" if visible is None or visible else CPU


def quiet() -> None:
    """Suppress third-party start-up messages and warnings on the terminal of a command."""
    for name in ("ray", "ray.train", "ray.tune", "ray.data", "mlflow"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")
