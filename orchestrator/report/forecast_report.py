"""Forecasts of a sweep's lines: demos that a success rate will take, in sentences, as JSON and as a figure,
and what would have been forecast without the largest demo count.
"""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from orchestrator.config.arms import in_demos
from orchestrator.report.curve_types import Series
from orchestrator.report.matplotlib_plot import GREY, error_bars, line_style
from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.stats.claims import FEWEST_SEEDS
from orchestrator.stats.fixed_sample import Interval
from orchestrator.stats.forecast import (
    CONFIDENCE,
    FEWEST_COUNTS,
    FURTHEST,
    Arms,
    DemosForecast,
    Forecast,
    forecast,
    predicted,
)

DRAWN = 10.0
"""Multiple of the largest demo count tried up to which a figure goes on."""


@dataclass(frozen=True)
class LeftOut:
    """A point that was left out, and what the other demo counts forecast of it."""

    line: str
    demos: int
    successes: int
    episodes: int
    interval: Interval
    """Central CONFIDENCE of the predicted successes."""

    @property
    def held(self) -> bool:
        """Whether the interval holds the successes."""
        return self.interval.low <= self.successes <= self.interval.high

    def __str__(self) -> str:
        low, high = self.interval
        held = "inside" if self.held else "OUTSIDE"
        return (
            f"{self.line}: without the arms of {in_demos(self.demos)}, {low:.0f} to {high:.0f} of"
            f" {self.episodes} successes were forecast for them; they have {self.successes}, {held} the"
            " interval."
        )

    def to_json(self) -> dict[str, Any]:
        """Return the back-test as a JSON-safe object."""
        return {
            "line": self.line,
            "demos": self.demos,
            "successes": self.successes,
            "episodes": self.episodes,
            "interval": [*self.interval],
            "held": self.held,
        }


