"""Small JSON objects: a damaged one is named, whichever part of a sweep reads it."""

from collections.abc import Callable

import pytest

from orchestrator.checkpoints.record import read_records
from orchestrator.config.pinned_data import pinned_facts
from orchestrator.cost import CostLedger
from orchestrator.evaluation.outcome_ledger import Ledger
from orchestrator.fingerprints import Key
from orchestrator.storage.base import LocalStorage, Storage, StorageError
from orchestrator.sweep.driver_lease import Lease
from orchestrator.sweep.live_status import LiveStatus

READERS: dict[str, Callable[[Storage], object]] = {
    "sweeps/lift.json": lambda storage: pinned_facts(storage, "lift"),
    "checkpoints/arm/step_000100.json": lambda storage: read_records(storage, "arm"),
    "costs/lift/run.json": lambda storage: CostLedger.read(storage, "lift"),
    "outcomes/c/p/decided-rule.json": lambda storage: Ledger(storage, "c", "p").verdict("rule"),
    "keys/k.json": lambda storage: Key.kept(storage, "k"),
    "leases/lift/000001.json": lambda storage: Lease(storage, "lift", lambda _: None).held(),
    "live/lift.json": lambda storage: LiveStatus.read(storage, "lift"),
}


@pytest.mark.parametrize("key", READERS)
@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"[1]", bytes(9), b"\xff{}"])
def test_damaged_json_object_is_named_in_a_sentence(local: LocalStorage, key: str, content: bytes) -> None:
    local.put(key, content)
    with pytest.raises(StorageError, match=f": {key} is damaged; restore it, or delete it"):
        READERS[key](local)


@pytest.fixture
def local(tmp_path_factory: pytest.TempPathFactory) -> LocalStorage:
    return LocalStorage(tmp_path_factory.mktemp("storage"))
