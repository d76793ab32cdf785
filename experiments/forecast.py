"""Does the forecast's interval hold the number of demonstrations that 90 % will take?

    python -m experiments.forecast              500 worlds, some minutes
    python -m experiments.forecast --quick      24 worlds

Pure statistics, no simulator. In every world success rises with demos by another curve; a third of the
worlds have curves that no fitted shape can follow (two steps, a straight line in log demos, a probit of the
root of demos). Trainings of a point differ (standard deviation 0.1 to 0.5 in logits), scenes differ in
difficulty (0.5 to 2), and all arms play the same 50 scenes. A sweep has 3 seeds of 4 or 5 demo counts and
ratios 0 and 1; what is forecast is the demos at which the mean over trainings and scenes reaches 90 % at
ratio 0: beyond the counts tried in most worlds, never in some.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, log

import numpy as np
from scipy.special import expit
from scipy.stats import binomtest, norm

from bench import harness
from orchestrator.stats.forecast import CONFIDENCE, Arms, forecast, predicted, scene_sd
from orchestrator.stats.sample_efficiency import Floats

RATE, SEEDS, SCENES = 0.9, 3, 50
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)  # type: ignore[no-untyped-call]
TABLE = np.linspace(-30, 30, 2001)
FAR = np.geomspace(1e-3, 1e7, 4001)


@dataclass(frozen=True)
class World:
    """A truth: mean success over demos, and how trainings and scenes differ."""

    kind: str
    rates: Callable[[Floats], Floats]
    """Mean success rate over demo counts."""
    video: float
    """Power of (1 + ratio) by which video multiplies demos."""
    training_sd: float
    scene_sd: float

    @property
    def demos(self) -> float:
        """Demos at which the mean success reaches RATE; infinite if it never does."""
        reached = self.rates(FAR) >= RATE
        return float(FAR[reached.argmax()]) if reached.any() else inf

    def scenes(self, rng: np.random.Generator) -> Floats:
        """Return the difficulty of a suite's scenes, in logits, (SCENES,)."""
        return np.asarray(self.scene_sd * rng.standard_normal(SCENES))

    def arms(
        self, counts: Floats, ratios: tuple[float, ...], rng: np.random.Generator, scenes: Floats
    ) -> Arms:
        """Return a sweep's scores on a suite of scenes."""
        demos, mixed, _ = (
            column.ravel()
            for column in np.meshgrid(counts, np.array(ratios), np.arange(SEEDS), indexing="ij")
        )
        won = self.outcomes(demos, mixed, rng, scenes)
        return Arms(demos, mixed, won.sum(axis=1), np.full(len(demos), float(SCENES)), scene_sd(won))

    def outcomes(self, demos: Floats, ratios: Floats, rng: np.random.Generator, scenes: Floats) -> Floats:
        """Return 1 where an arm succeeds, (A, SCENES). demos, ratios: (A,)."""
        spread = np.hypot(self.training_sd, self.scene_sd)
        average = expit(TABLE[:, None] + spread * NODES) @ WEIGHTS / WEIGHTS.sum()
        wanted = np.clip(self.rates(demos * (1 + ratios) ** self.video), 1e-6, 1 - 1e-6)
        middle = np.interp(wanted, average, TABLE) + self.training_sd * rng.standard_normal(len(demos))
        return np.asarray(rng.random((len(demos), SCENES)) < expit(middle[:, None] + scenes), float)


