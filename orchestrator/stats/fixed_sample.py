"""What may be concluded from counted outcomes, once they are all there. Pure. What may be concluded while one still looks: anytime.py.

Shapes: C cells (points of a curve), R replicates (seeds), E episodes of the suite, B draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats as scipy_stats
from scipy.stats import binom, binomtest

LEVEL = 0.05
"""Of every verdict."""
VERDICT = "no evidence of a difference", "better", "worse"


# -- one rate ---------------------------------------------------------------------------------------------------------------------------


def wilson(successes: int, episodes: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a success rate (Wilson 1927): for display; covers about what it promises on average over rates.

    Assumes independent episodes of one policy, as many as were fixed beforehand. No episodes, no knowledge: (0, 1).
    """
    return _interval(successes, episodes, confidence, "wilson")


def clopper_pearson(successes: int, episodes: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval of a success rate (Clopper and Pearson 1934): for claims; covers at least what it promises at every rate.

    Assumes what `wilson` does.
    """
    return _interval(successes, episodes, confidence, "exact")


def _interval(successes: int, episodes: int, confidence: float, method: str) -> tuple[float, float]:
    if episodes == 0:
        return 0.0, 1.0
    tested = binomtest(successes, episodes, successes / episodes)  # a rate whose p-value, which nobody asks for, takes no search
    interval = tested.proportion_ci(confidence, method=method)
    return float(interval.low), float(interval.high)


def best_of_bias(policies: int, episodes: int, success_rate: float) -> float:
    """By how much the best observed rate of so many equally good policies exceeds their true rate, in expectation (the winner's curse).

    Exact, from the distribution of the largest of independent binomial counts; on common episodes the bias is smaller.
    """
    at_most = binom.cdf(np.arange(episodes), episodes, success_rate) ** policies
    return float((1 - at_most).sum() / episodes - success_rate)


# -- two rates --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairedComparison:
    """Two policies on the episodes both were scored on."""

    episodes: int
    only_first: int
    """Episodes that only the first policy won."""
    only_second: int
    p_value: float
    """Two-sided; small if the policies differ."""

    @property
    def difference(self) -> float:
        """Success rate of the first minus that of the second, on the common episodes."""
        return (self.only_first - self.only_second) / self.episodes

    @property
    def verdict(self) -> str:
        """In words, at the 5 % level."""
        return verdict(self.difference, self.p_value)


def paired_comparison(first: Mapping[str, bool], second: Mapping[str, bool]) -> PairedComparison:
    """Exact McNemar test (McNemar 1947, exact binomial form) on common episodes: only episodes the two end differently tell anything.

    first, second: episode id -> success. Assumes the episodes to be independent given the policies, and their number to have been fixed
    beforehand. ValueError without a common episode.
    """
    common = first.keys() & second.keys()
    if not common:
        raise ValueError("the two policies have no episode in common, so they cannot be compared in pairs")
    only_first = sum(first[i] and not second[i] for i in common)
    only_second = sum(second[i] and not first[i] for i in common)
    discordant = only_first + only_second
    p_value = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return PairedComparison(len(common), only_first, only_second, p_value)


def unpaired_p_value(first: tuple[int, int], second: tuple[int, int]) -> float:
    """Fisher's exact test (Fisher 1934), two-sided, of two (successes, episodes) that share no episode, such as numbers from two papers.

    Assumes independent episodes, their numbers fixed beforehand; conservative.
    """
    table = [[successes, episodes - successes] for successes, episodes in (first, second)]
    return float(scipy_stats.fisher_exact(table).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, in the order given (Holm 1979): the chance that any true null is rejected stays below the level.

    Assumes nothing about how the tests depend on one another.
    """
    order = np.argsort(p_values, kind="stable")
    raised = np.asarray(p_values, float)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(raised))
    return [float(p) for p in corrected]


def verdict(difference: float, p_value: float) -> str:
    """Of a first against a second, at the 5 % level; that nothing is shown is a verdict too."""
    return VERDICT[0] if p_value >= LEVEL or difference == 0 else VERDICT[1] if difference > 0 else VERDICT[2]


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation, with an interval."""

    rho: float
    low: float
    high: float
    number: int
    """Pairs."""


def rank_correlation(x: Sequence[float], y: Sequence[float], confidence: float = 0.95) -> Correlation | None:
    """Spearman's, with the interval of Bonett and Wright (2000); None for fewer than five pairs, or where one side never changes.

    Assumes independent pairs. Checkpoints of one training are not quite: read the interval as the narrowest it can be.
    """
    if len(x) < 5 or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    rho = float(scipy_stats.spearmanr(x, y).statistic)
    if abs(rho) > 1 - 1e-12:
        return Correlation(rho, rho, rho, len(x))
    half = scipy_stats.norm.ppf((1 + confidence) / 2) * np.sqrt((1 + rho**2 / 2) / (len(x) - 3))
    low, high = np.tanh(np.arctanh(rho) + np.array([-half, half]))
    return Correlation(rho, float(low), float(high), len(x))


# -- many rates, with the spread between trainings ---------------------------------------------------------------------------------------


def hierarchical_draws(outcomes: NDArray[np.float64], tasks: NDArray[np.int64], draws: int = 2000, seed: int = 0) -> NDArray[np.float64]:
    """What the success rates of a recipe could be, given what some trainings and some scenes showed: (B, C), all cells drawn together.

    outcomes: (C, R, E), 1 success, 0 failure, nan not played; cells share replicates (seeds) and episodes, so that differences between
    cells keep their pairing. tasks: (E,), which task an episode belongs to.

    Replicate, then task, then episode, after the hierarchical bootstrap (Davison and Hinkley 1997, 3.8; rliable, Agarwal et al. 2021), with
    two changes, each because the plain one covers too little with the three to five seeds that people can pay for:
    - trainings: instead of resampling R replicates, whose spread comes out (R - 1) / R too small and whose tails are those of a handful of
      combinations, their mean is drawn from a Student t with R - 1 degrees of freedom (jointly over cells), which is exact for normal means;
    - scenes: all replicates meet the same episodes, so scenes are resampled once for all of them, within their task, and by so much as
      replicates agree about which scenes are hard (two-way analysis of variance; Owen 2007): the rest is in the spread between them already.

    The tasks are those of the suite, not a sample of tasks. A cell with one replicate has nothing of the spread between trainings.
    """
    rng = np.random.default_rng(seed)
    played = ~np.isnan(outcomes)
    values = np.where(played, outcomes, 0.0)
    replicates = values.sum(2) / np.maximum(played.sum(2), 1)  # (C, R)
    there = played.any(2)
    number = there.sum(1)
    centre = (replicates * there).sum(1) / np.maximum(number, 1)
    return np.asarray(centre + _trainings(replicates, there, centre, draws, rng) + _scenes(values, played, tasks, draws, rng), float)


def _trainings(
    replicates: NDArray[np.float64], there: NDArray[np.bool_], centre: NDArray[np.float64], draws: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    number = there.sum(1)
    freedom = np.maximum(number - 1, 1)
    apart = np.where(there, replicates - centre[:, None], 0.0) / np.sqrt(number * freedom)[:, None]
    normal = rng.standard_normal((draws, replicates.shape[1])) @ apart.T
    tails = np.empty_like(normal)
    uniform = rng.random(draws)  # the same for all cells: a wide draw is wide everywhere
    for own in np.unique(freedom):
        tails[:, freedom == own] = np.sqrt(own / scipy_stats.chi2.ppf(uniform, own))[:, None]
    return np.asarray(normal * tails, float)


def _scenes(
    values: NDArray[np.float64], played: NDArray[np.bool_], tasks: NDArray[np.int64], draws: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    met = played.sum(1)  # (C, E): by how many replicates
    means = values.sum(1) / np.maximum(met, 1)
    moved = np.zeros((draws, len(values)))
    share = np.sqrt([_shared(own, there) for own, there in zip(values, played, strict=True)])
    for task in np.unique(tasks):
        mine = tasks == task
        size = int(mine.sum())
        times = rng.multinomial(size, np.full(size, 1 / size), draws).astype(float)  # (B, E of the task)
        weight = (met[:, mine] > 0).astype(float)
        drawn = (times @ (means[:, mine] * weight).T) / np.maximum(times @ weight.T, 1)
        plain = (means[:, mine] * weight).sum(1) / np.maximum(weight.sum(1), 1)
        # A resampled mean spreads (size - 1) / size too little.
        moved += (drawn - plain) * np.sqrt(size / max(size - 1, 1)) * weight.sum(1) / np.maximum((met > 0).sum(1), 1)
    return np.asarray(moved * share, float)


def _shared(values: NDArray[np.float64], played: NDArray[np.bool_]) -> float:
    """Of the variance of scenes' means over replicates, the part that is the scenes' own: 1 for one replicate, whose noise nothing else shows."""
    rows = played.any(1)
    both = played[rows].all(0)
    if rows.sum() < 2 or both.sum() < 2:
        return 1.0
    table = values[rows][:, both]
    scenes = table.mean(0).var(ddof=1)
    left = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    noise = (left**2).sum() / ((table.shape[0] - 1) * (table.shape[1] - 1))
    return float(max(0.0, 1 - noise / table.shape[0] / scenes)) if scenes else 0.0


def band(draws: NDArray[np.float64], counted: tuple[float, float], confidence: float = 0.95) -> tuple[float, float]:
    """Of one cell's draws (B,), and never narrower than `counted`, the interval of what its pooled episodes alone leave open."""
    spread = interval_of(np.clip(draws, 0, 1), confidence)
    return min(spread[0], counted[0]), max(spread[1], counted[1])


def interval_of(draws: NDArray[np.float64], confidence: float = 0.95) -> tuple[float, float]:
    """The middle part of draws, which may hold infinities."""
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], method="inverted_cdf")
    return float(low), float(high)
