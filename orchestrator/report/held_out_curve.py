"""Action errors -> curve over demo count, one line per action-free ratio and per baseline: the result of a
sweep that has recordings and no simulator.

Lower is better. It shares no point, no comparison and no scale with success rates.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.config.arms import in_demos
from orchestrator.data.action_error import MEASURE, mean_dimensions, mean_loss
from orchestrator.report.arithmetic import mixed_arithmetic
from orchestrator.report.arms_curve import NO_BAND, ArmsCurve
from orchestrator.report.curve_types import (
    Cell,
    ErrorComparison,
    ErrorPoint,
    Series,
    TaskError,
    bounds_json,
    estimate_json,
    factor_in_words,
    factors_in_words,
)
from orchestrator.report.sample_efficiency_curve import Curve, curve_from_mlflow, curve_of_tracked
from orchestrator.report.training_in_words import trained_for
from orchestrator.stats.claims import Claim
from orchestrator.stats.fixed_sample import (
    Interval,
    PairedMeans,
    interval_of,
    mean_interval,
    paired_means,
)
from orchestrator.tracking.mlflow_reader import Checkpoint, MeasuredArm, holds_out, read_sweep
from orchestrator.tracking.mlflow_writer import DIMENSIONS, TrackingError


@dataclass(frozen=True)
class HeldOutCurve(ArmsCurve[MeasuredArm, ErrorPoint, PairedMeans, ErrorComparison]):
    """The result of a sweep on held-out episodes: action errors of its measured arms."""

    dimensions: tuple[str, ...] = ()
    """Names of the action dimensions; empty: they are numbered."""

    MEASURED = "measured"
    SIGN = -1

    # -- points

    def _values(self, arm: MeasuredArm) -> Mapping[str, float]:
        return {error.episode: error.error for error in arm.errors}

    def _tasks(self, episodes: Sequence[str]) -> list[str]:
        task_of = {error.episode: error.task for measured in self.arms for error in measured.errors}
        return [task_of[episode] for episode in episodes]

    def _value(self, point: ErrorPoint) -> float:
        return point.error

    def _point(self, cell: Cell, arms: list[MeasuredArm], draws: NDArray[np.float64]) -> ErrorPoint:
        line, demos = cell
        by_episode = self._by_episode(cell)
        task_of = {error.episode: error.task for error in arms[0].errors}
        spread = _from_zero(interval_of(draws))
        errors = [error for measured in arms for error in measured.errors]
        return ErrorPoint(
            policy=line.policy,
            demo_count=demos,
            action_free_ratio=line.action_free_ratio,
            error=float(np.mean([*by_episode.values()])),
            interval=(counted := _from_zero(mean_interval([*by_episode.values()]))),
            band=Interval(min(spread.low, counted.low), max(spread.high, counted.high))
            if Claim(len(arms)).of_recipe
            else None,
            constant=float(np.mean([error.constant for error in errors])),
            episodes=len(by_episode),
            seeds=len(arms),
            missing_seeds=self._missing_seeds(arms),
            dimensions=mean_dimensions(errors),
            loss=mean_loss(errors),
            by_task={
                task: _task_error([by_episode[one] for one in by_episode if task_of[one] == task])
                for task in sorted(set(task_of.values()))
            },
            cost=self._cost(arms),
        )

    def _by_episode(self, cell: Cell, seeds: set[int] | None = None) -> dict[str, float]:
        """Return a point's error by episode, averaged over its seeds, or over some of them."""
        found: dict[str, list[float]] = {}
        for measured in self._cells.get(cell, []):
            if seeds is None or measured.arm.seed in seeds:
                for error in measured.errors:
                    found.setdefault(error.episode, []).append(error.error)
        return {episode: float(np.mean(values)) for episode, values in found.items()}

    @property
    def constant(self) -> float:
        """Error of the mean action of the held-out episodes."""
        return self.points[0].constant

    # -- comparisons

    def _compared(self, first: Cell, second: Cell) -> PairedMeans | None:
        seeds = self._common_seeds(first, second)
        return (
            paired_means(self._by_episode(first, seeds), self._by_episode(second, seeds)) if seeds else None
        )

    def _comparison(
        self, pair: tuple[Cell, Cell], result: PairedMeans, p_corrected: float, compared: int
    ) -> ErrorComparison:
        first, second = self._pair_in_words(pair)
        return ErrorComparison(
            first=first,
            second=second,
            first_policy=pair[0][0].policy,
            second_policy=pair[1][0].policy,
            result=result,
            interval=interval_of(self._difference_draws(pair)),
            seeds=len(self._common_seeds(*pair)),
            compared=compared,
            p_corrected=p_corrected,
        )

    # -- in words

    def answer(self) -> list[str]:
        """Return the sweep's main results in sentences."""
        told = [sentence for line in self.lines if (sentence := self.equivalence_in_words(line))]
        told += [row.text for row in self.exchange.named] if self.exchange else []
        told += self.about_policies()
        for line in self.lines:
            points = self.of_line(line)
            first, best = points[0], min(points, key=lambda point: point.error)
            told.append(
                f"{self.title(line)}: action error {first.error:.3f} with {in_demos(first.demo_count)}"
                + (f", lowest {best.error:.3f} with {best.demo_count}." if best is not first else ".")
            )
        told.append(
            f"A constant action has an action error of {self.constant:.3f}; no success rate was measured."
        )
        return [*told, *self.about_training(), *mixed_arithmetic(self.arms)]

    def equivalence_in_words(self, line: Series) -> str:
        """Return the sentence on how many demos action-free video replaces by action error; empty for the
        lowest ratio, for baselines, and if the seeds are too few.
        """
        factor = self.data_equivalence(line)
        if factor is None:
            return ""
        value, (low, high) = factor.value, factor.interval
        base, ratio = f"{self.base(line).action_free_ratio:g}", f"{line.action_free_ratio:g}"
        if not 0 < value < math.inf:  # nan too
            return (
                f"By action error, an action-free ratio of {ratio} and one of {base} share no error within"
                " the demos tried, so that what the videos are worth is not bounded."
            )
        times = f"{factor_in_words(value)} times the demos"
        interval = f"95 % interval {factors_in_words(factor.interval)}"
        if not low > 1 and not high < 1:
            return (
                f"No evidence that an action-free ratio of {ratio} replaces demos, by action error:"
                f" {times} ({interval})."
            )
        return (
            f"By action error, an action-free ratio of {ratio} is worth {times} of one of {base}"
            f" ({interval})."
        )

    def caption(self) -> str:
        """Return the figure's caption: measure, unit, episodes, training, seeds and the kind of intervals."""
        sweep, several = self.sweep, len(self.seeds) > 1
        tasks = sorted({task for point in self.points for task in point.by_task})
        said = [
            f"{MEASURE[0].upper()}{MEASURE[1:]} of {sweep.get('policy', {}).get('preset', 'one policy')} on"
            f" {', '.join(tasks) if len(tasks) < 4 else f'{len(tasks)} tasks'}, lower is better",
            "mean absolute error of the executed actions against the recorded ones, in standard deviations of"
            " each dimension",
            f"{self.points[0].episodes} recorded episodes that no arm trained on, the same for all",
        ]
        if trained := trained_for(sweep, self.costs):
            said.append(f"{trained}, the last checkpoint measured")
        said.append(f"seeds {', '.join(map(str, self.seeds))}" + (", one thin line each" if several else ""))
        said.append("bars: 95 % intervals by Student's t over episodes")
        said.append(
            "shaded: 95 % with the spread between seeds"
            if any(point.band for point in self.points)
            else NO_BAND
        )
        return "; ".join(said) + f". Protocol {self.protocol}."

    def dimension(self, place: int) -> str:
        """Return the name of an action dimension."""
        return self.dimensions[place] if self.dimensions else f"dimension {place}"

    # -- output

    def to_json(self) -> dict[str, Any]:
        """Return points, arms and comparisons as JSON."""
        return {
            "name": self.name,
            "measure": MEASURE,
            "unit": "standard deviations of the recorded actions, per dimension",
            "lower_is_better": True,
            "protocol": self.protocol,
            "caption": self.caption(),
            "match": self.match,
            "answer": self.answer(),
            "claim": self.claim.to_json(),
            "lines": [
                {
                    "policy": line.policy,
                    "action_free_ratio": line.action_free_ratio,
                    "label": self.label(line),
                    "dashed": line.baseline,
                    "worth": self._worth_json(line),
                }
                for line in self.lines
            ],
            "points": [self._point_json(point) for point in self.points],
            "arms": [self._arm_json(measured) for measured in self.arms],
            "comparisons": [_comparison_json(comparison) for comparison in self.comparisons],
            **({"exchange": self.exchange.to_json()} if self.exchange else {}),
        }

    def _worth_json(self, line: Series) -> dict[str, Any] | None:
        factor = self.data_equivalence(line)
        if factor is None:
            return None
        return {**estimate_json(factor), "text": self.equivalence_in_words(line)}

    def _point_json(self, point: ErrorPoint) -> dict[str, Any]:
        return {
            "policy": point.policy,
            "demo_count": point.demo_count,
            "action_free_ratio": point.action_free_ratio,
            "action_error": point.error,
            **bounds_json(point.interval),
            "band_low": point.band and bounds_json(point.band)["low"],
            "band_high": point.band and bounds_json(point.band)["high"],
            "constant_action": point.constant,
            "episodes": point.episodes,
            "seeds": point.seeds,
            "missing_seeds": list(point.missing_seeds),
            "by_dimension": {self.dimension(place): error for place, error in enumerate(point.dimensions)},
            "loss": point.loss,
            "by_task": {
                task: {"action_error": own.error, "episodes": own.episodes, **bounds_json(own.interval)}
                for task, own in point.by_task.items()
            },
            "cost": (cost := self.cost_report(point.cost)) and cost.to_json(),
        }

    def _arm_json(self, measured: MeasuredArm) -> dict[str, Any]:
        values = [error.error for error in measured.errors]
        return {
            "arm": measured.arm.name,
            "policy": measured.arm.kind,
            "demo_count": measured.arm.demo_count,
            "action_free_ratio": measured.arm.action_free_ratio,
            "seed": measured.arm.seed,
            "step": measured.step,
            "action_error": float(np.mean(values)),
            **bounds_json(_from_zero(mean_interval(values))),
            "loss": mean_loss(measured.errors),
            "episodes": [
                {"episode": error.episode, "task": error.task, "action_error": error.error}
                for error in measured.errors
            ],
            "cost": (cost := self.cost_report(measured.cost)) and cost.to_json(),
            "run_id": measured.run_id,
        }

    def _in_short(self, interval: Interval) -> str:
        return f"{interval.low:.3f} to {interval.high:.3f}"

    def _value_columns(self) -> list[tuple[str, list[str]]]:
        return [("action error", [f"{point.error:.3f}" for point in self.points])]

    def _other_columns(self) -> list[tuple[str, list[str]]]:
        return [
            ("loss", ["" if point.loss is None else f"{point.loss:.3g}" for point in self.points]),
            ("held-out episodes", [f"{point.episodes}" for point in self.points]),
        ]

    def draw(self, kind: str) -> bytes:
        """Return the figure as bytes; kind: png, svg or pdf."""
        from orchestrator.report.held_out_plots import draw

        return draw(self, kind)

    def page(self) -> str:
        """Return the report as one HTML page."""
        from orchestrator.report.held_out_plots import page

        return page(self, self.sweep_file)


