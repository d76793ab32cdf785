"""Scores -> sample-efficiency curve: success over demo count, one line per policy and action-free ratio."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from orchestrator.cost import added
from orchestrator.data.action_error import MEASURE
from orchestrator.report.curve_types import (
    Cell,
    Comparison,
    DemosToReach,
    Point,
    Series,
    TaskScore,
    are_named,
    compared_cells,
    lines_of,
    policy_lines,
)
from orchestrator.stats import sample_efficiency as efficiency
from orchestrator.stats.fixed_sample import (
    Correlation,
    Interval,
    PairedComparison,
    band,
    clopper_pearson,
    hierarchical_draws,
    holm,
    interval_of,
    paired_comparison,
    rank_correlation,
    wilson,
)
from orchestrator.stats.sample_efficiency import Estimate, estimated
from orchestrator.stats.sequential import PairedEvidence, anytime_interval
from orchestrator.stats.success_surface import SuccessSurface, fit_surface
from orchestrator.tracking.mlflow_reader import CLIPS, VIDEO, ScoredArm, TrackedSweep, holds_out, read_sweep
from orchestrator.tracking.mlflow_writer import TrackingError
from orchestrator.tracking.references import ReferenceScore
from orchestrator.tracking.rollout_videos import RolloutVideo
from sim_workers.rollout.suite import EpisodeSpec

if TYPE_CHECKING:
    from orchestrator.report.curve_report import CurveReport


@dataclass(frozen=True)
class Curve:
    """The result of a sweep: its scored arms, and the points, measures and comparisons computed from them."""

    name: str
    arms: tuple[ScoredArm, ...]
    sweep: Mapping[str, Any] = field(default_factory=dict)
    """The resolved sweep file."""
    tags: Mapping[str, str] = field(default_factory=dict)
    references: tuple[ReferenceScore, ...] = ()
    """Scores of the suite's references, which take part in no comparison."""

    def __post_init__(self) -> None:
        if len(protocols := {scored.protocol for scored in self.arms}) > 1:
            raise ValueError(
                f"{self.name}: arms that were scored by different protocols ({', '.join(sorted(protocols))})"
                " cannot be on one curve"
            )

    @classmethod
    def read(cls, tracking_uri: str, name: str, store: str = "", storage: str = "") -> "Curve":
        """Return a sweep's curve from MLflow; `curve_from_mlflow`."""
        return curve_from_mlflow(tracking_uri, name, store, storage)

    # -- points

    @property
    def protocol(self) -> str:
        """Fingerprint of the protocol that all scores share."""
        return self.arms[0].protocol

    @property
    def seeds(self) -> list[int]:
        """Seeds of the scored arms, sorted."""
        return sorted({scored.arm.seed for scored in self.arms})

    @property
    def errors(self) -> int:
        """Number of episodes that ended in an error."""
        return sum(scored.errors for scored in self.arms)

    @property
    def looked_at(self) -> bool:
        """Whether a rule (`suite.decide`) could end scores early, so that only anytime-valid
        statistics hold; not with `suite.select`, where it ends other scores.
        """
        suite = self.sweep.get("suite", {})
        return bool(suite.get("decide")) and not suite.get("select")

    def interval(self, successes: int, episodes: int) -> Interval:
        """Return the 95 % interval of a success rate of this curve: Wilson's, or the anytime-valid one if
        `looked_at`.
        """
        return (anytime_interval if self.looked_at else wilson)(successes, episodes)

    @property
    def searched(self) -> bool:
        """Whether a search proposed demo counts or ratios from ranges, so that few arms share a line."""
        data = self.sweep.get("data", {})
        ranges = any(isinstance(data.get(name), Mapping) for name in ("demo_count", "action_free_ratio"))
        return ranges and bool(self.sweep.get("search", {}).get("optuna"))

    @cached_property
    def surface(self) -> SuccessSurface | None:
        """Success over demo count and ratio, of a search over ranges; None for any other sweep, or if there
        are too few arms.
        """
        if not self.searched:
            return None
        columns = [
            (scored.arm.demo_count, scored.arm.action_free_ratio, scored.successes, scored.episodes)
            for scored in self.arms
        ]
        return fit_surface(*np.array(columns, float).T)

    @cached_property
    def lines(self) -> list[Series]:
        """Lines in the order of `lines_of`."""
        return lines_of((scored.arm for scored in self.arms), self.sweep)

    @property
    def policy_lines(self) -> list[Mapping[str, Any]]:
        """`policy.lines` of the sweep file; empty if it has none."""
        return policy_lines(self.sweep)

    @property
    def match(self) -> str:
        """What arms have in common: `train.match`."""
        return str(self.sweep.get("train", {}).get("match", "steps"))

    @cached_property
    def named(self) -> bool:
        """Whether lines are called by the names of their policies: there are others than `video_action` and
        the baseline.
        """
        return are_named(self.lines)

    def label(self, line: Series) -> str:
        """Return the name of a line in legends."""
        return line.named_label if self.named else line.label

    def base(self, line: Series) -> Series:
        """Return the line of the same policy with the lowest ratio."""
        return next(other for other in self.lines if other.policy == line.policy)

    @cached_property
    def _cells(self) -> dict[Cell, list[ScoredArm]]:
        """Arms of every point, line by line, each by demo count."""
        cells: dict[Cell, list[ScoredArm]] = {}
        for scored in sorted(
            self.arms, key=lambda scored: (self.lines.index(Series.of(scored.arm)), scored.arm)
        ):
            cells.setdefault((Series.of(scored.arm), scored.arm.demo_count), []).append(scored)
        return cells

    @cached_property
    def points(self) -> list[Point]:
        """Points, line by line, each by demo count."""
        return [
            self._point(line, demos, arms, draws)
            for ((line, demos), arms), draws in zip(self._cells.items(), self._draws.T, strict=True)
        ]

    def _point(self, line: Series, demos: int, arms: list[ScoredArm], draws: NDArray[np.float64]) -> Point:
        successes, episodes = sum(arm.successes for arm in arms), sum(arm.episodes for arm in arms)
        played, won = Counter[str](), Counter[str]()
        for arm in arms:
            for episode, success in arm.outcomes.items():
                played[task := EpisodeSpec.task_of(episode)] += 1
                won[task] += success
        costs = [arm.cost for arm in arms if arm.cost]
        widest = (anytime_interval if self.looked_at else clopper_pearson)(successes, episodes)
        return Point(
            policy=line.policy,
            demo_count=demos,
            action_free_ratio=line.action_free_ratio,
            success_rate=successes / episodes,
            successes=successes,
            episodes=episodes,
            errors=sum(arm.errors for arm in arms),
            interval=self.interval(successes, episodes),
            band=band(draws, widest),
            seeds=len(arms),
            missing_seeds=tuple(sorted(set(self.seeds) - {arm.arm.seed for arm in arms})),
            by_task={
                task: TaskScore(won[task], played[task], self.interval(won[task], played[task]))
                for task in sorted(played)
            },
            cost=added(costs) if len(costs) == len(arms) else None,
            early=any(arm.early for arm in arms),
        )

    @cached_property
    def _draws(self) -> NDArray[np.float64]:
        """Joint draws of the success rates of all points, (B, C), by `hierarchical_draws`."""
        episodes = sorted({episode for scored in self.arms for episode in scored.outcomes})
        place = {episode: number for number, episode in enumerate(episodes)}
        tasks = np.unique([EpisodeSpec.task_of(episode) for episode in episodes], return_inverse=True)[1]
        outcomes = np.full((len(self._cells), len(self.seeds), len(episodes)), np.nan)
        for cell, arms in enumerate(self._cells.values()):
            for scored in arms:
                row = outcomes[cell, self.seeds.index(scored.arm.seed)]
                row[[place[episode] for episode in scored.outcomes]] = list(scored.outcomes.values())
        return hierarchical_draws(outcomes, tasks)

    def of_line(self, line: Series) -> list[Point]:
        """Return the points of one line, by demo count."""
        return [point for point, (own, _) in zip(self.points, self._cells, strict=True) if own == line]

    def _rates(self, line: Series) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return a line's demo counts (N,), rates (N,) and drawn rates (B, N)."""
        mine = [number for number, (own, _) in enumerate(self._cells) if own == line]
        points = [self.points[number] for number in mine]
        return (
            np.array([float(p.demo_count) for p in points]),
            np.array([p.success_rate for p in points]),
            self._draws[:, mine],
        )

    # -- measures and comparisons

    def area(self, line: Series) -> Estimate:
        """Return the area under a line over log demos, as a fraction of the largest possible."""
        demos, rates, draws = self._rates(line)
        return estimated(
            float(efficiency.area(demos, rates)), list(np.clip(efficiency.area(demos, draws), 0, 1))
        )

    def reach(self, line: Series, success_rate: float) -> DemosToReach:
        """Return the demos with which a line reaches a success rate."""
        if (line, success_rate) not in self._reached:
            demos, rates, draws = self._rates(line)
            value = efficiency.demos_to_reach(demos, rates, success_rate)
            drawn = [efficiency.demos_to_reach(demos, own, success_rate) for own in draws]
            interval = estimated(value, drawn).interval
            self._reached[line, success_rate] = DemosToReach(line, success_rate, value, interval)
        return self._reached[line, success_rate]

    @cached_property
    def _reached(self) -> dict[tuple[Series, float], DemosToReach]:
        return {}

    def demos_to_reach(self, success_rate: float) -> list[DemosToReach]:
        """Return the demos with which each line reaches a success rate, in the order of `lines`."""
        return [self.reach(line, success_rate) for line in self.lines]

    def data_equivalence(self, line: Series) -> Estimate | None:
        """Return how many times as many demos the policy's lowest ratio needs as this line; None for that
        ratio itself.
        """
        return self._worth.get(line)

    @cached_property
    def _worth(self) -> dict[Series, Estimate]:
        return {line: self._worth_of(line, base) for line in self.lines if (base := self.base(line)) != line}

    def _worth_of(self, line: Series, base: Series) -> Estimate:
        (demos, rates, draws), (more, mixed, mixed_draws) = self._rates(base), self._rates(line)
        value = efficiency.data_equivalence((demos, rates), (more, mixed))
        return estimated(
            value,
            [
                efficiency.data_equivalence((demos, own), (more, other))
                for own, other in zip(draws, mixed_draws, strict=True)
            ],
        )

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Comparisons of the points that `compared_cells` names."""
        counts = sorted({scored.arm.demo_count for scored in self.arms})
        told = []
        for pairs in compared_cells(self.lines, counts):
            both = [(pair, result) for pair in pairs if (result := self._compared(*pair))]
            corrected = holm([result.p_value for _, result in both])
            told += [
                self._comparison(*pair, result, p, len(both))
                for (pair, result), p in zip(both, corrected, strict=True)
            ]
        return told

    def _compared(self, first: Cell, second: Cell) -> PairedComparison | None:
        outcomes, others = self._outcomes(first), self._outcomes(second)
        if not outcomes.keys() & others.keys():
            return None
        result = paired_comparison(outcomes, others)
        if self.looked_at:
            return replace(result, p_value=PairedEvidence(result.only_first, result.only_second).p_value)
        return result

    def _comparison(
        self,
        first: Cell,
        second: Cell,
        result: PairedComparison,
        p: float,
        compared: int,
    ) -> Comparison:
        (line, count), (other, other_count) = first, second
        words = line.words(count, " with video" if line.policy != other.policy else "")
        other_words = other.words(other_count)
        if self.named:
            words, other_words = line.named_words(count), other.named_words(other_count)
        cells = list(self._cells)
        interval = interval_of(
            np.clip(self._draws[:, cells.index(first)] - self._draws[:, cells.index(second)], -1, 1)
        )
        seeds = {scored.arm.seed for scored in self._cells[first]} & {
            scored.arm.seed for scored in self._cells[second]
        }
        test = "anytime-valid" if self.looked_at else "exact McNemar"
        return Comparison(
            first=words,
            second=other_words,
            first_policy=line.policy,
            second_policy=other.policy,
            result=result,
            interval=interval,
            seeds=len(seeds),
            compared=compared,
            test=test,
            p_corrected=p,
        )

    def _outcomes(self, cell: Cell) -> dict[str, bool]:
        """Return outcomes by seed and episode, so that replicates are paired by seed."""
        found = self._cells.get(cell, [])
        return {
            f"{scored.arm.seed}/{episode}": success
            for scored in found
            for episode, success in scored.outcomes.items()
        }

    @property
    def imagined(self) -> list[tuple[float, float]]:
        """Pairs of video distance (`VIDEO`) and success rate, of every checkpoint with both.

        Distances on different clips are not comparable: only checkpoints with the most frequent set of clips
        are included.
        """
        told = [told for scored in self.arms for told in scored.imagined.values()]
        clips = Counter(one[CLIPS] for one in told).most_common(1)
        return [(one[VIDEO[2]], one["success_rate"]) for one in told if one[CLIPS] == clips[0][0]]

    def video_and_success(self) -> Correlation | None:
        """Return the rank correlation of video quality (negative distance) and success rate; None if
        undefined.
        """
        return rank_correlation(
            [-distance for distance, _ in self.imagined], [success for _, success in self.imagined]
        )

    # -- output

    def report(self) -> "CurveReport":
        """Return the report, in numbers and sentences."""
        from orchestrator.report.summary import report

        return report(self)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return self.report().to_json()

    def draw(self, kind: str) -> bytes:
        """Return the figure as bytes; kind: png, svg or pdf."""
        from orchestrator.report.matplotlib_plot import draw

        return draw(self, kind)

    def page(self, videos: Sequence[RolloutVideo]) -> str:
        """Return the report as one HTML page with these rollout videos."""
        from orchestrator.report.html import page

        sweep_file = yaml.safe_dump(dict(self.sweep), sort_keys=False) if self.sweep else ""
        surface = self.draw("png") if self.surface else b""
        return page(self.report(), videos, sweep_file, surface=surface)

    def save(self, path: str | Path) -> None:
        """Write the curve as PNG, SVG, PDF or JSON, by the file's suffix."""
        path = Path(path)
        path.write_bytes(
            json.dumps(self.to_json(), indent=1).encode()
            if path.suffix == ".json"
            else self.draw(path.suffix.removeprefix("."))
        )


def curve_from_mlflow(tracking_uri: str, name: str, store: str = "", storage: str = "") -> Curve:
    """Return a sweep's curve from MLflow alone. store, storage: select the sweep's storage, see `read_sweep`.

    Raises TrackingError if there is no such sweep, if there are several, or if no arm of it is scored yet.
    """
    return curve_of_tracked(name, read_sweep(tracking_uri, name, store, storage))


def curve_of_tracked(name: str, tracked: TrackedSweep) -> Curve:
    """Return the curve of a sweep that was read from MLflow. Raises TrackingError if no arm of it is scored
    yet, or if it measures no success.
    """
    if holds_out(tracked.sweep):
        raise TrackingError(
            f"{name}: it measures the {MEASURE} and no success; read it with `demoscale curve {name}`, or in"
            " Python with orchestrator.report.held_out_curve.read_curve"
        )
    if not tracked.arms:
        raise TrackingError(
            f"{name}: no arm's last checkpoint has a complete score yet; see `demoscale status {name}`"
        )
    return Curve(name, tracked.arms, tracked.sweep, tracked.tags, tracked.references)