@dataclass(frozen=True)
class PolicyForecast:
    """The forecast of one policy, whose lines differ in the action-free ratio."""

    lines: tuple[Series, ...]
    labels: tuple[str, ...]
    """Names of the lines at the beginning of a sentence."""
    fitted: Forecast | None
    refused: str = ""
    """Why there is no forecast, in a sentence; empty if there is one."""

    @cached_property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Back-tests of the lines; none if too few demo counts are left without the largest."""
        if not self.fitted:
            return ()
        arms = self.fitted.arms
        last = arms.demos == arms.counts[-1]
        if len((without := arms.those(~last)).counts) < FEWEST_COUNTS:
            return ()
        earlier = forecast(without)
        return tuple(
            _left_out(earlier, arms, line.action_free_ratio, label)
            for line, label in zip(self.lines, self.labels, strict=True)
            if np.any(last & (arms.ratios == line.action_free_ratio))
        )


@dataclass(frozen=True)
class SweepForecast:
    """The forecasts of a curve's policies."""

    curve: Curve
    rate: float
    """Success rate whose demos are forecast."""

    @cached_property
    def policies(self) -> list[PolicyForecast]:
        """Forecasts in the order of the curve's lines."""
        names = dict.fromkeys(line.policy for line in self.curve.lines)
        return [
            _policy(self.curve, [line for line in self.curve.lines if line.policy == name]) for name in names
        ]

    @property
    def left_out(self) -> list[LeftOut]:
        """Back-tests of all lines."""
        return [one for policy in self.policies for one in policy.left_out]

    def in_words(self) -> list[str]:
        """Return a sentence on every line, and one on its back-test."""
        told = list[str]()
        for policy in self.policies:
            if not policy.fitted:
                told.append(policy.refused)
                continue
            for line, label in zip(policy.lines, policy.labels, strict=True):
                found = policy.fitted.demos_to_reach(self.rate, line.action_free_ratio)
                told.append(f"{label}: {reach_in_words(found)}")
            told += map(str, policy.left_out)
        return told

    def to_json(self) -> dict[str, Any]:
        """Return the forecasts as a JSON-safe object; bounds are null where the data do not bound them."""
        lines = list[dict[str, Any]]()
        for policy in self.policies:
            for line, label in zip(policy.lines, policy.labels, strict=True):
                told: dict[str, Any] = {
                    "line": label,
                    "policy": line.policy,
                    "ratio": line.action_free_ratio,
                    "refused": policy.refused,
                }
                if policy.fitted:
                    found = policy.fitted.demos_to_reach(self.rate, line.action_free_ratio)
                    told |= {
                        "demos": _finite(found.demos),
                        "interval": [_finite(bound) for bound in found.interval],
                        "identified": found.identified,
                        "never": found.never,
                        "shapes": {
                            fit.shape.name: weight
                            for fit, weight in zip(policy.fitted.fits, policy.fitted.weights, strict=True)
                        },
                    }
                lines.append(told)
        return {
            "sweep": self.curve.name,
            "rate": self.rate,
            "confidence": CONFIDENCE,
            "lines": lines,
            "backtest": [one.to_json() for one in self.left_out],
        }

    def draw(self, kind: str) -> bytes:
        """Return the figure as bytes: points with their intervals, and the curves drawn on with their bands;
        kind: png, svg or pdf.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.5, 5), dpi=150, layout="constrained")
        axes = figure.subplots()
        for policy in self.policies:
            for line, label in zip(policy.lines, policy.labels, strict=True):
                _draw_line(axes, self.curve, line, label, policy.fitted)
        largest = max(point.demo_count for point in self.curve.points)
        axes.axhline(self.rate, color=GREY, linestyle=":", linewidth=1)
        axes.axvline(largest, color=GREY, linestyle="--", linewidth=0.8)
        axes.annotate("forecast", (largest, 0), (4, 4), textcoords="offset points", fontsize=8, color=GREY)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("demonstrations per task (episodes with actions)")
        axes.set_ylabel("success rate")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, loc="upper left", fontsize=9)
        caption = (
            "Points: scores with 95 % intervals. Lines: median of the forecast over trainings and scenes,"
            f" with {100 * CONFIDENCE:g} % bands."
        )
        title = [self.curve.name, *textwrap.wrap(caption, 110)]
        figure.suptitle("\n".join(title), fontsize=7, x=0.01, ha="left")
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind)
        return buffer.getvalue()


def reach_in_words(found: DemosForecast) -> str:
    """Return one forecast as the end of a sentence."""
    (low, high), most = found.interval, demos_in_words(found.tried * FURTHEST)
    if found.identified:
        return (
            f"{100 * found.rate:g} % takes {demos_in_words(found.demos)} demos, {100 * CONFIDENCE:g} %"
            f" interval of the forecast {demos_in_words(low)} to {demos_in_words(high)}; up to"
            f" {found.tried:.0f} were tried."
        )
    if low == math.inf:
        bounds = f"more than {most}"
    elif high == math.inf:
        bounds = f"between {demos_in_words(low)} and more than {most}"
    else:
        bounds = f"between {demos_in_words(low)} and {demos_in_words(high)}"
    never = (
        f"; with probability {found.never:.2f} none up to {most} reaches it" if found.never >= 0.005 else ""
    )
    return (
        f"the scores do not identify how many demos {100 * found.rate:g} % takes: {bounds}"
        f" ({100 * CONFIDENCE:g} % interval of the forecast){never}."
    )


def _draw_line(axes: Any, curve: Curve, line: Series, label: str, fitted: Forecast | None) -> None:
    style, points = line_style(curve.lines, line), curve.of_line(line)
    axes.errorbar(
        [point.demo_count for point in points],
        [point.success_rate for point in points],
        error_bars(points),
        capsize=4,
        label=label,
        **style | {"linestyle": "none"},
    )
    if fitted:
        counts = fitted.arms.counts
        demos = np.geomspace(counts[0] / 1.5, counts[-1] * DRAWN, 120)
        drawn = fitted.rates(demos, line.action_free_ratio)
        low, middle, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, 0.5, (1 + CONFIDENCE) / 2], axis=0)
        axes.plot(demos, middle, color=style["color"], linestyle=style["linestyle"])
        axes.fill_between(demos, low, high, color=style["color"], alpha=0.12, linewidth=0)


def _policy(curve: Curve, lines: Sequence[Series]) -> PolicyForecast:
    labels = tuple(curve.title(line) for line in lines)
    arms = _arms(curve, lines)
    name = labels[0] if len(lines) == 1 else lines[0].policy
    if refused := _too_few(curve, lines, arms):
        return PolicyForecast(tuple(lines), labels, None, f"{name}: {refused}")
    return PolicyForecast(tuple(lines), labels, forecast(arms))


def _left_out(earlier: Forecast, arms: Arms, ratio: float, label: str) -> LeftOut:
    """Return the back-test of the largest count of one line."""
    largest = float(arms.counts[-1])
    mine = (arms.demos == largest) & (arms.ratios == ratio)
    drawn = earlier.successes(largest, ratio, arms.episodes[mine]).sum(axis=1)
    return LeftOut(
        label,
        int(largest),
        int(arms.successes[mine].sum()),
        int(arms.episodes[mine].sum()),
        predicted(drawn),
    )


def _too_few(curve: Curve, lines: Sequence[Series], arms: Arms) -> str:
    """Return why the arms do not allow a forecast; empty if they do."""
    if len(arms.counts) < FEWEST_COUNTS:
        return (
            f"{len(arms.counts)} demo counts are too few to forecast from; it takes {FEWEST_COUNTS}: add to"
            " data.demo_count."
        )
    seeds = max((point.seeds for line in lines for point in curve.of_line(line)), default=0)
    if seeds < FEWEST_SEEDS and not (curve.searched or _chosen_one_by_one(curve)):
        return (
            f"no point has {FEWEST_SEEDS} seeds, so the spread between trainings is unknown and nothing is"
            " forecast; add to seeds."
        )
    return ""


def _chosen_one_by_one(curve: Curve) -> bool:
    """Return whether a next-arm search chose the arms, which spreads seeds over points."""
    search = curve.sweep.get("search")
    return isinstance(search, Mapping) and bool(search.get("next"))


def _arms(curve: Curve, lines: Sequence[Series]) -> Arms:
    scored = [arm for arm in curve.arms if Series.of(arm.arm) in lines]
    return Arms.of(
        [arm.arm.demo_count for arm in scored],
        [arm.arm.action_free_ratio for arm in scored],
        [arm.outcomes for arm in scored],
    )


def demos_in_words(demos: float) -> str:
    """Return a number of demos with two significant digits, or whole below 100."""
    if demos < 100:
        return f"{max(1, round(demos))}"
    digits = 10 ** (math.floor(math.log10(demos)) - 1)
    return f"{round(demos / digits) * digits:,}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
