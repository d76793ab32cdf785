"""Episode store: immutable, content-addressed objects, listed by versioned manifests.

    objects/<first two of sha256>/<sha256>.parquet   one episode, orchestrator/data/episode_format.py
    manifests/<sha256>.parquet                       one row per episode, orchestrator/data/manifest.py
    versions/000001.json                             names a manifest and its hash; claimed by a conditional
                                                     write

Nothing is ever changed or removed: a version always names the same episodes. A writer that dies leaves
objects that no version names.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np

from orchestrator.data.episode_format import Episode, EpisodeError, encode
from orchestrator.data.manifest import FORMAT, EpisodeEntry, Manifest, in_tuples
from orchestrator.storage.base import NoObject, Storage, check_conditional_writes, open_storage
from policy.feature_stats import Stats
from policy.interface import Contract

_VERSION = re.compile(r"versions/(\d+)\.json")
"""Name of a version's file; other files of that folder (a file manager's, notes) are ignored."""

# -- writing -------------------------------------------------------------------------------------------------


def _check(episode: Episode) -> None:
    """Raise EpisodeError for values that are not finite, parts of unequal or no length, or actions without
    proprioception.
    """
    lengths = {f"camera {name}": len(frames) for name, frames in episode.frames.items()}
    for name, values in (("proprioception", episode.proprio), ("actions", episode.action)):
        if values is None:
            continue
        lengths[name] = len(values)
        if not np.isfinite(values).all():
            raise EpisodeError(
                f"episode {episode.episode_id}: its {name} hold a value that is not a number; leave it out or"
                " record it again"
            )
    if len(set(lengths.values())) != 1 or not episode.length:
        raise EpisodeError(
            f"episode {episode.episode_id}: its parts differ in length"
            f" ({', '.join(f'{k} {v}' for k, v in lengths.items())})"
        )
    if episode.action is not None and episode.proprio is None:
        raise EpisodeError(
            f"episode {episode.episode_id}: it has actions but no proprioception; import it as action-free"
        )


def put_episode(storage: Storage, episode: Episode, hz: float) -> EpisodeEntry:
    """Write an episode's object and return its manifest row; a later `commit` makes it visible.

    Equal content has one key and is written once. Raises EpisodeError for an unusable recording.
    """
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
    """Raise EpisodeError for an episode that does not match the store's contract."""
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
    """Publish episodes in a new version, in addition to those of the newest; `note` names their writer in the
    store's log.

    Raises EpisodeError if the store keeps other conventions, or if one of the ids already names another
    episode: the stored episode stays, and the other entries are committed nevertheless.
    """
    check_conditional_writes(storage)
    while True:
        version = latest_version(storage)
        old = load_manifest(storage, version) if version else Manifest.of(contract, ())
        if different := old.contract.mismatches(contract):
            raise EpisodeError(
                f"{storage.uri}: the store was recorded with other conventions ({'; '.join(different)}); use"
                " another folder"
            )
        _refuse_misfits(contract, entries)
        known = dict(zip(old.episode_ids, old.column("sha256").to_pylist(), strict=True))
        new = {entry.episode_id: entry for entry in entries if entry.episode_id not in known}
        if new:
            merged = old.with_entries(new.values())
            if not publish(storage, merged, version + 1, len(new), note):
                continue  # another writer took the version: retry on top of its episodes
            old = merged
        if taken := [
            entry.episode_id for entry in entries if known.get(entry.episode_id, entry.sha256) != entry.sha256
        ]:
            some = ", ".join(taken[:3]) + (f" and {len(taken) - 3} more" if len(taken) > 3 else "")
            raise EpisodeError(
                f"{storage.uri}: it already holds other episodes named {some}; they stay as they are, give"
                " the new ones other names"
            )
        return old


def publish(storage: Storage, manifest: Manifest, number: int, added: int, note: str) -> bool:
    """Publish a manifest as version `number` of the store; return False if that version is taken."""
    storage.put_if_absent(f"manifests/{manifest.sha256}.parquet", manifest.data)
    return storage.put_if_absent(f"versions/{number:06d}.json", _version_bytes(number, manifest, added, note))


