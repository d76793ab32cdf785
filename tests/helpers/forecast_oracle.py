"""Posterior of one shape of the forecast by an independent sampler, PyMC's NUTS; its quantiles are in
tests/stats/test_forecast.py.

    uv run --no-project --with pymc python tests/helpers/forecast_oracle.py
"""

import json
from importlib import import_module

import numpy as np

DEMOS = np.repeat([10.0, 20.0, 40.0, 80.0], 3)
SUCCESSES = np.array([12, 15, 17, 22, 26, 25, 33, 36, 35, 44, 42, 41])
EPISODES = 50
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


def main() -> None:
    """Print quantiles of the ceiling, of the correlation and of the demos that 0.7 and 0.8 take."""
    pm = import_module("pymc")
    x = np.log(DEMOS) - (np.log(10) + np.log(80)) / 2
    with pm.Model():
        ceiling = pm.Normal("ceiling", 3.0, 1.5)
        middle = pm.Normal("middle", 0.0, 2.5)
        slope = pm.Normal("slope", 0.0, 0.7)
        correlation = pm.Normal("correlation", -3.0, 1.2)
        rate = pm.math.sigmoid(ceiling) * pm.math.sigmoid(pm.math.exp(slope) * (x - middle))
        size = pm.math.exp(-correlation)
        pm.BetaBinomial(
            "successes", alpha=rate * size, beta=(1 - rate) * size, n=EPISODES, observed=SUCCESSES
        )
        drawn = pm.sample(
            5000, tune=3000, chains=4, cores=1, target_accept=0.97, random_seed=0, progressbar=False
        )
    top, middles, slopes, spread = (
        drawn.posterior[name].values.ravel() for name in ("ceiling", "middle", "slope", "correlation")
    )
    found = {"ceiling": np.quantile(top, LEVELS), "correlation": np.quantile(spread, LEVELS)}
    for wanted in (0.7, 0.8):
        part = wanted * (1 + np.exp(-top))  # of the logistic curve below its ceiling
        with np.errstate(divide="ignore", invalid="ignore"):
            needed = middles + np.log(part / (1 - part)) / np.exp(slopes)
        demos = np.where(part < 1, np.exp(needed + (np.log(10) + np.log(80)) / 2), np.inf)
        found[f"demos to {wanted}"] = np.quantile(demos, LEVELS, method="inverted_cdf")
    print(json.dumps({name: [round(float(value), 3) for value in values] for name, values in found.items()}))


if __name__ == "__main__":
    main()
