"""A policy whose answer is a digest of its observation, and HTTP servers of it."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from policy.http_protocol import MOST_BYTES
from policy.http_server import make_server
from policy.interface import ActionChunk, Contract, Observation, Policy

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
