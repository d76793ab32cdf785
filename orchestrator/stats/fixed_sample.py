"""Inference from a fixed number of outcomes, after all of them are counted. Pure. Valid while outcomes still
come: sequential.py.

Shapes: C cells (points of a curve), R replicates (seeds), E episodes of the suite, B draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy  # imports `scipy.stats`, which takes a second, where it is first used
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import bdtr, bdtrc, bdtrik, betaincinv

LEVEL = 0.05
"""Significance level of every verdict."""


_ROUNDING = 1e-12  # of a bound, outwards: where the p-value jumps, the rate itself is inside


class Interval(NamedTuple):
    """Interval of a number; a bound may be infinite."""

    low: float
    high: float

    @property
    def width(self) -> float:
        """Distance of the bounds."""
        return self.high - self.low


# -- one rate ------------------------------------------------------------------------------------------------


def blaker(successes: int, episodes: int, confidence: float = 0.95) -> Interval:
    """Return the exact interval of a success rate (Blaker 2000): it covers at least its nominal level at
    every rate, and lies within that of Clopper and Pearson.

    `docs/statistics.md` compares its coverage and width with those of others. Assumes independent episodes of
    one policy, their number fixed beforehand. (0, 1) without episodes.
    """
    if episodes == 0:
        return Interval(0.0, 1.0)
    missed = 1 - confidence
    low, high = _blaker_low(successes, episodes, missed), _blaker_low(episodes - successes, episodes, missed)
    return Interval(low, 1 - high)


def _blaker_low(successes: int, episodes: int, missed: float) -> float:
    """Return the smallest rate that is not rejected at level `missed`.

    A rate's p-value is the probability of at least the observed successes, the smaller tail, plus that of
    the largest lower tail {0, ..., q} that is no more probable. q grows with the rate. Below the bound of
    Clopper and Pearson the p-value is at most the level; where the tail next grows, both tails together
    exceed it, so that the bound lies there, or before, where the p-value with the shorter tail reaches it.
    """
    if successes == 0:
        return 0.0

    def upper(rate: float) -> float:
        return float(bdtrc(successes - 1, episodes, rate))

    def lower(q: float, rate: float) -> float:
        return float(bdtr(q, episodes, rate)) if q >= 0 else 0.0

    first = float(betaincinv(successes, episodes - successes + 1, missed / 2))
    q = float(np.ceil(bdtrik(missed / 2, episodes, first)))
    while lower(q, first) < missed / 2:  # the inverse is continuous, and rounded
        q += 1
    while lower(q - 1, first) >= missed / 2:
        q -= 1
    grows = brentq(lambda rate: lower(q, rate) - upper(rate), first, 1.0, xtol=_ROUNDING / 10)
    if upper(grows) + lower(q - 1, grows) <= missed:
        return max(0.0, float(grows) - _ROUNDING)
    before = brentq(lambda rate: upper(rate) + lower(q - 1, rate) - missed, first, grows)
    return max(0.0, float(before) - _ROUNDING)


def clopper_pearson(successes: int, episodes: int, confidence: float = 0.95) -> Interval:
    """Return the exact interval of a success rate whose two sides each miss at most half (Clopper and Pearson
    1934).

    Assumptions as for `blaker`.
    """
    if episodes == 0:
        return Interval(0.0, 1.0)
    # the observed rate: its p-value is not needed and takes no search
    tested = scipy.stats.binomtest(successes, episodes, successes / episodes)
    interval = tested.proportion_ci(confidence, method="exact")
    return Interval(float(interval.low), float(interval.high))


def best_of_bias(policies: int, episodes: int, success_rate: float) -> float:
    """Return the expected excess of the best observed rate of equally good policies over their true rate (the
    winner's curse).

    Exact, from the distribution of the largest of independent binomial counts; on common episodes the bias is
    smaller.
    """
    at_most = scipy.stats.binom.cdf(np.arange(episodes), episodes, success_rate) ** policies
    return float((1 - at_most).sum() / episodes - success_rate)


# -- a mean of measured values -------------------------------------------------------------------------------


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the interval of a mean by Student's t: exact for normal values, else approximate.

    Assumes independent values, one per episode, their number fixed beforehand. (-inf, inf) for fewer than two
    values.
    """
    if len(values) < 2:
        return Interval(-np.inf, np.inf)
    sample = np.asarray(values, float)
    half = float(scipy.stats.t.ppf((1 + confidence) / 2, len(sample) - 1) * sample.std(ddof=1))
    half /= float(np.sqrt(len(sample)))
    return Interval(float(sample.mean()) - half, float(sample.mean()) + half)


@dataclass(frozen=True)
class PairedMeans:
    """Two policies on the episodes that both were measured on, lower values better."""

    episodes: int
    difference: float
    """Mean over common episodes of the first minus the second; negative if the first is better."""
    lower: int
    """Number of common episodes on which the first has the lower value."""
    p_value: float
    """Two-sided; small if the policies differ."""


def paired_means(first: Mapping[str, float], second: Mapping[str, float]) -> PairedMeans:
    """Test two policies on their common episodes by the paired t-test.

    first, second: episode id -> value. Assumes that differences are independent between episodes and nearly
    normal, their number fixed beforehand. Raises ValueError for fewer than two common episodes.
    """
    common = sorted(first.keys() & second.keys())
    if len(common) < 2:
        raise ValueError("the two policies have fewer than two episodes in common, so that nothing is tested")
    apart = np.array([first[episode] - second[episode] for episode in common])
    spread = float(apart.std(ddof=1))
    if spread == 0:
        p_value = 1.0 if apart[0] == 0 else 0.0
    else:
        t = float(apart.mean()) / (spread / float(np.sqrt(len(apart))))
        p_value = float(2 * scipy.stats.t.sf(abs(t), len(apart) - 1))
    return PairedMeans(len(common), float(apart.mean()), int((apart < 0).sum()), p_value)


# -- two rates -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairedComparison:
    """Two policies on the episodes that both were scored on."""

    episodes: int
    only_first: int
    """Number of episodes that only the first policy won."""
    only_second: int
    p_value: float
    """Two-sided; small if the policies differ."""

    @property
    def difference(self) -> float:
        """Success rate of the first minus that of the second, on the common episodes."""
        return (self.only_first - self.only_second) / self.episodes


def paired_comparison(first: Mapping[str, bool], second: Mapping[str, bool]) -> PairedComparison:
    """Test two policies on their common episodes by the exact McNemar test (McNemar 1947, exact binomial
    form).

    Only episodes that the two end differently carry evidence. first, second: episode id -> success. Assumes
    episodes independent given the policies, their number fixed beforehand. Raises ValueError without a common
    episode.
    """
    common = first.keys() & second.keys()
    if not common:
        raise ValueError("the two policies have no episode in common, so they cannot be compared in pairs")
    only_first = sum(first[i] and not second[i] for i in common)
    only_second = sum(second[i] and not first[i] for i in common)
    discordant = only_first + only_second
    p_value = float(scipy.stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return PairedComparison(len(common), only_first, only_second, p_value)


def unpaired_p_value(first: tuple[int, int], second: tuple[int, int]) -> float:
    """Return the two-sided p-value of Fisher's exact test (Fisher 1934) of two (successes, episodes) without
    common episodes.

    For numbers from two papers, for example. Assumes independent episodes, their numbers fixed beforehand;
    conservative.
    """
    table = [[successes, episodes - successes] for successes, episodes in (first, second)]
    return float(scipy.stats.fisher_exact(table).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values corrected for their number (Holm 1979), in the given order.

    Controls the probability of rejecting any true null at the level. Assumes nothing about the dependence
    between the tests.
    """
    order = np.argsort(p_values, kind="stable")
    raised = np.asarray(p_values, float)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(raised))
    return [float(p) for p in corrected]


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation, with an interval."""

    rho: float
    interval: Interval
    number: int
    """Number of pairs."""
    clusters: int
    """Number of independent groups of pairs."""


FEWEST_CLUSTERS = 3
"""Smallest number of independent groups whose spread gives an interval."""
_NEARLY_ONE = 1 - 1e-12  # Fisher's transformation of 1 is infinite


def rank_correlation(
    x: Sequence[float],
    y: Sequence[float],
    clusters: Sequence[str],
    given: Sequence[float] | None = None,
    confidence: float = 0.95,
) -> Correlation | None:
    """Return Spearman's rank correlation of pairs that are independent only between clusters, such as the
    checkpoints of several trainings.

    given: a third value per pair; the correlation is then the partial one: that of the ranks of x and y after
    the linear dependence of both on the ranks of `given` is removed.

    The interval is a jackknife that leaves out one cluster at a time, on Fisher's scale, with Student's t of
    one degree of freedom less than there are clusters. None for fewer than five pairs or FEWEST_CLUSTERS, and
    where the correlation is undefined: x, y or `given` is constant, or x or y a monotone function of `given`.
    """
    columns = np.array([x, y] if given is None else [x, y, given], float)
    names = sorted(set(clusters))
    if len(clusters) < 5 or len(names) < FEWEST_CLUSTERS:
        return None
    of = np.asarray(clusters)
    rho, *without = (_spearman(columns[:, of != name]) for name in [None, *names])
    if np.isnan(rho):
        return None
    if np.isnan(without).any():  # undefined without one of the clusters, so that the spread is unknown
        return Correlation(rho, Interval(-1.0, 1.0), len(of), len(names))
    freedom = len(names) - 1
    centre, left_out = _fisher(rho), _fisher(np.array(without))
    error = np.sqrt(freedom / len(names) * ((left_out - left_out.mean()) ** 2).sum())
    half = scipy.stats.t.ppf((1 + confidence) / 2, freedom) * error
    low, high = np.tanh([centre - half, centre + half])
    return Correlation(rho, Interval(float(low), float(high)), len(of), len(names))


def _fisher(rho: Any) -> Any:
    return np.arctanh(np.clip(rho, -_NEARLY_ONE, _NEARLY_ONE))


def _spearman(columns: NDArray[np.float64]) -> float:
    """Return the rank correlation of the first two rows, given the third if there is one; nan if undefined.

    columns: (2 or 3, N).
    """
    ranks = scipy.stats.rankdata(columns, axis=1)
    if (np.ptp(ranks, axis=1) == 0).any():
        return float("nan")
    of = np.corrcoef(ranks)
    if len(of) == 2:
        return float(np.clip(of[0, 1], -1, 1))
    left = (1 - of[0, 2] ** 2) * (1 - of[1, 2] ** 2)
    if left < _ROUNDING:
        return float("nan")
    return float(np.clip((of[0, 1] - of[0, 2] * of[1, 2]) / np.sqrt(left), -1, 1))


# -- many rates, with the spread between trainings -----------------------------------------------------------


def hierarchical_draws(
    outcomes: NDArray[np.float64],
    tasks: NDArray[np.int64],
    draws: int = 2000,
    seed: int = 0,
    recipes: bool = True,
) -> NDArray[np.float64]:
    """Draw plausible success rates of a recipe from the observed trainings and scenes: (B, C), jointly over
    all cells.

    outcomes: (C, R, E), 1 success, 0 failure, or any measured value, nan not played; cells share replicates
    (seeds) and episodes, so that differences between cells keep their pairing. tasks: (E,), the index of each
    episode's task.

    Replicate, then task, then episode, after the hierarchical bootstrap (Davison and Hinkley 1997, 3.8;
    rliable, Agarwal et al. 2021), with two changes, since the plain one has too little coverage with the
    usual three to five seeds:
    - trainings: resampling R replicates gives a variance too small by (R - 1) / R and tails of few
      combinations; instead their mean is drawn from a Student t with R - 1 degrees of freedom (jointly over
      cells), which is exact for normal means;
    - scenes: all replicates have the same episodes, so scenes are resampled once for all replicates, within
      their task, and scaled by how far replicates agree about which scenes are hard (two-way analysis of
      variance; Owen 2007): the rest is already in the spread between them.

    The tasks are those of the suite, not a sample of tasks. A cell with one replicate has no spread between
    trainings. recipes: False for the trained policies themselves, of which only the scenes are a sample.
    """
    rng = np.random.default_rng(seed)
    played = ~np.isnan(outcomes)
    values = np.where(played, outcomes, 0.0)
    replicates = values.sum(2) / np.maximum(played.sum(2), 1)  # (C, R)
    there = played.any(2)
    number = there.sum(1)
    centre = (replicates * there).sum(1) / np.maximum(number, 1)
    trainings = _trainings(replicates, there, centre, draws, rng)
    return np.asarray(
        centre + (trainings if recipes else 0.0) + _scenes(values, played, tasks, draws, rng, recipes),
        float,
    )


def _trainings(
    replicates: NDArray[np.float64],
    there: NDArray[np.bool_],
    centre: NDArray[np.float64],
    draws: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    number = there.sum(1)
    freedom = np.maximum(number - 1, 1)
    apart = np.where(there, replicates - centre[:, None], 0.0) / np.sqrt(number * freedom)[:, None]
    normal = rng.standard_normal((draws, replicates.shape[1])) @ apart.T
    tails = np.empty_like(normal)
    uniform = rng.random(draws)  # shared by all cells, so that a draw from the tails is one in every cell
    for own in np.unique(freedom):
        tails[:, freedom == own] = np.sqrt(own / scipy.stats.chi2.ppf(uniform, own))[:, None]
    return np.asarray(normal * tails, float)


def _scenes(
    values: NDArray[np.float64],
    played: NDArray[np.bool_],
    tasks: NDArray[np.int64],
    draws: int,
    rng: np.random.Generator,
    recipes: bool,
) -> NDArray[np.float64]:
    met = played.sum(1)  # (C, E): number of replicates that played the episode
    means = values.sum(1) / np.maximum(met, 1)
    moved = np.zeros((draws, len(values)))
    both = zip(values, played, strict=True)
    share = np.sqrt([_shared(own, there) if recipes else 1.0 for own, there in both])
    for task in np.unique(tasks):
        mine = tasks == task
        size = int(mine.sum())
        times = rng.multinomial(size, np.full(size, 1 / size), draws).astype(float)  # (B, E of the task)
        weight = (met[:, mine] > 0).astype(float)
        drawn = (times @ (means[:, mine] * weight).T) / np.maximum(times @ weight.T, 1)
        plain = (means[:, mine] * weight).sum(1) / np.maximum(weight.sum(1), 1)
        # The variance of a resampled mean is too small by (size - 1) / size.
        moved += (
            (drawn - plain)
            * np.sqrt(size / max(size - 1, 1))
            * weight.sum(1)
            / np.maximum((met > 0).sum(1), 1)
        )
    return np.asarray(moved * share, float)


def _shared(values: NDArray[np.float64], played: NDArray[np.bool_]) -> float:
    """Return the share of the scenes in the variance of their means over replicates; 1 for one replicate,
    whose noise cannot be separated.
    """
    rows = played.any(1)
    both = played[rows].all(0)
    if rows.sum() < 2 or both.sum() < 2:
        return 1.0
    table = values[rows][:, both]
    scenes = table.mean(0).var(ddof=1)
    left = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    noise = (left**2).sum() / ((table.shape[0] - 1) * (table.shape[1] - 1))
    return float(max(0.0, 1 - noise / table.shape[0] / scenes)) if scenes else 0.0


def band(draws: NDArray[np.float64], counted: Interval, confidence: float = 0.95) -> Interval:
    """Return the interval of one cell's draws (B,), never narrower than `counted`, the interval from its
    pooled episodes alone.
    """
    spread = interval_of(np.clip(draws, 0, 1), confidence)
    return Interval(min(spread.low, counted.low), max(spread.high, counted.high))


def interval_of(draws: NDArray[np.float64], confidence: float = 0.95) -> Interval:
    """Return the central interval of draws, which may be infinite."""
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], method="inverted_cdf")
    return Interval(float(low), float(high))
