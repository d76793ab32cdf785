"""Small JSON objects of a storage, read together by name."""

import json
from typing import Any

from orchestrator.storage import Storage


def read_notes(storage: Storage, prefix: str) -> dict[str, Any]:
    """What every `<prefix><name>.json` says, by name, in the names' order."""
    return {key.removeprefix(prefix).removesuffix(".json"): json.loads(storage.get(key)) for key in storage.list(prefix)}
