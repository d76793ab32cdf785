"""Rows of records as Parquet objects of a storage, checked by their pages' checksums."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.storage.base import Storage, StorageError


def encode_rows(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> bytes:
    """Return the rows as a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def read_rows(
    storage: Storage, key: str, schema: pa.Schema, loss: str, later: Mapping[str, Any] = {}
) -> pa.Table:
    """Return an object's rows with the columns of the schema. Raises StorageError, which names the object, if
    it is damaged, and NoObject if there is none.

    loss: what deleting the object would mean. later: columns that earlier versions did not write, with their
    values in rows of these.
    """
    data = storage.get(key)
    try:
        table = pq.read_table(io.BytesIO(data), page_checksum_verification=True, use_threads=False)
        for name in later.keys() - set(table.schema.names):
            table = table.append_column(name, pa.array([later[name]] * len(table), schema.field(name).type))
        return table.select(schema.names).cast(schema)
    except (pa.ArrowException, OSError, ValueError, KeyError):
        raise StorageError(f"{storage.uri}: {key} is damaged; restore it, or delete it: {loss}") from None
