"""Do forecasts hold in real grids, and does the next-arm search reach their answer for less?

    python -m experiments.grid_replay              a minute
    python -m experiments.grid_replay --quick      one random order

The grids (`experiments/grids/`) were trained and scored by demoscale: real policies, real simulations. Every
demo count is left out in turn; the others forecast its successes. Where the largest count is left out the
forecast goes beyond the counts that it is made from. The search then chooses among the arms of the grid, by
seed, as `search.next` does, until the interval of the target "log demos that 50 % takes" is no wider than
1.25 times the whole grid's; beside it, arms in random order, the mean of 5 orders.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from bench import harness
from orchestrator.stats.forecast import CONFIDENCE, Arms, forecast, predicted
from orchestrator.stats.next_arm import Candidate, demos_for, proposals

GRIDS = Path(__file__).parent / "grids"
RATE, WIDER, ORDERS = 0.5, 1.25, 5


@dataclass(frozen=True)
class ArmScore:
    """A trained arm and its score."""

    demos: int
    ratio: float
    seed: int
    outcomes: str
    """1 or 0 per scene; the scenes of all arms of a grid are the same."""


@dataclass(frozen=True)
class Grid:
    """Scores of a real grid."""

    name: str
    about: str
    """Policy, task and training, in a sentence."""
    hour: float
    """Mean CPU hours of training and scoring an arm."""
    scores: tuple[ArmScore, ...]

    @classmethod
    def read(cls, file: Path) -> "Grid":
        """Read a file of `experiments/grids/`."""
        told = json.loads(file.read_text())
        return cls(file.stem, told["about"], told["cpu_hours"], tuple(ArmScore(*row) for row in told["arms"]))

    def arms(self, chosen: Sequence[int]) -> Arms:
        """Return arms by their places."""
        scores = [self.scores[place] for place in chosen]
        outcomes = [
            {f"{scene:04d}": won == "1" for scene, won in enumerate(score.outcomes)} for score in scores
        ]
        return Arms.of([score.demos for score in scores], [score.ratio for score in scores], outcomes)

    @cached_property
    def all(self) -> Arms:
        """All arms."""
        return self.arms(range(len(self.scores)))


@dataclass(frozen=True)
class LeftOut:
    """A demo count that was left out."""

    demos: int
    largest: bool
    low: float
    high: float
    successes: int
    episodes: int

    @property
    def held(self) -> bool:
        """Whether the interval holds the successes."""
        return self.low <= self.successes <= self.high


def left_out(grid: Grid) -> list[LeftOut]:
    """Return what the other counts forecast of each."""
    arms, found = grid.all, []
    for count in arms.counts:
        mine = arms.demos == count
        fitted = forecast(arms.those(~mine))
        drawn = fitted.successes(float(count), float(arms.ratios[0]), arms.episodes[mine]).sum(axis=1)
        found.append(
            LeftOut(
                int(count),
                bool(count == arms.counts[-1]),
                *predicted(drawn),
                int(arms.successes[mine].sum()),
                int(arms.episodes[mine].sum()),
            )
        )
    return found


def search(grid: Grid, order: np.random.Generator | None) -> tuple[float, float]:
    """Return which part of the grid's arms a search trains, and its median demos over the grid's. order: of
    arms at random; None: what is worth most.
    """
    counts, ratio = grid.all.counts, float(grid.all.ratios[0])
    target = demos_for(RATE, ratio)
    whole = target.of(forecast(grid.all))
    asked = WIDER * predicted(whole).width
    chosen = list[int]()
    for count in (counts[0], counts[len(counts) // 2], counts[-1]):
        chosen.append(_fresh(grid, chosen, count))
    while True:
        arms = grid.arms(chosen)
        fitted = forecast(arms)
        narrow = predicted(target.of(fitted)).width <= asked
        if narrow:  # one set of draws may be narrow by chance
            narrow = predicted(target.of(forecast(arms, seed=1))).width <= asked
        if narrow or len(chosen) == len(grid.scores):
            break
        left = sorted({score.demos for place, score in enumerate(grid.scores) if place not in chosen})
        candidates = [Candidate(count, ratio, len(grid.scores[0].outcomes), 1.0) for count in left]
        if order is None:
            best = proposals(fitted, target, candidates)[0].candidate
        else:
            best = candidates[int(order.integers(len(candidates)))]
        chosen.append(_fresh(grid, chosen, best.demos))
    centre = np.median(target.of(fitted)) - np.median(whole)
    return len(chosen) / len(grid.scores), float(np.exp(centre))


def _fresh(grid: Grid, chosen: Sequence[int], count: float) -> int:
    """Return the place of the first arm of a count that is not chosen."""
    return next(place for place, one in enumerate(grid.scores) if one.demos == count and place not in chosen)


@harness.command("grid_replay", digits=4)
def main(quick: bool) -> dict[str, object]:
    """Print a table; return the values of the last line."""
    grids = [Grid.read(file) for file in sorted(GRIDS.glob("*.json"))]
    tested = list[LeftOut]()
    answer: dict[str, object] = {"grids": len(grids)}
    for grid in grids:
        arms = grid.all
        rates = ", ".join(
            f"{count:g}: {arms.successes[arms.demos == count].sum():.0f}"
            f"/{arms.episodes[arms.demos == count].sum():.0f}"
            for count in arms.counts
        )
        print(f"{grid.name}: {grid.about}\n  successes by demo count: {rates}")
        for one in left_out(grid):
            beyond = ", beyond the others" if one.largest else ""
            print(
                f"  without {one.demos} demos{beyond}: {one.low:.0f} to {one.high:.0f} of {one.episodes}"
                f" forecast, {one.successes} scored, {'inside' if one.held else 'OUTSIDE'}"
            )
            tested.append(one)
        low, high = forecast(arms).demos_to_reach(RATE, float(arms.ratios[0])).interval
        print(f"  {100 * RATE:g} % takes {low:.0f} to {high:.0f} demos by the whole grid")
        part, centre = search(grid, None)
        random = [search(grid, np.random.default_rng(seed)) for seed in range(1 if quick else ORDERS)]
        print(
            f"  the search trains {part:.2f} of the arms, centre {centre:.2f} of the grid's; in random order"
            f" {np.mean([one for one, _ in random]):.2f}\n"
        )
        answer |= {
            f"part_{grid.name}": part,
            f"random_{grid.name}": float(np.mean([one for one, _ in random])),
        }
    held, largest = sum(one.held for one in tested), [one for one in tested if one.largest]
    print(f"{held} of {len(tested)} left-out counts are inside intervals of {100 * CONFIDENCE:g} %")
    print(f"of the largest ones {sum(one.held for one in largest)} of {len(largest)}")
    return answer | {"left_out": len(tested), "held": held, "largest_held": sum(one.held for one in largest)}


if __name__ == "__main__":
    main()
