"""Does the next-arm search reach a grid's answer for less?

    python -m experiments.next_arm              30 worlds, some minutes
    python -m experiments.next_arm --quick      2 worlds

Pure statistics, no simulator; worlds are those of `experiments.forecast`. A grid trains 3 seeds of 5 demo
counts at ratios 0 and 1, 50 episodes each. The search begins with one seed of the three smallest counts at
both ratios and two more seeds of the smallest at ratio 0, and then trains what is worth most for the target
"log demos that 70 % takes", until its interval is no wider than 1.25 times the grid's. An arm costs 1 plus
its demos over the largest count. Beside it: candidates in random order, and fixed halving (from the largest
count downwards, every count once per round).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bench import harness
from experiments.forecast import SEEDS, World, counts_of, world
from orchestrator.stats.forecast import Arms, Forecast, forecast
from orchestrator.stats.next_arm import Candidate, Proposal, demos_for, proposals
from orchestrator.stats.sample_efficiency import Floats

RATE, EPISODES, WIDER, NEAR = 0.7, 50, 1.25, 0.2
RATIOS = (0.0, 1.0)


@dataclass(frozen=True)
class Run:
    """How one way of choosing arms ended."""

    cost: float
    """Of the grid's."""
    reached: bool
    """Whether the interval is as narrow as asked."""
    centre: float
    """Median demos over the grid's."""


def cost(demos: float, largest: float) -> float:
    """Return the cost of training and scoring an arm."""
    return 1 + demos / largest


def width(fitted: Forecast) -> float:
    """Return the width of the target's interval, in log demos."""
    low, high = np.quantile(demos_for(RATE, 0.0).of(fitted), [0.05, 0.95])
    return float(high - low)


def centre(fitted: Forecast) -> float:
    """Return the median of the target, in log demos."""
    return float(np.median(demos_for(RATE, 0.0).of(fitted)))


def joined(first: Arms, second: Arms) -> Arms:
    """Return the arms of both."""
    demos, ratios, successes, episodes = (
        np.concatenate([getattr(first, name), getattr(second, name)])
        for name in ("demos", "ratios", "successes", "episodes")
    )
    return Arms(demos, ratios, successes, episodes, first.scene_sd)


Choice = Callable[[Forecast, list[Candidate], int], Candidate]


def by_worth(fitted: Forecast, candidates: list[Candidate], number: int) -> Candidate:
    """Return the candidate that is worth most."""
    ranked: list[Proposal] = proposals(fitted, demos_for(RATE, 0.0), candidates)
    return ranked[0].candidate


def at_random(fitted: Forecast, candidates: list[Candidate], number: int) -> Candidate:
    """Return any candidate."""
    return candidates[int(np.random.default_rng(number).integers(len(candidates)))]


def halving(fitted: Forecast, candidates: list[Candidate], number: int) -> Candidate:
    """Return the candidates in turn, the largest count first."""
    ordered = sorted(candidates, key=lambda one: (-one.demos, one.ratio))
    return ordered[number % len(ordered)]


def search(truth: World, counts: Floats, rng: np.random.Generator, choice: Choice) -> Run | None:
    """Return how a way of choosing arms does against the grid; None where the grid has no answer."""
    largest = float(counts[-1])
    scenes = truth.scenes(rng)
    grid = truth.arms(counts, RATIOS, rng, scenes)
    whole = forecast(grid)
    asked, grid_cost = WIDER * width(whole), sum(cost(demos, largest) for demos in grid.demos)
    first = grid.those(
        (np.isin(grid.demos, counts[:3]) & (np.arange(len(grid.demos)) % SEEDS == 0))
        | ((grid.demos == counts[0]) & (grid.ratios == 0))
    )
    candidates = [
        Candidate(int(count), ratio, EPISODES, cost(count, largest)) for count in counts for ratio in RATIOS
    ]
    arms, spent = first, sum(cost(demos, largest) for demos in first.demos)
    for number in range(len(grid.demos)):
        fitted = forecast(arms)
        if width(fitted) <= asked or spent >= grid_cost:
            break
        chosen = choice(fitted, candidates, number)
        new = truth.arms(np.array([float(chosen.demos)]), (chosen.ratio,), rng, scenes).those(
            np.arange(SEEDS) == 0
        )
        arms, spent = joined(arms, new), spent + chosen.cost
    fitted = forecast(arms)
    return Run(
        spent / grid_cost,
        width(fitted) <= asked,
        float(np.exp(centre(fitted) - centre(whole))),
    )


@harness.command("next_arm", digits=4)
def main(quick: bool) -> dict[str, object]:
    """Print a table; return the values of the last line."""
    ways: dict[str, Choice] = {"next arm": by_worth, "random": at_random, "halving": halving}
    found = {name: list[Run]() for name in ways}
    for seed in range(2 if quick else 30):
        rng = np.random.default_rng(seed)
        truth = world(rng)
        counts = counts_of(truth, rng)
        if len(counts) < 4 or truth.rates(counts[-1:] * 30)[0] < RATE:
            continue
        for name, choice in ways.items():
            if told := search(truth, counts, np.random.default_rng(1000 + seed), choice):
                found[name].append(told)
    print(f"{len(found['next arm'])} worlds; cost of the grid's, medians and quartiles\n")
    print("way         cost  quartiles     as narrow  centre within 20 %")
    for name, runs in found.items():
        costs = np.array([told.cost for told in runs])
        low, middle, high = np.quantile(costs, [0.25, 0.5, 0.75])
        near = np.mean([abs(np.log(told.centre)) < np.log(1 + NEAR) for told in runs])
        print(
            f"{name:<10}{middle:>6.2f}  {low:.2f} to {high:.2f}"
            f"{np.mean([told.reached for told in runs]):>12.2f}{near:>15.2f}"
        )
    return {
        "worlds": len(found["next arm"]),
        **{
            f"cost_{name.replace(' ', '_')}": float(np.median([told.cost for told in runs]))
            for name, runs in found.items()
        },
        "near": float(np.mean([abs(np.log(told.centre)) < np.log(1 + NEAR) for told in found["next arm"]])),
    }


if __name__ == "__main__":
    main()
