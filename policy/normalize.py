"""Normalisation of raw values to the networks' range and back, with the statistics of the policy's own
training demos only.

The statistics are stored in the checkpoint: recomputed from other data, they would change the policy's
actions.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from policy.feature_stats import CONSTANT, Stats


class Normalizer:
    """Affine map per dimension; constant dimensions are normalised to 0.

    `minmax`: the demos' range becomes [-1, 1] (the paper). `meanstd`: zero mean, unit variance. `quantile`: 1
    % to 99 % becomes [-1, 1].
    """

    def __init__(self, stats: Stats, kind: Literal["minmax", "meanstd", "quantile"]) -> None:
        if kind != "meanstd":
            low, high = (
                np.array(bound)
                for bound in ((stats.low, stats.high) if kind == "minmax" else (stats.q01, stats.q99))
            )
            centre, spread = (high + low) / 2, (high - low) / 2
        else:
            centre, spread = np.array(stats.mean), np.sqrt(np.array(stats.m2) / stats.count)
        constant = spread < CONSTANT
        self.centre = torch.tensor(centre, dtype=torch.float32)
        self.spread = torch.tensor(np.where(constant, 0.0, spread), dtype=torch.float32)
        self.per_spread = torch.tensor(
            np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, spread)), dtype=torch.float32
        )

    def normalize(self, raw: Tensor) -> Tensor:
        """Map raw values (..., D) to the networks' range; same shape."""
        return (raw - self.centre.to(raw.device)) * self.per_spread.to(raw.device)

    def denormalize(self, normal: Tensor) -> Tensor:
        """Invert `normalize`; constant dimensions become their constant."""
        return normal * self.spread.to(normal.device) + self.centre.to(normal.device)


@dataclass(frozen=True)
class ClipNormalizer:
    """Normalisation of the vectors of training clips."""

    proprio: Normalizer
    actions: Normalizer
