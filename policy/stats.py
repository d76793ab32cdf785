"""Sufficient statistics of vectors, for normalisation: numpy only, so that whoever writes episodes need not load torch."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Vector = tuple[float, ...]


@dataclass(frozen=True)
class Stats:
    """Mergeable, so each episode carries its own and a subset's are their sum. One number per dimension."""

    count: int
    mean: Vector
    m2: Vector
    """Sum of squared distances from the mean."""
    low: Vector
    high: Vector

    @classmethod
    def of(cls, values: npt.NDArray[np.floating[Any]]) -> "Stats":
        """Of (N, D) vectors, N >= 1."""
        data = np.asarray(values, np.float64)
        mean = data.mean(0)
        return cls(len(data), _vector(mean), _vector(((data - mean) ** 2).sum(0)), _vector(data.min(0)), _vector(data.max(0)))

    @classmethod
    def merge(cls, parts: Iterable["Stats"]) -> "Stats":
        """Of all vectors of all parts (Chan et al. 1979)."""
        parts = list(parts)
        counts = np.array([part.count for part in parts], np.float64)[:, None]
        means, m2s = np.array([part.mean for part in parts]), np.array([part.m2 for part in parts])
        mean = (counts * means).sum(0) / counts.sum()
        m2 = (m2s + counts * (means - mean) ** 2).sum(0)
        low, high = np.min([part.low for part in parts], axis=0), np.max([part.high for part in parts], axis=0)
        return cls(int(counts.sum()), _vector(mean), _vector(m2), _vector(low), _vector(high))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Stats":
        return cls(data["count"], *(tuple(data[name]) for name in ("mean", "m2", "low", "high")))


def _vector(array: npt.NDArray[np.float64]) -> Vector:
    return tuple(array.tolist())
