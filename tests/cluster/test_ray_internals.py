"""Private names of Ray that this project uses: a release that moves one fails here, with the module to
change.
"""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest

MANAGER = "ray.train.v2._internal.execution.checkpoint.checkpoint_manager.CheckpointManager"
PLACES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ray.data._internal.execution.execution_callback.ExecutionCallback.on_execution_step": (
        "orchestrator/data/ray_prefetch.py",
        ("executor",),
    ),
    "ray._private.state.GlobalState.get_draining_nodes": ("sim_workers/rollout/node_health.py", ()),
    "ray.job_submission.JobSubmissionClient._do_request": (
        "orchestrator/cluster/ray_jobs.py",
        ("method", "endpoint"),
    ),
    f"{MANAGER}._save_state": ("orchestrator/training/train_snapshot.py", ()),
    f"{MANAGER}._load_state": (
        "orchestrator/training/train_snapshot.py",
        ("json_state",),
    ),
}
"""Name -> the one module that uses it, and the arguments that it is called with."""


def found(name: str) -> Any:
    """Return the object of a dotted name; raises AttributeError or ImportError if there is none."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            value = import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            value = getattr(value, part)
        return value
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("name", PLACES)
def test_private_ray_name_exists_with_its_arguments(name: str) -> None:
    module, arguments = PLACES[name]
    try:
        function: Callable[..., Any] = found(name)
    except (AttributeError, ImportError):
        pytest.fail(f"{name} is gone from this Ray; change {module}, the only file that uses it")
    known = inspect.signature(function).parameters
    assert {*arguments} <= {*known}, (
        f"{name} takes {', '.join(known)} in this Ray; change {module}, the only file that uses it"
    )


def test_leaving_without_the_draining_nodes_api_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from sim_workers.rollout.node_health import leaving

    monkeypatch.delattr(type(ray._private.state.state), "get_draining_nodes")
    assert leaving() == frozenset()
