"""Policies whose answers are digests of their observations, and HTTP servers of them."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from policy.http_protocol import MOST_BYTES
from policy.http_server import make_server
from policy.interface import ActionChunk, Contract, Observation, Policy
from policy.sessions import SessionStates

CONTRACT = Contract(("front", "robot0/wrist"), (6, 8), "fast", ("x", "y", "z"), ("dx", "grip"), 20.0, "none")


class Digest:
    """A policy that answers with a digest of its observation, so that any difference shows."""

    contract = CONTRACT

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.delay_s = 0.0

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        self.sizes.append(len(observations))
        time.sleep(self.delay_s)
        return [self._one(observation) for observation in observations]

    def _one(self, seen: Observation) -> ActionChunk:
        if seen.instruction == "break":
            raise RuntimeError("first line\nthe weights are NaN")
        pictures = [int.from_bytes(seen.images[camera].tobytes(), "little") for camera in CONTRACT.cameras]
        rng = np.random.default_rng(
            [*pictures, *seen.proprio.view(np.uint32).tolist(), *seen.instruction.encode(), seen.noise_seed]
        )
        return ActionChunk(rng.standard_normal((5, 2)).astype(np.float32), int(rng.integers(1, 6)))


def random_observation(seed: int, instruction: str = "lift the röd cube\0") -> Observation:
    rng = np.random.default_rng(seed)
    images = {camera: rng.integers(0, 256, (6, 8, 3), dtype=np.uint8) for camera in CONTRACT.cameras}
    return Observation(images, rng.standard_normal(3).astype(np.float32), instruction, 2**63 - 1 - seed)


class Remembering(Digest):
    """A policy whose answer is a digest of all observations of its session, with their histories."""

    memory = True
    observation_steps = 3

    def __init__(self, most: int = 100) -> None:
        super().__init__()
        self._states = SessionStates[list[float]](lambda _: [], most)

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        states = [self._states.of(observation) for observation in observations]
        self.sizes.append(len(observations))
        chunks = []
        for state, seen in zip(states, observations, strict=True):
            digests = [float(self._one(one).actions[0, 0]) for one in (*seen.history, seen)]
            state += [*digests, float(seen.step)]
            chunks.append(ActionChunk(np.full((5, 2), sum(state), np.float32), 2))
        return chunks


def look(seed: int, session: str, step: int, preceding: int = 2) -> Observation:
    """Return a random observation of a session, with its history."""
    first = random_observation(seed)
    history = tuple(
        replace(
            random_observation(100 * seed + k),
            noise_seed=first.noise_seed,
            episode=session,
            step=max(0, step - preceding + k),
        )
        for k in range(preceding)
    )
    return replace(first, episode=session, step=step, history=history)


@contextmanager
def served(policy: Policy, join: bool = False, most_bytes: int = MOST_BYTES) -> Iterator[str]:
    server = make_server(policy, port=0, join=join, most_bytes=most_bytes)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def same(chunks: list[ActionChunk], others: list[ActionChunk]) -> bool:
    return len(chunks) == len(others) and all(
        a.execute == b.execute and a.actions.dtype == b.actions.dtype and np.array_equal(a.actions, b.actions)
        for a, b in zip(chunks, others, strict=True)
    )
