"""Parallel, resumable replay of recorded demonstrations on Ray into an episode store, with a comparison of
every episode with its recording: objects `replays/<episode>.json` of that store.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from orchestrator.data.drawn_by import note_driver, refuse_other_driver
from orchestrator.data.episode_format import Episode, EpisodeError
from orchestrator.data.episode_store import newest_manifest, put_episode
from orchestrator.data.import_episodes import LeftOut
from orchestrator.data.importers.source_files import SourceError
from orchestrator.data.manifest import EpisodeEntry
from orchestrator.data.parallel_writer import record_all
from orchestrator.data.recorded_demos import RecordedSource, ReplayItem
from orchestrator.storage.base import Storage, open_storage
from orchestrator.storage.notes import read_json_objects
from sim_workers.demos.replay import Divergence, Replay, ReplayError, replay
from sim_workers.envs.registry import make_env
from sim_workers.envs.render_check import driver_of
from sim_workers.rollout.divergence import EpisodeFaultError

PREFIX = "replays/"
LIMIT_S = 1800.0
"""Seconds of wall-clock time that one attempt at an episode may take."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A replayed episode beside its recording."""

    episode: str
    recording: str
    """File and demonstration, or episode of the store."""
    by: str
    """states, actions or expert."""
    model: str
    """recorded: the recording's own model; installed: the installed simulator's."""
    simulator: str
    driver: str
    """What drew the pictures."""
    recorded_success: bool | None
    """None if the recording does not say."""
    success: bool
    divergence: Divergence

    @property
    def agrees(self) -> bool:
        """Whether the replay succeeded as the recording says, if it says."""
        return self.recorded_success in (None, self.success)

    def __str__(self) -> str:
        said = {None: "not said", True: "success", False: "failure"}[self.recorded_success]
        parts = [f"recorded {said}, replayed {'success' if self.success else 'failure'}"]
        measured = self.divergence
        if measured.position is not None:
            since = "" if measured.step is None else f", beyond 0.001 from step {measured.step} on"
            parts.append(f"positions differ by up to {measured.position:.2g}{since}")
        if measured.proprio is not None:
            parts.append(f"proprioception by up to {measured.proprio:.2g}")
        if measured.action is not None:
            parts.append(f"actions by up to {measured.action:.2g}")
        return f"{self.recording}: {'; '.join(parts)}"


def missing(source: RecordedSource, storage: Storage) -> list[ReplayItem]:
    """Return the items that the store does not hold yet. Raises SourceError if another episode has the id of
    one, or the store keeps other conventions.
    """
    manifest = newest_manifest(storage)
    if manifest is None:
        return source.items
    if different := manifest.contract.mismatches(source.contract):
        raise SourceError(
            f"{storage.uri}: the replay does not fit into the store ({'; '.join(different)}); use another"
            " folder"
        )
    known = set(manifest.episode_ids)
    held = [item for item in source.items if item.episode_id in known]
    entries = manifest.select((item.episode_id for item in held), with_stats=False)
    for item, entry in zip(held, entries, strict=True):
        if entry.source != item.origin:
            raise SourceError(
                f"{storage.uri}: episode {item.episode_id} is already there from elsewhere ({entry.source});"
                " what is there stays: give these another name with --label, or use another store"
            )
    return [item for item in source.items if item.episode_id not in known]


class Replayer:
    """Ray actor with one simulator that replays into a store."""

    def __init__(self, source: RecordedSource, task: str, store_uri: str) -> None:
        self._source = source
        self._env = make_env(task, source.contract)
        self._storage = open_storage(store_uri)

    def record(self, item: ReplayItem) -> EpisodeEntry | LeftOut:
        """Replay and store one episode and its comparison; return LeftOut for any fault of the episode.

        Raises EpisodeError if other pictures of the store were drawn by another driver.
        """
        try:
            played = replay(self._env, self._source.read(item), item.by)
        except (SourceError, EpisodeError) as error:
            return LeftOut(str(error))
        except (ReplayError, EpisodeFaultError) as error:
            return LeftOut(f"{item.name}: {error}; left out")
        driver = driver_of(self._env)
        refuse_other_driver(self._storage, driver)
        note_driver(self._storage, driver, "demoscale replay")
        try:
            entry = put_episode(self._storage, episode_of(item, played), self._source.contract.control_hz)
        except EpisodeError as error:
            return LeftOut(str(error))
        compared = Comparison(
            episode=item.episode_id,
            recording=item.name,
            by=item.by,
            model=played.model,
            simulator=self._source.contract.simulator,
            driver=driver,
            recorded_success=item.success,
            success=played.recording.success,
            divergence=played.divergence,
        )
        data = json.dumps(asdict(compared), indent=1).encode()
        self._storage.put_if_absent(f"{PREFIX}{item.episode_id}.json", data)
        return entry


def episode_of(item: ReplayItem, played: Replay) -> Episode:
    """Return the episode to store; one that did not succeed keeps no actions, as in `collect`."""
    recording = played.recording
    labelled = recording.success and len(recording.action) == len(recording.proprio)
    return Episode(
        episode_id=item.episode_id,
        task=item.task,
        instruction=item.instruction,
        frames=recording.frames,
        proprio=recording.proprio,
        action=recording.action if labelled else None,
        success=recording.success,
        source=item.origin,
    )


def replay_all(
    storage: Storage, source: RecordedSource, items: Sequence[ReplayItem], workers: int
) -> Iterator[EpisodeEntry | LeftOut]:
    """Replay items on `workers` actors of a connected Ray cluster, task by task; yield each result when it is
    stored, and commit in batches. Raises RecordTimeoutError if one hangs at every attempt.
    """
    for task in source.tasks:
        if todo := [item for item in items if item.task == task]:
            yield from record_all(
                storage,
                source.contract,
                Replayer,
                (source, task, storage.uri),
                todo,
                workers,
                f"replay of {source.format}, {task}",
                limit_s=LIMIT_S,
            )


def comparisons(storage: Storage) -> dict[str, Comparison]:
    """Return the comparisons of a store's episodes by id."""
    return {
        episode: Comparison(**{**told, "divergence": Divergence(**told["divergence"])})
        for episode, told in read_json_objects(storage, PREFIX).items()
    }
