"""Scores -> sample-efficiency curve: success over demo count, one line per policy and action-free ratio."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.config.arms import Arm
from orchestrator.data.action_error import MEASURE
from orchestrator.report.arms_curve import ArmsCurve
from orchestrator.report.best_checkpoint import check_selection
from orchestrator.report.curve_types import (
    Cell,
    Comparison,
    DemosToReach,
    Point,
    Series,
    TaskScore,
)
from orchestrator.report.demo_worth_report import DemoWorthReport, demo_worth_report
from orchestrator.report.exchange_report import ExchangeReport, exchange_report
from orchestrator.report.labelled_tasks import LabelReport, label_report
from orchestrator.report.where_report import WhereReport, where_report
from orchestrator.stats import sample_efficiency as efficiency
from orchestrator.stats.claims import Claim
from orchestrator.stats.fixed_sample import (
    Correlation,
    Interval,
    PairedComparison,
    band,
    blaker,
    clopper_pearson,
    interval_of,
    paired_comparison,
    rank_correlation,
)
from orchestrator.stats.sample_efficiency import Estimate, estimated
from orchestrator.stats.sequential import PairedEvidence, anytime_interval
from orchestrator.stats.success_surface import SuccessSurface, fit_surface
from orchestrator.tracking.mlflow_reader import (
    CLIPS,
    VIDEO,
    Checkpoint,
    ScoredArm,
    TrackedSweep,
    holds_out,
    read_sweep,
)
from orchestrator.tracking.mlflow_writer import TrackingError
from orchestrator.tracking.references import ReferenceScore
from orchestrator.tracking.rollout_videos import RolloutVideo
from sim_workers.rollout.suite import EpisodeSpec

if TYPE_CHECKING:
    from orchestrator.report.compared_sweeps import Beside
    from orchestrator.report.curve_report import CurveReport, VideoReport


@dataclass(frozen=True)
class ImaginedVideo:
    """Quality of a checkpoint's generated video, and its success rate."""

    arm: Arm
    step: int
    distance: float
    """From the held-out clips (`VIDEO`); lower is better."""
    success_rate: float


