"""What may be concluded from outcomes that are looked at while they come: valid at every look, however many there are. Pure.

All of it is one idea, the method of mixtures (Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon 2021). Against a hypothesis somebody bets on every
rate at once, weighted by a beta prior; under the hypothesis the capital, here `evidence`, stays below 20 for ever with a probability of 95 %
(Ville 1939). So whoever stops at 20, whenever that is and for whatever reason else they might have stopped, errs in one case of twenty at most.

Tasks may differ in difficulty. A rate is then the mean over the tasks, and everything holds at looks with as many episodes of every task: a bet's
factor is linear in a task's rate, so by the inequality of the means the product over the tasks is at most what it is for tasks that are all alike.
"""

from dataclasses import dataclass
from math import exp, log
from typing import Any, Literal

import numpy as np
from scipy.optimize import bisect
from scipy.special import betaln, xlog1py, xlogy

INTERVAL_PRIOR = 0.5
"""Of the beta prior of a rate: Krichevsky and Trofimov's. Episodes until a threshold is excluded, over ten pairs of rate and threshold 5 to 20 points
apart, looks every 10: 1.07 times what the best prior for each pair needs (uniform 1.07, Beta(3/4, 3/4) 1.05), at worst 1.18 (1.23, 1.15); it is the
narrowest near 0 and 1."""
PAIRED_PRIOR = 2.0
"""Of the symmetric beta prior of a pair's winner. Pairs until a difference is told, looks every 10, scenes of equal difficulty, with Beta(2, 2),
in brackets Beta(1/2, 1/2), Beta(1, 1), Beta(5, 5): 60 against 50 %: 474 (545, 503, 449); 70 against 50 %: 118 (128, 122, 120); 95 against 75 %: 65
(61, 62, 76). Over 15 such cases, scenes of different difficulty among them, 1.04 times the best prior's of each (1.07, 1.04, 1.13)."""
_ROUNDING = 1e-12  # of a bound


def log_evidence(rate: Any, successes: Any, episodes: Any) -> Any:
    """Logarithm of the evidence against a success rate strictly between 0 and 1; numbers or arrays that broadcast.

    The beta-binomial mixture of likelihoods over the rate's own likelihood. Assumes episodes whose scenes are drawn independently, see above.
    """
    mixture = betaln(INTERVAL_PRIOR + successes, INTERVAL_PRIOR + episodes - successes) - betaln(INTERVAL_PRIOR, INTERVAL_PRIOR)
    return mixture - xlogy(successes, rate) - xlog1py(episodes - successes, -rate)


def anytime_interval(successes: int, episodes: int, confidence: float = 0.95) -> tuple[float, float]:
    """A confidence sequence of a success rate (Robbins 1970): with this confidence all intervals, after every episode, hold it at once.

    The rates that the evidence is not against, bounds rounded outwards; no episodes, no knowledge: (0, 1). Assumes what `log_evidence` does.
    """
    if episodes == 0:
        return 0.0, 1.0
    limit, observed = -log(1 - confidence), successes / episodes

    def beyond(rate: float) -> float:
        return float(log_evidence(rate, successes, episodes)) - limit

    low = bisect(beyond, 0.0, observed, xtol=_ROUNDING) - _ROUNDING if successes else 0.0
    high = bisect(beyond, observed, 1.0, xtol=_ROUNDING) + _ROUNDING if successes < episodes else 1.0
    return max(0.0, low), min(1.0, high)


def side_of(threshold: float, successes: int, episodes: int, confidence: float = 0.95) -> Literal["above", "below", ""]:
    """Whether a success rate is above or below a threshold, or empty while it may be either: by `anytime_interval`, with its assumptions."""
    low, high = anytime_interval(successes, episodes, confidence)
    return "above" if low > threshold else "below" if high < threshold else ""


def log_paired_evidence(only_first: Any, only_second: Any) -> Any:
    """Logarithm of the evidence against two policies being equally good; numbers or arrays that broadcast. `PairedEvidence` says more."""
    a = PAIRED_PRIOR
    return betaln(a + only_first, a + only_second) - betaln(a, a) + (only_first + only_second) * np.log(2)


@dataclass(frozen=True)
class PairedEvidence:
    """Two policies on the same episodes, of which only those tell anything that just one of them won.

    Under the hypothesis that neither is better, each of them wins such an episode with probability 1/2 (McNemar 1947). The mixture is over all others
    (Robbins 1970). Assumes scenes drawn independently; with several tasks, the same number of pairs of each.
    """

    only_first: int
    """Episodes that only the first policy won."""
    only_second: int

    @property
    def p_value(self) -> float:
        """Two-sided; the probability that evidence so strong is ever seen is no greater where neither is better (Ville 1939)."""
        return exp(min(0.0, -float(log_paired_evidence(self.only_first, self.only_second))))

    def better(self, confidence: float = 0.95) -> Literal["first", "second", ""]:
        """Which is better, or empty while that is open."""
        if self.p_value > 1 - confidence:
            return ""
        return "first" if self.only_first > self.only_second else "second"
