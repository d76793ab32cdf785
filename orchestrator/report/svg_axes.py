"""Axes and paths of a figure: scales from numbers to coordinates, and SVG path data. Pure."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

TICK_GAP = 30.0
Scale = Callable[[float], float]
"""Function from a value to its coordinate."""


@dataclass(frozen=True)
class Tick:
    """Coordinate and text of an axis tick."""

    at: float
    text: str


def closest(scale: Scale, counts: Sequence[int]) -> float:
    """Return the smallest distance between adjacent counts; infinity for fewer than two."""
    return min((scale(b) - scale(a) for a, b in itertools.pairwise(counts)), default=math.inf)


def spread(ticks: Iterable[Tick]) -> tuple[Tick, ...]:
    """Return the ticks at least TICK_GAP after the one kept before, so that their texts do not touch."""
    kept: list[Tick] = []
    for tick in ticks:
        if not kept or tick.at - kept[-1].at >= TICK_GAP:
            kept.append(tick)
    return tuple(kept)


def rate_ticks(y: Scale) -> tuple[Tick, ...]:
    """Return ticks at the rates 0, 0.2, ... 1."""
    return tuple(Tick(y(rate / 5), f"{rate / 5:g}") for rate in range(6))


def unit_scale(zero: float, one: float) -> Scale:
    """Return the linear scale that maps 0 to `zero` and 1 to `one` (px)."""
    return lambda rate: zero + rate * (one - zero)


def log_scale(values: Sequence[float], left: float, right: float) -> Scale:
    """Return the logarithmic scale from the smallest value at `left` to the largest at `right` (px); the
    middle if all are equal. values: positive.
    """
    first, last = math.log(min(values)), math.log(max(values))
    if first == last:
        return lambda value: (left + right) / 2
    return lambda value: left + (math.log(value) - first) / (last - first) * (right - left)


def measure(values: Sequence[float], left: float, right: float) -> tuple[Scale, tuple[Tick, ...], str]:
    """Return scale, round ticks and label suffix of an axis for measured numbers; logarithmic if they span
    more than a factor of 8.
    """
    low, high = min(values), max(values)
    if low > 0 and high / low > 8:
        place = log_scale(values, left, right)
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        rounds = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
        return (
            place,
            spread(
                Tick(place(value), f"{value:g}") for value in rounds if low * 0.95 <= value <= high * 1.05
            ),
            " (log scale)",
        )
    return *linear(values, left, right), ""


def linear(values: Sequence[float], left: float, right: float) -> tuple[Scale, tuple[Tick, ...]]:
    """Return scale and round ticks of a linear axis for measured numbers, from the smallest at `left` to the
    largest at `right` (px), which is larger.
    """
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    low, high = (low - span / 2, high + span / 2) if high == low else (low, high)
    step = 10.0 ** math.floor(math.log10(span / 3))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 5)
    first = math.ceil(low / step)
    scale, origin, width = unit_scale(left, right), low, high - low

    def x(value: float) -> float:
        return scale((value - origin) / width)

    ticks = (Tick(x(i * step), f"{i * step:g}") for i in range(first, math.floor(high / step) + 1))
    return x, spread(ticks)


def polyline(places: Iterable[tuple[float, float]]) -> str:
    """Return the SVG path through the points (px); empty if there are none."""
    steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    return f"M{steps}" if steps else ""


def area(edges: Sequence[tuple[float, float, float] | None]) -> str:
    """Return the closed path around a band of (x, low, high): along its lower edge and back along its upper
    one. None: a gap in the band.
    """
    path, run = "", list[tuple[float, float, float]]()
    for edge in (*edges, None):
        if edge:
            run.append(edge)
            continue
        if len(run) > 1:
            back = [(x, high) for x, _, high in reversed(run)]
            path += polyline([*((x, low) for x, low, _ in run), *back]) + "Z"
        run = []
    return path
