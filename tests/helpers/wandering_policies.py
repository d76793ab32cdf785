"""Policies of the pool tests behind a policy server: `wanderer`, and others that are slow or fail."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.cloudpickle

from orchestrator.testing.episodes import CAMERA
from orchestrator.testing.fake_policy_server import FakePolicyServer
from policy.interface import ActionChunk, Observation, PolicyNeeds
from policy.sessions import SessionStates
from sim_workers.rollout.suite import EpisodeSpec

CURSED = EpisodeSpec("Lift", 1_000_002, 1_000_002)
"""The episode on which the policy `cursed` fails."""


def wander(observation: Observation) -> ActionChunk:
    """Answer with actions that depend on picture, proprioception and noise seed, so that any difference in
    them changes the episode.
    """
    seen = int(observation.images[CAMERA].sum()) + int(abs(observation.proprio).sum() * 1e6)
    rng = np.random.default_rng([seen, observation.noise_seed])
    return ActionChunk(rng.uniform(-1, 1, (8, 7)).astype(np.float32), 4)


def wander_slowly(observation: Observation) -> ActionChunk:
    time.sleep(0.3)
    return wander(observation)


def fail(observation: Observation) -> ActionChunk:
    raise RuntimeError("this policy is broken")


def fail_on_cursed(observation: Observation) -> ActionChunk:
    """Wander, but fail at every observation of the episode CURSED."""
    return (
        fail(observation)
        if observation.noise_seed in {CURSED.chunk_seed(look) for look in range(9)}
        else wander(observation)
    )


REMEMBERS = PolicyNeeds(memory=True, observation_steps=3)
"""Needs of the policy `remembers`."""


LOG = "REMEMBER_LOG"
"""Environment variable with the file in which `Remember` writes a line per observation that it answers:
session, step and answer.
"""


class Remember:
    """Wander by all observations of the session so far and their histories."""

    def __init__(self) -> None:
        self._states = SessionStates[list[int]](lambda _: [])

    def __call__(self, observation: Observation) -> ActionChunk:
        state = self._states.of(observation)
        for seen in (*observation.history, observation):
            state += [seen.step, int(abs(seen.proprio).sum() * 1e6)]
            state += [int(picture.sum()) for picture in seen.images.values()]
        rng = np.random.default_rng([*state, observation.noise_seed])
        time.sleep(0.1)
        actions = rng.uniform(-1, 1, (8, 7)).astype(np.float32)
        with open(os.environ[LOG], "a") as file:
            file.write(f"{observation.episode} {observation.step} {actions.sum()}\n")
        return ActionChunk(actions, int(rng.integers(1, 8)))


def playings(log: Path) -> dict[str, list[list[tuple[str, str]]]]:
    """Return the steps and answers of every session of each episode in a log of `Remember`."""
    sessions: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for line in log.read_text().splitlines():
        session, step, answer = line.split()
        episode = session.rpartition("-")[0]
        sessions.setdefault(episode, {}).setdefault(session, []).append((step, answer))
    return {episode: [*of.values()] for episode, of in sessions.items()}


def start_wanderer(**options: Any) -> Any:
    """Start a policy server with Ray's actor options; its policies are `slow`, `broken`, `cursed`,
    `remembers` and, under any other name, `wanderer`.
    """
    # the workers cannot import a module of the tests
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return (
        ray.remote(FakePolicyServer)
        .options(**options)
        .remote(
            wander,
            {"slow": wander_slowly, "broken": fail, "cursed": fail_on_cursed, "remembers": Remember()},
        )
    )
