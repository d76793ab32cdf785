"""Does the next-arm search reach a grid's answer for less?

    python -m experiments.next_arm              40 worlds, some minutes
    python -m experiments.next_arm --quick      2 worlds

Pure statistics, no simulator; worlds are those of `experiments.forecast`. A grid trains 3 seeds of 4 or 5
demo counts at ratios 0 and 1, 50 episodes each. A search begins with one arm of the smallest, the middle and
the largest count at ratio 0, and then trains one arm after another for the target "log demos that 70 %
takes", until it has spent 40 % of the grid's cost. Its arms are the grid's, by seed; a fourth seed of a point
is a new training. An arm costs 1 plus its demos over the largest count. Asked is an interval no wider than
1.25 times the grid's, and a centre within 20 %.

Ways: what is worth most by `stats.next_arm`; candidates in random order; fixed halving (from the largest
count downwards, every point once per round); and, as a bound, every further arm at the count whose true rate
is nearest to 70 %. All begin alike and spend as much. Beside them, a second grid with other seeds on the same
scenes: how near a repetition of the whole grid, at its whole cost, comes to the grid's answer.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

import numpy as np

from bench import harness
from experiments.forecast import FAR, SCENES, SEEDS, World, counts_of, world
from orchestrator.stats.forecast import Arms, Forecast, forecast, predicted, scene_sd
from orchestrator.stats.next_arm import Candidate, demos_for, proposals
from orchestrator.stats.sample_efficiency import Floats

RATE, WIDER, NEAR = 0.7, 1.25, 0.2
PART, WORLDS = 0.4, 40
RATIOS = (0.0, 1.0)
DRAWS = 1000
"""Of the forecasts while a search goes on; those of the grid and of the end have twice as many."""
TARGET = demos_for(RATE, 0.0)
Point = tuple[float, float]
"""Demo count and ratio."""


@dataclass(frozen=True)
class Run:
    """Answer of one way of choosing arms."""

    width: float
    """Of the interval, over the grid's."""
    centre: float
    """Median demos over the grid's."""
    held: bool
    """Whether the interval holds the truth."""
    arms: int

    @property
    def narrow(self) -> bool:
        """Whether the interval is as narrow as asked."""
        return self.width <= WIDER

    @property
    def near(self) -> bool:
        """Whether the centre is as near to the grid's as asked."""
        return bool(abs(np.log(self.centre)) < np.log(1 + NEAR))


@dataclass(frozen=True)
class Lab:
    """A world in which arms are trained, always with the same result for the same seed."""

    truth: World
    number: int
    """Of the world."""
    scenes: Floats
    trained: dict[tuple[Point, int], Floats] = field(default_factory=dict)
    """Outcomes so far, (SCENES,), by point and seed."""

    def outcomes(self, point: Point, seed: int) -> Floats:
        """Return whether an arm succeeds in each scene, (SCENES,)."""
        if (point, seed) not in self.trained:
            demos, ratio = point
            rng = np.random.default_rng([self.number, int(demos), int(ratio), seed])
            (won,) = self.truth.outcomes(np.array([demos]), np.array([ratio]), rng, self.scenes)
            self.trained[point, seed] = won
        return self.trained[point, seed]

    def arms(self, chosen: list[tuple[Point, int]]) -> Arms:
        """Return the scores of arms."""
        won = np.stack([self.outcomes(*one) for one in chosen])
        demos, ratios = np.array([point for point, _ in chosen]).T
        return Arms(demos, ratios, won.sum(axis=1), np.full(len(won), float(SCENES)), scene_sd(won))


def cost(demos: float, largest: float) -> float:
    """Return the cost of training and scoring an arm."""
    return 1 + demos / largest


def width(fitted: Forecast) -> float:
    """Return the width of the target's interval, in log demos."""
    return predicted(TARGET.of(fitted)).width


def centre(fitted: Forecast) -> float:
    """Return the median of the target, in log demos."""
    return float(np.median(TARGET.of(fitted)))


Choice = Callable[[Lab, list[tuple[Point, int]], list[Candidate]], Candidate]
"""(lab, arms so far, affordable candidates) -> the next one."""


def by_worth(lab: Lab, chosen: list[tuple[Point, int]], candidates: list[Candidate]) -> Candidate:
    """Return the candidate that is worth most."""
    return proposals(forecast(lab.arms(chosen), draws=DRAWS), TARGET, candidates)[0].candidate


def at_random(lab: Lab, chosen: list[tuple[Point, int]], candidates: list[Candidate]) -> Candidate:
    """Return any candidate."""
    return candidates[int(np.random.default_rng([lab.number, len(chosen)]).integers(len(candidates)))]


def halving(lab: Lab, chosen: list[tuple[Point, int]], candidates: list[Candidate]) -> Candidate:
    """Return the first of the candidates with the fewest seeds, the largest count first."""
    seeds = Counter(point for point, _ in chosen)
    return min(candidates, key=lambda one: (seeds[float(one.demos), one.ratio], -one.demos, one.ratio))


def knowing(lab: Lab, chosen: list[tuple[Point, int]], candidates: list[Candidate]) -> Candidate:
    """Return the candidate at ratio 0 whose true rate is nearest to RATE: a bound for what a choice of points
    can reach.
    """
    rates = lab.truth.rates(np.array([float(one.demos) for one in candidates]))
    return min(zip(candidates, rates, strict=True), key=lambda one: (one[0].ratio, abs(one[1] - RATE)))[0]