def world(rng: np.random.Generator) -> World:
    """Return a world at random."""
    half, ceiling = float(np.exp(rng.uniform(log(10), log(120)))), float(expit(rng.normal(3.2, 1.2)))
    slope, second = float(np.exp(rng.normal(0.1, 0.4))), float(rng.uniform(0.3, 0.7))
    later = half * float(np.exp(rng.uniform(1, 2.5)))
    curves: dict[str, Callable[[Floats], Floats]] = {
        "logistic": lambda n: ceiling * expit(slope * np.log(n / half)),
        "power law": lambda n: ceiling * -np.expm1(-slope * np.log1p(n / half)),
        "stretched exponential": lambda n: ceiling * -np.expm1(-log(2) * (n / half) ** (0.7 * slope)),
        "two steps": lambda n: (
            second * expit(3 * np.log(n / half)) + (0.99 - second) * expit(3 * np.log(n / later))
        ),
        "straight in log demos": lambda n: np.clip(0.5 + 0.2 * slope * np.log(n / half), 0.01, ceiling),
        "probit of the root": lambda n: norm.cdf(1.2 * slope * (np.sqrt(n / half) - 1)),
    }
    fitted, others = [*curves][:3], [*curves][3:]
    kind = str(rng.choice(others if rng.random() < 1 / 3 else fitted))
    return World(
        kind,
        curves[kind],
        float(rng.uniform(0, 0.8)),
        float(rng.uniform(0.1, 0.5)),
        float(rng.uniform(0.5, 2)),
    )


def counts_of(truth: World, rng: np.random.Generator) -> Floats:
    """Return demo counts at which somebody would try: the largest scores between 40 and 85 %."""
    rates = truth.rates(FAR)
    top = min(rng.uniform(0.4, 0.85), 0.97 * rates.max())
    largest = max(8.0, float(FAR[np.argmax(rates >= top)]))
    halved = largest / 2.0 ** np.arange(int(rng.integers(4, 6)))
    return np.asarray(np.unique(np.round(halved).clip(1)))


@dataclass(frozen=True)
class Found:
    """A world and its forecast."""

    kind: str
    truth: float
    low: float
    high: float
    identified: bool
    back: bool
    """Whether the largest count, left out, was in its predictive interval."""

    @property
    def held(self) -> bool:
        """Whether the interval holds the truth."""
        return self.low <= self.truth <= self.high


def one(seed: int) -> Found | None:
    """Return a world's forecast; None where fewer than three counts are left."""
    rng = np.random.default_rng(seed)
    truth = world(rng)
    counts = counts_of(truth, rng)
    if len(counts) < 4:
        return None
    arms = truth.arms(counts, (0.0, 1.0), rng, truth.scenes(rng))
    answer = forecast(arms, seed=seed).demos_to_reach(RATE)
    return Found(truth.kind, truth.demos, *answer.interval, answer.identified, last_held(arms))


def last_held(arms: Arms) -> bool:
    """Return whether the successes at the largest count are in the interval forecast without it."""
    largest, ratio = arms.counts[-1], arms.ratios.min()
    left_out = (arms.demos == largest) & (arms.ratios == ratio)
    fitted = forecast(arms.those(arms.demos != largest))
    drawn = fitted.successes(largest, ratio, arms.episodes[left_out]).sum(axis=1)
    low, high = predicted(drawn)
    return bool(low <= arms.successes[left_out].sum() <= high)


@harness.command("forecast", digits=4)
def main(quick: bool) -> dict[str, object]:
    """Print a table; return the values of the last line."""
    found = [told for seed in range(24 if quick else 500) if (told := one(seed))]
    print("world                     worlds  held  identified  held of these  width of these, high/low")
    for kind in (*sorted({told.kind for told in found}), "all"):
        mine = [told for told in found if kind in (told.kind, "all")]
        sure = [told for told in mine if told.identified]
        held, identified = (
            np.mean([getattr(told, what) for told in mine]) for what in ("held", "identified")
        )
        print(
            f"{kind:<25}{len(mine):>7}{held:>6.2f}{identified:>12.2f}"
            f"{np.mean([t.held for t in sure]) if sure else np.nan:>15.2f}"
            f"{np.median([t.high / t.low for t in sure]) if sure else np.nan:>12.1f}"
        )
    held = sum(told.held for told in found)
    interval = binomtest(held, len(found)).proportion_ci()
    print(f"the truth is in {held} of {len(found)} intervals of {100 * CONFIDENCE:g} %")
    return {
        "worlds": len(found),
        "coverage": held / len(found),
        "coverage_low": interval.low,
        "coverage_high": interval.high,
        "identified": float(np.mean([told.identified for told in found])),
        "backtest_coverage": float(np.mean([told.back for told in found])),
    }


if __name__ == "__main__":
    main()
