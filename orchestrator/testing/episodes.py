"""Recorded episodes of Lift with synthetic pictures, and stores of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from orchestrator.data.episode_format import Episode
from orchestrator.data.episode_store import commit, put_episode
from orchestrator.storage.base import open_storage
from sim_workers.envs.robosuite import contract

CAMERA = "robot0_eye_in_hand"
CONTRACT = contract((CAMERA,), (64, 64), "fast")
"""One wrist camera of 64x64 pixels, 9 proprioceptive values, 7 action dimensions, 20 Hz."""


def make_episode(seed: int = 0, length: int = 12, labelled: bool = True, size: int = 64) -> Episode:
    """Return one successful episode of Lift; its pictures are moving gradients, as compressible as a render.

    Args:
        seed: determines every value, and the id `Lift-<seed>`.
        length: number of control steps.
        labelled: whether the episode has actions.
        size: side of a picture in pixels; that of `CONTRACT` by default.
    """
    rng = np.random.default_rng(seed)
    x, y, t = np.meshgrid(np.arange(size), np.arange(size), np.arange(length), indexing="ij")
    frames = (
        np.stack([(2 * x + t) % 256, (2 * y + 3 * seed) % 256, (x + y) % 256], -1)
        .transpose(2, 0, 1, 3)
        .astype(np.uint8)
    )
    action = rng.uniform(-1, 1, (length, 7)).astype(np.float32) if labelled else None
    return Episode(
        f"Lift-{seed:06d}",
        "Lift",
        "lift the red cube",
        {CAMERA: frames},
        rng.normal(size=(length, 9)).astype(np.float32),
        action,
        True,
        "test",
    )


def make_episode_store(folder: Path, episodes: int = 16, length: int = 12, size: int = 64) -> str:
    """Commit `episodes` labelled episodes, seeds 0 and up, to a store in `folder`; return its URI."""
    storage, conventions = open_storage(str(folder)), replace(CONTRACT, image_size=(size, size))
    entries = [
        put_episode(storage, make_episode(seed, length, size=size), CONTRACT.control_hz)
        for seed in range(episodes)
    ]
    commit(storage, conventions, entries)
    return storage.uri
