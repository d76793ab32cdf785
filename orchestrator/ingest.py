"""Importing recordings of other people's formats into an episode store, in parallel on Ray, from wherever a run before this one got to."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from orchestrator.data.episodes import EpisodeError
from orchestrator.data.manifest import EpisodeEntry
from orchestrator.data.sources.source import Item, Source, SourceError
from orchestrator.data.store import newest_manifest, put_episode
from orchestrator.record import record_all
from orchestrator.storage import Storage, open_storage

_MENDS = {
    "cameras": "choose and name them with --cameras",
    "image_size": "scale with --image-size",
    "control_hz": "choose the store's rate with --resample-hz, for episodes without actions",
    "proprio": "choose with --proprio; an action-free import may do without (--proprio none)",
    "render_profile": "if they were rendered alike, say so with --render-profile",
    "simulator": "if it was the same one, say so with --simulator",
    "action": "use another store, or import without actions (--action-free)",
}


def adopted(source: Source, storage: Storage) -> Source:
    """The source with the conventions of the store it goes into; SourceError if the two cannot be brought together.

    Episodes without actions take over what the store says of actions, proprioception and simulator; a source whose cameras only
    come in another order takes over theirs.
    """
    manifest = newest_manifest(storage)
    if manifest is None:
        return source
    store, offered = manifest.contract, source.contract
    if not offered.action:
        proprio = offered.proprio or store.proprio
        offered = replace(offered, proprio=proprio, action=store.action, render_profile=store.render_profile, simulator=store.simulator)
    if set(offered.cameras) == set(store.cameras):
        offered = replace(offered, cameras=store.cameras)
    ours, theirs = store.to_json(), offered.to_json()
    if different := [
        f"{name.replace('_', ' ')}: the store has {_words(ours[name])}, these have {_words(theirs[name])} ({_MENDS[name]})"
        for name in _MENDS
        if ours[name] != theirs[name]
    ]:
        raise SourceError(f"{storage.uri}: these recordings do not fit into the store. {'; '.join(different)}")
    source.contract = offered
    return source


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def missing(source: Source, storage: Storage) -> list[Item]:
    """The items the store does not hold yet; SourceError for one whose name another recording has."""
    manifest = newest_manifest(storage)
    if manifest is None:
        return source.items
    have = set(manifest.episode_ids)
    held = [item for item in source.items if item.episode_id in have]
    for item, entry in zip(held, manifest.select(item.episode_id for item in held), strict=True):
        if (entry.source, entry.length, entry.labelled) != (item.origin, item.length, item.labelled):
            raise SourceError(
                f"{storage.uri}: episode {item.episode_id} is already there from another recording ({entry.source}, {entry.length} frames); "
                "give these another name with --label"
            )
    return [item for item in source.items if item.episode_id not in have]


@dataclass(frozen=True)
class LeftOut:
    """An episode that could not be read or stored."""

    reason: str
    """A sentence that names it."""


class Importer:
    """A process that reads episodes of one source and writes them to a store (a Ray actor)."""

    def __init__(self, source: Source, store_uri: str) -> None:
        self._source = source
        self._storage = open_storage(store_uri)

    def record(self, item: Item) -> EpisodeEntry | LeftOut:
        try:
            return put_episode(self._storage, self._source.read(item), self._source.contract.control_hz)
        except (SourceError, EpisodeError) as error:
            return LeftOut(str(error))


def ingest(storage: Storage, source: Source, items: list[Item], workers: int, note: str) -> Iterator[EpisodeEntry | LeftOut]:
    """Import the items on `workers` processes of a connected Ray cluster, yielding each as it is done, committing as it goes.

    SourceError if there are questions only a person can answer. An episode that cannot be read is left out and the others go on.
    """
    if source.questions:
        raise SourceError("\n".join(source.questions))
    if items:
        yield from record_all(storage, source.contract, Importer, (source, storage.uri), items, workers, note)
