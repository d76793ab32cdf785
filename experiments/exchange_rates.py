"""Does the interval of an exchange rate hold, and how often does a sweep find that videos replace
demonstrations?

    python -m experiments.exchange_rates              400 sweeps per cell, two minutes
    python -m experiments.exchange_rates --quick      10 sweeps per cell

Pure statistics, no simulator: sweeps of the size of `jobs/lift_exchange.yaml`, three seeds of 2, 6 and 18
demonstrations, without videos and with four per demonstration. Success is logistic in log demonstrations,
0.25 with the fewest and 0.75 with the most without videos; scenes differ by 1 in logits, trainings as the
table says. Of the planted factors, 2 means that a demonstration is worth four videos, 1 that videos are
worth nothing, 0.5 that they hurt.
"""

import numpy as np

from bench import harness
from orchestrator.stats.exchange_rate import ExchangeRate
from orchestrator.stats.fixed_sample import hierarchical_draws
from orchestrator.stats.sample_efficiency import Floats, data_equivalence, estimated

RATIO, COUNTS, SEEDS, DRAWS = 4.0, np.array([2.0, 6.0, 18.0]), 3, 300
FACTORS = (2.0, 0.5, 1.0)
CLAIMED = {2.0: "replace demonstrations", 0.5: "hurt"}
"""Right verdict by planted factor; for 1, every claim is counted."""
SPREADS = (0.1, 0.3)


def swept(factor: float, seed: int, scenes: int = 40, spread: float = 0.3, draws: int = 200) -> ExchangeRate:
    """Return the rate found in a sweep of two lines on the same scenes, of which the second needs `factor`
    times fewer demonstrations.

    spread: standard deviation between trainings, in logits. draws: of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    hard, demos = rng.standard_normal(scenes), np.concatenate([COUNTS, COUNTS * factor])
    trainings = spread * rng.standard_normal((len(demos), SEEDS))
    odds = 1.2 * np.log(demos / 6)[:, None, None] + trainings[:, :, None] - hard
    won = (rng.random(odds.shape) < 1 / (1 + np.exp(-odds))).astype(float)

    def found(rates: Floats) -> float:
        return data_equivalence((COUNTS, rates[:3]), (COUNTS, rates[3:]))

    drawn = hierarchical_draws(won, np.zeros(scenes, int), draws=draws, seed=seed)
    return ExchangeRate(RATIO, estimated(found(won.mean((1, 2))), [found(own) for own in drawn]))


@harness.command("exchange_rates")
def main(quick: bool) -> dict[str, object]:
    """Print the table; return the values of the last line."""
    sweeps, sizes = (10, (40,)) if quick else (400, (20, 40, 60))
    print(
        f"{sweeps} sweeps per cell\n\n"
        f"{'scenes':>6}{'spread':>8}{'holds the factor':>18}{'factor 2 found':>16}{'0.5 found':>11}"
        f"{'1: a claim, wrongly':>21}"
    )
    least, found_at_40 = 1.0, 0.0
    for scenes in sizes:
        for spread in SPREADS:
            held, claimed = dict[float, float](), dict[float, float]()
            for factor in FACTORS:
                rates = [swept(factor, seed, scenes, spread, DRAWS) for seed in range(sweeps)]
                bounds = [rate.factor.interval for rate in rates]
                held[factor] = float(np.mean([low <= factor <= high for low, high in bounds]))
                verdicts = [rate.verdict for rate in rates]
                right = [verdict == CLAIMED.get(factor, verdict) != "no evidence" for verdict in verdicts]
                claimed[factor] = float(np.mean(right))
            low, high = min(held.values()), max(held.values())
            print(
                f"{scenes:>6}{spread:>8.1f}{f'{low:.1%} to {high:.1%}':>18}{claimed[2.0]:>16.0%}"
                f"{claimed[0.5]:>11.0%}{claimed[1.0]:>21.1%}",
                flush=True,
            )
            least = min(least, low)
            found_at_40 = claimed[2.0] if (scenes, spread) == (40, 0.3) else found_at_40
    return {"sweeps": sweeps, "coverage_least": round(least, 4), "found_40_scenes": round(found_at_40, 4)}


if __name__ == "__main__":
    harness.run(main)
