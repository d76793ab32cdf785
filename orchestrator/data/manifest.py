"""Manifest of a store's episodes: a Parquet file with a row per episode (location, length, task,
statistics).
"""

import hashlib
import io
import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.data.episode_format import EpisodeError
from policy.feature_stats import VECTORS, Stats
from policy.interface import Contract

FORMAT = 2
SEPARATOR = ":"
"""Between the name of a store and the id of its episode, in a merged manifest."""
_T = TypeVar("_T")
ROW_GROUP = 256  # rows decoded to find one episode


@dataclass(frozen=True)
class EpisodeEntry:
    """Row of the manifest."""

    episode_id: str
    key: str
    offset: int
    """Offset of the episode's first byte in its object; 0 while every object holds one episode."""
    nbytes: int
    sha256: str
    """SHA-256 of the episode's bytes."""
    length: int
    """Number of frames, one per control step."""
    hz: float
    """Control steps per second."""
    cameras: tuple[str, ...]
    image_size: tuple[int, int]
    """(H, W) in pixels."""
    task: str
    instruction: str
    labelled: bool
    success: bool | None
    source: str
    proprio_stats: Stats | None
    action_stats: Stats | None


@dataclass(frozen=True)
class MergedPart:
    """Part of a store in a merged manifest (`merged_store.py`)."""

    name: str
    """Name of the store, with which the ids of its episodes begin."""
    store: str
    """URI of the store."""
    version: int
    fingerprint: str
    """Fingerprint of that version's manifest."""
    filters: dict[str, Any]
    """Fields of `StorePart` that choose episodes and views."""
    weight: float | None
    """Share of clips relative to the other parts; None: by the number of frames."""
    episodes: int
    """Number of episodes that the filters leave."""
    of: int
    """Number of episodes of the store."""
    video_kind: str = ""
    """Kind of videos that it holds, which only lines that name it learn from; empty: it serves every line."""

    @property
    def prefix(self) -> str:
        """Beginning of the ids of its episodes."""
        return f"{self.name}{SEPARATOR}"

    def to_json(self) -> dict[str, Any]:
        """Return the part as a JSON-safe object; without an empty `video_kind`, so that merged manifests
        without kinds stay as they were.
        """
        return {name: value for name, value in asdict(self).items() if name != "video_kind" or value}


_STATS = pa.struct([("count", pa.int64()), *((name, pa.list_(pa.float64())) for name in VECTORS)])
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("episode_id", "key")),
        ("offset", pa.int64()),
        ("nbytes", pa.int64()),
        ("sha256", pa.string()),
        ("length", pa.int64()),
        ("hz", pa.float64()),
        ("cameras", pa.list_(pa.string())),
        ("image_size", pa.list_(pa.int64())),
        ("task", pa.dictionary(pa.int32(), pa.string())),
        ("instruction", pa.string()),
        ("labelled", pa.bool_()),
        ("success", pa.bool_()),
        ("source", pa.string()),
        ("proprio_stats", _STATS),
        ("action_stats", _STATS),
    ]
)


def _entry(row: dict[str, Any]) -> EpisodeEntry:
    stats = {
        name: Stats.from_json(row[name]) if row.get(name) else None
        for name in ("proprio_stats", "action_stats")
    }
    return EpisodeEntry(
        **{**row, **stats, "cameras": tuple(row["cameras"]), "image_size": tuple(row["image_size"])}
    )


def _row(entry: EpisodeEntry) -> dict[str, Any]:
    stats = {
        name: value.to_json() if (value := getattr(entry, name)) else None
        for name in ("proprio_stats", "action_stats")
    }
    return {**vars(entry), **stats}


def in_tuples(items: Iterable[_T], size: int) -> Iterator[tuple[_T, ...]]:
    """Yield tuples of `size` consecutive items; the last may be shorter."""
    rest = iter(items)
    while some := tuple(islice(rest, size)):
        yield some


