"""Repair of Ray Train's own list of a run's checkpoints after a full disk or a power failure. The only file
that knows its format.

Ray rewrites `<run>/checkpoint_manager_snapshot.json` in place and refuses a run whose list is damaged or
names a missing checkpoint.
"""

import json
from importlib.metadata import version
from typing import Any

from orchestrator.checkpoints.reader import is_complete
from orchestrator.checkpoints.record import CheckpointRecord
from orchestrator.storage.base import NoObject, Storage

SNAPSHOT = "checkpoint_manager_snapshot.json"
LISTS = (
    "pending_training_results",
    "pending_validation_specs",
    "validated_checkpoint_dir_names",
    "timed_out_validation_checkpoint_dir_names",
    "failed_validation_checkpoint_dir_names",
)
"""Other fields of the list, empty here: no checkpoint is validated."""


def repair(storage: Storage, run: str, noted: dict[int, CheckpointRecord]) -> list[str]:
    """Repair the list so that the run resumes from its newest intact checkpoint; return the problems, one
    sentence each, empty if none.

    storage: contains the run's folder. noted: the sweep's own records of the checkpoints, by step; they
    replace a list that cannot be read. A checkpoint is intact if it has the fingerprint that was
    reported with it.
    """
    key, problems = f"{run}/{SNAPSHOT}", list[str]()
    try:
        stored = storage.get(key)
    except NoObject:
        return []
    listed = _listed(stored)
    if listed is None:
        problems.append(f"{storage.uri}/{key}: Ray Train's list of checkpoints is damaged")
        listed = [
            (f"step_{step:06d}", record.to_json() | {"step": step}) for step, record in sorted(noted.items())
        ]
    # Ray refuses a list that names a missing folder. Older ones may have been removed on purpose.
    there = {key.split("/")[1] for key in storage.list(f"{run}/")}
    named = len(listed)
    newest = max((name for name, _ in listed if name in there), default="")
    problems += [
        f"{storage.uri}/{run}/{name}: the checkpoint is not there"
        for name, _ in listed
        if name not in there and name > newest
    ]
    listed = [one for one in listed if one[0] in there]
    while listed and not is_complete(
        place := f"{storage.uri}/{run}/{listed[-1][0]}", str(listed[-1][1].get("checkpoint"))
    ):
        problems.append(f"{place}: the checkpoint is damaged")
        listed.pop()
    if problems or len(listed) < named:
        storage.put(key, _written(listed))
    return problems


def _listed(stored: bytes) -> list[tuple[str, dict[str, Any]]] | None:
    """Return (folder, metrics) of every checkpoint, oldest first; None if the list is damaged."""
    try:
        results = json.loads(stored)["checkpoint_results"]
        listed = [(str(one["checkpoint_dir_name"]), dict(one["metrics"])) for one in results]
        return sorted(listed, key=lambda one: int(one[1]["step"]))
    except (ValueError, KeyError, TypeError):
        return None


def _written(listed: list[tuple[str, dict[str, Any]]]) -> bytes:
    results = [{"version": 0, "checkpoint_dir_name": name, "metrics": metrics} for name, metrics in listed]
    told = {
        "ray_version": version("ray"),
        "checkpoint_results": results,
        "checkpoint_report_indices": [*range(1, len(results) + 1)],
        "latest_checkpoint_result": results[-1] if results else None,
        "current_report_index": len(results),
        **{name: list[str]() for name in LISTS},
    }
    return json.dumps(told).encode()
