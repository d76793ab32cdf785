"""Filling an episode store: processes of a Ray cluster write episodes in parallel, and what they wrote is committed as they go."""

from collections.abc import Iterator, Sequence
from typing import Any

from orchestrator.data.manifest import EpisodeEntry
from orchestrator.data.store import commit
from orchestrator.storage import Storage
from policy.interface import Contract

COMMIT_EVERY = 50  # episodes; what is committed survives an interruption


def record_all(
    storage: Storage, contract: Contract, recorder: type[Any], arguments: tuple[Any, ...], jobs: Sequence[Any], workers: int, note: str
) -> Iterator[Any]:
    """Have `recorder(*arguments).record(job)` called for every job on `workers` actors of a connected cluster; yield each answer as it comes.

    An answer that is an EpisodeEntry is committed, `note` saying what wrote it; any other is only passed on. Whatever ends the loop,
    the entries already yielded are committed.
    """
    import ray
    from ray.util import ActorPool

    actor = ray.remote(recorder).options(max_restarts=3, max_task_retries=3, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})
    pool = ActorPool([actor.remote(*arguments) for _ in range(min(workers, len(jobs)))])
    waiting: list[EpisodeEntry] = []
    try:
        for answer in pool.map_unordered(lambda process, job: process.record.remote(job), jobs):
            if isinstance(answer, EpisodeEntry):
                waiting.append(answer)
            if len(waiting) >= COMMIT_EVERY:
                commit(storage, contract, waiting, note)
                waiting = []
            yield answer
    finally:
        if waiting:
            commit(storage, contract, waiting, note)
