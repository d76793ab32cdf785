"""Episodes fetched in the calling thread, in place of `orchestrator.data.stream._fetched`."""

from collections.abc import Iterator

from orchestrator.data import stream
from orchestrator.data.store import fetch
from orchestrator.storage import open_storage


def fake_fetch(uri: str, need: stream._Need) -> Iterator[bytes]:
    """Yield the bytes of the needed episodes in their order, as Ray Data delivers them."""
    storage = open_storage(uri)
    for entry in need.episodes():
        yield fetch(storage, entry)
