"""How fast is LIBERO-10 in the pool, against bare loops, LIBERO's own loop, vla-eval and lerobot-eval?

    python -m bench.peers              half an hour, and the downloads of the peers' environments
    python -m bench.peers --quick      three minutes: two tasks, bare loops alone

Two cameras of 128 pixels, a policy that stands still, a look every 16 control steps, episodes of 100 control
steps, on two processes, the same fixed scenes for all. First all ten tasks, two at a time, in the pool and in
bare loops, which only step and render at looks, one with LIBERO's own control step and one with the lean one.
Then the peers, each in an environment of its own made by uv: LIBERO's own loop on its own environment as its
evaluation uses it, vla-eval and lerobot-eval. The pool then begins episodes as vla-eval does
(`suite.libero_reset: openvla`). Not counted: building simulators, and each process's first episode. Last, one
process of each is killed with SIGKILL.

CPU seconds are those of all processes of an arm. The other seconds depend on what else the machine does;
rounds of pool and bare loops are interleaved.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench import harness, libero_peers
from bench.libero_peers import CHUNK, IDLE, SCENES, SIZE, STEPS
from bench.results import NOT_HERE
from orchestrator.external.command import CommandError
from policy.interface import ActionChunk, Contract, Observation
from sim_workers.envs.libero import CAMERAS, LIBERO_10, LiberoMissingError, libero_contract
from sim_workers.rollout.episode import run_episode
from sim_workers.rollout.suite import EpisodeRules, EpisodeSpec, Reset

WORKERS = 2
RULES = EpisodeRules(horizon=STEPS, settle=0)
BLOCK = 5
"""Control steps in a row of one kind, where both are measured by turns."""
PEER_TASKS = (0, 5)
"""Tasks that the peers play, one on each process: a living room and the study, without an open drawer, for
which LIBERO draws one more number with every reset.
"""
Pictures = dict[tuple[str, int], set[str]]
"""Episode and control step -> hashes of the pictures that its playings showed."""


@dataclass(frozen=True)
class StandingPolicy:
    """Source of a policy that stands still and notes a hash of every picture that it gets."""

    folder: str

    def connect(self) -> "StandingClient":
        """Return a client whose notes lie in a file of its own."""
        return StandingClient(Path(self.folder) / f"{os.getpid()}.jsonl")


@dataclass
class StandingClient:
    """The policy in one process."""

    notes: Path
    episode: str = ""

    def attach(self, env: Any, spec: EpisodeSpec) -> None:
        """Begin an episode."""
        self.episode = spec.episode_id

    def act(self, observation: Observation) -> ActionChunk:
        """Return a chunk of idle actions."""
        digest = hashlib.sha256(b"".join(observation.images[camera].tobytes() for camera in CAMERAS))
        with self.notes.open("a") as file:
            file.write(json.dumps([self.episode, observation.step, digest.hexdigest()]) + "\n")
        return ActionChunk(np.tile(np.array(IDLE, np.float32), (CHUNK, 1)), CHUNK)


def noted(folder: Path) -> Pictures:
    """Return the hashes that all clients of a folder noted."""
    pictures: Pictures = defaultdict(set)
    for file in folder.glob("*.jsonl"):
        for line in file.read_text().splitlines():
            episode, step, digest = json.loads(line)
            pictures[episode, step].add(digest)
    return dict(pictures)


def contract() -> Contract:
    return libero_contract(CAMERAS, (SIZE, SIZE), "default")


def spec(task: str, seed: int) -> EpisodeSpec:
    return EpisodeSpec(task, seed, seed)


@dataclass(frozen=True)
class Slice:
    """What an arm spent on the same episodes."""

    seconds: float
    cpu_s: float


# -- bare loops ----------------------------------------------------------------------------------------------


class BareLoops:
    """One loop per process: step, and render when the policy looks. Each process has one task at a time, and
    the niceness of Ray's workers, which decides how much of a busy machine it gets.
    """

    def __init__(self, folder: Path) -> None:
        import ray

        niceness = ray.get(ray.remote(lambda: os.nice(0)).remote())
        context = multiprocessing.get_context("spawn")
        self._ends, self._processes = [], []
        for _ in range(WORKERS):
            ours, theirs = context.Pipe()
            process = context.Process(target=_bare, args=(theirs, str(folder), niceness), daemon=True)
            process.start()
            self._ends.append(ours)
            self._processes.append(process)

    def call(self, method: str, tasks: Sequence[str], *arguments: Any) -> list[Any]:
        """Call the method in every process, with a task each; return the answers."""
        for end, task in zip(self._ends, tasks, strict=True):
            end.send((method, task, *arguments))
        return [end.recv() for end in self._ends]

    def play(self, tasks: Sequence[str], seeds: Sequence[int], lean: bool) -> Slice:
        began = time.perf_counter()
        cpu = self.call("play", tasks, list(seeds), lean)
        return Slice(time.perf_counter() - began, sum(cpu))

    def close(self) -> None:
        for end, process in zip(self._ends, self._processes, strict=True):
            end.send(None)
            process.join()


class _Bare:
    def __init__(self, folder: str) -> None:
        self._env: Any = None
        self._lean: Any = None
        self._client = StandingPolicy(folder).connect()

    def build(self, task: str) -> float:
        """Build the task's simulator; return its seconds."""
        from sim_workers.envs.libero import LiberoEnv

        began = time.perf_counter()
        if self._env is not None:
            self._env.close()
        self._env = LiberoEnv(task, contract())
        self._lean = self._env._fast
        if self._lean is None:
            raise RuntimeError(self._env.own_step)
        return time.perf_counter() - began

    def play(self, task: str, seeds: list[int], lean: bool) -> float:
        """Play one episode per seed; return the CPU seconds."""
        began = time.process_time()
        self._env._fast = self._lean if lean else None
        for seed in seeds:
            self._client.attach(self._env, spec(task, seed))
            run_episode(self._env, spec(task, seed), RULES, self._client.act)
        return time.process_time() - began

    def step(self, task: str, blocks: int) -> dict[str, float]:
        """CPU milliseconds per control step with random actions, both kinds by turns."""
        rng, spent = np.random.default_rng(0), defaultdict(list)
        self._env.reset(0)
        for kind in ("own", "lean") * blocks:
            self._env._fast = self._lean if kind == "lean" else None
            actions, began = rng.uniform(-1, 1, (BLOCK, 7)), time.process_time()
            for action in actions:
                self._env.step(action)
            spent[kind].append(1000 * (time.process_time() - began) / BLOCK)
        return {kind: median(values) for kind, values in spent.items()}


