"""What does a control step cost, robosuite's own and ours, and do both go the same way?

    python -m bench.control_step               about fifteen minutes
    python -m bench.control_step --quick       half a minute: two tasks, few episodes

Costs: CPU time of one process, both kinds of step by turns in the same episodes of random actions, medians
over blocks. `asked` includes the observations of every step. The split is that of our step. Ways:
the scripted experts' disturbed demonstrations, played once with each kind of step; whatever differs in
positions, velocities, controls, time or observations after any step, and whether they succeed.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median
from typing import Any

import numpy as np

from bench import harness
from orchestrator.testing.control import Array, TracedEnv, make_robosuite, random_actions, reset_scene
from sim_workers.demos.recorder import Demonstration
from sim_workers.envs.tasks import TASKS

EPISODES = {"Lift": 400, "Stack": 50, "PickPlaceCan": 50}
QUICK_TASKS, QUICK_EPISODES = (
    ("Lift", "TwoArmLift"),
    {"Lift": 3, "PickPlaceCan": 1},
)
BLOCK = 5  # control steps
EPISODE = 50  # control steps of random actions
SEED = 2_000_000  # scenes that nobody demonstrates or evaluates


def costs(task: str, rounds: int) -> dict[str, float]:
    """CPU milliseconds per control step."""
    import mujoco

    from sim_workers.envs.fast_control import FastStep

    env = make_robosuite(task)
    fast, rng, now = FastStep(env), np.random.default_rng(0), time.process_time
    milliseconds: dict[str, list[float]] = defaultdict(list)

    def asked(action: Array) -> None:
        fast(action)
        fast.observations()

    kinds: dict[str, Callable[[Array], Any]] = {"robosuite": env.step, "ours": fast, "asked": asked}
    for block in range(rounds):
        if block % (EPISODE // BLOCK // len(kinds)) == 0:
            reset_scene(env, SEED + block)
            fast(np.zeros(env.action_dim))  # not counted: the first after a reset looks things up
            fast(np.zeros(env.action_dim))
        for kind, step in kinds.items():
            actions, began = random_actions(rng, BLOCK, env.action_dim), now()
            for action in actions:
                step(action)
            milliseconds[kind].append(1000 * (now() - began) / BLOCK)
        halves, spent = (mujoco.mj_step1, mujoco.mj_step2), [0.0]
        mujoco.mj_step1, mujoco.mj_step2 = (_timed(half, spent) for half in halves)
        for action in random_actions(rng, BLOCK, env.action_dim):
            fast(action)
        mujoco.mj_step1, mujoco.mj_step2 = halves
        milliseconds["physics"].append(1000 * spent[0] / BLOCK)
    return {kind: median(values) for kind, values in milliseconds.items()}


def _timed(half: Callable[..., None], spent: list[float]) -> Callable[..., None]:
    def timed(*args: Any) -> None:
        began = time.thread_time()
        half(*args)
        spent[0] += time.thread_time() - began

    return timed


def ways_apart(task: str, episodes: int) -> dict[str, Any]:
    """How far apart both kinds of step lead, and how many episodes end alike."""
    env = TracedEnv(task)
    worst, alike, steps = 0.0, 0, 0
    for seed in range(SEED, SEED + episodes):
        (one, success), (other, same) = (
            env.play(kind, Demonstration(task, seed, 0.3)) for kind in ("robosuite", "ours")
        )
        worst = max(worst, float(np.abs(one - other).max()) if one.shape == other.shape else float("inf"))
        alike, steps = alike + (success == same), steps + len(one)
    env.close()
    return {"max_abs_difference": worst, "alike": alike, "steps": steps}


def in_processes(
    function: Callable[[str, int], dict[str, Any]], tasks: dict[str, int]
) -> dict[str, dict[str, Any]]:
    """function(task, number) for each, one after another: one environment per process."""
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        return {task: pool.submit(function, task, number).result() for task, number in tasks.items()}


@harness.command("control_step")
def main(quick: bool) -> dict[str, object]:
    """Print the tables; return the values of the last line."""
    measured = in_processes(costs, dict.fromkeys(QUICK_TASKS if quick else TASKS, 20 if quick else 60))
    print(
        f"{'CPU ms per control step':<24}{'robosuite':>10}{'ours':>8}{'asked':>8}  times as fast, asked  "
        " split: physics, control, observations"
    )
    for task, ms in measured.items():
        split = f"{ms['physics']:.2f} {ms['ours'] - ms['physics']:5.2f} {ms['asked'] - ms['ours']:5.2f}"
        ratios = f"{ms['robosuite'] / ms['ours']:15.2f} {ms['robosuite'] / ms['asked']:6.2f}"
        print(
            f"{task:<24}{ms['robosuite']:10.2f}{ms['ours']:8.2f}{ms['asked']:8.2f}{ratios}          {split}"
        )
    todo = QUICK_EPISODES if quick else EPISODES
    found = in_processes(ways_apart, todo)
    print(f"\n{'demonstrations':<24}{'episodes':>10}{'steps':>8}  end alike  largest difference")
    for task, way in found.items():
        print(f"{task:<24}{todo[task]:10}{way['steps']:8}{way['alike']:11}  {way['max_abs_difference']:g}")
    print()
    return {
        "ratio_speedup": median(ms["robosuite"] / ms["ours"] for ms in measured.values()),
        "ratio_speedup_lift": measured["Lift"]["robosuite"] / measured["Lift"]["ours"],
        "max_abs_difference": max(way["max_abs_difference"] for way in found.values()),
        "outcomes_equal": all(way["alike"] == todo[task] for task, way in found.items()),
        "episodes": sum(todo.values()),
    }


if __name__ == "__main__":
    harness.run(main)
