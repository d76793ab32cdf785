"""By how much the best of several checkpoints looks better on the scenes that chose it. Pure.

Shapes: A arms, E scenes of a block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # imports `scipy.stats` where it is first used
from numpy.typing import NDArray

from orchestrator.stats.fixed_sample import Interval
from orchestrator.stats.outcome_matrix import outcome_matrix


@dataclass(frozen=True)
class SelectionBias:
    """Success of the same checkpoints on the scenes that chose them and on others."""

    chosen_on: float
    """Mean over arms of the success rate on the scenes that chose the checkpoints."""
    reported: float
    """Mean over arms of the success rate on other scenes."""
    interval: Interval
    """95 % interval of the difference, over scenes, for these arms."""

    @property
    def difference(self) -> float:
        """Excess of the rate on the scenes that chose the checkpoints."""
        return self.chosen_on - self.reported


def selection_bias(
    chosen_on: Sequence[Mapping[str, bool]], reported: Sequence[Mapping[str, bool]]
) -> SelectionBias:
    """Return the selection bias of chosen checkpoints, one per arm. chosen_on, reported: episode id ->
    success, by arm.

    Arms share scenes, so the variance is that of the sums over arms of each scene (Liang and Zeger 1986), of
    both blocks together, with the degrees of freedom of the smaller block. Assumes independent scenes. The
    interval is (-1, 1) if a block has one scene.
    """
    (first, variance, scenes), (second, other, others) = _block(chosen_on), _block(reported)
    if min(scenes, others) < 2:
        return SelectionBias(first, second, Interval(-1.0, 1.0))
    half = float(scipy.stats.t.ppf(0.975, min(scenes, others) - 1)) * float(np.sqrt(variance + other))
    apart = first - second
    return SelectionBias(first, second, Interval(max(-1.0, apart - half), min(1.0, apart + half)))


def _block(outcomes: Sequence[Mapping[str, bool]]) -> tuple[float, float, int]:
    """Return the mean over arms of the success rate on a block of scenes, its variance and the number of
    scenes.
    """
    scenes, won = outcome_matrix(outcomes)
    counts = np.sum(~np.isnan(won), axis=1, keepdims=True)
    rates: NDArray[np.float64] = np.nanmean(won, axis=1, keepdims=True)
    of_scene = np.nansum((won - rates) / counts, axis=0) / len(outcomes)
    widened = len(scenes) / max(1, len(scenes) - 1)
    return float(rates.mean()), float((of_scene**2).sum()) * widened, len(scenes)