def _bare(end: Connection, folder: str, niceness: int) -> None:
    os.nice(niceness - os.nice(0))
    loop = _Bare(folder)
    while (asked := end.recv()) is not None:
        method, *arguments = asked
        end.send(getattr(loop, method)(*arguments))


# -- the pool ------------------------------------------------------------------------------------------------


class Pool:
    """`RolloutPool` with the policy in its processes."""

    def __init__(self, folder: Path, reset: Reset = "settled") -> None:
        from sim_workers.rollout.pool import RolloutPool

        self._pool, self._source = RolloutPool(WORKERS, num_cpus=0.1), StandingPolicy(str(folder))
        self._contract, self._reset = contract(), reset
        self._sampler = harness.Sampler(os.getpid(), lambda title: "all")
        self.replaced: dict[str, int] = self._pool.usage.replaced

    def warm(self, tasks: Sequence[str]) -> None:
        """Play an episode of each task, until each process has the simulator of another one."""
        while {worker.scene.task for worker in self._pool._workers if worker.scene} != {*tasks}:
            self.play(tasks, [0])

    def play(self, tasks: Sequence[str], seeds: Sequence[int], kill: bool = False) -> Slice:
        """Play one episode per task and seed. kill: end one process with SIGKILL after the first episode."""
        from orchestrator.testing.processes import titled_processes
        from sim_workers.rollout.worker import RolloutJob

        self._sampler.sample()
        before, began = self._sampler.seconds["all"], time.perf_counter()
        ended: list[EpisodeSpec] = []
        for seed in seeds:
            for task in tasks:
                job = RolloutJob(spec(task, seed), RULES, self._contract, self._source, reset=self._reset)
                self._pool.submit(job)
        for _, outcome, _ in self._pool.results():
            if outcome.result == "error":
                raise RuntimeError(outcome.message)
            if kill and not ended:
                os.kill(titled_processes("ray::RolloutWorker.play")[0].pid, signal.SIGKILL)
            ended.append(outcome.spec)
        assert len(set(ended)) == len(ended) == len(tasks) * len(seeds)
        seconds = time.perf_counter() - began
        self._sampler.sample()
        return Slice(seconds, self._sampler.seconds["all"] - before)

    def close(self) -> None:
        self._pool.close()


