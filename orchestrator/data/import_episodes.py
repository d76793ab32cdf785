"""Parallel, resumable import of recordings in third-party formats into an episode store, on Ray."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from orchestrator.data.episode_format import EpisodeError
from orchestrator.data.episode_store import newest_manifest, put_episode
from orchestrator.data.importers.base import Item, Source
from orchestrator.data.importers.image_ops import BLOCK
from orchestrator.data.importers.source_files import SourceError, cause
from orchestrator.data.manifest import EpisodeEntry
from orchestrator.data.parallel_writer import record_all
from orchestrator.storage.base import Storage, open_storage

STORED_BYTES = 1920 * 1080 * 3
"""Assumed bytes of a picture as stored in the source; larger ones take more."""
_CONTENT = re.compile(r"; content [0-9a-f]{12}$")

_FIXES = {
    "cameras": "choose and name them with --cameras",
    "image_size": "scale with --image-size",
    "control_hz": "choose the store's rate with --resample-hz, for episodes without actions",
    "proprio": "choose with --proprio; an action-free import may do without (--proprio none)",
    "render_profile": "if they were rendered alike, say so with --render-profile",
    "simulator": "if it was the same one, say so with --simulator",
    "action": "use another store, or import without actions (--action-free)",
}


def reconcile_contract(source: Source, storage: Storage) -> Source:
    """Return the source with the conventions of the store. Raises SourceError if the two are incompatible.

    Episodes without actions adopt the store's actions, render profile and simulator, and its proprioception
    if they have none; a source whose cameras differ only in order adopts the store's order.
    """
    manifest = newest_manifest(storage)
    if manifest is None:
        return source
    store, offered = manifest.contract, source.contract
    if not offered.action:
        proprio = offered.proprio or store.proprio
        offered = replace(
            offered,
            proprio=proprio,
            action=store.action,
            render_profile=store.render_profile,
            simulator=store.simulator,
        )
    if set(offered.cameras) == set(store.cameras):
        offered = replace(offered, cameras=store.cameras)
    ours, theirs = store.to_json(), offered.to_json()
    if different := [
        f"{name.replace('_', ' ')}: the store has {_words(ours[name])}, these have {_words(theirs[name])}"
        f" ({_FIXES[name]})"
        for name in _FIXES
        if ours[name] != theirs[name]
    ]:
        raise SourceError(
            f"{storage.uri}: these recordings do not fit into the store. {'; '.join(different)}"
        )
    return replace(source, info=replace(source.info, contract=offered))


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def missing(source: Source, storage: Storage) -> list[Item]:
    """Return the items that the store does not hold yet. Raises SourceError if another recording has the id
    of one.
    """
    items = [item for item in source.items if not item.problem]
    manifest = newest_manifest(storage)
    if manifest is None:
        return items
    have = set(manifest.episode_ids)
    held = [item for item in items if item.episode_id in have]
    for item, entry in zip(
        held, manifest.select((item.episode_id for item in held), with_stats=False), strict=True
    ):
        if different := _difference(item, entry):
            raise SourceError(
                f"{storage.uri}: episode {item.episode_id} is already there from another recording or import"
                f" ({different}); what is there stays: give these another name with --label, or use another"
                " store"
            )
    return [item for item in items if item.episode_id not in have]


def _difference(item: Item, entry: EpisodeEntry) -> str:
    """Return the differences between a stored episode and the item of its id; empty if there are none.

    Hashes of the content are compared only if the stored episode has one.
    """
    noted = _CONTENT.search(entry.source)
    origin = item.origin if noted else _CONTENT.sub("", item.origin)
    ours = {
        "source": entry.source,
        "frames": entry.length,
        "actions": entry.labelled,
        "task": entry.task,
        "instruction": entry.instruction,
    }
    its = {
        "source": origin,
        "frames": item.length,
        "actions": item.labelled,
        "task": item.task,
        "instruction": item.instruction,
    }
    return "; ".join(
        f"{name} there: {ours[name]}, here: {its[name]}" for name in ours if ours[name] != its[name]
    )


def memory_mib(source: Source) -> float:
    """Return the MiB that a process needs for the longest episode: its pictures twice, to read and to encode,
    and a block as stored.
    """
    height, width = source.contract.image_size
    longest = max((item.length for item in source.items), default=0)
    return (2 * longest * len(source.contract.cameras) * height * width * 3 + BLOCK * STORED_BYTES) / 2**20


@dataclass(frozen=True)
class LeftOut:
    """Result for an episode that could not be read or stored."""

    reason: str
    """Sentence that names the episode and the cause."""


class Importer:
    """Ray actor that reads episodes of one source and writes them to a store."""

    def __init__(self, source: Source, store_uri: str) -> None:
        self._source = source
        self._storage = open_storage(store_uri)

    def record(self, item: Item) -> EpisodeEntry | LeftOut:
        """Read and store one episode; return LeftOut for any fault of the episode. An error of the storage
        ends the import.
        """
        try:
            episode = self._source.read(item)
        except SourceError as error:
            return LeftOut(str(error))
        except Exception as error:
            return LeftOut(f"{item.origin}: {cause(error)}; repair it or leave it out")
        try:
            return put_episode(self._storage, episode, self._source.contract.control_hz)
        except EpisodeError as error:
            return LeftOut(str(error))


def import_episodes(
    storage: Storage, source: Source, items: list[Item], workers: int, note: str
) -> Iterator[EpisodeEntry | LeftOut]:
    """Import the items on `workers` actors of a connected Ray cluster; yield each result when it is done, and
    commit in batches.

    An episode that cannot be read is left out and the others continue. Raises SourceError if the source has
    open questions.
    """
    if source.questions:
        raise SourceError("\n".join(source.questions))
    if items:
        yield from record_all(
            storage, source.contract, Importer, (source, storage.uri), items, workers, note, _lost
        )


def _lost(item: Item) -> LeftOut:
    return LeftOut(
        f"{item.origin}: every process that read it died; does it fit into memory? leave it out, or scale it"
        " with --image-size"
    )
