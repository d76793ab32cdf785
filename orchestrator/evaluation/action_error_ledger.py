"""Ledger of action errors in the storage, apart from the outcomes of rollouts.

    action_errors/<checkpoint>/<protocol>.parquet         sealed: every held-out episode
    action_errors/<checkpoint>/<protocol>/<name>.parquet  part: episodes measured together; its name is a hash
                                                          of their ids

No object is overwritten: of several measurements of an episode the first in the order of names counts. A row
is one episode of one checkpoint:

    checkpoint, protocol     fingerprints of the weights, and of everything else that shapes an action error
    episode, task            the held-out episode
    steps, looks             recorded actions compared; policy queries
    error, dimensions        mean absolute error in standard deviations of the held-out actions
                             (orchestrator/data/action_error.py): over all dimensions, and of each; null for a
                             dimension that never changes
    constant                 error of the mean action
    loss                     loss of the policy's actions, null if it has none
    policy_s                 seconds of waiting for the policy
    recorded                 time of recording, UTC
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from orchestrator.data.action_error import ActionError
from orchestrator.provenance import digest
from orchestrator.storage.base import NoObject, Storage, claim
from orchestrator.storage.tables import encode_rows, read_rows

SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("checkpoint", "protocol")),
        *(pa.field(name, pa.string(), nullable=False) for name in ("episode", "task")),
        *(pa.field(name, pa.int64(), nullable=False) for name in ("steps", "looks")),
        pa.field("error", pa.float64(), nullable=False),
        pa.field("dimensions", pa.list_(pa.float64()), nullable=False),
        pa.field("constant", pa.float64(), nullable=False),
        pa.field("loss", pa.float64()),
        pa.field("policy_s", pa.float64(), nullable=False),
        pa.field("recorded", pa.timestamp("us", "UTC"), nullable=False),
    ]
)
READERS = 16  # parts fetched in parallel


class ActionErrorLedger:
    """Action errors of one checkpoint under one protocol."""

    def __init__(self, storage: Storage, checkpoint: str, protocol: str) -> None:
        self._storage, self._of = storage, {"checkpoint": checkpoint, "protocol": protocol}
        self._prefix = f"action_errors/{checkpoint}/{protocol}/"
        self._sealed = f"action_errors/{checkpoint}/{protocol}.parquet"

    def record(self, errors: Sequence[ActionError]) -> None:
        """Write the episodes as one part: all of them or, if the process dies, none."""
        if errors:
            name = digest(sorted(error.episode for error in errors))
            self._storage.put_if_absent(f"{self._prefix}{name}.parquet", self._encode(errors))

    def seal(self, errors: Iterable[ActionError]) -> tuple[ActionError, ...]:
        """Write all episodes as one object, sorted by id, which replaces the parts for all later reads,
        unless there is one; return the stored episodes, which are those of the first process that sealed
        them.
        """
        listed = tuple(sorted(errors, key=lambda error: error.episode))
        mine = claim(self._storage, self._sealed, self._encode(listed))
        return listed if mine else tuple(self.read().values())

    def read(self) -> dict[str, ActionError]:
        """Return the measured episodes by id. Raises StorageError, which names the object, if one is
        damaged.
        """
        again = "its episodes will be measured again"
        try:
            tables = [read_rows(self._storage, self._sealed, SCHEMA, "its parts are still there")]
        except NoObject:
            parts = sorted(key for key in self._storage.list(self._prefix) if key.endswith(".parquet"))
            with ThreadPoolExecutor(READERS) as readers:
                tables = list(readers.map(lambda key: read_rows(self._storage, key, SCHEMA, again), parts))
        found: dict[str, ActionError] = {}
        for row in (row for table in tables for row in table.to_pylist()):
            found.setdefault(row["episode"], _error(row))
        return found

    def _encode(self, errors: Iterable[ActionError]) -> bytes:
        now = datetime.now(UTC)
        return encode_rows([{**self._of, **error.to_json(), "recorded": now} for error in errors], SCHEMA)


def _error(row: dict[str, Any]) -> ActionError:
    return ActionError.from_json({field.name: row[field.name] for field in fields(ActionError)})
