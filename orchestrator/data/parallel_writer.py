"""Parallel writing to an episode store: Ray actors write episodes, and the driver commits them in batches."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from orchestrator.data.episode_store import commit
from orchestrator.data.manifest import EpisodeEntry
from orchestrator.storage.base import Storage
from policy.interface import Contract

COMMIT_EVERY = 50  # episodes; committed ones survive an interruption


def record_all(
    storage: Storage,
    contract: Contract,
    recorder: type[Any],
    arguments: tuple[Any, ...],
    jobs: Sequence[Any],
    workers: int,
    note: str,
    lost: Callable[[Any], Any] | None = None,
) -> Iterator[Any]:
    """Call `recorder(*arguments).record(job)` for every job on `workers` actors of a connected cluster; yield
    each result when it arrives.

    A result that is an EpisodeEntry is committed with `note` as its writer; any other is only passed on. If a
    job's process dies at every retry, its result is `lost(job)`, or the Ray error is raised without `lost`.
    However the loop ends, all entries received are committed.
    """
    import ray
    from ray.exceptions import ActorDiedError, ActorUnavailableError

    actor = ray.remote(recorder).options(
        max_restarts=-1, max_task_retries=2, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}}
    )
    idle = [actor.remote(*arguments) for _ in range(min(workers, len(jobs)))]
    todo, running = iter(jobs), dict[Any, tuple[Any, Any]]()
    waiting: list[EpisodeEntry] = []
    try:
        while True:
            for job in islice(todo, len(idle)):
                process = idle.pop()
                running[process.record.remote(job)] = process, job
            if not running:
                break
            done, _ = ray.wait(list(running))
            process, job = running.pop(done[0])
            idle.append(process)
            try:
                answer = ray.get(done[0])
            except (ActorDiedError, ActorUnavailableError) as error:
                if lost is None or "creation task" in str(error):  # the recorder itself cannot be made
                    raise
                answer = lost(job)
            if isinstance(answer, EpisodeEntry):
                waiting.append(answer)
            if len(waiting) >= COMMIT_EVERY:
                commit(storage, contract, waiting, note)
                waiting = []
            yield answer
    finally:
        if waiting:
            commit(storage, contract, waiting, note)
