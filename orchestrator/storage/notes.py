"""Small JSON objects of a storage."""

import json
from typing import Any

from orchestrator.storage.base import Storage, StorageError


def read_json_object(storage: Storage, key: str) -> dict[str, Any]:
    """Return an object's content. Raises NoObject if there is none, StorageError, which names it, if it is
    damaged.
    """
    data = storage.get(key)
    try:
        content = json.loads(data)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise StorageError(
            f"{storage.uri}: {key} is damaged; restore it, or delete it and with it what it records"
        )
    return content


def read_json_objects(storage: Storage, prefix: str) -> dict[str, Any]:
    """Return the content of every `<prefix><name>.json` by name, in the order of names. Raises StorageError
    as `read_json_object` does.
    """
    return {
        key.removeprefix(prefix).removesuffix(".json"): read_json_object(storage, key)
        for key in storage.list(prefix)
    }
