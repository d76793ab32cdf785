"""Are bad demonstrations of Lift found from the outcomes of arms, and does leaving them out help?

    python -m experiments.bad_demos              some minutes
    python -m experiments.bad_demos --quick      a few episodes

The scripted expert records 30 demonstrations in robosuite; in 6 of them the actions are shuffled in time. An
arm draws 8 and plays scenes of the evaluation block. Its policy is the weighted mean of the actions of the
nearest recorded states (the cube in the hand's frame, the fingers, the height of the hand): a real policy in
the real simulator, but none of this project's networks, whose training takes far longer.
The demonstrations that `demo_worth` names are left out, and further arms of other seeds, with and without
them, play other scenes.
"""

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench import harness
from orchestrator.stats.demo_worth import EFFECT, ScoredSubsets, demo_worth
from orchestrator.stats.fixed_sample import blaker, clopper_pearson, mean_interval
from orchestrator.stats.sample_efficiency import Floats
from sim_workers.demos.recorder import Demonstration, Demonstrator
from sim_workers.envs.robosuite import SimEnv, contract
from sim_workers.rollout.suite import FIRST_EVALUATION_SEED

BAD, DEMOS, NEIGHBOURS = 6, 8, 5
HORIZON = 60
"""Control steps; the expert needs about 40."""
SCALE = np.array([0.02, 0.02, 0.02, 0.5, 0.5, 0.01, 0.05])
"""Differences of features that count alike: m, m, m, cosine, sine, m, m."""


@dataclass(frozen=True)
class Recorded:
    """States and actions of one demonstration."""

    states: Floats
    """(T, 7)"""
    actions: Floats
    """(T, 7)"""

    def shuffled(self, seed: int) -> "Recorded":
        """Return it with its actions in another order."""
        return Recorded(self.states, np.random.default_rng(seed).permutation(self.actions))


def features(env: SimEnv) -> Floats:
    """Return (7,) the state in the policy's units."""
    state = env.state
    hand, cube = state["robot0_eef_pos"], state["cube_pos"]
    x, y, z, w = state["cube_quat"]
    u, v, r, q = state["robot0_eef_quat"]
    # a cube looks the same after a quarter turn
    turn = 4 * (np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))
    turn -= 4 * np.arctan2(2 * (q * r + u * v), 1 - 2 * (v * v + r * r))
    fingers = state["robot0_gripper_qpos"][0]
    values = np.array([*(cube - hand), np.cos(turn), np.sin(turn), fingers, hand[2]])
    return np.asarray(values / SCALE, np.float64)


def record(env: SimEnv, seed: int) -> Recorded:
    """Return the expert's demonstration of a training scene, disturbed as `demoscale collect` does."""
    env.reset(seed)
    expert = Demonstrator(env, Demonstration("Lift", seed, 0.3))
    states, actions, after = list[Floats](), list[Floats](), 0
    while len(actions) < expert.horizon and after < 5:
        states.append(features(env))
        action, executed = expert.act()
        actions.append(np.asarray(action, np.float64))
        env.step(executed)
        after += env.succeeded
    return Recorded(np.array(states), np.array(actions))


def succeeds(env: SimEnv, scene: int, demos: list[Recorded]) -> bool:
    """Return whether the policy that learned from the demos lifts the cube."""
    states = np.concatenate([demo.states for demo in demos])
    actions = np.concatenate([demo.actions for demo in demos])
    env.reset(scene)
    for _ in range(HORIZON):
        away = np.linalg.norm(states - features(env), axis=1)
        nearest = np.argpartition(away, NEIGHBOURS)[:NEIGHBOURS]
        weights = 1 / (away[nearest] + 0.1)
        env.step(weights @ actions[nearest] / weights.sum())
        if env.succeeded:
            return True
    return False


