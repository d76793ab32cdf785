"""A sweep searched over ranges: success as a surface over demo count and action-free ratio, in sentences and
as a figure, in place of lines of one point.
"""

import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from orchestrator.stats.success_surface import (
    FEWEST_ARMS,
    FEWEST_COUNTS,
    SuccessSurface,
    pareto_front,
)

if TYPE_CHECKING:
    from orchestrator.report.sample_efficiency_curve import Curve

RATES = (0.9, 0.8, 0.5)
"""Success rates whose demo counts are reported, in order of preference."""
CONTOURS = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
GRID = 64
METRIC_COUNTS = 8
"""Number of demo counts at which a surface is published as metrics."""


def surface_in_words(curve: "Curve") -> list[str]:
    """Return what the surface says, or that there are too few arms for one, and the arms on the Pareto front
    of a search with two objectives.
    """
    surface, (demos, ratios) = curve.surface, _tried(curve)
    number = f"{len(curve.arms)} arms"
    if surface is None:
        said = [
            f"{number} with {len(np.unique(demos))} demo counts are too few for a surface over demo count and"
            f" action-free ratio; it takes {FEWEST_ARMS} arms with {FEWEST_COUNTS} demo counts."
        ]
    else:
        said = [
            f"Success as a monotone surface over {number}, {demos.min():g} to {demos.max():g} demos and"
            f" ratios of {ratios.min():g} to {ratios.max():g}; intervals include the spread between"
            " trainings.",
            *_at_the_ends(surface, sorted({ratios.min(), ratios.max()}), float(demos.max())),
        ]
    if front := front_arms(curve):
        against = str(curve.sweep["search"]["optuna"]["against"]).replace("demo_count", "demos")
        listed = ", ".join(
            f"{curve.arms[arm].arm.name} ({curve.arms[arm].successes}/{curve.arms[arm].episodes})"
            for arm in front
        )
        said.append(f"Pareto front of success and {against}: {listed}.")
    return said


def _at_the_ends(surface: SuccessSurface, ratios: Sequence[float], most: float) -> Iterator[str]:
    """Yield a sentence for each ratio: its success with the most demos, and the demos that reach a rate which
    all of them reach.
    """
    ends = [surface.rate(most, ratio) for ratio in ratios]
    common = min(end.value for end in ends)
    rate = next((rate for rate in RATES if common >= rate), RATES[-1])
    for ratio, end in zip(ratios, ends, strict=True):
        low, high = end.interval
        told = f"Ratio {ratio:g}: {end.value:.2f} [{low:.2f}, {high:.2f}] with {most:g} demos"
        found = surface.demos_to_reach(rate, ratio)
        if found.value == math.inf:
            yield f"{told}; {rate:g} is not reached."
            continue
        fewest, needed = (_demos(bound) for bound in found.interval)
        yield f"{told}; {rate:g} takes {_demos(found.value)} demos (95 % interval {fewest} to {needed})."


def _demos(value: float) -> str:
    if value == math.inf:
        return "more than were tried"
    return "as few as were tried" if value == 0 else f"{value:.0f}"


def front_arms(curve: "Curve") -> list[int]:
    """Return the places of the arms on the Pareto front of success and what the search weighs against it;
    empty for a search on success alone, or if a cost is unknown.
    """
    against = (curve.sweep.get("search", {}).get("optuna") or {}).get("against", "")
    if against == "demo_count":
        return pareto_front(_success(curve), _tried(curve)[0])
    spent = [arm.cost.cpu_s + arm.cost.gpu_s for arm in curve.arms if arm.cost]
    if against == "seconds" and len(spent) == len(curve.arms):
        return pareto_front(_success(curve), np.array(spent))
    return []


def surface_metrics(curve: "Curve") -> dict[int, dict[str, float]]:
    """Return the surface as metrics by demo count, at the smallest and the largest ratio tried; empty if
    there is none.
    """
    surface, (demos, ratios) = curve.surface, _tried(curve)
    found: dict[int, dict[str, float]] = {}
    if surface is None:
        return found
    for count in np.unique(np.round(np.geomspace(demos.min(), demos.max(), METRIC_COUNTS))):
        for ratio in dict.fromkeys([ratios.min(), ratios.max()]):
            fitted = surface.rate(float(count), float(ratio))
            line, (low, high) = f"surface_ratio-{ratio:g}", fitted.interval
            found.setdefault(int(count), {}).update(
                {
                    f"success_rate/{line}": fitted.value,
                    f"success_rate_bounds/{line}_band_low": low,
                    f"success_rate_bounds/{line}_band_high": high,
                }
            )
    return found


def draw_surface(curve: "Curve", surface: SuccessSurface, kind: str) -> bytes:
    """Return the figure as bytes: contours of equal success, and the arms in the colour of their own success;
    those on the Pareto front are ringed. kind: png, svg or pdf.
    """
    from matplotlib.figure import Figure

    demos, ratios = _tried(curve)
    figure = Figure(figsize=(7, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    x = np.geomspace(demos.min(), demos.max(), GRID)
    y = (
        np.linspace(ratios.min(), ratios.max(), GRID)
        if np.ptp(ratios)
        else ratios.min() + np.array([-0.5, 0.5])
    )
    rates = surface.rates(x, np.clip(y, ratios.min(), ratios.max()))
    levels = np.linspace(0, 1, 21)
    filled = axes.contourf(x, y, rates, levels, cmap="viridis", vmin=0, vmax=1)
    lines = axes.contour(x, y, rates, CONTOURS, colors="white", linewidths=0.9)
    axes.clabel(lines, fmt="%.1f", fontsize=8)
    axes.scatter(
        demos,
        ratios,
        c=_success(curve),
        cmap="viridis",
        vmin=0,
        vmax=1,
        edgecolors="black",
        s=36,
        zorder=3,
        clip_on=False,
    )
    if front := front_arms(curve):
        axes.scatter(
            demos[front],
            ratios[front],
            s=110,
            facecolors="none",
            edgecolors="#d55e00",
            linewidths=1.8,
            label="Pareto front",
            zorder=4,
        )
        axes.legend(loc="lower right", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("demonstrations per task (episodes with actions)")
    axes.set_ylabel("action-free episodes per demo")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="x", which="both", labelsize=8)
    figure.colorbar(filled, ax=axes, label="success rate", ticks=np.linspace(0, 1, 6))
    title = [curve.name, *textwrap.wrap(" ".join(surface_in_words(curve)), 108)]
    figure.suptitle("\n".join(title), fontsize=7, x=0.01, ha="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind)
    return buffer.getvalue()


def _tried(curve: "Curve") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the demo counts and ratios of the arms, each (A,)."""
    pairs = [(scored.arm.demo_count, scored.arm.action_free_ratio) for scored in curve.arms]
    demos, ratios = np.array(pairs, float).T
    return demos, ratios


def _success(curve: "Curve") -> NDArray[np.float64]:
    return np.array([scored.successes / scored.episodes for scored in curve.arms])
