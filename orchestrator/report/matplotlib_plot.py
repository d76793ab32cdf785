"""The curve as a figure: success against demos, and where known against cost and the distance of imagined
video.
"""

import io
import math
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.report.curve_types import Point, Series
from orchestrator.report.reference_lines import reference_lines
from orchestrator.report.summary import HOURS, caption, cost_axis
from orchestrator.report.surface_report import draw_surface
from orchestrator.stats.fixed_sample import Interval
from orchestrator.tracking.mlflow_reader import VIDEO

if TYPE_CHECKING:
    from orchestrator.report.labelled_tasks import LabelReport
    from orchestrator.report.published import PublishedResult
    from orchestrator.report.sample_efficiency_curve import Curve

# safe for colour-blind readers (Okabe and Ito 2008)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREY = "#555555"
CROWDED = 5.0
"""Ratio of the ends of a cost axis above which only 1, 2 and 5 of a decade are labelled."""


def draw(curve: "Curve", kind: str, published: "Sequence[PublishedResult]" = ()) -> bytes:
    """Return the figure as bytes; kind: png, svg or pdf. published: results drawn beside the curve, those
    with a demo count there, others as a line across.
    """
    from matplotlib.figure import Figure

    if curve.surface:
        return draw_surface(curve, curve.surface, kind)
    costs, imagined = [curve.cost_report(point.cost) for point in curve.points], curve.imagined
    spent, unit = cost_axis(costs, HOURS)
    labels = curve.labels
    panels = 1 + bool(spent) + bool(imagined) + bool(labels)
    figure = Figure(figsize=(7 + 3.6 * (panels - 1), 5), dpi=150, layout="constrained")
    axes = figure.subplots(1, panels, width_ratios=[1.9, *[1.0] * (panels - 1)], squeeze=False)[0]
    _against_demos(axes[0], curve)
    _published(axes[0], published)
    for panel in axes[1:]:
        panel.set_ylim(-0.03, 1.03)
        panel.grid(alpha=0.25)
    if labels:
        _by_labels(axes[1], labels)
    if spent:
        known = [None if cost is None else getattr(cost, spent) for cost in costs]
        _against_cost(axes[1 + bool(labels)], curve, unit, known)
    if imagined:
        for line in curve.lines:
            own = [one for one in imagined if Series.of(one.arm) == line]
            style = line_style(curve.lines, line) | {"linestyle": "", "alpha": 0.7}
            axes[-1].plot([one.distance for one in own], [one.success_rate for one in own], **style)
        axes[-1].set_xlabel(VIDEO[2].replace("_", " ") + ", every checkpoint")
        axes[-1].invert_xaxis()
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        frameon=False,
        loc="outside lower center",
        ncols=2 + (panels > 1),
        fontsize=9,
    )
    figure.suptitle(
        "\n".join([curve.name, *textwrap.wrap(caption(curve), 108 if panels == 1 else 150)]),
        fontsize=7,
        x=0.01,
        ha="left",
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind)
    return buffer.getvalue()


def line_style(lines: Sequence[Series], line: Series) -> dict[str, Any]:
    """Return colour, dashes and marker of one of the lines, the same in every panel."""
    index = lines.index(line)
    if line.baseline:
        return {"color": GREY, "linestyle": "--", "marker": "s", "markerfacecolor": "white"}
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": "-", "marker": "o^Dv"[index % 4]}


def error_bars(points: Sequence[Point]) -> list[list[float]]:
    """Return the lengths of the points' intervals below and above their rates, (2, number of points)."""
    # An interval that was stopped early may lie to one side of the rate.
    return [
        [max(0.0, point.success_rate - point.interval.low) for point in points],
        [max(0.0, point.interval.high - point.success_rate) for point in points],
    ]


def _against_demos(axes: Any, curve: "Curve") -> None:
    """Draw points with intervals and denominators, bands with the spread between seeds, and each seed as a
    thin line.
    """
    counts = sorted({point.demo_count for point in curve.points})
    beside: dict[tuple[int, bool], list[tuple[float, str, str]]] = defaultdict(list)
    edge = 1.025 ** (len(curve.lines) - 1)
    for index, line in enumerate(curve.lines):
        points, style, nudge = curve.of_line(line), line_style(curve.lines, line), 1.025 ** (2 * index) / edge
        x, y = [point.demo_count * nudge for point in points], [point.success_rate for point in points]
        axes.errorbar(x, y, error_bars(points), capsize=4, label=curve.label(line), **style)
        for point in points:
            right = 2 * index >= len(curve.lines)
            early = "*" if point.early else ""
            beside[point.demo_count, right].append(
                (point.success_rate, f"{point.successes}/{point.episodes}{early}", style["color"])
            )
        shade(axes, x, [point.band for point in points], style["color"])
        if max(point.seeds for point in points) > 1:
            for seed in curve.seeds:
                own = [
                    scored
                    for scored in curve.arms
                    if scored.arm.seed == seed and Series.of(scored.arm) == line
                ]
                places, rates = (
                    [s.arm.demo_count * nudge for s in own],
                    [s.successes / s.episodes for s in own],
                )
                axes.plot(
                    places, rates, color=style["color"], linestyle=style["linestyle"], lw=0.6, alpha=0.6
                )
    _denominators(axes, beside, edge)
    _references(axes, curve)
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_xlim(counts[0] / 1.6, counts[-1] * 1.6)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("demonstrations per task (episodes with actions)")
    axes.set_ylabel("success rate")
    axes.grid(alpha=0.25)


