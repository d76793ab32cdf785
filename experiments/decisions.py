"""How many episodes does it take to decide that a policy is better, with a test after every block, against a
number fixed in advance?

    python -m experiments.decisions              a few seconds
    python -m experiments.decisions --quick      a fifth of the runs

Pure statistics, no simulator. Two policies play the same episodes; how hard a scene is, is shared: the logit
of an episode's success rate is normal, with standard deviation 0 (all equal), 1 or 2. One policy wins 70 % of
all episodes, the other 50 %. They are tested after every 10 episodes and end with the anytime-valid verdict
of `orchestrator/stats/sequential.py` (95 %, two-sided), or at the number that the fixed design has:

  unknown gap   the number for a design that does not know the gap and has 80 % power for one of 10 points (50
                against 60 %)
  known gap     the number for a design that knows the gap of 20 points; there the sequential test ends where
                it has 80 % power as well

Fixed designs: pairs by the exact McNemar test (their number from Connor 1987, its power summed exactly),
independent arms by the two-sample z test. A threshold 20 points away is decided by the anytime interval, and
by a binomial test of fixed size.
"""

from dataclasses import dataclass
from math import ceil, log, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import binom, norm

from bench import harness
from orchestrator.stats.sequential import log_e_value, log_paired_e_value

Array = npt.NDArray[Any]
LIMIT = log(20)
EVERY = 10  # episodes between looks
BETTER, WORSE, LEAST = 0.7, 0.5, 0.6  # LEAST: what an unknown gap is planned for, against WORSE
SPREADS = (0.0, 1.0, 2.0)
Z_ALPHA, Z_POWER = float(norm.ppf(0.975)), float(norm.ppf(0.8))
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(80)  # type: ignore[no-untyped-call]


def at(rate: float, spread: float) -> float:
    """The mean logit with which the success rate over all scenes is `rate`."""
    return float(brentq(lambda mean: WEIGHTS @ expit(mean + spread * NODES) / WEIGHTS.sum() - rate, -30, 30))


def discordant(first: float, second: float, spread: float) -> tuple[float, float]:
    """Probabilities that only the first policy wins, and only the second."""
    a, b = (expit(at(rate, spread) + spread * NODES) for rate in (first, second))
    return tuple(float(WEIGHTS @ only / WEIGHTS.sum()) for only in (a * (1 - b), b * (1 - a)))  # type: ignore[return-value]


def fixed_pairs(first: float, second: float, spread: float) -> int:
    """Pairs for 80 % power (Connor 1987)."""
    only_first, only_second = discordant(first, second, spread)
    differ, gap = only_first + only_second, only_first - only_second
    return ceil(((Z_ALPHA * sqrt(differ) + Z_POWER * sqrt(differ - gap**2)) / gap) ** 2)


def fixed_independent(first: float, second: float) -> int:
    """Episodes per arm for 80 % power where the arms share no episode."""
    pooled = (first + second) / 2
    spread = Z_ALPHA * sqrt(2 * pooled * (1 - pooled)) + Z_POWER * sqrt(
        first * (1 - first) + second * (1 - second)
    )
    return ceil((spread / (first - second)) ** 2)


def fixed_threshold(rate: float, threshold: float) -> int:
    """Episodes for 80 % power against a threshold, one policy."""
    spread = Z_ALPHA * sqrt(threshold * (1 - threshold)) + Z_POWER * sqrt(rate * (1 - rate))
    return ceil((spread / (rate - threshold)) ** 2)


@dataclass(frozen=True)
class Runs:
    """Many runs, looked at after every block: the evidence at each look, and whether it speaks for the first
    (or for `above`).
    """

    evidence: Array
    for_first: Array

    def ended(self) -> tuple[Array, Array]:
        """Episodes until the verdict, infinite if there was none; whether the verdict was for the first."""
        enough = self.evidence >= LIMIT
        look = enough.argmax(axis=1)
        decided, rows = enough.any(axis=1), np.arange(len(enough))
        return np.where(decided, EVERY * (look + 1.0), np.inf), decided & self.for_first[rows, look]


def compare(
    first: float, second: float, spread: float, runs: int, longest: int, rng: np.random.Generator
) -> Runs:
    """Two policies on common episodes."""
    scenes, draws = spread * rng.standard_normal((runs, longest)), rng.random((2, runs, longest))
    a, b = (draws[i] < expit(at(rate, spread) + scenes) for i, rate in enumerate((first, second)))
    only_first, only_second = (np.cumsum(only, axis=1)[:, EVERY - 1 :: EVERY] for only in (a & ~b, b & ~a))
    return Runs(log_paired_e_value(only_first, only_second), only_first > only_second)


def hold(rate: float, threshold: float, runs: int, longest: int, rng: np.random.Generator) -> Runs:
    """One policy against a threshold."""
    won = np.cumsum(rng.random((runs, longest)) < rate, axis=1)[:, EVERY - 1 :: EVERY]
    played = np.arange(EVERY, longest + 1, EVERY)
    return Runs(log_e_value(threshold, won, played), won / played > threshold)


