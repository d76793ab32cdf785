"""Rows of a LeRobot dataset: the values and picture files of an episode, from the Parquet files that hold it.

An episode's rows are spans of files, (path, first row, number of rows) each, in order.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.data.importers.image_ops import refuse_cut
from orchestrator.data.importers.source_files import contained

Spans = tuple[tuple[str, int, int], ...]
"""Spans of Parquet files: path, first row, number of rows."""
RATE_TOLERANCE = 0.05
"""Largest relative difference between the rows' median step and the stated rate."""
LONGEST_GAP = 1.5
"""Longest distance between two rows, in steps; a longer one means that rows are missing."""


def length_of(spans: Spans) -> int:
    """Return the number of rows of an episode."""
    return sum(count for _, _, count in spans)


def whole_table(root: Path, spans: Spans, columns: list[str], hz: float) -> pa.Table:
    """Return all rows of an episode, without columns that do not exist.

    Raises ValueError if rows are out of order, missing, or not spaced by the rate.
    """
    table = part_of_table(root, spans, columns, 0, length_of(spans))
    if "timestamp" in table.column_names and len(table) > 1:
        steps = np.diff(table["timestamp"].to_numpy().astype(np.float64))
        if not (steps > 0).all():
            raise ValueError(f"its timestamps do not rise at row {int(np.argmin(steps > 0)) + 1}")
        if abs(float(np.median(steps)) * hz - 1) > RATE_TOLERANCE:
            raise ValueError(
                f"its rows are {np.median(steps):.3f} s apart, meta/info.json says {hz:g} a second; say the"
                " right rate with --hz"
            )
        if (steps * hz > LONGEST_GAP).any():
            row = int(np.argmax(steps))
            raise ValueError(f"rows are missing: between rows {row} and {row + 1} pass {steps[row]:.3f} s")
    elif "frame_index" in table.column_names and (np.diff(table["frame_index"].to_numpy()) <= 0).any():
        raise ValueError("its rows are out of order by their frame_index")
    return table


def part_of_table(root: Path, spans: Spans, columns: list[str], first: int, last: int) -> pa.Table:
    """Return rows `first` to `last` of an episode, from the row groups that hold them."""
    tables, passed = [], 0
    for relative, start, count in spans:
        a, b = max(first - passed, 0), min(last - passed, count)
        passed += count
        if a >= b:
            continue
        file = pq.ParquetFile(contained(root, relative))
        ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
        starts = ends - [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        groups = [i for i in range(file.num_row_groups) if starts[i] < start + b and ends[i] > start + a]
        there = [name for name in columns if name in file.schema_arrow.names]
        if not groups:
            raise ValueError(f"{relative} ends before row {start + a}")
        tables.append(
            file.read_row_groups(groups, columns=there, use_threads=False).slice(
                start + a - starts[groups[0]], b - a
            )
        )
    return pa.concat_tables(tables) if tables else pa.table({})


def moments_of(table: pa.Table, length: int, hz: float) -> npt.NDArray[np.float64]:
    """Return the second of each row, (L,), by its timestamp, or by its index and the rate where rows have
    none.
    """
    if "timestamp" not in table.column_names:
        return np.arange(length) / hz
    return np.asarray(table["timestamp"].to_numpy(), np.float64)


def vectors(table: pa.Table, key: str) -> npt.NDArray[np.float32]:
    """Return (L, D) values of a column of lists or numbers. Raises ValueError for a row that is missing or of
    another width.
    """
    if key not in table.column_names:
        raise ValueError(f"it has no column {key}")
    column = table[key].combine_chunks()
    if column.null_count:
        raise ValueError(f"a row of {key} is missing")
    if not (
        pa.types.is_list(column.type)
        or pa.types.is_large_list(column.type)
        or pa.types.is_fixed_size_list(column.type)
    ):
        return _numbers(key, column).reshape(-1, 1)
    widths = (
        set(np.unique(column.value_lengths().to_numpy()))
        if not pa.types.is_fixed_size_list(column.type)
        else {column.type.list_size}
    )
    if len(widths) > 1:
        raise ValueError(f"rows of {key} have {min(widths)} to {max(widths)} values")
    values = column.flatten()
    while pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
        values = values.flatten()
    numbers = _numbers(key, values)
    if not len(column) or len(numbers) % len(column):
        raise ValueError(f"rows of {key} have no common width")
    return numbers.reshape(len(column), -1)


def _numbers(key: str, values: Any) -> npt.NDArray[np.float32]:
    if values.null_count or not (
        pa.types.is_floating(values.type)
        or pa.types.is_integer(values.type)
        or pa.types.is_boolean(values.type)
    ):
        raise ValueError(f"{key} holds values that are no numbers ({values.type})")
    numbers: npt.NDArray[np.float32] = values.to_numpy(zero_copy_only=False).astype(np.float32)
    return numbers


def image_file(root: Path, cell: Any) -> bytes:
    """Return the image file that a cell holds or names. Raises ValueError if it has none, or a part of
    one.
    """
    if isinstance(cell, (list, str)):
        raise ValueError(f"a picture is a {type(cell).__name__} where an image file is meant")
    data = cell if isinstance(cell, bytes) else (cell or {}).get("bytes")
    if not data and cell and cell.get("path"):
        data = contained(root, cell["path"]).read_bytes()
    if not data:
        raise ValueError("a picture is missing")
    refuse_cut(data)
    return bytes(data)
