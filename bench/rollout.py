"""What does an evaluation episode cost, against robosuite stepped the usual way and against a bare loop?

    python -m bench.rollout              about ten minutes
    python -m bench.rollout --quick      a minute and a half: rounds of few episodes, the slow arms in some of
                                         them

Lift, one wrist camera of 128 pixels, a policy that looks and then acts for 16 control steps
(`orchestrator.testing.servo`), the same episodes for all, on as many processes as there are cores, at most
two, by turns. The usual way: `gymnasium.vector.AsyncVectorEnv` over robosuite's own environment, with its
camera observation at every step. What differs from there to the pool is then changed one thing at a time.
Ratios are of seconds per control step within one round, since arms may play different episodes in it.
"""

import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import numpy as np

from bench import harness
from orchestrator.testing.fake_policy_server import FakePolicyServer
from orchestrator.testing.servo import CAMERA, CHUNK, SIZE, cameras, servo
from policy.interface import Observation
from sim_workers.rollout.episode import Outcome, run_episode
from sim_workers.rollout.suite import EpisodeRules, EpisodeSpec

WORKERS = min(2, os.cpu_count() or 1)
RULES = EpisodeRules(horizon=96, settle=0)
FIRST = 1_000_000
Results = dict[int, tuple[str, int]]
"""Scene seed -> result and steps."""


def spec(seed: int) -> EpisodeSpec:
    return EpisodeSpec("Lift", seed, seed)


class TheUsualWay:
    """AsyncVectorEnv: every environment renders its camera at every step, and all step together."""

    def __init__(self, render_profile: str) -> None:
        from gymnasium.vector import AsyncVectorEnv

        self._envs = AsyncVectorEnv([lambda: _usual(render_profile)] * WORKERS, context="spawn")

    def play(self, seeds: Sequence[int]) -> Results:
        todo = [list(seeds[i::WORKERS]) for i in range(WORKERS)]
        at: list[int | None] = [queue.pop(0) if queue else None for queue in todo]
        self._envs.set_attr(
            "todo", [[s, *queue] if s is not None else [FIRST] for s, queue in zip(at, todo, strict=True)]
        )
        seen, _ = self._envs.reset()
        results: Results = {}
        chunks: list[list[Any]] = [[] for _ in at]
        steps, looks = [0] * WORKERS, [0] * WORKERS
        while any(seed is not None for seed in at):
            actions = np.zeros((WORKERS, 7), np.float32)
            for i, seed in enumerate(at):
                if seed is None or steps[i] < 0:  # nothing to play, or about to be reset
                    continue
                if not chunks[i]:
                    observation = Observation(
                        {CAMERA: seen["picture"][i]}, seen["proprio"][i], "", spec(seed).chunk_seed(looks[i])
                    )
                    chunks[i], looks[i] = list(servo(observation).actions), looks[i] + 1
                actions[i] = chunks[i].pop(0)
            seen, _, done, late, _ = self._envs.step(actions)
            for i, seed in enumerate(at):
                if seed is None:
                    continue
                if steps[i] < 0:  # this step began the next episode
                    steps[i], looks[i], chunks[i] = 0, 0, []
                    continue
                steps[i] += 1
                if done[i] or late[i]:
                    results[seed] = ("success" if done[i] else "failure", steps[i])
                    at[i] = todo[i].pop(0) if todo[i] else None
                    steps[i] = -1
        return results

    def close(self) -> None:
        self._envs.close()


def _usual(render_profile: str) -> Any:
    """Robosuite's environment as one would wrap it for gymnasium; it draws an episode's scene from the next
    seed of `todo`.
    """
    import gymnasium
    from gymnasium.spaces import Box, Dict

    from sim_workers.envs.render import PROFILES, build_context, choose_backend

    choose_backend()
    import robosuite

    class Usual(gymnasium.Env[Any, Any]):
        observation_space = Dict(
            {
                "picture": Box(0, 255, (SIZE, SIZE, 3), np.uint8),
                "proprio": Box(-np.inf, np.inf, (9,), np.float32),
            }
        )
        action_space = Box(-1, 1, (7,), np.float32)

        def __init__(self) -> None:
            self.todo: list[int] = []
            self._env = robosuite.make(
                "Lift",
                robots="Panda",
                has_renderer=False,
                has_offscreen_renderer=True,
                use_camera_obs=True,
                camera_names=CAMERA,
                camera_heights=SIZE,
                camera_widths=SIZE,
                control_freq=20,
                ignore_done=True,
                hard_reset=False,
                renderer="mujoco",
                seed=0,
            )
            if render_profile != "default":
                build_context(self._env.sim, PROFILES[render_profile], (SIZE, SIZE))

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            scene = self.todo.pop(0) if self.todo else FIRST
            self._env.rng.bit_generator.state = np.random.default_rng(scene).bit_generator.state
            self._steps = 0
            return self._seen(self._env.reset()), {}

        def step(self, action: Any) -> Any:
            seen, reward, _, _ = self._env.step(action)
            self._steps += 1
            done = bool(self._env._check_success())
            return self._seen(seen), reward, done, not done and self._steps >= RULES.horizon, {}

        def _seen(self, seen: Any) -> Any:
            keys = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
            proprio = np.concatenate([seen[key] for key in keys]).astype(np.float32)
            return {"picture": np.ascontiguousarray(seen[f"{CAMERA}_image"][::-1]), "proprio": proprio}

        def close(self) -> None:
            self._env.close()

    return Usual()