def _from_zero(interval: Interval) -> Interval:
    """Return an interval of an error, which is never negative."""
    return Interval(max(0.0, interval.low), interval.high)


def _task_error(values: list[float]) -> TaskError:
    return TaskError(float(np.mean(values)), len(values), _from_zero(mean_interval(values)))


def _comparison_json(comparison: ErrorComparison) -> dict[str, Any]:
    result = comparison.result
    return {
        "first": comparison.first,
        "second": comparison.second,
        "first_policy": comparison.first_policy,
        "second_policy": comparison.second_policy,
        **bounds_json(comparison.interval),
        "seeds": comparison.seeds,
        "compared": comparison.compared,
        "test": "paired t-test over held-out episodes",
        "p_corrected": comparison.p_corrected,
        "difference": result.difference,
        "episodes": result.episodes,
        "lower": result.lower,
        "p_value": result.p_value,
        "verdict": comparison.verdict,
        "about": comparison.claim.about,
        "text": str(comparison),
    }


def read_curve(
    tracking_uri: str, name: str, store: str = "", storage: str = "", checkpoint: Checkpoint = "last"
) -> Curve | HeldOutCurve:
    """Return a sweep's curve from MLflow alone: of success rates, or of action errors on held-out episodes.
    store, storage: select the sweep's storage, see `read_sweep`. checkpoint: which one of every arm.

    Raises TrackingError if there is no such sweep, if there are several, or if no arm of it is scored yet,
    and NoSelectionError if best checkpoints are asked for and no scenes are apart to choose them.
    """
    if checkpoint == "best":
        return curve_from_mlflow(tracking_uri, name, store, storage, checkpoint)
    tracked = read_sweep(tracking_uri, name, store, storage)
    if not holds_out(tracked.sweep):
        return curve_of_tracked(name, tracked)
    if not tracked.measured:
        raise TrackingError(
            f"{name}: no arm's last checkpoint is measured on every held-out episode yet; see"
            f" `demoscale status {name}`"
        )
    names = tuple(json.loads(tracked.tags.get(DIMENSIONS, "[]")))
    return HeldOutCurve(name, tracked.measured, tracked.sweep, tracked.tags, names)
