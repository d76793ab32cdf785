"""How often do the scripted experts, who see the true state, succeed on the evaluation scenes? The ceiling
that a policy is measured against.

    python -m bench.ceiling              100 scenes of every task, five minutes
    python -m bench.ceiling --quick      5

Undisturbed, on the first scenes of block 0, by a suite's rules: done at any step, and still done ten steps
after.
"""

import json
import multiprocessing
import os
from collections.abc import Iterator
from statistics import mean

import click

from bench import harness
from orchestrator.stats.fixed_sample import wilson
from policy.interface import ActionChunk
from sim_workers.demos.experts import EXPERTS, expert_for
from sim_workers.envs.robosuite import SimEnv, contract
from sim_workers.rollout.episode import Outcome, run_episode
from sim_workers.rollout.suite import EpisodeRules, Suite


def play(task: str, episodes: int) -> list[Outcome]:
    """Of every scene: the expert as a policy that looks at every step, without cameras, and sees the true
    state.
    """
    env = SimEnv(task, contract((), (64, 64), "fast", task))
    suite = Suite((task,), episodes, EpisodeRules(expert_for(task).horizon))
    played = []
    for spec in sorted(suite.episode_list()):
        expert = expert_for(task)
        played.append(
            run_episode(
                env, spec, suite.rules, lambda _, expert=expert: ActionChunk(expert.act(env.state)[None], 1)
            )
        )
    env.close()
    return played


def _all(episodes: int) -> Iterator[tuple[str, list[Outcome]]]:
    """Every task in a process of its own: one simulator each."""
    with multiprocessing.get_context("spawn").Pool(min(2, os.cpu_count() or 1), maxtasksperchild=1) as pool:
        for task, result in [(task, pool.apply_async(play, (task, episodes))) for task in EXPERTS]:
            yield task, result.get()


@click.command()
@click.option("--quick", is_flag=True, help="A short look.")
def main(quick: bool) -> None:
    """Print the table and, last, one line of JSON."""
    episodes, answers = 5 if quick else 100, {}
    print(f"{'task':<20}{'success':>9}{'95 % interval':>18}{'at end':>9}{'steps':>8}{'horizon':>9}")
    for task, played in _all(episodes):
        firsts = [outcome.first_success for outcome in played if outcome.first_success is not None]
        low, high = wilson(len(firsts), episodes)
        lasting = sum(outcome.success_at_end for outcome in played)
        counts = (
            f"{f'{len(firsts)}/{episodes}':>9}{f'{low:.2f} to {high:.2f}':>18}{f'{lasting}/{episodes}':>9}"
        )
        print(
            f"{task:<20}{counts}{mean(firsts):>8.0f}{expert_for(task).horizon:>9}",
            flush=True,
        )
        answers[task] = {"success": len(firsts), "at_end": lasting, "episodes": episodes}
    print(json.dumps({"bench": "ceiling", **answers, "quick": quick}))


if __name__ == "__main__":
    harness.run(main)