WAYS: dict[str, Choice] = {
    "next arm": by_worth,
    "random": at_random,
    "halving": halving,
    "knows the truth": knowing,
}


def search(lab: Lab, counts: Floats, choice: Choice) -> Forecast:
    """Return the forecast from the arms that a way of choosing trains for PART of the grid's cost."""
    largest = float(counts[-1])
    left = PART * SEEDS * len(RATIOS) * sum(cost(count, largest) for count in counts)
    every = [
        Candidate(int(count), ratio, SCENES, cost(count, largest)) for count in counts for ratio in RATIOS
    ]
    chosen: list[tuple[Point, int]] = [
        ((float(count), 0.0), 0) for count in (counts[0], counts[len(counts) // 2], counts[-1])
    ]
    left -= sum(cost(point[0], largest) for point, _ in chosen)
    while candidates := [one for one in every if one.cost <= left]:
        best = choice(lab, chosen, candidates)
        point = float(best.demos), best.ratio
        chosen.append((point, sum(one == point for one, _ in chosen)))
        left -= best.cost
    return forecast(lab.arms(chosen), draws=2 * DRAWS, seed=1)


def _run(lab: Lab, fitted: Forecast, whole: Forecast) -> Run:
    low, high = predicted(fitted.needed(RATE))
    reached = lab.truth.rates(FAR) >= RATE
    truth = float(FAR[reached.argmax()]) if reached.any() else inf
    return Run(
        width(fitted) / width(whole),
        float(np.exp(centre(fitted) - centre(whole))),
        low <= truth <= high,
        len(fitted.arms.demos),
    )


def grid(lab: Lab, counts: Floats, first_seed: int = 0) -> Forecast:
    """Return the forecast from the whole grid."""
    points = [((float(count), ratio)) for count in counts for ratio in RATIOS]
    arms = lab.arms([(point, first_seed + seed) for point in points for seed in range(SEEDS)])
    return forecast(arms, draws=2 * DRAWS)


@dataclass(frozen=True)
class Compared:
    """Answers of all ways in one world."""

    runs: dict[str, Run]
    bounded: bool
    """Whether the grid's own interval is bounded within a factor of WIDEST."""


def compared(seed: int, ways: dict[str, Choice] = WAYS) -> Compared | None:
    """Return how every way does in a world; None where the grid is too small, or has no answer."""
    rng = np.random.default_rng(seed)
    truth = world(rng)
    counts = counts_of(truth, rng)
    if len(counts) < 4 or truth.rates(counts[-1:] * 30)[0] < RATE:
        return None
    lab = Lab(truth, seed, truth.scenes(rng))
    whole = grid(lab, counts)
    found = {name: search(lab, counts, choice) for name, choice in ways.items()}
    found["second grid"] = grid(lab, counts, 100)
    return Compared(
        {name: _run(lab, fitted, whole) for name, fitted in found.items()},
        whole.demos_to_reach(RATE).identified,
    )


def seconds_of_200_arms() -> tuple[float, float]:
    """Return the CPU seconds of a forecast from 200 arms, and of weighing 30 candidates by it."""
    rng = np.random.default_rng(0)
    truth, counts = world(rng), np.array([10.0, 20.0, 40.0, 80.0, 160.0])
    lab = Lab(truth, 0, truth.scenes(rng))
    arms = lab.arms([((count, ratio), seed) for count in counts for ratio in RATIOS for seed in range(20)])
    candidates = [
        Candidate(int(demos), ratio, SCENES, 1.0) for demos in range(10, 160, 10) for ratio in RATIOS
    ]
    began = time.process_time()
    fitted = forecast(arms)
    forecast_s = time.process_time() - began
    proposals(fitted, TARGET, candidates)
    return forecast_s, time.process_time() - began - forecast_s


@harness.command("next_arm", digits=4)
def main(quick: bool) -> dict[str, object]:
    """Print a table; return the values of the last line."""
    worlds = [told for seed in range(2 if quick else WORLDS) if (told := compared(seed))]
    answer: dict[str, object] = {"worlds": len(worlds)}
    for title, part in (
        ("all worlds", worlds),
        ("those in which the grid bounds the answer", [told for told in worlds if told.bounded]),
    ):
        print(f"{title}: {len(part)}\n")
        print("way              arms  width of grid's  as narrow  centre within 20 %  both  holds the truth")
        for name in (*WAYS, "second grid"):
            runs = [told.runs[name] for told in part]
            if not runs:
                continue
            narrow, near, both, held = (
                float(np.mean([bool(value) for value in values]))
                for values in zip(
                    *((run.narrow, run.near, run.narrow and run.near, run.held) for run in runs), strict=True
                )
            )
            print(
                f"{name:<16}{np.median([run.arms for run in runs]):>5.0f}"
                f"{np.median([run.width for run in runs]):>17.2f}{narrow:>11.2f}{near:>20.2f}{both:>6.2f}"
                f"{held:>17.2f}"
            )
            if part is worlds:
                key = name.replace(" ", "_")
                answer |= {f"narrow_{key}": narrow, f"near_{key}": near}
        print()
    forecast_s, proposal_s = seconds_of_200_arms()
    print(f"CPU s of one core: {forecast_s:.1f} a forecast from 200 arms, {proposal_s:.1f} 30 candidates")
    return answer | {"forecast_200_arms_cpu_s": forecast_s, "proposal_cpu_s": proposal_s}


if __name__ == "__main__":
    main()