@dataclass(frozen=True, eq=False)
class Manifest:
    """Version of a store: its episodes and the conventions under which they were recorded.

    It is kept as its Parquet file and read column by column on demand: a million rows are mostly statistics,
    of which an arm needs a few hundred.
    """

    data: bytes

    @classmethod
    def of(cls, contract: Contract, entries: Iterable[EpisodeEntry]) -> "Manifest":
        """Build a manifest of episodes recorded under a contract."""
        return cls.of_table(contract, pa.Table.from_pylist([_row(entry) for entry in entries], SCHEMA))

    def with_entries(self, entries: Iterable[EpisodeEntry]) -> "Manifest":
        """Return a manifest with additional rows; their ids must be new."""
        table = pa.concat_tables(
            [
                self._file.read(use_threads=False),
                pa.Table.from_pylist([_row(entry) for entry in entries], SCHEMA),
            ]
        )
        return self.of_table(self.contract, table.unify_dictionaries())

    def groups(self, columns: Iterable[str]) -> Iterator[pa.Table]:
        """Yield some columns, a row group at a time, so that a million episodes can be listed in little
        memory.
        """
        for group in range(self._file.num_row_groups):
            yield self._file.read_row_group(group, columns=list(columns), use_threads=False)

    @property
    def table(self) -> pa.Table:
        """All rows; large for large stores."""
        return self._file.read(use_threads=False)

    @classmethod
    def of_table(
        cls,
        contract: Contract,
        table: pa.Table,
        parts: Sequence[MergedPart] = (),
        video_tasks: Sequence[str] = (),
    ) -> "Manifest":
        """Build a manifest of rows with the columns of SCHEMA. parts, video_tasks: of a merged manifest."""
        table = table.sort_by("episode_id")
        digest = hashlib.sha256(json.dumps(contract.to_json(), sort_keys=True).encode())
        for columns in zip(
            *(table[name].to_pylist() for name in ("episode_id", "sha256", "length", "labelled")), strict=True
        ):
            digest.update("{} {} {} {}\n".format(*columns).encode())
        metadata = {
            "demoscale.format": str(FORMAT),
            "demoscale.contract": json.dumps(contract.to_json()),
            "demoscale.fingerprint": digest.hexdigest()[:16],
        }
        if parts:
            metadata["demoscale.parts"] = json.dumps([part.to_json() for part in parts])
            metadata["demoscale.video_tasks"] = json.dumps(list(video_tasks))
        buffer = io.BytesIO()
        pq.write_table(
            table.replace_schema_metadata(metadata), buffer, row_group_size=ROW_GROUP, compression="zstd"
        )
        return cls(buffer.getvalue())

    @cached_property
    def _file(self) -> pq.ParquetFile:
        return pq.ParquetFile(pa.BufferReader(self.data))

    def _metadata(self, name: str) -> str:
        text: bytes = self._file.schema_arrow.metadata[f"demoscale.{name}".encode()]
        return text.decode()

    @cached_property
    def contract(self) -> Contract:
        """Conventions that all episodes share."""
        return Contract.from_json(json.loads(self._metadata("contract")))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of contract, ids, contents, lengths and labels, equal for any order of writing."""
        return self._metadata("fingerprint")

    @cached_property
    def parts(self) -> tuple[MergedPart, ...]:
        """Parts of a merged manifest; empty for that of a store."""
        return tuple(MergedPart(**part) for part in self._list("parts"))

    @cached_property
    def video_tasks(self) -> frozenset[str]:
        """Tasks of a merged manifest of which only parts without demos have episodes; empty for a store."""
        return frozenset(self._list("video_tasks"))

    def _list(self, name: str) -> list[Any]:
        text = self._file.schema_arrow.metadata.get(f"demoscale.{name}".encode(), b"[]")
        found: list[Any] = json.loads(text)
        return found

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.data).hexdigest()

    def __len__(self) -> int:
        rows: int = self._file.metadata.num_rows
        return rows

    def column(self, name: str) -> pa.Array:
        """Return one column, in the order of the ids."""
        return self._file.read(columns=[name], use_threads=False).unify_dictionaries()[name].combine_chunks()

    @cached_property
    def episode_ids(self) -> list[str]:
        """Ids of all episodes, sorted."""
        ids: list[str] = self.column("episode_id").to_pylist()
        return ids

    @cached_property
    def labelled(self) -> npt.NDArray[np.bool_]:
        """(N,) True for each episode that was recorded with actions."""
        return np.asarray(self.column("labelled").to_numpy(zero_copy_only=False))

    @cached_property
    def tasks(self) -> dict[str, npt.NDArray[np.int64]]:
        """Task -> indices of its episodes among the ids."""
        column = self.column("task")
        codes = column.indices.to_numpy()
        # the dictionary of filtered rows still has the tasks that the filter left out
        return {
            task: rows
            for code, task in sorted(enumerate(column.dictionary.to_pylist()), key=lambda item: item[1])
            if len(rows := np.flatnonzero(codes == code))
        }

    @property
    def entries(self) -> Iterator[EpisodeEntry]:
        """Every row with its statistics; slow for large stores."""
        for table in self.groups(SCHEMA.names):
            yield from map(_entry, table.to_pylist())

    def select(self, episode_ids: Iterable[str], with_stats: bool = True) -> list[EpisodeEntry]:
        """Return the rows of the named episodes, in that order, optionally without statistics. Raises
        EpisodeError for an unknown id.
        """
        wanted = list(episode_ids)
        places = [bisect_left(self.episode_ids, episode) for episode in wanted]
        for episode, place in zip(wanted, places, strict=True):
            if place == len(self.episode_ids) or self.episode_ids[place] != episode:
                raise EpisodeError(f"the store has no episode {episode}")
        found: dict[int, EpisodeEntry] = {}
        columns = [name for name in SCHEMA.names if with_stats or not name.endswith("_stats")]
        # in batches: most rows of a group are not requested
        for groups in in_tuples(sorted({place // ROW_GROUP for place in places}), 64):
            first_row = {group: i * ROW_GROUP for i, group in enumerate(groups)}
            here = sorted({place for place in places if place // ROW_GROUP in first_row})
            table = self._file.read_row_groups(list(groups), columns, use_threads=False)
            rows = table.take(
                [first_row[place // ROW_GROUP] + place % ROW_GROUP for place in here]
            ).to_pylist()
            found |= zip(here, map(_entry, rows), strict=True)
        return [found[place] for place in places]

    def __getitem__(self, episode_id: str) -> EpisodeEntry:
        return self.select([episode_id])[0]


@lru_cache(maxsize=32)
def seen_by(manifest: Manifest, video_kind: str) -> Manifest:
    """Return the part of a merged manifest that a line may read: the parts that serve every line, and those
    of its kind of videos, if it names one. It is the manifest itself where that is all of it.

    What shapes a policy thus depends on no part that only other lines read.
    """
    parts = [part for part in manifest.parts if part.video_kind in ("", video_kind)]
    if len(parts) == len(manifest.parts):
        return manifest
    prefixes = tuple(part.prefix for part in parts)
    kept = [episode.startswith(prefixes) for episode in manifest.episode_ids]
    rows = manifest.table.filter(pa.array(kept))
    return Manifest.of_table(
        manifest.contract, rows, parts, sorted(manifest.video_tasks & set(rows["task"].to_pylist()))
    )
