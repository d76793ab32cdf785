"""Scores -> the sample-efficiency curve: success against demo count, one line per action-free ratio and one per baseline. Reads MLflow only."""

import io
import itertools
import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.stats import PairedComparison, paired_comparison, wilson
from orchestrator.tracked import ScoredArm, read_arms
from orchestrator.tracking import TrackingError
from policy.config import PolicyKind

WITHOUT_VIDEO: dict[PolicyKind, str] = {"diffusion_policy": "diffusion policy"}
"""The baselines, for people."""


@dataclass(frozen=True)
class Line:
    """What the points of one line share."""

    policy: PolicyKind
    action_free_ratio: float

    @property
    def label(self) -> str:
        """In the legend."""
        if self.policy in WITHOUT_VIDEO:
            return f"{WITHOUT_VIDEO[self.policy]} (no video)"
        return f"+ {self.action_free_ratio:g} action-free per demo" if self.action_free_ratio else "demos only"

    def words(self, demo_count: int, with_video: str = "") -> str:
        """One of its points, in a sentence; `with_video` is said of those that have it."""
        if self.policy in WITHOUT_VIDEO:
            return f"{demo_count} demos without video ({WITHOUT_VIDEO[self.policy]})"
        return f"{demo_count} demos{with_video}" + (f" + {self.action_free_ratio:g} action-free per demo" if self.action_free_ratio else "")


@dataclass(frozen=True)
class Point:
    """One place on the curve, all replicates together."""

    policy: PolicyKind
    demo_count: int
    action_free_ratio: float
    success_rate: float
    successes: int
    episodes: int
    errors: int
    low: float
    high: float
    """Wilson 95 % over the pooled episodes: what the rollouts leave open. It does not hold the spread between training seeds."""
    seeds: int


@dataclass(frozen=True)
class Comparison:
    """Two arms of a curve on their common episodes."""

    first: str
    second: str
    first_policy: PolicyKind
    second_policy: PolicyKind
    result: PairedComparison

    def __str__(self) -> str:
        r = self.result
        return (
            f"{self.first} against {self.second}: {r.difference:+.2f} on {r.episodes} common episodes "
            f"({r.only_first} won only by the first, {r.only_second} only by the second), exact McNemar p = {r.p_value:.3g}: {r.verdict}"
        )


