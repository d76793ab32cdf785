"""Sufficient statistics of vectors, for normalisation; numpy only, so that processes that write episodes need
not import torch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Vector = tuple[float, ...]
# Half range, or standard deviation, below which a dimension counts as constant and is normalised to 0:
# division would only amplify noise.
CONSTANT = 1e-6
VECTORS = ("mean", "m2", "low", "high", "q01", "q99")
MOST_DIMENSIONS = 4096
MOST = 1e37
"""Largest magnitude of a number in a file of statistics; twice that is still a finite float32, the networks'
type.
"""


@dataclass(frozen=True)
class Stats:
    """Statistics of vectors, one number per dimension. Mergeable: each episode stores its own, and those of a
    subset are merged from them.
    """

    count: int
    mean: Vector
    m2: Vector
    """Sum of squared distances from the mean."""
    low: Vector
    high: Vector
    q01: Vector
    """1 % quantile; after a merge the mean of the parts' quantiles, weighted by count, because quantiles
    cannot be merged exactly.
    """
    q99: Vector
    """99 % quantile, likewise."""

    @classmethod
    def of(cls, values: npt.NDArray[np.floating[Any]]) -> "Stats":
        """Return the statistics of (N, D) vectors, N >= 1."""
        data = np.asarray(values, np.float64)
        mean = data.mean(0)
        m2 = ((data - mean) ** 2).sum(0)
        q01, q99 = np.quantile(data, (0.01, 0.99), axis=0)
        return cls(
            len(data), *(tuple(vector.tolist()) for vector in (mean, m2, data.min(0), data.max(0), q01, q99))
        )

    @classmethod
    def merge(cls, parts: Iterable["Stats"]) -> "Stats":
        """Return the statistics of all vectors of all parts (Chan et al. 1979)."""
        parts = list(parts)
        counts = np.array([part.count for part in parts], np.float64)[:, None]
        means, m2s, lows, highs, q01s, q99s = (
            np.array([getattr(part, name) for part in parts], np.float64) for name in VECTORS
        )

        def weighted(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            return np.asarray((counts * vectors).sum(0) / counts.sum())

        mean = weighted(means)
        m2 = (m2s + counts * (means - mean) ** 2).sum(0)
        merged = (mean, m2, lows.min(0), highs.max(0), weighted(q01s), weighted(q99s))
        return cls(int(counts.sum()), *(tuple(vector.tolist()) for vector in merged))

    def only(self, dimensions: Sequence[int]) -> "Stats":
        """Return the statistics of some dimensions, in this order."""
        parts = {name: tuple(getattr(self, name)[i] for i in dimensions) for name in VECTORS}
        return Stats(self.count, **parts)

    def to_json(self) -> dict[str, Any]:
        """Return the fields, JSON-safe."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> "Stats":
        """Return the statistics that `to_json` wrote; raise ValueError, with one sentence that names the
        field, for anything else.

        Every number must be finite, and all vectors equally wide.
        """
        if not isinstance(data, dict):
            raise ValueError("statistics are a JSON object")
        if lacking := [name for name in ("count", *VECTORS) if name not in data]:
            raise ValueError(f"the statistics lack {', '.join(lacking)}")
        count, vectors = data["count"], {name: _vector(data[name], name) for name in VECTORS}
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError("count of the statistics must be a whole number of at least 1")
        widths = {name: len(vector) for name, vector in vectors.items()}
        if len(set(widths.values())) > 1:
            raise ValueError(
                "the vectors of the statistics differ in width"
                f" ({', '.join(f'{name} {width}' for name, width in widths.items())})"
            )
        if any(low > high for low, high in zip(vectors["low"], vectors["high"], strict=True)):
            raise ValueError("low of the statistics exceeds high")
        if any(value < 0 for value in vectors["m2"]):
            raise ValueError("m2 of the statistics, a sum of squares, is negative")
        return cls(count, *vectors.values())


def _vector(value: Any, name: str) -> Vector:
    if not isinstance(value, (list, tuple)) or len(value) > MOST_DIMENSIONS:
        raise ValueError(f"{name} of the statistics must be a list of at most {MOST_DIMENSIONS} numbers")
    for number in value:
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not abs(number) <= MOST:
            raise ValueError(
                f"{name} of the statistics holds a value that is not a number, not finite or larger than"
                f" {MOST:g}"
            )
    return tuple(value)
