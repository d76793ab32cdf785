"""Parallel writing to an episode store: Ray actors write episodes, and the driver commits them in batches."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from orchestrator.data.episode_store import commit
from orchestrator.data.manifest import EpisodeEntry
from orchestrator.storage.base import Storage
from policy.errors import RESUMABLE, DemoscaleError
from policy.interface import Contract
from sim_workers.arithmetic import pinned_kernels

COMMIT_EVERY = 50  # episodes; committed ones survive an interruption
RETRIES = 2


class RecordTimeoutError(DemoscaleError):
    """A recording was not done in time at any attempt; the same command continues with the others."""

    exit_code = RESUMABLE


@dataclass
class _Attempt:
    """Job that runs on an actor, its deadline by the monotonic clock and the attempts that missed theirs."""

    process: Any
    job: Any
    deadline: float
    number: int = 0


def record_all(
    storage: Storage,
    contract: Contract,
    recorder: type[Any],
    arguments: tuple[Any, ...],
    jobs: Sequence[Any],
    workers: int,
    note: str,
    lost: Callable[[Any], Any] | None = None,
    limit_s: float = math.inf,
) -> Iterator[Any]:
    """Call `recorder(*arguments).record(job)` for every job on `workers` actors of a connected cluster; yield
    each result when it arrives.

    A result that is an EpisodeEntry is committed with `note` as its writer; any other is only passed on. If a
    job's process dies at every retry, its result is `lost(job)`, or the Ray error is raised without `lost`.
    However the loop ends, all entries received are committed.

    limit_s: seconds that one attempt of a job may take before its process is killed and the job retried.
    Raises RecordTimeoutError, naming the job, if no attempt is done in time.
    """
    import ray
    from ray.exceptions import ActorDiedError, ActorUnavailableError

    actor = ray.remote(recorder).options(
        max_restarts=-1,
        max_task_retries=RETRIES,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", **pinned_kernels()}},
    )
    idle = [actor.remote(*arguments) for _ in range(min(workers, len(jobs)))]
    todo, running = iter(jobs), dict[Any, _Attempt]()
    waiting: list[EpisodeEntry] = []
    try:
        while True:
            for job in islice(todo, len(idle)):
                process = idle.pop()
                running[process.record.remote(job)] = _Attempt(process, job, time.monotonic() + limit_s)
            if not running:
                break
            first = min(attempt.deadline for attempt in running.values())
            patience_s = None if first == math.inf else max(0.0, first - time.monotonic())
            done, _ = ray.wait(list(running), timeout=patience_s)
            if not done:
                for attempt in running.values():
                    if attempt.deadline == first:
                        attempt.number += 1
                        attempt.deadline = time.monotonic() + limit_s
                        ray.kill(attempt.process, no_restart=attempt.number > RETRIES)
                continue
            attempt = running.pop(done[0])
            job = attempt.job
            idle.append(attempt.process)
            try:
                answer = ray.get(done[0])
            except (ActorDiedError, ActorUnavailableError) as error:
                if attempt.number > RETRIES:
                    raise RecordTimeoutError(
                        f"{job}: not done in {RETRIES + 1} attempts of {limit_s:g} s; what is done is kept,"
                        " and the same command continues"
                    ) from None
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
