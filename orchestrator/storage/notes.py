"""Small JSON objects of a storage, read together by prefix."""

import json
from typing import Any

from orchestrator.storage.base import Storage


def read_json_objects(storage: Storage, prefix: str) -> dict[str, Any]:
    """Return the content of every `<prefix><name>.json` by name, in the order of names."""
    return {
        key.removeprefix(prefix).removesuffix(".json"): json.loads(storage.get(key))
        for key in storage.list(prefix)
    }


def read_steps(storage: Storage, run: str) -> dict[int, dict[str, Any]]:
    """Return a sweep's notes of a training run's intact checkpoints, by step: losses and `checkpoint`, the
    fingerprint.
    """
    told = read_json_objects(storage, f"checkpoints/{run}/step_")
    return {int(step): note for step, note in told.items() if "damaged" not in note}


def note_damaged(storage: Storage, run: str, step: int) -> None:
    """Note that the checkpoint of this step is damaged, until training writes it again."""
    storage.put(f"checkpoints/{run}/step_{step:06d}.json", json.dumps({"damaged": True}).encode())