# -- versions ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Version:
    """Content of `versions/<number>.json`."""

    number: int
    sha256: str
    """SHA-256 of the manifest's file."""
    fingerprint: str
    episodes: int
    added: int
    created: str
    """Time of writing, UTC, ISO 8601."""
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
    """Return one version. Raises EpisodeError if its file is missing, damaged or of another format."""
    where = f"{storage.uri}: version {number} of the store"
    try:
        fields = json.loads(storage.get(f"versions/{number:06d}.json"))
        digest = fields.pop("digest", None)
        if digest not in (None, _digest(fields)):
            raise ValueError("digest")
        if fields.get("format", 1) != FORMAT:
            raise EpisodeError(
                f"{where} has format {fields.get('format', 1)}, this program reads {FORMAT}; record it again"
            )
        if digest is None or fields["number"] != number:
            raise ValueError("number")
        return Version(**{name: value for name, value in fields.items() if name != "format"})
    except NoObject:
        raise EpisodeError(f"{where} is missing; restore versions/{number:06d}.json") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise EpisodeError(f"{where} is damaged; restore versions/{number:06d}.json") from None


def latest_version(storage: Storage) -> int:
    """Return the number of the newest version; 0 for a store without commits."""
    numbers = [int(match[1]) for key in storage.list("versions/") if (match := _VERSION.fullmatch(key))]
    return max(numbers, default=0)


def load_manifest(storage: Storage, version: int | None = None) -> Manifest:
    """Return the manifest of a version (the newest by default). Raises EpisodeError if it is missing or
    damaged.
    """
    version = latest_version(storage) if version is None else version
    if version == 0:
        raise EpisodeError(
            f"{storage.uri}: there is no episode store here; record one with `demoscale collect`, "
            "import one with `demoscale import`, or correct data.episodes"
        )
    expected = read_version(storage, version).sha256
    key = f"manifests/{expected}.parquet"
    try:
        manifest = Manifest(storage.get(key))
    except NoObject:
        raise EpisodeError(
            f"{storage.uri}: the manifest of version {version} is missing; restore {key}"
        ) from None
    if manifest.sha256 != expected:
        raise EpisodeError(f"{storage.uri}: the manifest of version {version} is damaged; restore {key}")
    return manifest


def newest_manifest(storage: Storage) -> Manifest | None:
    """Return the newest manifest; None for a store without commits."""
    version = latest_version(storage)
    return load_manifest(storage, version) if version else None


# -- reading -------------------------------------------------------------------------------------------------


_ELSEWHERE = "!"
"""Between the URI of another store and the key of its object."""


def fetchable(uri: str, key: str) -> str:
    """Return the key by which `fetch` finds an object of the store `uri`, whichever storage it is given."""
    return f"{uri}{_ELSEWHERE}{key}"


@lru_cache(maxsize=64)
def _opened(uri: str) -> Storage:
    return open_storage(uri)


def fetch(storage: Storage, entry: EpisodeEntry) -> bytes:
    """Return an episode's bytes after a check of their hash, since a video with a flipped bit decodes without
    an error. Episodes of a merged manifest are in the storages that their keys name.

    Raises EpisodeError, which names the episode, if its object is missing, cut short or damaged.
    """
    place, _, key = entry.key.rpartition(_ELSEWHERE)
    storage = _opened(place) if place else storage
    try:
        data = storage.get(key)[entry.offset : entry.offset + entry.nbytes]
    except NoObject:
        raise EpisodeError(f"{storage.uri}: episode {entry.episode_id} is missing; restore {key}") from None
    if len(data) < entry.nbytes:
        raise EpisodeError(
            f"{storage.uri}: episode {entry.episode_id} is cut short, {len(data)} of {entry.nbytes} bytes;"
            f" restore {key}"
        )
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise EpisodeError(f"{storage.uri}: episode {entry.episode_id} is damaged; restore {key}")
    return data


def check_all(
    storage: Storage, entries: Iterable[EpisodeEntry], threads: int = 8
) -> Iterator[tuple[EpisodeEntry, str]]:
    """Read every entry's object and yield (entry, problem or ''), in order."""

    def problem(entry: EpisodeEntry) -> str:
        try:
            fetch(storage, entry)
        except EpisodeError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(threads) as pool:
        for some in in_tuples(entries, 16 * threads):  # in batches: a store may be larger than memory
            yield from zip(some, pool.map(problem, some), strict=True)
