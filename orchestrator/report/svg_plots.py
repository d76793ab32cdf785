"""The figures of a curve's page as geometry: coordinates of lines, markers and labels, which
`plot.html.jinja` draws.

Lengths are SVG user units, which are pixels where a figure is shown at its own width; y grows downwards.
Pure.
"""

import itertools
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeGuard, TypeVar

from orchestrator.config.arms import in_demos
from orchestrator.report.curve_report import CurveReport, SeriesReport, VideoReport
from orchestrator.report.curve_types import Series
from orchestrator.report.labelled_tasks import LabelReport, LabelTrace
from orchestrator.report.matplotlib_plot import spread_labels
from orchestrator.report.reference_lines import ReferenceLine
from orchestrator.report.summary import cost_axis
from orchestrator.report.svg_axes import (
    Scale,
    Tick,
    area,
    closest,
    log_scale,
    measure,
    polyline,
    rate_ticks,
    spread,
    unit_scale,
)

# Styles of lines with video, then of baselines. `report.css` colours the tones; shape and dash distinguish
# lines without colour.
TONES, SHAPES, DASHES = (
    ("1", "2", "3", "4"),
    ("circle", "triangle", "diamond", "wedge"),
    ("", "9 3", "2 3", "9 3 2 3"),
)
BASELINE_SHAPES, BASELINE_DASHES = ("square", "hexagon"), ("5 4", "1 4")
LABEL_GAP, NUDGE = 13.0, 5.0
CHARACTER, CALLOUT_LINE, CALLOUT_PAD, CALLOUT_GAP = 7.0, 16.0, 8.0, 12.0
"""Width of a character at most, height of a line, padding, and distance from the marker (px)."""
SEED_SPREAD = 8.0
"""Width over which the replicates of a point are spread, so that equal rates stay visible (px)."""
LABELLED = 92.0  # distance of two demo counts below which denominators would overlap the neighbouring points


@dataclass(frozen=True)
class Style:
    """Tone, marker shape and dash pattern of a line."""

    tone: str
    shape: str
    dash: str


@dataclass(frozen=True)
class Marker:
    """One marker with its interval and label."""

    x: float
    y: float
    low: float
    high: float
    words: str
    """What it shows, and after the last colon its value: label while it is hovered or focused."""
    text: str = ""
    text_x: float = 0.0
    text_y: float = 0.0
    anchor: str = "start"
    row: str = ""
    """Id of the table row with its numbers, to which it links; empty for none."""


@dataclass(frozen=True)
class Trace:
    """One line of a figure. Paths are SVG path data, empty where there is nothing to draw."""

    style: Style
    dots: tuple[Marker, ...]
    path: str
    band: str = ""
    replicates: tuple[str, ...] = ()
    seeds: tuple[Marker, ...] = ()
    """Replicates of the points, without intervals."""
    drop: float | None = None
    """x coordinate at which the line reaches the figure's target; None if it does not."""


@dataclass(frozen=True)
class Frame:
    """Size of a drawing and edges of its plot area."""

    width: float
    height: float
    left: float
    right: float
    top: float = 14.0

    @property
    def bottom(self) -> float:
        """Ordinate of the plot area's lower edge (px)."""
        return self.height - 46


@dataclass(frozen=True)
class Callout:
    """Box with a marker's words, beside the marker and within the drawing."""

    x: float
    y: float
    width: float
    height: float
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Reference:
    """Horizontal line of a reference, labelled at the left edge."""

    at: float
    """Ordinate of the line (px)."""
    label_at: float
    """Ordinate of the label's baseline (px), apart from other labels."""
    text: str