def outcomes(
    env: SimEnv, store: list[Recorded], members: npt.NDArray[np.bool_], first: int, scenes: int
) -> Floats:
    """Return (A, scenes) outcomes of arms. members: (A, E). first: number of the first scene."""
    return np.array(
        [
            [
                float(
                    succeeds(
                        env, FIRST_EVALUATION_SEED + first + scene, [store[e] for e in np.flatnonzero(row)]
                    )
                )
                for scene in range(scenes)
            ]
            for row in members
        ]
    )


def drawn(allowed: list[int], store: int, arms: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Return (arms, store) subsets of DEMOS allowed demonstrations each."""
    return np.array([np.isin(np.arange(store), rng.permutation(allowed)[:DEMOS]) for _ in range(arms)])


@harness.command("bad_demos")
def main(quick: bool) -> dict[str, object]:
    """Print what was found and what leaving it out did; return the values of the last line."""
    size, arms, scenes, again = (16, 10, 2, 2) if quick else (30, 48, 16, 6)
    env, began, rng = (
        SimEnv("Lift", contract((), (64, 64), "fast")),
        time.process_time(),
        np.random.default_rng(0),
    )
    store = [record(env, seed) for seed in range(size)]
    bad = sorted(rng.choice(size, BAD, replace=False).tolist())
    store = [demo.shuffled(number) if number in bad else demo for number, demo in enumerate(store)]
    names = tuple(f"{number:02}" for number in range(size))
    members = drawn([*range(size)], size, arms, rng)
    played = outcomes(env, store, members, 0, scenes)
    ones = np.zeros(arms, np.int64)
    told = demo_worth(
        ScoredSubsets(names, ones, np.full(arms, float(DEMOS)), np.arange(arms), members, played)
    )
    named = [int(one.episode) for one in told.hurting] if told else []
    right = len({*named} & {*bad})
    print(f"bad: {', '.join(names[one] for one in bad)}; {arms} arms of {DEMOS} on {scenes} scenes")
    print(f"success {played.mean():.2f}; by bad demos in the arm:")
    number = members[:, bad].sum(1)
    for count in np.unique(number):
        own = played[number == count]
        low, high = blaker(int(own.sum()), own.size)
        print(f"  {count}: {own.mean():.2f} [{low:.2f}, {high:.2f}] in {len(own)} arms")
    if told:
        print(f"permutation test p = {told.p_value:.4f}; {EFFECT:.0%} takes {told.arms_for(EFFECT)} arms")
        for one in told.episodes[:10]:
            low, high = one.interval
            kind = "bad" if int(one.episode) in bad else "good"
            print(f"  {one.episode} {kind:<5}{one.change:+.3f} [{low:+.3f}, {high:+.3f}]")
    precision, recall = clopper_pearson(right, max(len(named), 1)), clopper_pearson(right, BAD)
    print(
        f"named {len(named)}, {right} of them bad: precision {right / max(len(named), 1):.2f}"
        f" [{precision.low:.2f}, {precision.high:.2f}],"
        f" recall {right / BAD:.2f} [{recall.low:.2f}, {recall.high:.2f}]"
    )
    left = [number for number in range(size) if number not in named]
    without, everything = (
        outcomes(env, store, drawn(allowed, size, again, rng), scenes, scenes).mean(1)
        for allowed in (left, [*range(size)])
    )
    change = mean_interval((without - everything).tolist())
    print(
        f"trained again, {again} arms each on other scenes: {without.mean():.2f} without the named ones,"
        f" {everything.mean():.2f} with them; difference {without.mean() - everything.mean():+.2f}"
        f" [{change.low:+.2f}, {change.high:+.2f}]"
    )
    env.close()
    print(f"{time.process_time() - began:.0f} CPU seconds")
    return {
        "arms": arms,
        "named": len(named),
        "right": right,
        "p_value": told.p_value if told else None,
        "precision": right / len(named) if named else None,
        "recall": right / BAD,
        "without": float(without.mean()),
        "with": float(everything.mean()),
        "low": change.low,
        "high": change.high,
    }


if __name__ == "__main__":
    harness.run(main)
