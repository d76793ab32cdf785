"""Where the commands find a sweep in MLflow."""

from typing import NamedTuple


class TrackedAt(NamedTuple):
    """A sweep in MLflow: the arguments of `read_sweep`, `read_curve` and `Curve.read`."""

    tracking_uri: str
    name: str
    store: str
    """Identity of the sweep's storage; empty if the storage cannot be reached."""
    storage: str
    """URI of the storage."""


def tracked_at(name: str, storage: str, mlflow: str | None) -> TrackedAt:
    """Return where a sweep is tracked. storage, mlflow: the options of the command."""
    from orchestrator.storage.base import open_storage
    from orchestrator.storage.identity import store_of
    from orchestrator.tracking.mlflow_writer import tracking_uri

    place = open_storage(storage).uri
    return TrackedAt(tracking_uri(mlflow or "", place), name, store_of(place, name), place)