@dataclass(frozen=True)
class Curve:
    """The answer of a sweep."""

    name: str
    arms: tuple[ScoredArm, ...]

    @classmethod
    def read(cls, tracking_uri: str, name: str) -> "Curve":
        """From MLflow; TrackingError if there is no such sweep, or nothing in it is scored yet."""
        arms = read_arms(tracking_uri, name)
        if not arms:
            raise TrackingError(f"{name}: no arm's last checkpoint has a complete score yet; see `demoscale status {name}`")
        return cls(name, tuple(arms))

    @property
    def lines(self) -> list[Line]:
        """Ours by ratio, then the baselines."""
        return sorted({_line(scored) for scored in self.arms}, key=lambda line: (line.policy in WITHOUT_VIDEO, line.policy, line.action_free_ratio))

    @property
    def points(self) -> list[Point]:
        """Line by line, each by demo count."""
        groups: dict[tuple[Line, int], list[ScoredArm]] = defaultdict(list)
        for scored in self.arms:
            groups[_line(scored), scored.arm.demo_count].append(scored)
        points = []
        for line in self.lines:
            for demos, arms in sorted((demos, arms) for (own, demos), arms in groups.items() if own == line):
                successes, episodes = sum(a.successes for a in arms), sum(a.episodes for a in arms)
                rate, errors = successes / episodes, sum(a.errors for a in arms)
                points.append(
                    Point(line.policy, demos, line.action_free_ratio, rate, successes, episodes, errors, *wilson(successes, episodes), len(arms))
                )
        return points

    def demos_to_reach(self, success_rate: float) -> dict[float | str, float | str]:
        """The demo count at which each line first reaches a success rate (linear in log demos), or "not reached".

        Ours by their ratio, a baseline, which has none, by its name: {0.0: 31.5, 1.0: 12.0, "diffusion_policy": "not reached"}.
        """
        import numpy as np

        answer: dict[float | str, float | str] = {}
        for line in self.lines:
            key = line.policy if line.policy in WITHOUT_VIDEO else line.action_free_ratio
            reached = [(np.log(point.demo_count), point.success_rate) for point in self._points_of(line)]
            answer[key] = "not reached"
            if reached[0][1] >= success_rate:
                answer[key] = float(np.exp(reached[0][0]))
                continue
            for (x0, y0), (x1, y1) in itertools.pairwise(reached):
                if y0 < success_rate <= y1:
                    answer[key] = float(np.exp(x0 + (success_rate - y0) / (y1 - y0) * (x1 - x0)))
                    break
        return answer

    def comparisons(self) -> list[Comparison]:
        """Most demos against fewest on every line; at every demo count, every ratio against the lowest and against every baseline."""
        counts = sorted({scored.arm.demo_count for scored in self.arms})
        ours = [line for line in self.lines if line.policy not in WITHOUT_VIDEO]
        baselines = [line for line in self.lines if line.policy in WITHOUT_VIDEO]
        pairs = [((line, counts[-1]), (line, counts[0])) for line in self.lines if len(counts) > 1]
        pairs += [((line, count), (ours[0], count)) for count in counts for line in ours[1:]]
        pairs += [((line, count), (baseline, count)) for count in counts for line in ours for baseline in baselines]
        comparisons = []
        for (line, count), (other, other_count) in pairs:
            first, second = self._outcomes(line, count), self._outcomes(other, other_count)
            if first.keys() & second.keys():
                words = line.words(count, " with video" if line.policy != other.policy else "")
                comparisons.append(Comparison(words, other.words(other_count), line.policy, other.policy, paired_comparison(first, second)))
        return comparisons

    def _points_of(self, line: Line) -> list[Point]:
        return [point for point in self.points if (point.policy, point.action_free_ratio) == (line.policy, line.action_free_ratio)]

    def _outcomes(self, line: Line, demo_count: int) -> dict[str, bool]:
        """Outcomes by seed and episode: replicates pair with the replicate of the same seed."""
        return {
            f"{scored.arm.seed}/{episode}": success
            for scored in self.arms
            if _line(scored) == line and scored.arm.demo_count == demo_count
            for episode, success in scored.outcomes.items()
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "protocol": self.arms[0].protocol,
            "points": [asdict(point) for point in self.points],
            "comparisons": [
                {
                    **{name: value for name, value in vars(c).items() if name != "result"},
                    "difference": c.result.difference,
                    **asdict(c.result),
                    "verdict": c.result.verdict,
                }
                for c in self.comparisons()
            ],
        }

    def save(self, path: str | Path) -> None:
        """As PNG, SVG, PDF or JSON, by the file's ending."""
        path = Path(path)
        path.write_bytes(json.dumps(self.to_json(), indent=1).encode() if path.suffix == ".json" else self.draw(path.suffix.removeprefix(".")))

    def draw(self, kind: str) -> bytes:
        """The picture: points with intervals, denominators beside them, replicates as thin lines."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        counts = sorted({point.demo_count for point in self.points})
        beside: dict[tuple[int, bool], list[tuple[float, str, str]]] = defaultdict(list)
        lines = self.lines
        edge = 1.025 ** (len(lines) - 1)
        for index, line in enumerate(lines):
            points, baseline = self._points_of(line), line.policy in WITHOUT_VIDEO
            colour, dashes, nudge = "0.35" if baseline else f"C{index}", "--" if baseline else "-", 1.025 ** (2 * index) / edge
            x, y = [point.demo_count * nudge for point in points], [point.success_rate for point in points]
            spread = [[p.success_rate - p.low for p in points], [p.high - p.success_rate for p in points]]
            marker, face = ("s", "white") if baseline else ("o^Dv"[index % 4], colour)
            axes.errorbar(x, y, spread, fmt=marker + dashes, color=colour, markerfacecolor=face, capsize=4, label=line.label)
            for point in points:
                right = 2 * index >= len(lines)
                beside[point.demo_count, right].append((point.success_rate, f"{point.successes}/{point.episodes}", colour))
            for seed in sorted({scored.arm.seed for scored in self.arms}) if points[0].seeds > 1 else ():
                own = [s for s in self.arms if s.arm.seed == seed and _line(s) == line]
                axes.plot([s.arm.demo_count * nudge for s in own], [s.successes / s.episodes for s in own], dashes, color=colour, lw=0.6, alpha=0.6)
        for (count, right), labels in beside.items():
            for place, (_, text, colour) in zip(_apart([rate for rate, _, _ in sorted(labels)], 0.045), sorted(labels), strict=True):
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
        axes.set_xscale("log")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set_xlim(counts[0] / 1.6, counts[-1] * 1.6)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("demonstrations per task (episodes with actions)")
        axes.set_ylabel("success rate")
        axes.grid(alpha=0.25)
        figure.legend(frameon=False, loc="outside lower center", ncols=3 if len(lines) <= 3 else 2, fontsize=9)
        errors = sum(point.errors for point in self.points)
        axes.set_title(f"{self.name}: Wilson 95 % intervals, {errors} errors, protocol {self.arms[0].protocol}", fontsize=9, loc="left")
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind)
        return buffer.getvalue()


def _line(scored: ScoredArm) -> Line:
    return Line(scored.arm.kind, scored.arm.action_free_ratio)


def _apart(places: list[float], gap: float) -> list[float]:
    """Rising places moved as little as keeps them `gap` apart, so that labels do not cover one another."""
    groups: list[tuple[float, int]] = []  # centre, members
    for place in places:
        centre, members = place, 1
        while groups and groups[-1][0] + (groups[-1][1] + members) / 2 * gap > centre:
            below, more = groups.pop()
            centre, members = (below * more + centre * members) / (more + members), more + members
        groups.append((centre, members))
    return [centre + (i - (members - 1) / 2) * gap for centre, members in groups for i in range(members)]
