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
