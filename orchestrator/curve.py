"""Scores -> the sample-efficiency curve: success against demo count, one line per action-free ratio. Reads MLflow only."""

import io
import itertools
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.stats import PairedComparison, paired_comparison, wilson
from orchestrator.tracking import ScoredArm, TrackingError, read_arms


@dataclass(frozen=True)
class Point:
    """One place on the curve, all replicates together."""

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
    def points(self) -> list[Point]:
        """By ratio, then demo count."""
        groups: dict[tuple[float, int], list[ScoredArm]] = defaultdict(list)
        for scored in self.arms:
            groups[scored.arm.action_free_ratio, scored.arm.demo_count].append(scored)
        points = []
        for (ratio, demos), arms in sorted(groups.items()):
            successes, episodes = sum(a.successes for a in arms), sum(a.episodes for a in arms)
            low, high = wilson(successes, episodes)
            points.append(Point(demos, ratio, successes / episodes, successes, episodes, sum(a.errors for a in arms), low, high, len(arms)))
        return points

    def demos_to_reach(self, success_rate: float) -> dict[float, float | str]:
        """Per ratio, the demo count at which the line first reaches a success rate (linear in log demos), or "not reached"."""
        import numpy as np

        answer: dict[float, float | str] = {}
        for ratio in sorted({point.action_free_ratio for point in self.points}):
            line = [(np.log(point.demo_count), point.success_rate) for point in self.points if point.action_free_ratio == ratio]
            answer[ratio] = "not reached"
            if line[0][1] >= success_rate:
                answer[ratio] = float(np.exp(line[0][0]))
                continue
            for (x0, y0), (x1, y1) in itertools.pairwise(line):
                if y0 < success_rate <= y1:
                    answer[ratio] = float(np.exp(x0 + (success_rate - y0) / (y1 - y0) * (x1 - x0)))
                    break
        return answer

    def comparisons(self) -> list[Comparison]:
        """Most demos against fewest at every ratio, and every ratio against the lowest at every demo count."""
        counts = sorted({scored.arm.demo_count for scored in self.arms})
        ratios = sorted({scored.arm.action_free_ratio for scored in self.arms})
        pairs = [((counts[-1], ratio), (counts[0], ratio)) for ratio in ratios if len(counts) > 1]
        pairs += [((count, ratio), (count, ratios[0])) for count in counts for ratio in ratios[1:]]
        comparisons = []
        for first, second in pairs:
            ours, theirs = self._outcomes(*first), self._outcomes(*second)
            if ours.keys() & theirs.keys():
                comparisons.append(Comparison(_arm_words(*first), _arm_words(*second), paired_comparison(ours, theirs)))
        return comparisons

    def _outcomes(self, demo_count: int, ratio: float) -> dict[str, bool]:
        """Outcomes by seed and episode: replicates pair with the replicate of the same seed."""
        return {
            f"{scored.arm.seed}/{episode}": success
            for scored in self.arms
            if (scored.arm.demo_count, scored.arm.action_free_ratio) == (demo_count, ratio)
            for episode, success in scored.outcomes.items()
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "protocol": self.arms[0].protocol,
            "points": [asdict(point) for point in self.points],
            "comparisons": [
                {"first": c.first, "second": c.second, "difference": c.result.difference, **asdict(c.result), "verdict": c.result.verdict}
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
        ratios = sorted({point.action_free_ratio for point in self.points})
        for index, ratio in enumerate(ratios):
            line: Sequence[Point] = [point for point in self.points if point.action_free_ratio == ratio]
            colour, nudge = f"C{index}", 1.025 ** (2 * index - len(ratios) + 1)
            x, y = [point.demo_count * nudge for point in line], [point.success_rate for point in line]
            spread = [[p.success_rate - p.low for p in line], [p.high - p.success_rate for p in line]]
            label = "demos only" if ratio == 0 else f"+ {ratio:g} action-free per demo"
            axes.errorbar(x, y, spread, fmt="o-", color=colour, capsize=4, label=label)
            for point, place in zip(line, x, strict=True):
                beside = (7 if index % 2 else -7, 0)
                axes.annotate(
                    f"{point.successes}/{point.episodes}",
                    (place, point.success_rate),
                    beside,
                    textcoords="offset points",
                    fontsize=8,
                    color=colour,
                    ha="left" if index % 2 else "right",
                    va="center",
                    bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
                )
            for seed in sorted({scored.arm.seed for scored in self.arms}) if line[0].seeds > 1 else ():
                own = [s for s in self.arms if s.arm.seed == seed and s.arm.action_free_ratio == ratio]
                axes.plot([s.arm.demo_count * nudge for s in own], [s.successes / s.episodes for s in own], color=colour, lw=0.6, alpha=0.6)
        axes.set_xscale("log")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set_xlim(counts[0] / 1.6, counts[-1] * 1.6)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("demonstrations per task (episodes with actions)")
        axes.set_ylabel("success rate")
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, loc="upper left")
        errors = sum(point.errors for point in self.points)
        axes.set_title(f"{self.name}: Wilson 95 % intervals, {errors} errors, protocol {self.arms[0].protocol}", fontsize=9, loc="left")
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind)
        return buffer.getvalue()


def _arm_words(demo_count: int, ratio: float) -> str:
    return f"{demo_count} demos" + (f" + {ratio:g} action-free per demo" if ratio else "")
