"""Arms that only pretend to learn and simulators that only pretend to play, for what the engine itself costs and decides.

    python -m bench.pretend sweep.yaml --step-s 0.01

Training takes as long as it is told to, an episode no time. How well an arm does is a known function of its demos and steps, so that what a
search finds can be held against the truth.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench.servo import cameras
from orchestrator.arms import Arm
from orchestrator.data.episodes import Episode
from orchestrator.data.store import commit, put_episode
from orchestrator.evaluate import Players
from orchestrator.ledger import Portraits
from orchestrator.loop import ArmJob
from orchestrator.placement import Placement
from orchestrator.provenance import digest
from orchestrator.server import FINGERPRINT
from orchestrator.state import SweepState
from orchestrator.storage import open_storage
from policy.interface import derived_seed
from sim_workers.balance import Answered
from sim_workers.rollout import Outcome
from sim_workers.video import Filmed
from sim_workers.worker import RolloutJob

HALF_WAY = 60
"""Demos with which half of what is possible is reached."""


def success_rate(demo_count: int, action_free_ratio: float, step: int, steps: int) -> float:
    """Of a policy trained on so much for so long: rising in all, saturating, as the curves of imitation learning do."""
    worth = demo_count * (1 + 0.3 * math.log1p(action_free_ratio))
    return 0.95 * worth / (worth + HALF_WAY) * (1 - math.exp(-4 * step / steps)) / (1 - math.exp(-4))


def store(folder: Path, episodes: int) -> str:
    """An episode store whose episodes say nothing: pretended training does not look at them."""
    storage, told, rng = open_storage(str(folder)), cameras("fast"), np.random.default_rng(0)
    shape = (3, *told.image_size, 3)

    def episode(number: int) -> Episode:
        frames = {camera: np.full(shape, number % 256, np.uint8) for camera in told.cameras}
        proprio, action = (rng.normal(size=(3, len(names))).astype(np.float32) for names in (told.proprio, told.action))
        return Episode(f"Lift-{number:06d}", "Lift", "pretend", frames, proprio, action, True, "bench.pretend")

    entries = [put_episode(storage, episode(number), 20.0) for number in range(episodes)]
    commit(storage, told, entries)
    return storage.uri


@dataclass(frozen=True)
class Pretended:
    """The policy of a checkpoint: known by its URI, which ends in the arm's id and the step, and its fingerprint."""

    uri: str
    arms: tuple[tuple[str, Arm], ...]
    steps: int

    def rate(self) -> float:
        *_, arm_id, step = self.uri.partition(FINGERPRINT)[0].split("/")
        arm = dict(self.arms)[arm_id]
        return success_rate(arm.demo_count, arm.action_free_ratio, int(step.removeprefix("step_")), self.steps)


class PretendedPool:
    """Behaves like a RolloutPool whose episodes take no time: `play` says how each ends."""

    num_workers = most_workers = 64

    def __init__(self, play: Callable[[RolloutJob], Outcome]) -> None:
        self._play = play
        self.queue: list[RolloutJob] = []
        self.played: list[RolloutJob] = []

    def submit(self, job: RolloutJob) -> None:
        self.queue.append(job)

    def withdraw(self, key: str) -> list[RolloutJob]:
        gone = [job for job in self.queue if job.key == key]
        self.queue = [job for job in self.queue if job.key != key]
        return gone

    @property
    def placed(self) -> int:
        return self.num_workers

    @property
    def waiting(self) -> int:
        return len(self.queue)

    @property
    def unfinished(self) -> int:
        return len(self.queue)

    def results(self, timeout_s: float | None = None) -> Iterator[tuple[RolloutJob, Outcome, Filmed | None]]:
        while self.queue:
            job = self.queue.pop(0)
            if not job.film:
                self.played.append(job)
            yield job, self._play(job), Filmed(b"film") if job.film else None

    def rebalance(self) -> None:
        return None

    def resize(self, num_workers: int) -> None:
        self.num_workers = num_workers

    def close(self) -> None:
        self.queue = []


def outcome(job: RolloutJob) -> Outcome:
    """As often a success as the policy's rate says; the same episode of a better policy is won whenever that of a worse one is."""
    assert isinstance(job.source, Pretended)
    luck = np.random.default_rng(derived_seed(job.spec.noise_seed, job.spec.scene_seed)).random()
    won = bool(luck < job.source.rate())
    steps = 40 if won else job.rules.horizon
    return Outcome(job.spec, "success" if won else "failure", steps, steps // 8, 0.4, 0.1, 30 if won else None, won)


def players(state: SweepState, placement: Placement, portraits: Portraits) -> Players:
    """For `SweepRun`: episodes that take no time."""

    def source(uri: str, imagines: bool) -> Any:
        return Pretended(uri, tuple(state.arms().items()), state.sweep.train.steps)

    return Players(PretendedPool(outcome), source, lambda uri: Answered())


def fit_in(seconds_per_step: float) -> Callable[[ArmJob, str, dict[str, float], Any, int], list[dict[str, Any]]]:
    """For `SweepRun`: a training run that takes so long and answers the desk as a real one does."""

    def fit(job: ArmJob, folder: str, resources: dict[str, float], desk: Any, attempts: int) -> list[dict[str, Any]]:
        import ray

        from orchestrator.train import wishes_of

        asked, reported, every = wishes_of(desk, job.arm_id, 1), [], job.train.checkpoint_every
        for step in range(1, job.train.steps + 1):
            time.sleep(seconds_per_step)
            if step % every and step != job.train.steps and not asked():
                continue
            news = {"step": step, "loss": 1 / step, "loss_video": 0.0, "loss_action": 1 / step, "checkpoint": digest([job.arm_id, step])}
            news |= {"clips_with_actions": step, "clips_action_free": 0, "action_free_ratio_consumed": 0.0}
            news |= {"cpu_s": seconds_per_step * every, "wall_s": seconds_per_step * every, "bytes_read": 0}
            news |= {"clips": job.train.batch_size * every, "steps": every, "step_s": seconds_per_step * every, "stall_s": 0.001 * every}
            ray.get(desk.tell.remote(job.arm_id, news))
            reported.append(news)
            if asked():
                break
        return reported

    return fit


@click.command()
@click.argument("sweep_file")
@click.option("--step-s", default=0.01, show_default=True, help="Seconds that an optimiser step takes.")
def main(sweep_file: str, step_s: float) -> None:
    """Run a sweep whose arms only pretend; prints what each became."""
    from orchestrator.spec import Sweep
    from orchestrator.sweep import SweepRun

    run = SweepRun(Sweep.load(sweep_file), click.echo, fit=fit_in(step_s), players=players)
    run.run()
    click.echo(json.dumps({arm.name: arm.state for arm in run.board.arms.values()}))


if __name__ == "__main__":
    main()
