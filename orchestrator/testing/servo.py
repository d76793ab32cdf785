"""Scripted policy for Lift from the wrist camera, with little computing time: it finds the red cube, moves
there and lifts it.
"""

import numpy as np

from policy.interface import ActionChunk, Contract, Observation
from sim_workers.envs.robosuite import contract

CAMERA, SIZE, CHUNK = "robot0_eye_in_hand", 128, 16


def cameras(render_profile: str) -> Contract:
    """Return the contract of `servo`: one wrist camera of 128x128 pixels."""
    return contract((CAMERA,), (SIZE, SIZE), render_profile)


def servo(seen: Observation) -> ActionChunk:
    """Return a chunk of 16 actions: towards the cube while it is visible and below the gripper, then close
    and lift.

    The constants were fitted: from the cube's pixel in the first picture to its position, and from an action
    to the arm's displacement.
    """
    picture, (_, _, z) = seen.images[CAMERA].astype(int), seen.proprio[:3]
    red = (
        (picture[..., 0] > 70)
        & (picture[..., 0] > 1.6 * picture[..., 1])
        & (picture[..., 0] > 1.6 * picture[..., 2])
    )
    actions = np.zeros((CHUNK, 7), np.float32)
    if z > 0.86 and red.any():
        row, column = np.argwhere(red).mean(0)
        height = (z - 0.82) / 0.19
        way = np.array(
            [
                (0.2287 - 0.002575 * row) * height,
                (0.192 - 0.003 * column) * height,
                (0.9 if z > 0.95 else 0.825) - z,
            ]
        )
        way[:2] += 0.01 * np.random.default_rng(seen.noise_seed).standard_normal(2)
        actions[:, :3], actions[:, 6] = 3.5 * way / 0.05 / CHUNK, -1
    else:
        actions[6:, 2], actions[:, 6] = 0.5, 1
    return ActionChunk(actions.clip(-1, 1), CHUNK)
