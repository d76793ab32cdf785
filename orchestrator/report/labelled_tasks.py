"""Success on labelled and on unlabelled tasks (`data.labelled_tasks`) as lines of their own, and paired
comparisons of lines that differ in their labels or their videos. Pure.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.report.curve_types import Cell, Comparison, Point, Series, policy_lines
from orchestrator.stats.fixed_sample import holm
from policy.config import VIDEO_ACTION
from sim_workers.rollout.suite import task_in_ids

if TYPE_CHECKING:
    from orchestrator.report.sample_efficiency_curve import Curve

Group = Literal["labelled", "unlabelled"]
GROUPS: tuple[Group, ...] = ("labelled", "unlabelled")
Axis = Literal["labelled tasks", "demos"]
Difference = Literal["videos", "labels", "policy"]
NAMED = 3
"""Number of comparisons that the curve's answer names."""


@dataclass(frozen=True)
class LineLabels:
    """What a line of a sweep learned from."""

    name: str
    tasks: frozenset[str]
    """Labelled tasks, as ids of episodes name them."""
    videos: int | None
    """Videos of every other task; None: as many as demos. 0 for a line that learns from demos alone."""
    swept: bool
    """Whether it learns from action-free episodes."""
    policy: str
    recipe: str
    """Everything else that the sweep file says of it, as JSON: equal for lines that differ in labels or
    videos alone.
    """

    def videos_of(self, demo_count: int) -> int:
        """Return the number of videos of every unlabelled task at a demo count."""
        return demo_count if self.videos is None else self.videos

    def group(self, group: Group, scored: Iterable[str]) -> frozenset[str]:
        """Return the scored tasks of a group."""
        return frozenset(task for task in scored if (task in self.tasks) == (group == "labelled"))


@dataclass(frozen=True)
class LabelPoint:
    """Score of a point of the curve on the tasks of one group."""

    line: LineLabels
    group: Group
    point: Point

    @property
    def labelled(self) -> int:
        """Number of labelled tasks."""
        return len(self.line.tasks)

    @property
    def videos(self) -> int:
        """Videos of every unlabelled task."""
        return self.line.videos_of(self.point.demo_count)

    def to_json(self) -> dict[str, Any]:
        """Return the point as a JSON-safe object."""
        point = self.point
        return {
            "policy": point.policy,
            "demo_count": point.demo_count,
            "action_free_ratio": point.action_free_ratio,
            "labelled_tasks": self.labelled,
            "unlabelled_videos": self.videos,
            "group": self.group,
            "tasks": sorted(point.by_task),
            "success_rate": point.success_rate,
            "successes": point.successes,
            "episodes": point.episodes,
            **point.interval._asdict(),
            "band_low": point.band and point.band.low,
            "band_high": point.band and point.band.high,
            "seeds": point.seeds,
        }


@dataclass(frozen=True)
class LabelTrace:
    """One line of the figure: points of one group that differ in what its axis shows."""

    name: str
    """What distinguishes its lines from the others; empty if nothing does."""
    group: Group
    points: tuple[LabelPoint, ...]
    """By the axis."""

    @property
    def label(self) -> str:
        """Name in legends."""
        return ", ".join([*filter(None, [self.name]), f"{self.group} tasks"])


