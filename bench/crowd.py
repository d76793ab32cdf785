"""A thousand workers that pretend to play, for what the pool, the scorer and the ledger cost: of
`bench.nodes`.

They share a few processes, and every episode takes its time asleep. Messages, streams and waiting are Ray's
own.
"""

import math
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from bench.rollout import RULES
from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.evaluation.outcome_ledger import Ledger, RenderReferences
from orchestrator.evaluation.score_events import OutcomesRecorded, ScoreConcluded, ScorerEvent
from orchestrator.evaluation.scorer import Scorer
from orchestrator.evaluation.scores import EvalJob
from orchestrator.storage.base import open_storage
from orchestrator.testing.servo import cameras
from sim_workers.envs.render_check import RenderFingerprint
from sim_workers.rollout.autoscaler import ServerUsage
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.pool import RolloutPool
from sim_workers.rollout.pool_state import Worker
from sim_workers.rollout.ray_policy_client import RayServedPolicy
from sim_workers.rollout.suite import EpisodeSpec, Suite
from sim_workers.rollout.worker import BEAT_S, Played, RolloutJob, Said, WorkerHeartbeat

STAGES = 4
"""Processes in which pretended workers live."""
PLAN = [(1, 2.0), (10, 2.0), (100, 2.0), (300, 2.0), (1000, 2.0), (100, 10.0), (1000, 10.0)]
"""Workers, and seconds that an episode takes on average."""
QUICK_PLAN = PLAN[1:3]
"""Entries that a short run measures."""
LISTED = 50
"""Episodes of a checkpoint."""


def length_s(spec: EpisodeSpec, episode_s: float) -> float:
    """Seconds that a pretended episode takes: `episode_s` on average."""
    return episode_s * random.Random(spec.scene_seed).uniform(0.6, 1.4)


class Stage:
    """A process in which many workers pretend: an episode is as long as its seed says, and its worker says so
    often that it is alive.
    """

    def __init__(self, episode_s: float) -> None:
        self._episode_s = episode_s

    async def answered(self, checkpoint: object = None) -> ServerUsage:
        """As a policy server that nobody had to wait for."""
        return ServerUsage()

    async def play(self, job: RolloutJob, fresh: bool) -> AsyncIterator[Said]:
        import asyncio

        if fresh:
            yield RenderFingerprint("pretended", "nobody", "none", "same", "same")
        left = length_s(job.spec, self._episode_s)
        while left > 0:
            yield WorkerHeartbeat("playing")
            await asyncio.sleep(min(left, BEAT_S))
            left -= BEAT_S
        won = job.spec.scene_seed % 3 > 0
        yield Played(
            Outcome(
                job.spec,
                "success" if won else "failure",
                100,
                7,
                0.4,
                0.1,
                30 if won else None,
                won,
                worker="node/1",
            ),
            None,
            False,
        )


@dataclass
class Pretender:
    """One of them, as the pool knows a worker: `play.options(...).remote(job)` returns the stream of what it
    says.
    """

    stage: Any
    fresh: bool = True

    @property
    def play(self) -> "Pretender":
        return self

    def options(self, **_: Any) -> "Pretender":
        return self

    def remote(self, job: RolloutJob) -> Any:
        fresh, self.fresh = self.fresh, False
        return self.stage.play.options(num_returns="streaming").remote(job, fresh)


class Crowd(RolloutPool):
    """The real pool; only its workers are of another kind."""

    def __init__(self, workers: int, stages: Sequence[Any], references: RenderReferences) -> None:
        self._stages, self._hired = stages, 0
        super().__init__(workers, references=references)

    def _hire(self) -> None:
        import ray

        self._hired += 1
        # Sixteen to a node.
        self._workers.append(
            Worker(
                Pretender(self._stages[self._hired % len(self._stages)]), ray.put(f"node-{self._hired // 16}")
            )
        )

    def _dismiss(self, worker: Worker) -> None:
        self._workers.remove(worker)


@dataclass(frozen=True)
class Heard:
    """Outcomes that were written down together."""

    time: float
    episodes: int
    busy_s: float
    """What their workers spent in them."""


class Watch:
    """Receiver of the scorer's events that records when outcomes were written down."""

    def __init__(self, episode_s: float) -> None:
        self._episode_s = episode_s
        self.heard: list[Heard] = []

    def on_event(self, event: ScorerEvent) -> None:
        if isinstance(event, OutcomesRecorded):
            played_s = sum(length_s(outcome.spec, self._episode_s) for outcome in event.outcomes)
            self.heard.append(Heard(time.monotonic(), len(event.outcomes), played_s))
        elif isinstance(event, ScoreConcluded):
            assert event.score.complete


@dataclass(frozen=True)
class Stretch:
    """A while of scoring with all workers at work; shares are of one core."""

    workers: int
    episode_s: float
    per_s: float
    of_ideal: float
    scorer: float
    driver: float
    """The driver's other threads, which are Ray's."""
    stages: float
    machine: float
    """Of all its cores: what is left is what nobody could use."""
    replaced: int


