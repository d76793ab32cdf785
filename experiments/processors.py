"""How many episodes end otherwise where the simulation rounds differently, as on another kind of processor,
and what does it cost to pin the kernels of linear algebra?

    python -m experiments.processors                    this machine with other kernels, six minutes
    python -m experiments.processors --quick            one episode each, two of the scripted experts
    python -m experiments.processors --save here.json   keep the ends of the episodes for another machine
    python -m experiments.processors --against that.json      compare this machine's with another's

Every choice of kernels plays the same episodes in a process of its own; the first, the pool's, is the
reference. Policies: the waypoints of `examples/`, which never look, a servo that looks at pictures, and the
scripted experts, which react to the true state at every step.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np

from bench import harness
from policy.interface import ActionChunk, Observation
from sim_workers.arithmetic import Arithmetic
from sim_workers.demos.experts import EXPERTS, expert_for
from sim_workers.envs.golden import as_in_the_pool
from sim_workers.envs.robosuite import SimEnv, contract
from sim_workers.rollout.episode import run_episode
from sim_workers.rollout.suite import EpisodeRules, Suite

KERNELS: Mapping[str, Mapping[str, str]] = {
    "as in the pool": {},
    "this processor's own": {"OPENBLAS_CORETYPE": ""},
    "of 2004 (SSE3)": {"OPENBLAS_CORETYPE": "Prescott"},
}
"""Environment variables by name of the choice."""
TIMED = 400
"""Control steps of which the time is measured."""
EXPERTS_OF_SHORT_RUN = 2


@dataclass(frozen=True)
class Ends:
    """Ends of one process's episodes."""

    arithmetic: str
    ends: dict[str, list[tuple[bool, int]]]
    """Success and number of steps of every episode, by policy and task."""
    step_ms: float
    """CPU milliseconds of a control step of Lift without pictures."""

    def otherwise(self, other: "Ends") -> tuple[int, int, int]:
        """Return the number of episodes, of those with another number of steps, and with another result."""
        pairs = [
            (tuple(mine), tuple(theirs))
            for name, ends in self.ends.items()
            for mine, theirs in zip(ends, other.ends[name], strict=True)
        ]
        return len(pairs), sum(a != b for a, b in pairs), sum(a[0] != b[0] for a, b in pairs)


def play(episodes: int, experts: int) -> Ends:
    """Play every policy's episodes in this process, of the scripted experts the first `experts`."""
    from examples.waypoints import make
    from orchestrator.testing.servo import cameras, servo

    ends: dict[str, list[tuple[bool, int]]] = {}

    def played(name: str, env: SimEnv, task: str, horizon: int, policy: object) -> None:
        rules, found = EpisodeRules(horizon, settle=0), list[tuple[bool, int]]()
        for spec in sorted(Suite((task,), episodes, rules).episode_list()):
            expert = None if callable(policy) else expert_for(task)

            def act(seen: Observation) -> ActionChunk:
                if callable(policy):
                    chunk: ActionChunk = policy(seen)
                    return chunk
                assert expert  # noqa: B023, called before the next episode
                return ActionChunk(expert.act(env.state)[None].astype(np.float32), 1)  # noqa: B023

            outcome = run_episode(env, spec, rules, act)
            found.append((outcome.result == "success", outcome.steps))
        ends[name] = found

    waypoints = make()
    env = SimEnv("Lift", waypoints.contract)
    played("waypoints, Lift", env, "Lift", 200, lambda seen: waypoints.act([seen])[0])
    step_ms = _step_ms(env)
    env.close()
    env = SimEnv("Lift", cameras("fast"))
    played("servo, Lift", env, "Lift", 96, servo)
    env.close()
    for task in list(EXPERTS)[:experts]:
        env = SimEnv(task, contract((), (64, 64), "fast", task))
        played(f"expert, {task}", env, task, expert_for(task).horizon, None)
        env.close()
    return Ends(str(Arithmetic.here()), ends, step_ms)


def _step_ms(env: SimEnv) -> float:
    actions = np.random.default_rng(0).uniform(-1, 1, (TIMED, 7))
    times = []
    for repeat in range(3):
        env.reset(repeat)
        began = time.process_time()
        for action in actions:
            env.step(action)
        times.append(time.process_time() - began)
    return min(times) / TIMED * 1e3


def played_with(variables: Mapping[str, str], episodes: int, experts: int) -> Ends:
    """Return the ends in a fresh process with environment variables. Raises CalledProcessError if it
    fails.
    """
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "experiments.processors",
        "--play",
        str(episodes),
        str(experts),
    ]
    environment = {**os.environ, **as_in_the_pool(), **variables}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Ends(**json.loads(done.stdout.splitlines()[-1]))


@click.command()
@click.option("--quick", is_flag=True, help="A short look.")
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Write this machine's ends.")
@click.option(
    "--against", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Another machine's ends."
)
@click.option("--play", "playing", nargs=2, type=int, hidden=True)
def main(quick: bool, save: Path | None, against: Path | None, playing: tuple[int, int] | None) -> None:
    """Print the table and, last, one line of JSON."""
    if playing:
        print(json.dumps(asdict(play(*playing))))
        return
    episodes, experts = (1, EXPERTS_OF_SHORT_RUN) if quick else (12, len(EXPERTS))
    reference = Ends(**json.loads(against.read_text())) if against else None
    if reference:
        episodes = len(next(iter(reference.ends.values())))
        experts = sum(name.startswith("expert") for name in reference.ends)
    print(f"{episodes} episodes of each of {2 + experts} policies and tasks\n")
    print(
        f"{'kernels':<22}{'episodes':>9}{'other steps':>13}{'other result':>14}{'ms per step':>13}"
        "   what simulates"
    )
    answers: dict[str, dict[str, float | int]] = {}
    for name, variables in KERNELS.items():
        own = played_with(variables, episodes, experts)
        if save and not variables:
            save.write_text(json.dumps(asdict(own)))
        reference = reference or own
        number, steps, results = own.otherwise(reference)
        print(
            f"{name:<22}{number:>9}{steps:>13}{results:>14}{own.step_ms:>13.2f}   {own.arithmetic}",
            flush=True,
        )
        answers[name] = {"episodes": number, "other_steps": steps, "other_results": results}
        answers[name]["step_ms"] = round(own.step_ms, 3)
    harness.print_answer("processors", {"against_the_first": answers}, quick)


if __name__ == "__main__":
    harness.run(main)
