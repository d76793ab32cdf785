"""Sufficient statistics of vectors, for normalisation: numpy only, so that whoever writes episodes need not load torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Stats:
    """Sufficient statistics of vectors: mergeable, so each episode carries its own and a subset's are their sum."""

    count: int
    mean: Array
    m2: Array
    """Sum of squared distances from the mean."""
    low: Array
    high: Array

    @classmethod
    def of(cls, values: npt.NDArray[np.floating[Any]]) -> "Stats":
        """Of (N, D) vectors, N >= 1."""
        data = np.asarray(values, np.float64)
        mean = data.mean(0)
        return cls(len(data), mean, ((data - mean) ** 2).sum(0), data.min(0), data.max(0))

    @classmethod
    def merge(cls, parts: Iterable["Stats"]) -> "Stats":
        """Of all vectors of all parts (Chan et al. 1979)."""
        parts = list(parts)
        count = sum(part.count for part in parts)
        mean = np.sum([part.count * part.mean for part in parts], axis=0) / count
        m2 = np.sum([part.m2 + part.count * (part.mean - mean) ** 2 for part in parts], axis=0)
        return cls(count, mean, m2, np.min([part.low for part in parts], axis=0), np.max([part.high for part in parts], axis=0))

    def to_json(self) -> dict[str, Any]:
        return {"count": self.count, **{name: getattr(self, name).tolist() for name in ("mean", "m2", "low", "high")}}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Stats":
        return cls(data["count"], *(np.asarray(data[name], np.float64) for name in ("mean", "m2", "low", "high")))
