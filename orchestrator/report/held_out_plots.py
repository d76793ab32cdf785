"""The curve of action errors as a figure and as a page: error against demos, lower is better."""

import io
import textwrap
from typing import TYPE_CHECKING, Any

from orchestrator.config.arms import in_demos
from orchestrator.report.curve_types import ErrorPoint, Series
from orchestrator.report.downloads import downloads, episodes_csv
from orchestrator.report.html import COSTS, LOOKS, environment, forest
from orchestrator.report.matplotlib_plot import GREY, line_style, shade
from orchestrator.report.svg_axes import Tick, area, log_scale, measure, polyline, spread, unit_scale
from orchestrator.report.svg_plots import (
    NUDGE,
    Frame,
    Marker,
    Plot,
    Replicate,
    Trace,
    spread_replicates,
    styles,
)

if TYPE_CHECKING:
    from orchestrator.report.held_out_curve import HeldOutCurve

AXIS = "action error on held-out episodes (lower is better)"


def draw(curve: "HeldOutCurve", kind: str) -> bytes:
    """Return the figure as bytes; kind: png, svg or pdf."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    counts = sorted({point.demo_count for point in curve.points})
    edge = 1.025 ** (len(curve.lines) - 1)
    for index, line in enumerate(curve.lines):
        points, style = curve.of_line(line), line_style(curve.lines, line)
        nudge = 1.025 ** (2 * index) / edge
        x, y = [point.demo_count * nudge for point in points], [point.error for point in points]
        bars = [
            [point.error - point.interval.low for point in points],
            [point.interval.high - point.error for point in points],
        ]
        axes.errorbar(x, y, bars, capsize=4, label=curve.label(line), **style)
        shade(axes, x, [point.band for point in points], style["color"])
        if max(point.seeds for point in points) > 1:
            for seed, (demos, errors) in _replicates(curve, line).items():
                places = [count * nudge for count in demos]
                axes.plot(places, errors, color=style["color"], lw=0.6, alpha=0.6, gid=f"seed {seed}")
    axes.axhline(curve.constant, color=GREY, linestyle=":", lw=1, label="a constant action")
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_xlim(counts[0] / 1.6, counts[-1] * 1.6)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("demonstrations per task (episodes with actions)")
    axes.set_ylabel(AXIS.replace(" (", "\n("))
    axes.grid(alpha=0.25)
    figure.legend(
        *axes.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2, fontsize=9
    )
    figure.suptitle(
        "\n".join([curve.name, *textwrap.wrap(curve.caption(), 108)]), fontsize=7, x=0.01, ha="left"
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind)
    return buffer.getvalue()


def _replicates(curve: "HeldOutCurve", line: Series) -> dict[int, tuple[list[int], list[float]]]:
    """Return demo counts and errors of each seed of a line; none for a single seed."""
    found: dict[int, tuple[list[int], list[float]]] = {}
    for measured in sorted(curve.arms, key=lambda one: one.arm.demo_count):
        if Series.of(measured.arm) == line and len(curve.seeds) > 1:
            demos, errors = found.setdefault(measured.arm.seed, ([], []))
            demos.append(measured.arm.demo_count)
            errors.append(sum(error.error for error in measured.errors) / len(measured.errors))
    return found


def error_plot(curve: "HeldOutCurve", name: str, width: float, height: float) -> Plot:
    """Plot action error against demos on a log axis: bands, intervals and replicates, and the error of a
    constant action as a rule.
    """
    frame = Frame(width, height, 52.0, width - 10)
    counts, looks = sorted({point.demo_count for point in curve.points}), styles(curve.lines)
    room = 12.0 + NUDGE * len(looks)
    x = log_scale(counts, frame.left + room, frame.right - room)
    most = max([curve.constant, *((point.band or point.interval).high for point in curve.points)]) * 1.05
    linear = unit_scale(frame.bottom, frame.top)

    def y(error: float) -> float:
        return linear(error / most)

    traces = []
    for index, line in enumerate(curve.lines):
        nudge = (index - (len(looks) - 1) / 2) * 2 * NUDGE
        dots, edges = [], list[tuple[float, float, float] | None]()
        for point in curve.of_line(line):
            place = x(point.demo_count) + nudge
            words = f"{curve.label(line)}, {in_demos(point.demo_count)}: {_in_words(point)}"
            low, high = point.interval
            row = f"point-{curve.points.index(point) + 1}"
            dots.append(Marker(place, y(point.error), y(low), y(high), words, row=row))
            edges.append((place, y(point.band.low), y(point.band.high)) if point.band else None)
        paths, seeds = spread_replicates(
            [
                Replicate(
                    seed,
                    x(count) + nudge,
                    y(error),
                    f"{curve.label(line)}, {in_demos(count)}, seed {seed}: action error {error:.3f}",
                    "",
                )
                for seed, (demos, errors) in _replicates(curve, line).items()
                for count, error in zip(demos, errors, strict=True)
            ]
        )
        path = polyline((dot.x, dot.y) for dot in dots)
        traces.append(Trace(looks[line], tuple(dots), path, area(edges), paths, seeds))
    _, upwards, _ = measure([0.0, most], 0.0, frame.bottom - frame.top)
    ticks = tuple(Tick(frame.bottom - tick.at, tick.text) for tick in upwards)
    words = "; ".join(dot.words for trace in traces for dot in trace.dots)
    return Plot(
        name,
        "Action error on held-out episodes against demonstrations",
        words,
        frame,
        "demonstrations per task (log scale)",
        AXIS,
        spread([Tick(x(count), f"{count}") for count in counts]),
        ticks,
        tuple(traces),
        Tick(y(curve.constant), f"{curve.constant:.2f}"),
    )


def _in_words(point: ErrorPoint) -> str:
    low, high = point.interval
    return f"action error {point.error:.3f} [{low:.3f}, {high:.3f}] on {point.episodes} held-out episodes"


def _errors_csv(curve: "HeldOutCurve") -> str:
    """Return one line per held-out episode: its task, its id, and every arm's action error on it."""
    by_arm = [{error.episode: error.error for error in measured.errors} for measured in curve.arms]
    tasks = {error.episode: error.task for measured in curve.arms for error in measured.errors}
    rows = (
        (task, episode, [errors.get(episode, "") for errors in by_arm])
        for episode, task in sorted(tasks.items(), key=lambda own: (own[1], own[0]))
    )
    return episodes_csv((measured.arm.name for measured in curve.arms), rows)