# -- all ten tasks -------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """Slices of each arm, round by round, and what the ten tasks' control steps cost."""

    rounds: dict[str, list[Slice]] = field(default_factory=lambda: defaultdict(list))
    steps: dict[str, dict[str, float]] = field(default_factory=dict)
    builds_s: list[float] = field(default_factory=list)
    episodes: int = 0
    """Number of episodes of a slice."""

    def ratio(self, of: str, to: str, what: str = "seconds") -> float:
        """Median over rounds of how many times as fast, or as cheap, one arm is as another."""
        return harness.median_ratio(*([getattr(one, what) for one in self.rounds[arm]] for arm in (to, of)))

    def per_episode(self, arm: str, what: str) -> float:
        """Median over rounds of the seconds per episode on each process, or of CPU seconds per episode."""
        many = self.episodes / WORKERS if what == "seconds" else self.episodes
        spent: float = median(getattr(one, what) for one in self.rounds[arm])
        return spent / many


def ten_tasks(tasks: Sequence[str], rounds: int, episodes: int, folder: Path) -> tuple[Measured, bool]:
    """Measure pool and bare loops; also whether all saw the same pictures."""
    found, places = Measured(episodes=episodes * WORKERS), {}
    for name in ("bare", "pool"):
        places[name] = folder / name
        places[name].mkdir()
    bare, pool = BareLoops(places["bare"]), Pool(places["pool"])
    for first in range(0, len(tasks), WORKERS):
        pair = tasks[first : first + WORKERS]
        found.builds_s += bare.call("build", pair)
        bare.play(pair, [0], lean=True)
        pool.warm(pair)
        found.steps |= dict(zip(pair, bare.call("step", pair, 20), strict=True))
        seeds = range(1, 1 + episodes)
        arms = {
            "own": partial(bare.play, pair, seeds, lean=False),
            "lean": partial(bare.play, pair, seeds, lean=True),
            "pool": partial(pool.play, pair, seeds),
        }
        for name, slices in harness.interleaved(arms, rounds).items():
            found.rounds[name] += slices
    bare.close()
    pool.close()
    return found, noted(places["bare"]) == noted(places["pool"])


def show_ten(found: Measured) -> dict[str, object]:
    """Print the tables of the ten tasks; return the values of the last line."""
    print(f"{'CPU ms per control step':<58}{'LIBERO':>8}{'lean':>8}{'times as fast':>15}")
    for task, ms in found.steps.items():
        name = task.partition("/")[2].replace("_", " ")[:56]
        print(f"{name:<58}{ms['own']:8.2f}{ms['lean']:8.2f}{ms['own'] / ms['lean']:15.2f}")
    titles = {
        "own": "bare loops, LIBERO's own control step",
        "lean": "bare loops, lean control step",
        "pool": "the pool",
    }
    head = f"{len(found.steps)} tasks, episodes of {STEPS} control steps"
    print(f"\n{head:<40}{'s/episode':>11}{'CPU s/episode':>15}")
    for arm, title in titles.items():
        wall, cpu = (found.per_episode(arm, what) for what in ("seconds", "cpu_s"))
        print(f"{title:<40}{wall:>11.2f}{cpu:>15.2f}")
    print(f"{len(found.rounds['pool'])} rounds of {found.episodes} episodes; s/episode: on each process")
    print(f"building a simulator takes {median(found.builds_s):.1f} s")
    ratios = [ms["own"] / ms["lean"] for ms in found.steps.values()]
    return {
        "ratio_control_step": median(ratios),
        "least_ratio_control_step": min(ratios),
        "ratio_to_bare": found.ratio("pool", "own"),
        "ratio_to_lean_bare": found.ratio("pool", "lean"),
        "cpu_ratio_to_lean_bare": found.ratio("pool", "lean", "cpu_s"),
        "build_s": median(found.builds_s),
    }


# -- peers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """The pool or a peer on the tasks of PEER_TASKS."""

    seconds: float
    """Per episode on each process."""
    cpu_s: float
    """Per episode, of all processes."""
    lost: int | None
    """Episodes without a result when one of two processes was killed after the first of four episodes. None:
    not measured.
    """


def pool_like_peers(folder: Path, scenes: int) -> tuple[Compared, Pictures]:
    """Play the peers' episodes in the pool; also the hashes of the pictures that the policy saw."""
    tasks = [list(LIBERO_10)[number] for number in PEER_TASKS]
    folder.mkdir()
    pool = Pool(folder, "openvla")
    pool.warm(tasks)
    played = pool.play(tasks, range(1, scenes))
    pool.play(tasks, range(2), kill=True)
    assert pool.replaced.get("died") == 1, pool.replaced
    pool.close()
    number = (scenes - 1) * len(tasks)
    # play() has checked that every episode has one outcome
    return Compared(played.seconds / (scenes - 1), played.cpu_s / number, 0), noted(folder)


