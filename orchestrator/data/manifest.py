"""The episode store: immutable, content-addressed objects, listed by versioned manifests.

    objects/<first two of sha256>/<sha256>.parquet   one episode, orchestrator/data/episodes.py
    manifests/<sha256>.parquet                       one row per episode: where it is, how long, which task, its statistics
    versions/000001.json                             names a manifest and its hash; claimed by a conditional write

Nothing is ever changed or removed: a version, once there, names the same episodes for ever. A writer that dies leaves objects nobody names.
"""

import hashlib
import io
import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.data.episodes import Episode, EpisodeError, encode
from orchestrator.storage import NoObject, Storage, check_conditional_writes
from policy.interface import Contract
from policy.stats import VECTORS, Stats

FORMAT = 2
_T = TypeVar("_T")
ROW_GROUP = 256  # rows decoded to look one episode up


@dataclass(frozen=True)
class EpisodeEntry:
    """One row of the manifest."""

    episode_id: str
    key: str
    offset: int
    """Of the episode's first byte in its object: 0, until somebody packs small episodes together."""
    nbytes: int
    sha256: str
    """Of the episode's bytes."""
    length: int
    """Frames, one per control step."""
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
    stats = {name: Stats.from_json(row[name]) if row[name] else None for name in ("proprio_stats", "action_stats")}
    return EpisodeEntry(**{**row, **stats, "cameras": tuple(row["cameras"]), "image_size": tuple(row["image_size"])})


def _row(entry: EpisodeEntry) -> dict[str, Any]:
    stats = {name: value.to_json() if (value := getattr(entry, name)) else None for name in ("proprio_stats", "action_stats")}
    return {**vars(entry), **stats}


def _in_tuples(items: Iterable[_T], size: int) -> Iterator[tuple[_T, ...]]:
    """`size` consecutive items each; the last may be shorter."""
    rest = iter(items)
    while some := tuple(islice(rest, size)):
        yield some