def page(curve: "HeldOutCurve", sweep_yaml: str) -> str:
    """Render the whole page as UTF-8 text. sweep_yaml: the resolved sweep file, empty if it is not known."""
    points = [(point, curve.cost_report(point.cost)) for point in curve.points]
    costs: list[tuple[str, str]] = [
        (name, words)
        for name, words in COSTS.items()
        if any(cost and getattr(cost, name) for _, cost in points)
    ]
    tasks = sorted({task for point, _ in points for task in point.by_task})
    values: dict[str, Any] = {
        "curve": curve,
        "points": points,
        "style_of": styles(curve.lines),
        "plots": [error_plot(curve, "error-wide", 1080, 392), error_plot(curve, "error-narrow", 344, 340)],
        "tasks": tasks,
        "dimensions": [curve.dimension(place) for place in range(len(curve.points[0].dimensions))],
        "forest": forest([(one.result.difference, one.interval) for one in curve.comparisons]),
        "looks": LOOKS,
        "costs": costs,
        "sweep_yaml": sweep_yaml,
        "downloads": downloads(curve.name, curve.to_json(), {"episodes": _errors_csv(curve)}, sweep_yaml),
        "facts": [
            (name.removeprefix("demoscale.").replace("_", " "), value)
            for name, value in sorted(curve.tags.items())
            if name.startswith("demoscale.") and value
        ],
    }
    return environment().get_template("held_out.html.jinja").render(**values)