def _by_labels(axes: Any, report: "LabelReport") -> None:
    """Draw success on labelled tasks as solid and on unlabelled ones as dashed lines, with intervals."""
    names = [*dict.fromkeys(trace.name for trace in report.traces)]
    places = sorted({report.place(point) for trace in report.traces for point in trace.points})
    edge = 1.02 ** (len(names) - 1)
    named = set[str]()
    for trace in report.traces:
        own, points = names.index(trace.name), [own.point for own in trace.points]
        x = [report.place(point) * 1.02 ** (2 * own) / edge for point in trace.points]
        axes.errorbar(
            x,
            [point.success_rate for point in points],
            error_bars(points),
            capsize=3,
            color=COLOURS[own % len(COLOURS)],
            linestyle="-" if trace.group == "labelled" else "--",
            marker="o^Dv"[own % 4],
            markerfacecolor=COLOURS[own % len(COLOURS)] if trace.group == "labelled" else "white",
            label="_" if trace.name in named else trace.name or "all lines",
        )
        named.add(trace.name)
        shade(axes, x, [point.band for point in points], COLOURS[own % len(COLOURS)])
    axes.set_xscale("log")
    axes.set_xticks(places, [str(place) for place in places])
    axes.minorticks_off()
    axes.set_xlim(places[0] / 1.6, places[-1] * 1.6)
    axis = report.axis_label.removesuffix(" (log scale)")
    axes.set_xlabel(f"{axis}; dashed, open: on unlabelled tasks", fontsize=8)
    if len(names) > 1:
        axes.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.15))


def _published(axes: Any, published: "Sequence[PublishedResult]") -> None:
    """Draw published rates with their intervals, without changing the scale of the rates."""
    for index, result in enumerate(published):
        colour, label = COLOURS[-1 - index % len(COLOURS)], f"{result.name} (published)"
        if result.demos is None:
            axes.axhline(result.rate, color=colour, linestyle=":", label=label)
            axes.axhspan(*result.interval, color=colour, alpha=0.08, linewidth=0)
            continue
        low, high = result.interval
        spread = [[max(0.0, result.rate - low)], [max(0.0, high - result.rate)]]
        axes.errorbar(
            [result.demos], [result.rate], spread, capsize=4, fmt="*", markersize=9, color=colour, label=label
        )
    if demos := [result.demos for result in published if result.demos is not None]:
        left, right = axes.get_xlim()
        axes.set_xlim(min(left, min(demos) / 1.6), max(right, max(demos) * 1.6))


def shade(axes: Any, x: Sequence[float], bands: Sequence[Interval | None], colour: str) -> None:
    """Fill the bands of a line's points; there is a gap at a point without one."""
    low, high = ([band[end] if band else math.nan for band in bands] for end in (0, 1))
    axes.fill_between(x, low, high, color=colour, alpha=0.1, linewidth=0)


def _denominators(
    axes: Any, beside: dict[tuple[int, bool], list[tuple[float, str, str]]], edge: float
) -> None:
    for (count, right), labels in beside.items():
        for place, (_, text, colour) in zip(
            spread_labels([rate for rate, _, _ in sorted(labels)], 0.045), sorted(labels), strict=True
        ):
            axes.annotate(
                text,
                (count * (edge if right else 1 / edge), place),
                (7 if right else -7, 0),
                textcoords="offset points",
                fontsize=8,
                color=colour,
                ha="left" if right else "right",
                va="center",
                annotation_clip=False,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
            )


def _references(axes: Any, curve: "Curve") -> None:
    """Draw the suite's references as horizontal lines, labelled at the left edge."""
    lines = sorted(reference_lines(curve), key=lambda line: line.score.success_rate)
    places = spread_labels([line.score.success_rate for line in lines], 0.045)
    for line, place in zip(lines, places, strict=True):
        axes.axhline(line.score.success_rate, color=GREY, linestyle=(0, (1, 2, 5, 2)), linewidth=1, zorder=0)
        axes.annotate(
            line.text,
            (0.01, min(max(place, 0.0), 1.0)),
            xycoords=("axes fraction", "data"),
            fontsize=7,
            color=GREY,
            va="bottom",
        )


def _against_cost(axes: Any, curve: "Curve", name: str, costs: list[float | None]) -> None:
    from matplotlib.ticker import LogLocator

    spent = dict(zip([id(point) for point in curve.points], costs, strict=True))
    for line in curve.lines:
        points = sorted(
            (cost, point.success_rate) for point in curve.of_line(line) if (cost := spent[id(point)])
        )
        axes.plot([cost for cost, _ in points], [rate for _, rate in points], **line_style(curve.lines, line))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    low, high = axes.get_xlim()
    if high / low > CROWDED:
        axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.tick_params(axis="x", which="both", labelsize=8)
    axes.set_xlabel(f"{name} of the point's arms")


def spread_labels(places: list[float], gap: float) -> list[float]:
    """Return sorted places, moved as little as needed to be `gap` apart, so that labels do not overlap."""
    groups: list[tuple[float, int]] = []  # centre, members
    for place in places:
        centre, members = place, 1
        while groups and groups[-1][0] + (groups[-1][1] + members) / 2 * gap > centre:
            below, more = groups.pop()
            centre, members = (below * more + centre * members) / (more + members), more + members
        groups.append((centre, members))
    return [centre + (i - (members - 1) / 2) * gap for centre, members in groups for i in range(members)]