def _cpu(process: psutil.Process, thread: int | None = None) -> float:
    """Seconds of a process, or of one of its threads."""
    if thread is None:
        return float(sum(process.cpu_times()[:2]))
    return next(float(told.user_time + told.system_time) for told in process.threads() if told.id == thread)


def stretch(workers: int, episode_s: float, seconds: float) -> Stretch:
    """Score checkpoint after checkpoint, and measure once the pool is warm."""
    import ray

    make = ray.remote(Stage).options(num_cpus=0, max_concurrency=1000)
    stages = [make.remote(episode_s) for _ in range(min(STAGES, workers))]
    pids = ray.get([stage.__ray_call__.remote(_pid) for stage in stages])
    servers = tuple(stages[i % len(stages)] for i in range(math.ceil(workers / 32)))
    with tempfile.TemporaryDirectory() as folder:
        storage, watch = open_storage(folder), Watch(episode_s)
        pool = Crowd(workers, stages, RenderReferences(storage, "pretended"))
        scorer = Scorer(storage, cameras("fast"), pool, watch.on_event)
        suite, warm_s = Suite(("Lift",), LISTED, RULES), 2 * episode_s
        checkpoints = math.ceil(workers / episode_s * (warm_s + seconds) * 1.2 / LISTED) + math.ceil(
            2 * workers / LISTED
        )
        for number in range(checkpoints):
            scorer.submit(
                EvalJob(
                    "arm",
                    number,
                    CheckpointRef(f"arms/{number}", f"checkpoint{number}"),
                    suite,
                    "protocol",
                    RayServedPolicy(servers, "policy"),
                )
            )
        time.sleep(warm_s)
        me, others, thread = psutil.Process(), [psutil.Process(pid) for pid in pids], scorer._thread.native_id
        before = time.monotonic(), _cpu(me, thread), _cpu(me), sum(map(_cpu, others))
        psutil.cpu_percent()
        time.sleep(seconds)
        machine = psutil.cpu_percent() / 100
        assert scorer.waiting > workers, "the list was too short to keep all at work"
        after = time.monotonic(), _cpu(me, thread), _cpu(me), sum(map(_cpu, others))
        scorer.close()
        scorer.check()
        recorded = sum(
            len(Ledger(storage, f"checkpoint{number}", "protocol").read()) for number in range(checkpoints)
        )
        assert recorded == sum(heard.episodes for heard in watch.heard), (
            "what was told is what is written down"
        )
    for stage in stages:
        ray.kill(stage)
    wall, by_scorer, by_driver, by_stages = (b - a for a, b in zip(before, after, strict=True))
    within = [heard for heard in watch.heard if before[0] < heard.time <= after[0]]
    per_s = sum(heard.episodes for heard in within) / wall
    # Between the first outcomes and the last: few workers finish few episodes, and the window may cut one at
    # each end.
    of_ideal = sum(heard.busy_s for heard in within[1:]) / (within[-1].time - within[0].time) / workers
    replaced = sum(pool.usage.replaced.values())
    rays = by_driver - by_scorer
    return Stretch(
        workers,
        episode_s,
        per_s,
        of_ideal,
        by_scorer / wall,
        rays / wall,
        by_stages / wall,
        machine,
        replaced,
    )


def _pid(_: object) -> int:
    return os.getpid()


def to_a_thousand(quick: bool) -> dict[str, Any]:
    """A table over workers and the length of an episode."""
    plan = QUICK_PLAN if quick else PLAN
    print(
        "pretended workers; ideal: as many episodes as workers that lose no moment; shares of one core, the"
        " machine's of all\n"
    )
    titles = {
        "workers": 8,
        "episode, s": 12,
        "episodes/s": 12,
        "of ideal": 10,
        "scorer": 9,
        "driver, Ray": 13,
        "pretenders": 12,
        "machine": 9,
        "replaced": 10,
    }
    print("".join(f"{title:>{width}}" for title, width in titles.items()))
    told = []
    for workers, episode_s in plan:
        one = stretch(
            workers, episode_s, 8.0 if quick else max(20.0, 3 * episode_s, 50 * episode_s / workers)
        )
        print(
            f"{workers:>8}{episode_s:>12g}{one.per_s:>12.1f}{one.of_ideal:>10.0%}{one.scorer:>9.0%}{one.driver:>13.0%}{one.stages:>12.0%}"
            f"{one.machine:>9.0%}{one.replaced:>10}",
            flush=True,
        )
        told.append(one)
    # None: not in a short run
    answers: dict[str, Any] = {f"of_ideal_{workers}_{episode_s:g}s": None for workers, episode_s in PLAN}
    answers |= {f"of_ideal_{one.workers}_{one.episode_s:g}s": round(one.of_ideal, 3) for one in told}
    return answers | {
        "most_episodes_per_s": round(max(one.per_s for one in told), 1),
        "replaced": sum(one.replaced for one in told),
    }