class BareLoops:
    """One loop per process: step, and render when the policy looks; every process has its share of the
    episodes beforehand.
    """

    def __init__(
        self, render_profile: str, fast_control: bool, processes: int = WORKERS, rebuilt: bool = False
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends, self.processes = [], []
        for _ in range(processes):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_bare, args=(theirs, render_profile, fast_control, rebuilt), daemon=True
            )
            process.start()
            self._ends.append(ours)
            self.processes.append(process)

    def play(self, seeds: Sequence[int]) -> Results:
        for i, end in enumerate(self._ends):
            end.send(list(seeds[i :: len(self._ends)]))
        return {seed: result for end in self._ends for seed, result in end.recv().items()}

    def close(self) -> None:
        for end, process in zip(self._ends, self.processes, strict=True):
            end.send(None)
            process.join()


def _bare(end: Connection, render_profile: str, fast_control: bool, rebuilt: bool) -> None:
    """rebuilt: model and GL context are rebuilt for every episode, robosuite's default.
    It then draws other cubes.
    """
    from sim_workers.envs.render import PROFILES, build_context
    from sim_workers.envs.robosuite import SimEnv

    class Rebuilt(SimEnv):
        def reset(self, seed: int) -> None:
            self._env.hard_reset = True
            super().reset(seed)
            build_context(self._env.sim, PROFILES[render_profile], self.contract.image_size)

    env = (Rebuilt if rebuilt else SimEnv)("Lift", cameras(render_profile), fast_control=fast_control)
    while (seeds := end.recv()) is not None:
        end.send({seed: _plain(run_episode(env, spec(seed), RULES, servo)) for seed in seeds})
    env.close()


class Pool:
    """`RolloutPool` with a policy server."""

    def __init__(self, render_profile: str, workers: int = WORKERS) -> None:
        import ray

        from sim_workers.rollout.pool import RolloutPool
        from sim_workers.rollout.ray_policy_client import RayServedPolicy

        self._contract, self._server = (
            cameras(render_profile),
            ray.remote(FakePolicyServer).options(num_cpus=0).remote(servo),
        )
        self._pool, self._source = (
            RolloutPool(workers, num_cpus=0.1),
            RayServedPolicy((self._server,), "servo"),
        )

    def play(self, seeds: Sequence[int]) -> Results:
        from sim_workers.rollout.worker import RolloutJob

        for seed in seeds:
            self._pool.submit(RolloutJob(spec(seed), RULES, self._contract, self._source))
        usage = self._pool.usage
        before, began = usage.sim_s + usage.policy_s, time.perf_counter()
        results = {outcome.spec.scene_seed: _plain(outcome) for _, outcome, _ in self._pool.results()}
        self.idle = (
            1
            - (usage.sim_s + usage.policy_s - before) / (time.perf_counter() - began) / self._pool.num_workers
        )
        return results

    def close(self) -> None:
        import ray

        self._pool.close()
        ray.kill(self._server)


def _plain(outcome: Outcome) -> tuple[str, int]:
    return outcome.result, outcome.steps


ARMS: dict[str, tuple[str, Callable[[], Any]]] = {
    "usual": ("AsyncVectorEnv, camera at every step", lambda: TheUsualWay("default")),
    "usual_fast": ("the same, fast render profile", lambda: TheUsualWay("fast")),
    "lazy": ("bare loops: rendered when the policy looks", lambda: BareLoops("default", fast_control=False)),
    "lazy_fast": ("bare loops: and the fast render profile", lambda: BareLoops("fast", fast_control=False)),
    "bare": ("bare loops: and the lean control step", lambda: BareLoops("fast", fast_control=True)),
    "rebuilt": (
        "the same, model and context built per episode",
        lambda: BareLoops("fast", fast_control=True, rebuilt=True),
    ),
    "pool_default": ("the pool, default render profile", lambda: Pool("default")),
    "pool": ("the pool, fast render profile", lambda: Pool("fast")),
    "bare_one": (
        "bare loop, fast and lean, one process",
        lambda: BareLoops("fast", fast_control=True, processes=1),
    ),
    "pool_one": ("the pool, fast, one worker", lambda: Pool("fast", workers=1)),
}


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rounds: int
    """Per stage."""
    episodes: int
    """Per slice."""
    slow_episodes: int
    """Per slice of an arm in SLOW."""
    slow_every: int
    """Rounds from one slice of an arm in SLOW to the next."""