@dataclass(frozen=True)
class Curve(ArmsCurve[ScoredArm, Point, PairedComparison, Comparison]):
    """The result of a sweep in a simulator: success rates of its scored arms."""

    MEASURED = "scored"
    SIGN = 1

    references: tuple[ReferenceScore, ...] = ()
    """Scores of the suite's references, which take part in no comparison."""
    checkpoint: Checkpoint = "last"
    """Which checkpoint of every arm is shown."""

    @classmethod
    def read(
        cls,
        tracking_uri: str,
        name: str,
        store: str = "",
        storage: str = "",
        checkpoint: Checkpoint = "last",
    ) -> "Curve":
        """Return a sweep's curve from MLflow; `curve_from_mlflow`."""
        return curve_from_mlflow(tracking_uri, name, store, storage, checkpoint)

    # -- points

    def on_tasks(self, tasks: Collection[str]) -> "Curve":
        """Return the curve of the episodes of some tasks. Errors, which are not known by task, are 0."""
        arms = []
        for arm in self.arms:
            own = {name: won for name, won in arm.outcomes.items() if EpisodeSpec.task_of(name) in tasks}
            if own:
                wins = sum(own.values())
                arms.append(replace(arm, outcomes=own, successes=wins, episodes=len(own), errors=0))
        return replace(self, arms=tuple(arms))

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
        """Return the 95 % interval of a success rate of this curve: Blaker's, or the anytime-valid one if
        `looked_at`.
        """
        return (anytime_interval if self.looked_at else blaker)(successes, episodes)

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

    @property
    def claim(self) -> Claim:
        """What the seeds of all points allow to say; every arm of a surface is a training of it."""
        return Claim(len(self.arms)) if self.surface else super().claim

    def _values(self, arm: ScoredArm) -> Mapping[str, float]:
        return arm.outcomes

    def _tasks(self, episodes: Sequence[str]) -> list[str]:
        return [EpisodeSpec.task_of(episode) for episode in episodes]

    def _value(self, point: Point) -> float:
        return point.success_rate

    def _point(self, cell: Cell, arms: list[ScoredArm], draws: NDArray[np.float64]) -> Point:
        line, demos = cell
        successes, episodes = sum(arm.successes for arm in arms), sum(arm.episodes for arm in arms)
        played, won = Counter[str](), Counter[str]()
        for arm in arms:
            for episode, success in arm.outcomes.items():
                played[task := EpisodeSpec.task_of(episode)] += 1
                won[task] += success
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
            band=band(draws, widest) if Claim(len(arms)).of_recipe else None,
            seeds=len(arms),
            missing_seeds=self._missing_seeds(arms),
            by_task={
                task: TaskScore(won[task], played[task], self.interval(won[task], played[task]))
                for task in sorted(played)
            },
            cost=self._cost(arms),
            early=any(arm.early for arm in arms),
        )

    # -- measures and comparisons

    @cached_property
    def labels(self) -> LabelReport | None:
        """The curve by labelled and unlabelled tasks; None if all tasks are labelled, or if a search proposed
        the arms.
        """
        return None if self.searched else label_report(self)

    @cached_property
    def exchange(self) -> ExchangeReport | None:
        """How many videos of each kind a demonstration is worth; None without lines to compare, if lines
        differ in their labelled tasks, or if a search proposed the arms.
        """
        return None if self.searched or self.labels else exchange_report(self)

    @cached_property
    def where(self) -> WhereReport:
        """Where more demonstrations help: stages of failing episodes, scenes, starting places."""
        return where_report(self)

    @cached_property
    def demonstrations(self) -> DemoWorthReport | None:
        """Which demonstrations hurt; None if it is not known what the arms learned from."""
        return demo_worth_report(self)

    def area(self, line: Series) -> Estimate | None:
        """Return the area under a line over log demos, as a fraction of the largest possible; None if the
        seeds are too few for statements about recipes.
        """
        if not self.claim_of(line).of_recipe:
            return None
        demos, rates, draws = self._along(line)
        return estimated(
            float(efficiency.area(demos, rates)), list(np.clip(efficiency.area(demos, draws), 0, 1))
        )

    def reach(self, line: Series, success_rate: float) -> DemosToReach | None:
        """Return the demos with which a line reaches a success rate; None if the seeds are too few for
        statements about recipes.
        """
        if not self.claim_of(line).of_recipe:
            return None
        if (line, success_rate) not in self._reached:
            demos, rates, draws = self._along(line)
            value = efficiency.demos_to_reach(demos, rates, success_rate)
            drawn = [efficiency.demos_to_reach(demos, own, success_rate) for own in draws]
            interval = estimated(value, drawn).interval
            self._reached[line, success_rate] = DemosToReach(line, success_rate, value, interval)
        return self._reached[line, success_rate]

    @cached_property
    def _reached(self) -> dict[tuple[Series, float], DemosToReach]:
        return {}

    def demos_to_reach(self, success_rate: float) -> list[DemosToReach]:
        """Return the demos with which each line reaches a success rate, in the order of `lines`, without
        lines whose seeds are too few for statements about recipes.
        """
        return [found for line in self.lines if (found := self.reach(line, success_rate))]

    def _compared(self, first: Cell, second: Cell) -> PairedComparison | None:
        outcomes, others = self._outcomes(first), self._outcomes(second)
        if not outcomes.keys() & others.keys():
            return None
        result = paired_comparison(outcomes, others)
        if self.looked_at:
            return replace(result, p_value=PairedEvidence(result.only_first, result.only_second).p_value)
        return result

    def _comparison(
        self, pair: tuple[Cell, Cell], result: PairedComparison, p_corrected: float, compared: int
    ) -> Comparison:
        first, second = self._pair_in_words(pair)
        return Comparison(
            first=first,
            second=second,
            first_policy=pair[0][0].policy,
            second_policy=pair[1][0].policy,
            result=result,
            interval=interval_of(np.clip(self._difference_draws(pair), -1, 1)),
            seeds=len(self._common_seeds(*pair)),
            compared=compared,
            test="anytime-valid" if self.looked_at else "exact McNemar",
            p_corrected=p_corrected,
        )

    def _outcomes(self, cell: Cell) -> dict[str, bool]:
        """Return outcomes by seed and episode, so that replicates are paired by seed."""
        found = self._cells.get(cell, [])
        return {
            f"{scored.arm.seed}/{episode}": success
            for scored in found
            for episode, success in scored.outcomes.items()
        }

    @cached_property
    def imagined(self) -> list[ImaginedVideo]:
        """Video distance (`VIDEO`) and success rate of every checkpoint with both.

        Distances on different clips are not comparable: only checkpoints with the most frequent set of clips
        are included.
        """
        told = [(scored.arm, step, one) for scored in self.arms for step, one in scored.imagined.items()]
        clips = Counter(one[CLIPS] for _, _, one in told).most_common(1)
        return [
            ImaginedVideo(arm, step, one[VIDEO[2]], one["success_rate"])
            for arm, step, one in told
            if one[CLIPS] == clips[0][0]
        ]

    def video_and_success(self, given_steps: bool = False) -> Correlation | None:
        """Return the rank correlation of video quality (negative distance) and success rate over checkpoints,
        of which only those of different arms count as independent; None if undefined.

        given_steps: the partial one given training steps, since both sides may grow with them alone.
        """
        shown = self.imagined
        return rank_correlation(
            [-one.distance for one in shown],
            [one.success_rate for one in shown],
            [one.arm.name for one in shown],
            [one.step for one in shown] if given_steps else None,
        )

    @cached_property
    def video(self) -> "VideoReport | None":
        """Distances between imagined and executed video, and their correlation with success; None without any
        imagined video.
        """
        from orchestrator.report.summary import video_report

        return video_report(self)

    # -- output

    def report(self) -> "CurveReport":
        """Return the report, in numbers and sentences."""
        from orchestrator.report.summary import report

        return report(self)

    def answer(self) -> list[str]:
        """Return the sweep's main results in sentences."""
        from orchestrator.report.summary import answer

        return answer(self)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return self.report().to_json()

    def _in_short(self, interval: Interval) -> str:
        return f"{interval.low:.2f} to {interval.high:.2f}"

    def _value_columns(self) -> list[tuple[str, list[str]]]:
        return [
            ("success", [f"{point.success_rate:.2f}" for point in self.points]),
            ("episodes", [f"{point.successes}/{point.episodes}" for point in self.points]),
        ]

    def _other_columns(self) -> list[tuple[str, list[str]]]:
        return [("errors", [f"{point.errors}" for point in self.points])]

    def draw(self, kind: str) -> bytes:
        """Return the figure as bytes; kind: png, svg or pdf."""
        from orchestrator.report.matplotlib_plot import draw

        return draw(self, kind)

    def page(self, videos: Sequence[RolloutVideo], beside: "Beside | None" = None) -> str:
        """Return the report as one HTML page with these rollout videos. beside: what the curve has from
        several sweeps or from published results.
        """
        from orchestrator.report.html import page
        from orchestrator.report.scene_grid import scene_grid

        surface = self.draw("png") if self.surface else b""
        report, scenes = self.report(), scene_grid(self)
        return page(report, videos, self.sweep_file, surface=surface, scenes=scenes, beside=beside)


def curve_from_mlflow(
    tracking_uri: str, name: str, store: str = "", storage: str = "", checkpoint: Checkpoint = "last"
) -> Curve:
    """Return a sweep's curve from MLflow alone. store, storage: select the sweep's storage, see `read_sweep`.
    checkpoint: which one of every arm.

    Raises TrackingError if there is no such sweep, if there are several, or if no arm of it is scored yet,
    and NoSelectionError if best checkpoints are asked for and no scenes are apart to choose them.
    """
    check = check_selection if checkpoint == "best" else None
    tracked = read_sweep(tracking_uri, name, store, storage, checkpoint, check)
    return replace(curve_of_tracked(name, tracked), checkpoint=checkpoint)


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
