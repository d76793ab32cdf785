"""What does scoring through a policy server cost, against the same policy in the rollout processes?

    python -m bench.serving              about three minutes
    python -m bench.serving --quick      half a minute

Lift, one wrist camera of 128 pixels, the fast render profile, the same episodes by turns on the same workers,
as many as there are cores, at most two. The policy has memory, so that every episode is a session of the
server; it is a server of one process on the same cores. Two cadences: chunks of 16 actions
(`orchestrator.testing.servo`), and one action per control step from a queue of such a chunk.
"""

import itertools
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

from bench import harness
from bench.rollout import FIRST, RULES, WORKERS, spec
from orchestrator.testing.servo import CHUNK, cameras, servo
from policy.chunk_memory import ActionQueue
from policy.http_server import make_server
from policy.interface import ActionChunk, Observation, Policy
from policy.sessions import SessionStates
from sim_workers.rollout.policy_clients import InProcessPolicy, PolicySource, RemoteServer


class Remembering:
    """`servo`, with a state per session: the number of observations."""

    memory = True

    def __init__(self) -> None:
        self.contract = cameras("fast")
        self._looks = SessionStates[list[int]](lambda _: [0])

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        for state in [self._looks.of(observation) for observation in observations]:
            state[0] += 1
        return [servo(observation) for observation in observations]


class Plain:
    """`servo` without memory."""

    def __init__(self) -> None:
        self.contract = cameras("fast")

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return [servo(observation) for observation in observations]


def chunks() -> Policy:
    return Remembering()


def every_step() -> Policy:
    return ActionQueue(Plain())


CADENCES: dict[str, Callable[[], Policy]] = {f"chunks of {CHUNK}": chunks, "every control step": every_step}


def _serve(end: Connection, make: Callable[[], Policy]) -> None:
    with make_server(make(), port=0) as server:
        end.send(f"http://127.0.0.1:{server.server_address[1]}")
        server.serve_forever()


class Server:
    """A policy server in a process of its own."""

    def __init__(self, make: Callable[[], Policy]) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make), daemon=True)
        self._process.start()
        self.url: str = ours.recv()

    def close(self) -> None:
        self._process.kill()
        self._process.join()


@dataclass(frozen=True)
class Slice:
    """What was played of one source in one round."""

    seconds: float
    outcomes: dict[int, dict[str, Any]]
    """What the outcomes do not owe to time or worker, by scene seed."""


@harness.command("serving")
def main(quick: bool) -> Mapping[str, object]:
    """Print the table; return the values of the last line."""
    from orchestrator.cluster.ray_runtime import connect, quiet
    from sim_workers.rollout.pool import RolloutPool
    from sim_workers.rollout.worker import RolloutJob

    quiet()  # Ray's own lines
    connect()
    rounds, episodes = (3, 4 * WORKERS) if quick else (7, 12 * WORKERS)
    pool, contract = RolloutPool(WORKERS, num_cpus=0.1), cameras("fast")
    servers = {cadence: Server(make) for cadence, make in CADENCES.items()}
    seeds = itertools.count(FIRST)

    def play(source: PolicySource, scenes: Sequence[int]) -> Slice:
        for scene in scenes:
            pool.submit(RolloutJob(spec(scene), RULES, contract, source))
        began = time.perf_counter()
        outcomes = {outcome.spec.scene_seed: outcome.played for _, outcome, _ in pool.results()}
        return Slice(time.perf_counter() - began, outcomes)

    slices: dict[str, list[tuple[Slice, Slice]]] = {cadence: [] for cadence in CADENCES}
    for number in range(rounds + 1):
        for cadence, make in CADENCES.items():
            sources: list[PolicySource] = [InProcessPolicy(make), RemoteServer(servers[cadence].url)]
            scenes = [next(seeds) for _ in range(episodes if number else WORKERS)]
            order = (0, 1) if number % 2 else (1, 0)  # drift meets both alike
            played = {i: play(sources[i], scenes) for i in order}
            if number:  # before, everything is built and warm
                slices[cadence].append((played[0], played[1]))
    pool.close()
    for server in servers.values():
        server.close()

    print(f"Lift, {WORKERS} workers, {rounds} rounds of {episodes} episodes by turns; medians over rounds\n")
    print(f"{'':<24}{'in process':>12}{'over HTTP':>12}{'ratio':>8}   episodes/s")
    ratios, equal = [], True
    for cadence, pairs in slices.items():
        rates = [median(episodes / pair[i].seconds for pair in pairs) for i in (0, 1)]
        ratios.append(harness.median_ratio([a.seconds for a, _ in pairs], [b.seconds for _, b in pairs]))
        equal &= all(a.outcomes == b.outcomes for a, b in pairs)
        print(f"{cadence:<24}{rates[0]:>12.2f}{rates[1]:>12.2f}{ratios[-1]:>8.3f}")
    print()
    return {
        "ratio_http_to_in_process": ratios[0],
        "ratio_http_to_in_process_every_step": ratios[1],
        "equal_outcomes": equal,
    }


if __name__ == "__main__":
    harness.run(main)