@dataclass(frozen=True)
class Plot:
    """One drawing: frame, axes, traces, and a text alternative."""

    name: str
    title: str
    words: str
    frame: Frame
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    traces: tuple[Trace, ...]
    target: Tick | None = None
    """Success rate with a horizontal rule across the figure; None for none."""
    labelled: bool = False
    """Whether denominators stand next to the points."""
    references: tuple[Reference, ...] = ()
    """Horizontal lines that anchor the scale."""

    @property
    def linked(self) -> bool:
        """Whether its markers link to rows of a table."""
        return any(dot.row for trace in self.traces for dot in trace.dots)

    def callout(self, marker: Marker) -> Callout:
        """Return the label of a hovered or focused marker: above it, or below if there is no room."""
        most = int((self.frame.width - 2 * CALLOUT_PAD - 8) / CHARACTER)
        name, _, value = marker.words.rpartition(": ")
        lines = (*textwrap.wrap(name, most), value)
        width = max(map(len, lines)) * CHARACTER + 2 * CALLOUT_PAD
        height = len(lines) * CALLOUT_LINE + CALLOUT_PAD
        above = marker.y - height - CALLOUT_GAP
        x = min(max(marker.x - width / 2, 2.0), self.frame.width - width - 2)
        return Callout(x, above if above >= 0 else marker.y + CALLOUT_GAP, width, height, lines)


