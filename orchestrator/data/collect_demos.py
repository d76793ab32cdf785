"""Parallel recording of demonstrations on Ray into an episode store."""

from collections.abc import Iterator

from orchestrator.data.drawn_by import note_driver
from orchestrator.data.episode_format import Episode, EpisodeError
from orchestrator.data.episode_store import newest_manifest, put_episode
from orchestrator.data.manifest import EpisodeEntry
from orchestrator.data.parallel_writer import record_all
from orchestrator.storage.base import Storage, open_storage
from policy.interface import Contract
from sim_workers.demos.recorder import Demonstration, demonstrate
from sim_workers.envs.registry import instruction_of, make_env
from sim_workers.envs.render_check import driver_of
from sim_workers.rollout.divergence import EpisodeFaultError
from sim_workers.rollout.episode import Env

LIMIT_S = 600.0
"""Seconds of wall-clock time that one attempt at a demonstration may take; they take about five."""


def record(env: Env, storage: Storage, demonstration: Demonstration) -> EpisodeEntry:
    """Play a demonstration and write it to the store; a failed one is stored without actions, as an
    action-free episode.

    Raises EpisodeError, and writes nothing, if a value is not finite or the simulation diverges.
    """
    try:
        recording = demonstrate(env, demonstration)
    except EpisodeFaultError as fault:
        raise EpisodeError(
            f"episode {demonstration.episode_id}: {fault}; it was not stored; record other seeds"
        ) from fault
    episode = Episode(
        episode_id=demonstration.episode_id,
        task=demonstration.task,
        instruction=instruction_of(demonstration.task),
        frames=recording.frames,
        proprio=recording.proprio,
        action=recording.action if recording.success else None,
        success=recording.success,
        source=f"scripted expert, seed {demonstration.seed}, disturbance {demonstration.disturbance:g}",
    )
    return put_episode(storage, episode, env.contract.control_hz)


class Recorder:
    """Ray actor with one simulator that records into a store."""

    def __init__(self, task: str, contract: Contract, store_uri: str) -> None:
        self._env = make_env(task, contract)
        self._storage = open_storage(store_uri)
        self._noted = False

    def record(self, demonstration: Demonstration) -> EpisodeEntry:
        """Play and store one demonstration; raise EpisodeError if the simulation fails."""
        entry = record(self._env, self._storage, demonstration)
        if not self._noted:
            note_driver(self._storage, driver_of(self._env), "demoscale collect")
            self._noted = True
        return entry


def missing(storage: Storage, demonstrations: list[Demonstration]) -> list[Demonstration]:
    """Return the demonstrations that the store does not hold yet."""
    manifest = newest_manifest(storage)
    have = set(manifest.episode_ids) if manifest else set()
    return [demonstration for demonstration in demonstrations if demonstration.episode_id not in have]


def collect(
    storage: Storage, contract: Contract, demonstrations: list[Demonstration], workers: int
) -> Iterator[EpisodeEntry]:
    """Record demonstrations of one task on `workers` actors of a connected Ray cluster; yield each when
    stored, and commit in batches. Raises RecordTimeoutError if one hangs at every attempt.
    """
    task = demonstrations[0].task
    yield from record_all(
        storage,
        contract,
        Recorder,
        (task, contract, storage.uri),
        demonstrations,
        workers,
        f"demonstrations of {task}",
        limit_s=LIMIT_S,
    )