def mcnemar_power(first: float, second: float, spread: float, pairs: int) -> float:
    """Of the exact test on so many pairs: summed over all that may happen."""
    only_first, only_second = discordant(first, second, spread)
    power = 0.0
    for differ in range(1, pairs + 1):
        most = binom.ppf(0.025, differ, 0.5) - 1  # so few wins of either are significant
        while binom.cdf(most + 1, differ, 0.5) <= 0.025:
            most += 1
        share = only_first / (only_first + only_second)
        rejected = binom.cdf(most, differ, share) + binom.sf(differ - most - 1, differ, share)
        power += float(binom.pmf(differ, pairs, only_first + only_second) * rejected)
    return power


def until(runs: Runs, longest: float) -> tuple[float, float]:
    """Mean episodes and power where looking ends at `longest`."""
    episodes, right = runs.ended()
    return float(np.minimum(episodes, longest).mean()), float((right & (episodes <= longest)).mean())


def as_powerful(runs: Runs, power: float = 0.8) -> int:
    """The number of episodes by which so many of the runs have the right verdict."""
    episodes, right = runs.ended()
    return int(np.quantile(np.where(right, episodes, np.inf), power, method="inverted_cdf"))


@harness.command("decisions", digits=4)
def main(quick: bool) -> dict[str, object]:
    """Print a table; return the values of the last line."""
    runs, rng = 400 if quick else 2000, np.random.default_rng(0)
    print(
        f"{BETTER:.0%} against {WORSE:.0%} on common episodes, a look after every {EVERY}; {runs} runs;"
        " episodes of each policy\n"
    )
    print(
        "scenes  | unknown gap: fixed n  its power  | looks until n: mean  ratio  power | known gap: fixed n"
        " | 80 % power by  mean  ratio"
    )
    unknown, known, power_at_ten = [], [], []
    for spread in SPREADS:
        n, n_known = fixed_pairs(LEAST, WORSE, spread), fixed_pairs(BETTER, WORSE, spread)
        found = compare(BETTER, WORSE, spread, runs, EVERY * ceil(n / EVERY), rng)
        mean, power = until(found, n)
        cap = as_powerful(found)
        mean_known, _ = until(found, cap)
        unknown.append(mean / n)
        known.append(mean_known / n_known)
        for_ten = mcnemar_power(LEAST, WORSE, spread, n)
        print(
            f"sd {spread:g}    |{n:>22}{for_ten:>11.2f}  |{mean:>20.0f}{mean / n:>7.2f}{power:>7.3f}"
            f" |{n_known:>19} |{cap:>14}{mean_known:>6.0f}{mean_known / n_known:>7.2f}"
        )
    print(
        f"independent arms: {fixed_independent(LEAST, WORSE)} and {fixed_independent(BETTER, WORSE)} of each"
        " policy"
    )
    print(
        f"\nthe price, a gap of only 10 points ({LEAST:.0%} against {WORSE:.0%}): the fixed n has 80 % power;"
        " looking"
    )
    for spread in SPREADS:
        n = fixed_pairs(LEAST, WORSE, spread)
        found = compare(LEAST, WORSE, spread, runs, 4 * EVERY * ceil(n / EVERY), rng)
        _, power = until(found, n)
        cap = as_powerful(found)
        power_at_ten.append(power)
        print(
            f"sd {spread:g}: power {power:.2f} when it ends at {n}; 80 % when it ends at {cap}, after"
            f" {until(found, cap)[0]:.0f} on average"
        )
    n, n_known = fixed_threshold(LEAST, WORSE), fixed_threshold(BETTER, WORSE)
    found = hold(BETTER, WORSE, runs, EVERY * ceil(n / EVERY), rng)
    mean, power = until(found, n)
    cap = as_powerful(found)
    mean_known = until(found, cap)[0]
    print(
        f"\n{BETTER:.0%} against a threshold of {WORSE:.0%}: fixed n {n}, looks end after {mean:.0f}, ratio"
        f" {mean / n:.2f}, power {power:.3f};"
    )
    print(
        f"known gap: fixed n {n_known}, looks {mean_known:.0f} on average, 80 % power by {cap}, ratio"
        f" {mean_known / n_known:.2f}"
    )
    longest = 1000
    equal = [
        np.isfinite(compare(WORSE, WORSE, spread, runs, longest, rng).ended()[0]).mean() for spread in SPREADS
    ]
    same = [np.isfinite(hold(rate, rate, runs, longest, rng).ended()[0]).mean() for rate in (0.5, 0.8, 0.95)]
    print(
        f"\nwrong verdicts in {longest} episodes, a look after every {EVERY}, 5 % promised: equal policies",
        end=" ",
    )
    print(
        ", ".join(f"{error:.1%} (sd {spread:g})" for error, spread in zip(equal, SPREADS, strict=True)),
        end="; ",
    )
    print("a threshold that is the rate " + ", ".join(f"{error:.1%}" for error in same) + "\n")
    return {
        "ratio_to_fixed_n": round(max(unknown), 3),
        "ratio_to_fixed_n_by_sd": [round(ratio, 3) for ratio in unknown],
        "ratio_to_known_gap": round(max(known), 3),
        "ratio_to_known_gap_by_sd": [round(ratio, 3) for ratio in known],
        "ratio_to_threshold": round(mean / n, 3),
        "ratio_to_threshold_known_gap": round(mean_known / n_known, 3),
        "power_at_10_points_within_fixed_n": round(min(power_at_ten), 3),
        "type_1_error": round(float(max(*equal, *same)), 4),
    }


if __name__ == "__main__":
    harness.run(main)