def against_peers(
    folder: Path, names: Sequence[str]
) -> tuple[dict[str, Compared | str], dict[str, float | None]]:
    """Measure the pool and the named peers; where a peer cannot be measured, the reason. Also which share of
    pictures at looks is equal to those of LIBERO's own loop, for the pool and vla-eval.
    """
    pool, pictures = pool_like_peers(folder / "pool", SCENES)
    found: dict[str, Compared | str] = {"pool": pool}
    runs: dict[str, libero_peers.Run] = {}
    for name in names:
        peer = libero_peers.PEERS[name]
        try:
            environment = libero_peers.environment_of(peer, folder / f"{name}-environment")
            tasks = PEER_TASKS if peer.processes > 1 else PEER_TASKS[:1] * WORKERS
            run = libero_peers.run(peer, environment, folder / name, tasks, SCENES)
            killed = libero_peers.run(peer, environment, folder / f"{name}-killed", tasks, 2, kill=True)
        except (CommandError, RuntimeError) as error:
            found[name] = " ".join(str(error).split())
            continue
        runs[name] = run
        lost = 2 * WORKERS - killed.kept
        found[name] = Compared(run.seconds, run.cpu_s, lost)
    return found, equal_pictures(pictures, runs)


def equal_pictures(pool: Pictures, runs: dict[str, libero_peers.Run]) -> dict[str, float | None]:
    """Return the share of looks whose pictures LIBERO's own loop has, too: of the pool those of the present
    state, of vla-eval robosuite's observations. None where one was not measured.
    """
    own = runs.get("own_loop")
    if own is None:
        return {"pool": None, "vla_eval": None}
    tasks = [*LIBERO_10]
    present = {
        (spec(tasks[one.task], one.scene).episode_id, int(step)): digest
        for one in own.ended
        for step, digest in (one.present or {}).items()
    }
    observed = {digest for one in own.ended for digest in (one.pictures or {}).values()}
    seen = runs["vla_eval"].looks if "vla_eval" in runs else frozenset()
    return {
        "pool": float(np.mean([pool.get(look) == {digest} for look, digest in present.items()])),
        "vla_eval": len(seen & observed) / len(seen) if seen else None,
    }


def show_peers(found: dict[str, Compared | str], equal: dict[str, float | None]) -> dict[str, object]:
    """Print the table of the peers; return the values of the last line, None where nothing was measured."""
    pool = found["pool"]
    assert isinstance(pool, Compared)
    print(
        f"\n{'episodes that begin as those of vla-eval':<42}{'s/episode':>10}{'the pool':>10}"
        f"{'CPU s/episode':>15}{'the pool':>10}{'lost by a kill':>16}"
    )
    answer: dict[str, object] = {}
    titles = {"pool": "the pool"} | {name: peer.title for name, peer in libero_peers.PEERS.items()}
    for name, title in titles.items():
        one = found.get(name, "not asked for")
        ratios: tuple[float | None, float | None] = (None, None)
        if isinstance(one, Compared):
            ratios = (one.seconds / pool.seconds, one.cpu_s / pool.cpu_s)
            print(
                f"{title:<42}{one.seconds:>10.2f}{ratios[0]:>9.2f}x{one.cpu_s:>15.2f}{ratios[1]:>9.2f}x"
                + ("    not measured" if one.lost is None else f"{one.lost:>11} of 4")
            )
        else:
            print(f"{title:<42}  not measured: {one}")
        if name != "pool":
            answer |= {f"ratio_to_{name}": ratios[0], f"cpu_ratio_to_{name}": ratios[1]}
        answer[f"lost_{name}"] = one.lost if isinstance(one, Compared) else None
    for name, share in equal.items():
        said = "not measured" if share is None else f"{share:.0%}"
        print(f"pictures at looks equal to those of LIBERO's own loop, {titles[name]}: {said}")
        answer[f"equal_pictures_{name}"] = share
    return answer


@harness.command("peers")
def main(quick: bool) -> dict[str, object]:
    """Print the tables; return the values of the last line."""
    from orchestrator.cluster.ray_runtime import connect, quiet

    try:
        contract()
    except LiberoMissingError as error:
        print(error, file=sys.stderr)
        sys.exit(NOT_HERE)
    quiet()
    connect()
    tasks = [*LIBERO_10]
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "tasks").mkdir()
        measured, equal = ten_tasks(
            tasks[:WORKERS] if quick else tasks, *((1, 1) if quick else (2, 2)), Path(name) / "tasks"
        )
        answer = show_ten(measured) | {"equal_pictures_bare": equal}
        found, shares = against_peers(Path(name), () if quick else tuple(libero_peers.PEERS))
        return answer | show_peers(found, shares)


if __name__ == "__main__":
    harness.run(main)
