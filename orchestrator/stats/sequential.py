"""Anytime-valid inference: valid at every check of the outcomes while they come, for any number of checks.
Pure.

The method of mixtures (Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon 2021): the evidence against a
hypothesis is the wealth of a bet on every rate at once, weighted by a beta prior. Under the hypothesis the
evidence stays below 20 for ever with a probability of at least 95 % (Ville 1939). Rejecting at 20 therefore
errs in at most one case of twenty, whenever that happens and for whatever other reason one might have
stopped.

Tasks may differ in difficulty. A rate is then the mean over the tasks, and everything holds at checks with
equally many episodes of every task: a bet's factor is linear in a task's rate, so by the inequality of the
means the product over the tasks is at most that for equal tasks.
"""

from dataclasses import dataclass
from math import exp, log
from typing import Any, Literal

import numpy as np
from scipy.optimize import bisect
from scipy.special import betaln, xlog1py, xlogy

from orchestrator.stats.fixed_sample import Interval

INTERVAL_PRIOR = 0.5
"""Both parameters of the beta prior of a rate: Krichevsky and Trofimov's. Episodes until a threshold is
excluded, over ten pairs of rate and threshold 5 to 20 points apart, checked every 10: 1.07 times those of the
best prior for each pair (uniform 1.07, Beta(3/4, 3/4) 1.05), at worst 1.18 (1.23, 1.15); its intervals are
the narrowest near 0 and 1.
"""
PAIRED_PRIOR = 2.0
"""Both parameters of the beta prior of a pair's winner. Pairs until a difference is shown, checked every 10,
scenes of equal difficulty, with Beta(2, 2), in brackets Beta(1/2, 1/2), Beta(1, 1), Beta(5, 5): 60 against 50
%: 474 (545, 503, 449); 70 against 50 %: 118 (128, 122, 120); 95 against 75 %: 65 (61, 62, 76). Over 15 such
cases, scenes of different difficulty among them, 1.04 times the best prior's of each (1.07, 1.04, 1.13).
"""
_ROUNDING = 1e-12  # of a bound


def log_e_value(rate: Any, successes: Any, episodes: Any) -> Any:
    """Return the logarithm of the evidence against a success rate strictly between 0 and 1; numbers or arrays
    that broadcast.

    The beta-binomial mixture of likelihoods over the rate's own likelihood. Assumes episodes with
    independently drawn scenes, see the module.
    """
    mixture = betaln(INTERVAL_PRIOR + successes, INTERVAL_PRIOR + episodes - successes) - betaln(
        INTERVAL_PRIOR, INTERVAL_PRIOR
    )
    return mixture - xlogy(successes, rate) - xlog1py(episodes - successes, -rate)


def anytime_interval(successes: int, episodes: int, confidence: float = 0.95) -> Interval:
    """Return the current interval of a confidence sequence of a success rate (Robbins 1970).

    With this confidence the intervals after every episode contain the rate simultaneously. The interval holds
    the rates that the evidence does not reject, bounds rounded outwards; (0, 1) without episodes. Assumptions
    as for `log_evidence`.
    """
    if episodes == 0:
        return Interval(0.0, 1.0)
    limit, observed = -log(1 - confidence), successes / episodes

    def beyond(rate: float) -> float:
        return float(log_e_value(rate, successes, episodes)) - limit

    low = bisect(beyond, 0.0, observed, xtol=_ROUNDING) - _ROUNDING if successes else 0.0
    high = bisect(beyond, observed, 1.0, xtol=_ROUNDING) + _ROUNDING if successes < episodes else 1.0
    return Interval(max(0.0, low), min(1.0, high))


def side_of(
    threshold: float, successes: int, episodes: int, confidence: float = 0.95
) -> Literal["above", "below", ""]:
    """Return whether a success rate is above or below a threshold, empty while open: by `anytime_interval`,
    with its assumptions.
    """
    low, high = anytime_interval(successes, episodes, confidence)
    return "above" if low > threshold else "below" if high < threshold else ""


def log_paired_e_value(only_first: Any, only_second: Any) -> Any:
    """Return the logarithm of the evidence against two policies being equally good; numbers or arrays that
    broadcast. See `PairedEvidence`.
    """
    a = PAIRED_PRIOR
    return betaln(a + only_first, a + only_second) - betaln(a, a) + (only_first + only_second) * np.log(2)


@dataclass(frozen=True)
class PairedEvidence:
    """Evidence on two policies from the same episodes; only episodes that exactly one of them won count.

    Under the hypothesis that neither is better, each of them wins such an episode with probability 1/2
    (McNemar 1947). The mixture is over all other probabilities (Robbins 1970). Assumes scenes drawn
    independently; with several tasks, the same number of pairs of each.
    """

    only_first: int
    """Number of episodes that only the first policy won."""
    only_second: int

    @property
    def p_value(self) -> float:
        """Two-sided; bounds the probability of ever seeing evidence this strong if neither policy is better
        (Ville 1939).
        """
        return exp(min(0.0, -float(log_paired_e_value(self.only_first, self.only_second))))

    def better(self, confidence: float = 0.95) -> Literal["first", "second", ""]:
        """Return which policy is better, empty while open."""
        if self.p_value > 1 - confidence:
            return ""
        return "first" if self.only_first > self.only_second else "second"
