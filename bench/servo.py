"""A policy that needs its camera and costs next to nothing: it sees the red cube of Lift with the wrist camera, goes there and lifts."""

import numpy as np

from policy.interface import ActionChunk, Contract, Observation
from sim_workers.balance import Answered
from sim_workers.env import contract

CAMERA, SIZE, CHUNK = "robot0_eye_in_hand", 128, 16


def cameras(render_profile: str) -> Contract:
    return contract((CAMERA,), (SIZE, SIZE), render_profile)


def servo(seen: Observation) -> ActionChunk:
    """The constants fit where the cube is against where it is seen from the first pose, and how far the arm gets in a chunk."""
    picture, (_, _, z) = seen.images[CAMERA].astype(int), seen.proprio[:3]
    red = (picture[..., 0] > 70) & (picture[..., 0] > 1.6 * picture[..., 1]) & (picture[..., 0] > 1.6 * picture[..., 2])
    actions = np.zeros((CHUNK, 7), np.float32)
    if z > 0.86 and red.any():
        row, column = np.argwhere(red).mean(0)
        height = (z - 0.82) / 0.19
        way = np.array([(0.2287 - 0.002575 * row) * height, (0.192 - 0.003 * column) * height, (0.9 if z > 0.95 else 0.825) - z])
        way[:2] += 0.01 * np.random.default_rng(seen.noise_seed).standard_normal(2)
        actions[:, :3], actions[:, 6] = 3.5 * way / 0.05 / CHUNK, -1
    else:
        actions[6:, 2], actions[:, 6] = 0.5, 1
    return ActionChunk(actions.clip(-1, 1), CHUNK)


class ServoServer:
    """The same behind one call per chunk, as `orchestrator.server.PolicyServer` is asked."""

    def act(self, key: str, observation: Observation) -> ActionChunk:
        return servo(observation)

    def answered(self, key: str = "") -> Answered:
        return Answered()  # it takes no time worth balancing
