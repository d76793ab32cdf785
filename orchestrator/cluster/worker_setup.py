"""What every worker process of Ray does before its first task."""

import os

from orchestrator.cluster.worker_logs import redact_output


def set_up_worker() -> None:
    """Redact what this process prints and name its cluster: Ray's `worker_process_setup_hook`."""
    import ray

    redact_output()
    # Without an address Ray's state API asks the cluster last started on this machine. Ray Train's
    # PlacementGroupCleaner takes an actor that this one does not know for dead and ends a running training.
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