@dataclass(frozen=True)
class LabelComparison:
    """Two points on the tasks of one group: of the line with fewer labels, where the lines differ in them."""

    group: Group
    about: Difference
    """In what the lines differ."""
    tasks: tuple[str, ...]
    comparison: Comparison

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as a JSON-safe object."""
        own = {"group": self.group, "differ_in": self.about, "tasks": list(self.tasks)}
        return own | self.comparison.to_json()


@dataclass(frozen=True)
class LabelReport:
    """A curve by labelled and unlabelled tasks."""

    axis: Axis
    """What the figure's axis shows: the number of labelled tasks if lines differ in it, else demos."""
    traces: tuple[LabelTrace, ...]
    comparisons: tuple[LabelComparison, ...]

    def place(self, point: LabelPoint) -> int:
        """Return where a point lies on the axis."""
        return point.labelled if self.axis == "labelled tasks" else point.point.demo_count

    @property
    def axis_label(self) -> str:
        """Label of the axis."""
        if self.axis == "demos":
            return "demonstrations per labelled task (log scale)"
        return "labelled tasks (log scale)"

    @property
    def answer(self) -> list[str]:
        """What videos of unlabelled tasks change on these tasks, one sentence per comparison, the most demos
        first.
        """
        found = [one for one in self.comparisons if (one.group, one.about) == ("unlabelled", "videos")]
        return [f"{one.comparison}." for one in reversed(found[-NAMED:])]

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON-safe object."""
        return {
            "axis": self.axis,
            "lines": [
                {
                    "label": trace.label,
                    "group": trace.group,
                    "points": [point.to_json() for point in trace.points],
                }
                for trace in self.traces
            ],
            "comparisons": [comparison.to_json() for comparison in self.comparisons],
        }


def lines_with_labels(sweep: Mapping[str, Any], scored: Iterable[str]) -> dict[str, LineLabels]:
    """Return every line's labels by its name; empty if all tasks of every line are labelled.

    sweep: the resolved sweep file. scored: tasks that the curve has episodes of, as their ids name them.
    """
    data, policy = sweep.get("data", {}), sweep.get("policy", {})
    named = tuple(task_in_ids(task) for task in data.get("labelled_tasks") or ())
    if not named:
        return {}
    known = {*scored, *named}
    plain = [{"name": name, "policy": name} for name in (VIDEO_ACTION, *policy.get("baselines", ()))]
    found = {}
    for line in policy_lines(sweep) or plain:
        own = line.get("data") or {}
        number, videos = own.get("labelled"), own.get("unlabelled_videos")
        tasks = known if number == "all" else set(named[:number])
        swept = line.get("action_free")
        swept = line["policy"] == VIDEO_ACTION if swept is None else swept
        videos = data.get("unlabelled_videos") if videos is None else videos
        rest = {name: value for name, value in line.items() if name not in ("name", "data")}
        recipe = json.dumps(rest, sort_keys=True)
        found[line["name"]] = LineLabels(
            line["name"], frozenset(tasks), videos if swept else 0, swept, line["policy"], recipe
        )
    return found if any(line.tasks < known for line in found.values()) else {}


def label_report(curve: "Curve") -> LabelReport | None:
    """Return a curve by labelled and unlabelled tasks; None if all tasks of every line are labelled."""
    scored = sorted({task for point in curve.points for task in point.by_task})
    labels = lines_with_labels(curve.sweep, scored)
    if not labels:
        return None

    @cache
    def on(tasks: frozenset[str]) -> "Curve":
        return curve.on_tasks(tasks)

    points = [
        LabelPoint(labels[point.policy], group, point)
        for name, line in labels.items()
        for group in GROUPS
        if (tasks := line.group(group, scored))
        for point in on(tasks).points
        if point.policy == name
    ]
    if not points:
        return None
    recipes = {line.recipe for line in labels.values()}
    counts = [{len(line.tasks) for line in labels.values() if line.recipe == recipe} for recipe in recipes]
    axis: Axis = "labelled tasks" if max(map(len, counts)) > 1 else "demos"
    return LabelReport(axis, _traces(points, axis), _comparisons(curve, labels, scored, on))


def _traces(points: Sequence[LabelPoint], axis: Axis) -> tuple[LabelTrace, ...]:
    """Return the lines of the figure. Each is called by what it does not share with all others."""
    first_of: dict[str, LineLabels] = {}
    for point in points:
        first_of.setdefault(point.line.recipe, point.line)
    policies = [line.policy for line in first_of.values()]

    def attributes(point: LabelPoint) -> tuple[tuple[str, Any], ...]:
        """Return what the points of a trace share, each with its words."""
        line, demos = point.line, point.point.demo_count
        videos = f"{line.videos} videos" if line.videos else "as many videos as demos"
        videos = "no videos of the others" if line.videos == 0 else f"{videos} of each other task"
        first = first_of[line.recipe]
        return (
            (first.policy if policies.count(first.policy) == 1 else first.name, line.recipe),
            (videos if line.swept else "demos alone", (line.videos, line.swept)),
            (f"{point.labelled} labelled", axis == "demos" and point.labelled),
            (f"{demos} demos", axis == "labelled tasks" and demos),
            (f"{point.point.action_free_ratio:g} action-free per demo", point.point.action_free_ratio),
        )

    traces: dict[Any, list[LabelPoint]] = {}
    for point in points:
        traces.setdefault((*(key for _, key in attributes(point)), point.group), []).append(point)
    several = [len({key for key in column}) > 1 for column in list(zip(*traces, strict=True))[:-1]]
    found = []
    for key, own in traces.items():
        words = [word for (word, _), shown in zip(attributes(own[0]), several, strict=True) if shown]
        ordered = sorted(own, key=lambda point: (point.labelled, point.point.demo_count))
        found.append(LabelTrace(", ".join(words), key[-1], tuple(ordered)))
    return tuple(found)


def _comparisons(
    curve: "Curve", labels: Mapping[str, LineLabels], scored: Sequence[str], on: Any
) -> tuple[LabelComparison, ...]:
    """Return the comparisons at every demo count of every two lines that differ in one of recipe, labels and
    videos. P-values are corrected within each group.
    """
    cells: set[Cell] = {(point.series, point.demo_count) for point in curve.points}
    found = list[LabelComparison]()
    for group in GROUPS:
        compared = list[LabelComparison]()
        for one, other in combinations(labels.values(), 2):
            about = _difference(one, other)
            if about is None:
                continue
            more, fewer = sorted((one, other), key=lambda line: -len(line.tasks))
            if more.tasks == fewer.tasks and _amount(fewer) > _amount(more):
                more, fewer = fewer, more
            tasks = fewer.group(group, scored)
            for pair in _pairs(cells, more, fewer) if tasks else ():
                for comparison in on(tasks).compare([pair]):
                    where = _where(len(tasks), group, fewer.name if about == "labels" else "")
                    said = replace(comparison, first=f"On {where}, {comparison.first}")
                    compared.append(LabelComparison(group, about, tuple(sorted(tasks)), said))
        corrected = holm([each.comparison.result.p_value for each in compared])
        found += [
            replace(each, comparison=replace(each.comparison, p_corrected=p, compared=len(compared)))
            for each, p in zip(compared, corrected, strict=True)
        ]
    return tuple(found)


def _where(number: int, group: Group, line: str) -> str:
    """Return a group of tasks in words. line: name of the line in which they form it; empty: in both."""
    tasks = "task" if number == 1 else "tasks"
    return f"{number} {tasks} {group} in {line}" if line else f"{number} {group} {tasks}"


def _amount(line: LineLabels) -> float:
    """Return the number of videos of a line for an order; as many as demos counts as most."""
    return float("inf") if line.videos is None else line.videos


def _difference(one: LineLabels, other: LineLabels) -> Difference | None:
    """Return the one thing in which two lines differ; None if they differ in several or in none. The videos
    of a line that learns from demos alone are no difference.
    """
    differ: dict[Difference, bool] = {
        "videos": one.videos != other.videos and one.swept and other.swept,
        "labels": one.tasks != other.tasks,
        "policy": one.recipe != other.recipe,
    }
    found = [name for name, differs in differ.items() if differs]
    return found[0] if len(found) == 1 else None


def _pairs(cells: Iterable[Cell], one: LineLabels, other: LineLabels) -> list[tuple[Cell, Cell]]:
    """Return the points of two lines with equal demo counts, and with equal ratios where both have them."""
    known = sorted(cells, key=lambda cell: (cell[1], cell[0].policy, cell[0].action_free_ratio))
    pairs = list[tuple[Cell, Cell]]()
    for series, count in known:
        if series.policy == one.name:
            ratio = series.action_free_ratio if other.swept else 0.0
            partner = Series(other.name, ratio), count
            pairs += [((series, count), partner)] if partner in known else []
    return pairs
