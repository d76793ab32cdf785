"""Exchange rate of demonstrations and videos: how many videos are worth as much as one demonstration. Pure.

At n demonstrations, ratio x n videos are worth (factor - 1) x n further demonstrations, where the factor is
the data equivalence (`sample_efficiency.data_equivalence`) of a line with that ratio of videos to a line on
demonstrations alone. So one demonstration is worth ratio / (factor - 1) videos.
"""

import math
from dataclasses import dataclass
from typing import Literal

from orchestrator.stats.fixed_sample import Interval
from orchestrator.stats.sample_efficiency import Estimate

ExchangeVerdict = Literal["replace demonstrations", "no evidence", "hurt"]
"""What videos do."""


@dataclass(frozen=True)
class ExchangeRate:
    """Videos that are worth as much as one demonstration, at one ratio of videos to demonstrations."""

    ratio: float
    """Videos per demonstration, above 0."""
    factor: Estimate
    """How many times as many demonstrations the line on demonstrations alone needs; 1: videos are worth
    nothing.
    """

    @property
    def worth(self) -> Estimate:
        """Videos per demonstration that they replace; infinite: no number of videos is worth one, 0: the
        lines do not bound it from below.
        """
        low, high = self.factor.interval
        return Estimate(self._videos(self.factor.value), Interval(self._videos(high), self._videos(low)))

    @property
    def verdict(self) -> ExchangeVerdict:
        """What the 95 % interval of the factor says."""
        low, high = self.factor.interval
        if low > 1:
            return "replace demonstrations"
        return "hurt" if high < 1 else "no evidence"

    def _videos(self, factor: float) -> float:
        if math.isnan(factor):
            return math.nan
        return math.inf if factor <= 1 else self.ratio / (factor - 1)
