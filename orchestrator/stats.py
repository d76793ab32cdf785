"""What may be concluded from counted outcomes. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from scipy.stats import binomtest


def wilson(successes: int, episodes: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a success rate (Wilson 1927). Assumes independent episodes of one policy; no episodes, no knowledge: (0, 1)."""
    if episodes == 0:
        return 0.0, 1.0
    interval = binomtest(successes, episodes).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


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
        if self.p_value >= 0.05:
            return "no evidence of a difference"
        return "better" if self.difference > 0 else "worse"


def paired_comparison(first: Mapping[str, bool], second: Mapping[str, bool]) -> PairedComparison:
    """Exact McNemar test (McNemar 1947, exact binomial form) on common episodes: only episodes the two end differently tell anything.

    first, second: episode id -> success. Assumes the episodes to be independent given the policies.
    """
    common = first.keys() & second.keys()
    if not common:
        raise ValueError("the two policies have no episode in common, so they cannot be compared in pairs")
    only_first = sum(first[i] and not second[i] for i in common)
    only_second = sum(second[i] and not first[i] for i in common)
    discordant = only_first + only_second
    p_value = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return PairedComparison(len(common), only_first, only_second, p_value)
