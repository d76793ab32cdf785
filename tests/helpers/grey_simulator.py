"""A simulator of grey pictures, and films of it."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from orchestrator.testing.checkpoints import make_observation
from orchestrator.testing.episodes import CONTRACT
from policy.interface import Imagination, Observation
from sim_workers.rollout.rollout_video import RolloutRecorder


class GreySimulator:
    """A simulator without physics: every picture has one grey level, which identifies camera and control
    step.
    """

    film_camera = "front"
    succeeded = False

    def __init__(self, cameras: int) -> None:
        self.contract = replace(CONTRACT, cameras=tuple(f"camera{i}" for i in range(cameras)))
        self.steps = 0

    def picture(self, camera: str, size: tuple[int, int]) -> np.ndarray:  # type: ignore[type-arg]
        first = 10 if camera == self.film_camera else 50 + 50 * self.contract.cameras.index(camera)
        return np.full((*size, 3), first + self.steps, np.uint8)


def record_film(
    stage: GreySimulator,
    imagine: Callable[[Observation], Imagination | None] | None,
    steps: int,
    execute: int = 4,
    won_at: int = 10**9,
) -> RolloutRecorder:
    """Film `steps` control steps: the policy observes every `execute` steps, and the task is done from step
    `won_at` on.
    """
    film = RolloutRecorder(stage)  # type: ignore[arg-type]
    for step in range(1, steps + 1):
        if (step - 1) % execute == 0:
            film.observed(imagine(make_observation(step)) if imagine else None)
        stage.steps = step
        film.stepped(step, step >= won_at)
    return film