def styles(lines: Sequence[Series]) -> dict[Series, Style]:
    """Return the style of every line, in the order of the lines."""
    looks: dict[Series, Style] = {}
    ours = baselines = 0
    for line in lines:
        if line.baseline:
            looks[line] = Style(
                "0",
                BASELINE_SHAPES[baselines % 2],
                BASELINE_DASHES[baselines // 2 % 2 if baselines > 1 else baselines],
            )
            baselines += 1
        else:
            looks[line] = Style(TONES[ours % 4], SHAPES[(ours + ours // 4) % 4], DASHES[ours % 4])
            ours += 1
    return looks


def curve_plot(report: CurveReport, name: str, width: float, height: float, task: str = "") -> Plot:
    """Plot success against demos on a log axis: bands, intervals, replicates, and denominators if there is
    room for them.

    task: only its episodes, without bands and replicates, which are not counted by task; empty: all.
    """
    frame = Frame(width, height, 46.0, width - 10)
    points = [point.point for point in report.points]
    counts = sorted({point.demo_count for point in points})
    looks = _styles(report)
    room = 12.0 + NUDGE * len(looks)
    labelled = (
        not task and closest(log_scale(counts, frame.left + room, frame.right - room), counts) >= LABELLED
    )
    room += 36.0 if labelled else 0.0
    x, y = log_scale(counts, frame.left + room, frame.right - room), unit_scale(frame.bottom, frame.top)
    target = None if task else target_rate(report.lines)
    traces = []
    rows = _rows(report)
    arm_rows = {arm.arm: f"arm-{number}" for number, arm in enumerate(report.arms, 1)}
    for index, line in enumerate(report.lines):
        nudge = _nudge(index, len(looks))
        dots, edges = [], list[tuple[float, float, float] | None]()
        for point in _of(points, line.series):
            counted = point.by_task.get(task) if task else point
            if not counted or not counted.episodes:
                continue
            rate, place = counted.successes / counted.episodes, x(point.demo_count) + nudge
            early = "†" if point.early and not task else ""
            denominator = f"{counted.successes}/{counted.episodes}{early}"
            low, high = counted.interval
            words = (
                f"{line.label}, {in_demos(point.demo_count)}: {denominator} = {rate:.2f}"
                f" [{low:.2f}, {high:.2f}]"
            )
            row = "" if task else rows[line.series, point.demo_count]
            dots.append(
                Marker(place, y(rate), y(low), y(high), words, denominator if labelled else "", row=row)
            )
            if not task:
                edges.append((place, y(point.band.low), y(point.band.high)) if point.band else None)
        arms = [] if task else [arm for arm in _of(report.arms, line.series) if arm.episodes]
        replicates = [
            Replicate(
                arm.seed,
                x(arm.demo_count) + nudge,
                y(arm.successes / arm.episodes),
                f"{line.label}, {in_demos(arm.demo_count)}, seed {arm.seed}: {arm.successes}/{arm.episodes} ="
                f" {arm.successes / arm.episodes:.2f}",
                arm_rows[arm.arm],
            )
            for arm in arms
        ]
        paths, seeds = spread_replicates(replicates)
        traces.append(
            Trace(
                looks[line.series],
                tuple(dots),
                polyline((d.x, d.y) for d in dots),
                area(edges),
                paths,
                seeds,
                _drop(line, target, x),
            )
        )
    if labelled:
        traces = _labels_apart(traces)
    what = f"Success on {task} against demonstrations" if task else "Success against demonstrations"
    said = [dot.words for trace in traces for dot in trace.dots]
    words = "; ".join([*said, *([] if task else [line.text for line in report.references])])
    ticks, rule = (
        spread([Tick(x(count), f"{count}") for count in counts]),
        (Tick(y(target), f"{target:.2f}") if target is not None else None),
    )
    x_label = "demonstrations per task (log scale)"
    return Plot(
        name,
        what,
        words,
        frame,
        x_label,
        "success rate",
        ticks,
        rate_ticks(y),
        tuple(traces),
        rule,
        labelled,
        () if task else _references(report.references, y),
    )


@dataclass(frozen=True)
class Replicate:
    """A point's value in one training run."""

    seed: int
    x: float
    """Abscissa of the point (px)."""
    y: float
    words: str
    row: str
    """Id of the table row of its arm; empty for none."""


def spread_replicates(replicates: Sequence[Replicate]) -> tuple[tuple[str, ...], tuple[Marker, ...]]:
    """Return the thin line of every seed and the small markers of a line's replicates, seeds side by side;
    nothing of a single seed.
    """
    seeds = sorted({one.seed for one in replicates})
    if len(seeds) < 2:
        return (), ()
    beside = {seed: (place / (len(seeds) - 1) - 0.5) * SEED_SPREAD for place, seed in enumerate(seeds)}
    dots = [(one.seed, one.x + beside[one.seed], one) for one in replicates]
    return (
        tuple(polyline((x, one.y) for own, x, one in dots if own == seed) for seed in seeds),
        tuple(Marker(x, one.y, one.y, one.y, one.words, row=one.row) for _, x, one in dots),
    )


def label_styles(traces: Sequence[LabelTrace]) -> list[Style]:
    """Return the style of every line of `label_plot`: lines that differ in the group of tasks alone share
    tone and shape; those of unlabelled tasks are dashed.
    """
    names = [*dict.fromkeys(trace.name for trace in traces)]
    dashes = {"labelled": "", "unlabelled": "6 4"}
    return [
        Style(TONES[(own := names.index(trace.name)) % 4], SHAPES[(own + own // 4) % 4], dashes[trace.group])
        for trace in traces
    ]


def label_plot(report: LabelReport, name: str, width: float, height: float) -> Plot:
    """Plot success on labelled and on unlabelled tasks against the number of labelled tasks, or against demos
    if all lines have equal numbers of them.
    """
    frame = Frame(width, height, 46.0, width - 10)
    places = sorted({report.place(point) for trace in report.traces for point in trace.points})
    room = 16.0 + NUDGE * len(report.traces)
    x, y = log_scale(places, frame.left + room, frame.right - room), unit_scale(frame.bottom, frame.top)
    traces = []
    rows = itertools.count(1)  # as the page numbers the rows of the table
    for index, (trace, style) in enumerate(zip(report.traces, label_styles(report.traces), strict=True)):
        dots, edges = [], list[tuple[float, float, float] | None]()
        for own in trace.points:
            point, place = own.point, x(report.place(own)) + _nudge(index, len(report.traces))
            low, high = point.interval
            words = (
                f"{trace.label}, {own.labelled} labelled tasks, {in_demos(point.demo_count)}:"
                f" {point.successes}/{point.episodes} = {point.success_rate:.2f} [{low:.2f}, {high:.2f}]"
            )
            row = f"label-{next(rows)}"
            dots.append(Marker(place, y(point.success_rate), y(low), y(high), words, row=row))
            edges.append((place, y(point.band.low), y(point.band.high)) if point.band else None)
        path = polyline((dot.x, dot.y) for dot in dots)
        traces.append(Trace(style, tuple(dots), path, area(edges)))
    return Plot(
        name,
        f"Success on labelled and on unlabelled tasks against {report.axis}",
        "; ".join(dot.words for trace in traces for dot in trace.dots),
        frame,
        report.axis_label,
        "success rate",
        spread([Tick(x(place), f"{place}") for place in places]),
        rate_ticks(y),
        tuple(traces),
    )


def _references(lines: Sequence[ReferenceLine], y: Scale) -> tuple[Reference, ...]:
    """Return the drawn references of a figure over success rates."""
    ordered = sorted(lines, key=lambda line: y(line.score.success_rate))
    places = [y(line.score.success_rate) for line in ordered]
    return tuple(
        Reference(at, label_at - 4, line.text)
        for line, at, label_at in zip(ordered, places, spread_labels(places, LABEL_GAP), strict=True)
    )


def cost_plot(report: CurveReport, name: str, width: float, height: float) -> Plot | None:
    """Plot success against the points' cost, labelled with demo counts; None if no cost is known."""
    kind, unit = cost_axis([point.cost for point in report.points])
    if not kind:
        return None
    # money is known if all resources used have a price
    known = [
        (point.point, float(spent))
        for point in report.points
        if point.cost and _known(spent := getattr(point.cost, kind))
    ]
    frame = Frame(width, height, 46.0, width - 16)
    x, ticks, scale = measure([spent for _, spent in known], frame.left + 16, frame.right - 20)
    y = unit_scale(frame.bottom, frame.top)
    traces, words = [], []
    looks, rows = _styles(report), _rows(report)
    for line in report.lines:
        dots = []
        for point, spent in known:
            if point.series != line.series:
                continue
            place, rate = x(spent), point.success_rate
            said = f"{line.label}, {in_demos(point.demo_count)}: {rate:.2f} for {spent:.3g} {unit}"
            low, high = map(y, point.interval)
            label = f"{point.demo_count}", place + 8, y(rate) + 14
            row = rows[line.series, point.demo_count]
            dots.append(Marker(place, y(rate), low, high, said, *label, row=row))
            words.append(said)
        traces.append(Trace(looks[line.series], tuple(dots), polyline((dot.x, dot.y) for dot in dots)))
    x_label = f"{unit}{scale}; beside the points: demos"
    return Plot(
        name,
        "Success against cost",
        "; ".join(words),
        frame,
        x_label,
        "success rate",
        ticks,
        rate_ticks(y),
        tuple(traces),
    )


def distance_plot(report: CurveReport, name: str, width: float, height: float) -> Plot | None:
    """Plot success against the distance of imagined from executed video, for every scored checkpoint; None
    without any.
    """
    video = report.video
    points = [
        (point, distance, rate)
        for point in (video.points if video else ())
        if _known(distance := point.measures.get("video_distance"))
        and _known(rate := point.measures["success_rate"])
    ]
    if not video or not points:
        return None
    frame = Frame(width, height, 46.0, width - 16)
    x, ticks, scale = measure([distance for _, distance, _ in points], frame.left + 14, frame.right - 14)
    y = unit_scale(frame.bottom, frame.top)
    series_of = {arm.arm: arm.series for arm in report.arms}
    traces = []
    for series, style in _styles(report).items():
        dots = [
            Marker(
                x(distance),
                y(rate),
                y(rate),
                y(rate),
                f"{point.arm}, step {point.step}: success {rate:.2f}, distance {distance:.3g}",
            )
            for point, distance, rate in points
            if series_of.get(point.arm) == series
        ]
        traces.append(Trace(style, tuple(dots), ""))
    words = f"{len(points)} checkpoints. {video.text}"
    x_label = _distance_axis(video, scale)
    title = "Success against the distance between imagined and executed video"
    return Plot(name, title, words, frame, x_label, "success rate", ticks, rate_ticks(y), tuple(traces))


def outcomes_plot(report: CurveReport, name: str, width: float, height: float) -> Plot | None:
    """Plot every filmed episode's video distance, successes above failures; None without any."""
    video = report.video
    episodes = [episode for episode in (video.episodes if video else ()) if _known(episode.distance)]
    if not video or not episodes:
        return None
    frame = Frame(width, height, 66.0, width - 16)
    x, ticks, scale = measure([episode.distance for episode in episodes], frame.left + 14, frame.right - 14)
    tall = frame.bottom - frame.top
    rows = {"success": frame.top + tall * 0.27, "failure": frame.top + tall * 0.73}
    traces, words = [], []
    for result, style in (("success", Style("good", "circle", "")), ("failure", Style("bad", "cross", ""))):
        mine = sorted(
            (episode for episode in episodes if episode.result == result),
            key=lambda episode: episode.distance,
        )
        # Spread within the row by a fixed sequence, so that equal distances stay visible and the page is
        # reproducible.
        places = [rows[result] + ((index * 0.618034) % 1 - 0.5) * tall * 0.36 for index in range(len(mine))]
        dots = tuple(
            Marker(x(e.distance), at, at, at, f"{e.episode}, {e.arm}: {result}, distance {e.distance:.3g}")
            for e, at in zip(mine, places, strict=True)
        )
        median = mine[len(mine) // 2].distance if mine else None
        middle = None if median is None else x(median)
        traces.append(Trace(style, dots, "", drop=middle))
        words.append(
            f"{len(mine)} with {result}" + ("" if median is None else f", median distance {median:.3g}")
        )
    y_ticks = tuple(Tick(at, result) for result, at in rows.items())
    title, x_label = "Distance of imagined from executed video, by outcome", _distance_axis(video, scale)
    return Plot(name, title, "; ".join(words), frame, x_label, "", ticks, y_ticks, tuple(traces))


def target_rate(lines: Sequence[SeriesReport]) -> float | None:
    """Return the highest reported success rate that any line reaches; None if none does."""
    return max(
        (reach.found.rate for line in lines for reach in line.reach if reach.demos is not None),
        default=None,
    )


def _labels_apart(traces: Sequence[Trace]) -> list[Trace]:
    """Place denominators next to their points without overlap: those of the first lines on the left, the
    others on the right.
    """
    placed: dict[tuple[int, int], Marker] = {}
    columns: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for t, trace in enumerate(traces):
        for d, dot in enumerate(trace.dots):
            side = "end" if 2 * t + 1 < len(traces) or len(traces) == 1 else "start"
            columns.setdefault((f"{dot.x - _nudge(t, len(traces)):.1f}", side), []).append((t, d))
    for (_, side), members in columns.items():
        members.sort(key=lambda member: traces[member[0]].dots[member[1]].y)
        dots = [traces[t].dots[d] for t, d in members]
        edge = min(dot.x for dot in dots) - 9 if side == "end" else max(dot.x for dot in dots) + 9
        for member, dot, place in zip(
            members, dots, spread_labels([dot.y for dot in dots], LABEL_GAP), strict=True
        ):
            placed[member] = replace(dot, text_x=edge, text_y=place + 4, anchor=side)
    return [
        replace(trace, dots=tuple(placed[t, d] for d in range(len(trace.dots))))
        for t, trace in enumerate(traces)
    ]


def _nudge(index: int, lines: int) -> float:
    """Return the horizontal offset of a line from its demo counts, so that the intervals of `lines` lines do
    not overlap.
    """
    return (index - (lines - 1) / 2) * 2 * NUDGE


class _OnLine(Protocol):
    """A point or an arm."""

    @property
    def series(self) -> Series: ...

    @property
    def demo_count(self) -> int: ...


_T = TypeVar("_T", bound=_OnLine)


def _of(rows: Sequence[_T], series: Series) -> list[_T]:
    """Return the rows of a line, by demo count."""
    return sorted((row for row in rows if row.series == series), key=lambda row: row.demo_count)


def _rows(report: CurveReport) -> dict[tuple[Series, int], str]:
    """Return the id of the row of every point in the page's table of points."""
    points = enumerate(report.points, 1)
    return {(own.point.series, own.point.demo_count): f"point-{number}" for number, own in points}


def _styles(report: CurveReport) -> dict[Series, Style]:
    return styles([line.series for line in report.lines])


def _drop(line: SeriesReport, target: float | None, x: Scale) -> float | None:
    """Return the coordinate at which a line reaches the target; None if it does not."""
    demos = [reach.demos for reach in line.reach if reach.found.rate == target and reach.demos is not None]
    return x(demos[0]) if demos else None


def _distance_axis(video: VideoReport, scale: str) -> str:
    """Return the axis label, short enough for the narrowest figure; the page's table has the measure's full
    name.
    """
    measure = video.measure if len(video.measure) <= 24 else video.measure[:23] + "…"
    return f"distance ({measure}){scale}"


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