@dataclass(frozen=True, eq=False)
class Manifest:
    """A version of a store: which episodes it holds and under which conventions they were recorded.

    Kept as the Parquet file it is stored as, and read column by column as somebody asks: a million rows are mostly statistics,
    of which an arm needs a few hundred.
    """

    data: bytes

    @classmethod
    def of(cls, contract: Contract, entries: Iterable[EpisodeEntry]) -> "Manifest":
        return cls._of_table(contract, pa.Table.from_pylist([_row(entry) for entry in entries], SCHEMA))

    @classmethod
    def _of_table(cls, contract: Contract, table: pa.Table) -> "Manifest":
        table = table.sort_by("episode_id")
        digest = hashlib.sha256(json.dumps(contract.to_json(), sort_keys=True).encode())
        for columns in zip(*(table[name].to_pylist() for name in ("episode_id", "sha256", "length", "labelled")), strict=True):
            digest.update("{} {} {} {}\n".format(*columns).encode())
        metadata = {
            "demoscale.format": str(FORMAT),
            "demoscale.contract": json.dumps(contract.to_json()),
            "demoscale.fingerprint": digest.hexdigest()[:16],
        }
        buffer = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(metadata), buffer, row_group_size=ROW_GROUP, compression="zstd")
        return cls(buffer.getvalue())

    @cached_property
    def _file(self) -> pq.ParquetFile:
        return pq.ParquetFile(pa.BufferReader(self.data))

    def _metadata(self, name: str) -> str:
        text: bytes = self._file.schema_arrow.metadata[f"demoscale.{name}".encode()]
        return text.decode()

    @cached_property
    def contract(self) -> Contract:
        return Contract.from_json(json.loads(self._metadata("contract")))

    @cached_property
    def fingerprint(self) -> str:
        """Equal for equal content, whatever the order of writing."""
        return self._metadata("fingerprint")

    @property
    def sha256(self) -> str:
        """Of the file."""
        return hashlib.sha256(self.data).hexdigest()

    def __len__(self) -> int:
        rows: int = self._file.metadata.num_rows
        return rows

    def column(self, name: str) -> pa.Array:
        """One column, in the order of the ids."""
        return self._file.read(columns=[name], use_threads=False).unify_dictionaries()[name].combine_chunks()

    @cached_property
    def episode_ids(self) -> list[str]:
        """Sorted."""
        ids: list[str] = self.column("episode_id").to_pylist()
        return ids

    @cached_property
    def labelled(self) -> npt.NDArray[np.bool_]:
        """(N,) whether each episode was recorded with actions."""
        return np.asarray(self.column("labelled").to_numpy(zero_copy_only=False))

    @cached_property
    def tasks(self) -> dict[str, npt.NDArray[np.int64]]:
        """Task -> places of its episodes among the ids."""
        column = self.column("task")
        codes = column.indices.to_numpy()
        return {task: np.flatnonzero(codes == code) for code, task in sorted(enumerate(column.dictionary.to_pylist()), key=lambda item: item[1])}

    @property
    def entries(self) -> Iterator[EpisodeEntry]:
        """Every row; for stores one would also print."""
        for group in range(self._file.num_row_groups):
            yield from map(_entry, self._file.read_row_group(group, use_threads=False).to_pylist())

    def select(self, episode_ids: Iterable[str]) -> list[EpisodeEntry]:
        """The rows of the named episodes, in their order; EpisodeError if one is not there."""
        wanted = list(episode_ids)
        places = [bisect_left(self.episode_ids, episode) for episode in wanted]
        for episode, place in zip(wanted, places, strict=True):
            if place == len(self.episode_ids) or self.episode_ids[place] != episode:
                raise EpisodeError(f"the store has no episode {episode}")
        found: dict[int, EpisodeEntry] = {}
        for groups in _in_tuples(sorted({place // ROW_GROUP for place in places}), 64):  # some at a time: a group is mostly rows nobody asked for
            first_row = {group: i * ROW_GROUP for i, group in enumerate(groups)}
            here = sorted({place for place in places if place // ROW_GROUP in first_row})
            table = self._file.read_row_groups(list(groups), use_threads=False)
            rows = table.take([first_row[place // ROW_GROUP] + place % ROW_GROUP for place in here]).to_pylist()
            found |= zip(here, map(_entry, rows), strict=True)
        return [found[place] for place in places]

    def __getitem__(self, episode_id: str) -> EpisodeEntry:
        return self.select([episode_id])[0]


# -- writing --------------------------------------------------------------------------------------------------------------------


def _check(episode: Episode) -> None:
    """EpisodeError for a recording nobody could learn from."""
    lengths = {f"camera {name}": len(frames) for name, frames in episode.frames.items()}
    for name, values in (("proprioception", episode.proprio), ("actions", episode.action)):
        if values is None:
            continue
        lengths[name] = len(values)
        if not np.isfinite(values).all():
            raise EpisodeError(f"episode {episode.episode_id}: its {name} hold a value that is not a number; leave it out or record it again")
    if len(set(lengths.values())) != 1 or not episode.length:
        raise EpisodeError(f"episode {episode.episode_id}: its parts differ in length ({', '.join(f'{k} {v}' for k, v in lengths.items())})")
    if episode.action is not None and episode.proprio is None:
        raise EpisodeError(f"episode {episode.episode_id}: it has actions but no proprioception; import it as action-free")


def put_episode(storage: Storage, episode: Episode, hz: float) -> EpisodeEntry:
    """Write the object (once: equal content has one key) and return its manifest row; a later `commit` makes it visible."""
    _check(episode)
    data = encode(episode, hz)
    sha256 = hashlib.sha256(data).hexdigest()
    key = f"objects/{sha256[:2]}/{sha256}.parquet"
    storage.put_if_absent(key, data)
    height, width = next(iter(episode.frames.values())).shape[1:3]
    return EpisodeEntry(
        episode_id=episode.episode_id,
        key=key,
        offset=0,
        nbytes=len(data),
        sha256=sha256,
        length=episode.length,
        hz=hz,
        cameras=tuple(episode.frames),
        image_size=(height, width),
        task=episode.task,
        instruction=episode.instruction,
        labelled=episode.action is not None,
        success=episode.success,
        source=episode.source,
        proprio_stats=None if episode.proprio is None else Stats.of(episode.proprio),
        action_stats=None if episode.action is None else Stats.of(episode.action),
    )


def _refuse_misfits(contract: Contract, entries: list[EpisodeEntry]) -> None:
    """EpisodeError for an episode that is not what the store's contract says."""
    for entry in entries:
        parts: list[tuple[str, Any, Any]] = [
            ("cameras", entry.cameras, contract.cameras),
            ("image size", entry.image_size, contract.image_size),
            ("control rate in Hz", entry.hz, contract.control_hz),
        ]
        if entry.labelled and entry.action_stats and entry.proprio_stats:
            parts += [
                ("action dimensions", len(entry.action_stats.mean), len(contract.action)),
                ("proprioceptive values", len(entry.proprio_stats.mean), len(contract.proprio)),
            ]
        for name, its, stores in parts:
            if its != stores:
                raise EpisodeError(f"episode {entry.episode_id}: {name} {its}, the store keeps {stores}")


def commit(storage: Storage, contract: Contract, entries: list[EpisodeEntry], note: str = "") -> Manifest:
    """Make episodes visible in a new version, beside those already there; `note` says in the store's log what wrote them.

    EpisodeError if the store keeps other conventions, or another episode under one of the ids: what is there stays. The
    entries' other episodes are committed all the same.
    """
    check_conditional_writes(storage)
    while True:
        version = latest_version(storage)
        old = load_manifest(storage, version) if version else Manifest.of(contract, ())
        if different := old.contract.mismatches(contract):
            raise EpisodeError(f"{storage.uri}: the store was recorded with other conventions ({'; '.join(different)}); use another folder")
        _refuse_misfits(contract, entries)
        known = dict(zip(old.episode_ids, old.column("sha256").to_pylist(), strict=True))
        new = {entry.episode_id: entry for entry in entries if entry.episode_id not in known}
        if new:
            table = pa.concat_tables([old._file.read(use_threads=False), pa.Table.from_pylist([_row(entry) for entry in new.values()], SCHEMA)])
            merged = Manifest._of_table(contract, table.unify_dictionaries())
            storage.put_if_absent(f"manifests/{merged.sha256}.parquet", merged.data)
            if not storage.put_if_absent(f"versions/{version + 1:06d}.json", _version_bytes(version + 1, merged, len(new), note)):
                continue
            old = merged
        if taken := [entry.episode_id for entry in entries if known.get(entry.episode_id, entry.sha256) != entry.sha256]:
            some = ", ".join(taken[:3]) + (f" and {len(taken) - 3} more" if len(taken) > 3 else "")
            raise EpisodeError(f"{storage.uri}: it already holds other episodes named {some}; they stay as they are, give the new ones other names")
        return old


# -- versions -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Version:
    """What `versions/<number>.json` says."""

    number: int
    sha256: str
    """Of the manifest."""
    fingerprint: str
    episodes: int
    added: int
    created: str
    """UTC, ISO 8601."""
    note: str


def _digest(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _version_bytes(number: int, manifest: Manifest, added: int, note: str) -> bytes:
    fields = {
        "format": FORMAT,
        "number": number,
        "sha256": manifest.sha256,
        "fingerprint": manifest.fingerprint,
        "episodes": len(manifest),
        "added": added,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "note": note,
    }
    return json.dumps({**fields, "digest": _digest(fields)}, indent=1).encode()


def read_version(storage: Storage, number: int) -> Version:
    """One version; EpisodeError if its file is missing or damaged."""
    where = f"{storage.uri}: version {number} of the store"
    try:
        fields = json.loads(storage.get(f"versions/{number:06d}.json"))
        digest = fields.pop("digest", None)
        if digest not in (None, _digest(fields)):
            raise ValueError("digest")
        if fields.get("format", 1) != FORMAT:
            raise EpisodeError(f"{where} has format {fields.get('format', 1)}, this program reads {FORMAT}; record it again")
        if digest is None or fields["number"] != number:
            raise ValueError("number")
        return Version(**{name: value for name, value in fields.items() if name != "format"})
    except NoObject:
        raise EpisodeError(f"{where} is missing; restore versions/{number:06d}.json") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise EpisodeError(f"{where} is damaged; restore versions/{number:06d}.json") from None


def latest_version(storage: Storage) -> int:
    """Number of the newest version; 0 for a store nobody committed to."""
    versions = storage.list("versions/")
    return int(versions[-1].removeprefix("versions/").removesuffix(".json")) if versions else 0


def load_manifest(storage: Storage, version: int | None = None) -> Manifest:
    """The manifest of a version (the newest by default); EpisodeError if it is not there whole."""
    version = latest_version(storage) if version is None else version
    if version == 0:
        raise EpisodeError(
            f"{storage.uri}: there is no episode store here; record one with `python -m jobs.collect`, "
            "import one with `python -m jobs.ingest`, or correct data.episodes"
        )
    expected = read_version(storage, version).sha256
    key = f"manifests/{expected}.parquet"
    try:
        manifest = Manifest(storage.get(key))
    except NoObject:
        raise EpisodeError(f"{storage.uri}: the manifest of version {version} is missing; restore {key}") from None
    if manifest.sha256 != expected:
        raise EpisodeError(f"{storage.uri}: the manifest of version {version} is damaged; restore {key}")
    return manifest


def store_exists(storage: Storage) -> bool:
    """Whether anything was ever committed here."""
    return latest_version(storage) > 0


# -- reading --------------------------------------------------------------------------------------------------------------------


def fetch(storage: Storage, entry: EpisodeEntry) -> bytes:
    """An episode's bytes, checked: a flipped bit in a video decodes without complaint, so the hash is the only guard.

    EpisodeError names the episode if its object is missing, cut short or damaged.
    """
    try:
        data = storage.get(entry.key)[entry.offset : entry.offset + entry.nbytes]
    except NoObject:
        raise EpisodeError(f"{storage.uri}: episode {entry.episode_id} is missing; restore {entry.key}") from None
    if len(data) < entry.nbytes:
        raise EpisodeError(f"{storage.uri}: episode {entry.episode_id} is cut short, {len(data)} of {entry.nbytes} bytes; restore {entry.key}")
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise EpisodeError(f"{storage.uri}: episode {entry.episode_id} is damaged; restore {entry.key}")
    return data


def check_all(storage: Storage, entries: Iterable[EpisodeEntry], threads: int = 8) -> Iterator[tuple[EpisodeEntry, str]]:
    """Read every entry's object: (entry, what is wrong with it or nothing), in order."""

    def problem(entry: EpisodeEntry) -> str:
        try:
            fetch(storage, entry)
        except EpisodeError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(threads) as pool:
        for some in _in_tuples(entries, 16 * threads):  # not all at once: a store may be larger than memory
            yield from zip(some, pool.map(problem, some), strict=True)
