"""How often do the scripted experts, which observe the true state, succeed on the evaluation scenes, as the
ceiling for a policy?

    python -m experiments.ceiling              100 scenes of every task, five minutes
    python -m experiments.ceiling --quick      1

Undisturbed, on the first scenes of block 0, by a suite's rules: done at any step, and still done ten steps
after.
"""

import multiprocessing
import os
from collections.abc import Iterator
from statistics import mean

import numpy as np

from bench import harness
from orchestrator.stats.fixed_sample import blaker
from policy.interface import ActionChunk, Observation
from sim_workers.demos.experts import EXPERTS, Expert, expert_for
from sim_workers.envs.robosuite import SimEnv, contract
from sim_workers.rollout.episode import Outcome, run_episode
from sim_workers.rollout.suite import EpisodeRules, Suite


def play(task: str, episodes: int) -> list[Outcome]:
    """Play scenes with the expert as a policy that observes the true state at every step, without cameras."""
    env = SimEnv(task, contract((), (64, 64), "fast", task))
    suite = Suite((task,), episodes, EpisodeRules(expert_for(task).horizon))
    played = []
    for spec in sorted(suite.episode_list()):
        expert = expert_for(task)

        def act(_: Observation, expert: Expert = expert) -> ActionChunk:
            return ActionChunk(expert.act(env.state)[None].astype(np.float32), 1)

        played.append(run_episode(env, spec, suite.rules, act))
    env.close()
    return played


def _all(episodes: int) -> Iterator[tuple[str, list[Outcome]]]:
    """Yield every task's outcomes; each task is played in a process of its own, with one simulator."""
    with multiprocessing.get_context("spawn").Pool(min(2, os.cpu_count() or 1), maxtasksperchild=1) as pool:
        for task, result in [(task, pool.apply_async(play, (task, episodes))) for task in EXPERTS]:
            yield task, result.get()


@harness.command("ceiling")
def main(quick: bool) -> dict[str, object]:
    """Print the table; return the values of the last line."""
    episodes = 1 if quick else 100
    answers: dict[str, object] = {}
    print(f"{'task':<20}{'success':>9}{'95 % interval':>18}{'at end':>9}{'steps':>8}{'horizon':>9}")
    for task, played in _all(episodes):
        firsts = [outcome.first_success for outcome in played if outcome.first_success is not None]
        low, high = blaker(len(firsts), episodes)
        lasting = sum(outcome.success_at_end for outcome in played)
        counts = (
            f"{f'{len(firsts)}/{episodes}':>9}{f'{low:.2f} to {high:.2f}':>18}{f'{lasting}/{episodes}':>9}"
        )
        print(
            f"{task:<20}{counts}{mean(firsts):>8.0f}{expert_for(task).horizon:>9}",
            flush=True,
        )
        answers[task] = {"success": len(firsts), "at_end": lasting, "episodes": episodes}
    return answers


if __name__ == "__main__":
    harness.run(main)