FULL, QUICK = Size(5, 8 * WORKERS, 2 * WORKERS, 1), Size(4, 2 * WORKERS, WORKERS, 2)
SLOW = ("usual", "usual_fast", "rebuilt")
STAGES = (
    ("usual", "usual_fast", "lazy", "lazy_fast", "pool_default", "pool"),
    ("bare", "bare_one", "lazy_fast", "rebuilt", "pool", "pool_one"),
)
"""Arms that run by turns. Two stages, since a simulator takes a GiB of memory; each ratio is taken within one
of them.
"""


@dataclass(frozen=True)
class Slice:
    """What one arm played in one round."""

    seconds: float
    episodes: int
    steps: int


Slices = dict[str, dict[int, Slice]]
"""Arm -> round -> slice."""


@harness.command("rollout")
def main(quick: bool) -> Mapping[str, object]:
    """Print the table; return the values of the last line."""
    from orchestrator.cluster.ray_runtime import connect, quiet

    quiet()
    connect()
    size = QUICK if quick else FULL
    arms: dict[str, Any] = {}
    slices: Slices = {name: {} for name in ARMS}
    idle: list[float] = []
    played: dict[str, Results] = {name: {} for name in ARMS}
    rounds = itertools.count()
    for stage in STAGES:
        for name in arms.keys() - stage:
            arms.pop(name).close()
        for name in stage:
            if name not in arms:
                arms[name] = ARMS[name][1]()
        for arm in arms.values():
            arm.play(range(FIRST - WORKERS, FIRST))  # everything is built and warm
        for turn, number in zip(range(size.rounds), rounds, strict=False):
            seeds = range(FIRST + number * size.episodes, FIRST + (number + 1) * size.episodes)
            for name in stage[:: -1 if turn % 2 else 1]:  # drift meets all alike
                if name in SLOW and turn % size.slow_every:
                    continue
                own = seeds[: size.slow_episodes] if name in SLOW else seeds
                began = time.perf_counter()
                results = arms[name].play(own)
                slices[name][number] = Slice(
                    time.perf_counter() - began, len(own), sum(steps for _, steps in results.values())
                )
                played[name] |= results
                if name == "pool":
                    idle.append(arms[name].idle)
    for arm in arms.values():
        arm.close()
    return _show(slices, played, size, median(idle))


def _show(slices: Slices, played: dict[str, Results], size: Size, idle: float) -> Mapping[str, object]:
    """Print the table; return the values of the last line."""

    def ratio(fast: str, slow: str) -> float:
        rounds = sorted(slices[fast].keys() & slices[slow].keys())
        per_step = (
            [slices[name][number].seconds / slices[name][number].steps for number in rounds]
            for name in (slow, fast)
        )
        return harness.median_ratio(*per_step)

    def times_the_usual(name: str) -> float:
        together = slices[name].keys() & slices["usual"].keys()
        return ratio(name, "usual") if together else ratio(name, "pool") * ratio("pool", "usual")

    def equal(first: str, second: str) -> bool:
        common = played[first].keys() & played[second].keys()
        return bool(common) and all(played[first][seed] == played[second][seed] for seed in common)

    wins = sum(result == "success" for result, _ in played["pool"].values())
    print(f"Lift, {CAMERA} {SIZE}x{SIZE}, chunk {CHUNK}, {WORKERS} processes")
    print(f"{len(STAGES)} times {size.rounds} rounds of {size.episodes} episodes by turns")
    print(f"{wins} of {len(played['pool'])} succeed; medians over rounds\n")
    print(f"{'':<46}{'s/episode':>10}{'times the usual':>17}")
    for name, (words, _) in ARMS.items():
        seconds = median(slice_.seconds / slice_.episodes for slice_ in slices[name].values())
        print(f"{words:<46}{seconds:>10.3f}{times_the_usual(name):>17.2f}")
    answers = {
        "ratio_to_async_vector_env": ratio("pool_default", "usual"),
        "ratio_fast_profile": ratio("pool", "usual"),
        "ratio_to_bare_loop": ratio("pool", "bare"),
        "split_lazy_rendering": ratio("lazy", "usual"),
        "split_render_profile": ratio("lazy_fast", "lazy"),
        "split_control_step": ratio("bare", "lazy_fast"),
        "split_reuse": ratio("bare", "rebuilt"),
        "split_scheduling": ratio("pool", "bare"),
        "ratio_to_bare_robosuite_loop": ratio("pool", "lazy_fast"),
        "ratio_two_workers_to_one": ratio("pool", "pool_one"),
        "ratio_two_bare_loops_to_one": ratio("bare", "bare_one"),
        "idle": idle,
    }
    same = {
        "equal_outcomes_default_profile": equal("usual", "pool_default") and equal("lazy", "pool_default"),
        "equal_outcomes_fast_profile": (
            equal("usual_fast", "pool") and equal("lazy_fast", "pool") and equal("bare", "pool")
        ),
        "equal_outcomes_any_number_of_workers": equal("pool", "pool_one"),
    }
    return {**answers, **same}


if __name__ == "__main__":
    harness.run(main)
