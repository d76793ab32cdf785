"""Action errors -> curve over demo count, one line per action-free ratio and per baseline: the result of a
sweep that has recordings and no simulator.

Lower is better. It shares no point, no comparison and no scale with success rates.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from orchestrator.config.schema import Prices
from orchestrator.cost import Cost, added
from orchestrator.data.action_error import MEASURE, ActionError, mean_dimensions, mean_loss
from orchestrator.report.arithmetic import mixed_arithmetic
from orchestrator.report.curve_report import CostReport
from orchestrator.report.curve_types import (
    Cell,
    ErrorComparison,
    ErrorPoint,
    Series,
    TaskError,
    are_named,
    compared_cells,
    lines_of,
)
from orchestrator.report.sample_efficiency_curve import Curve, curve_of_tracked
from orchestrator.report.training_in_words import in_common, match_of, trained_for
from orchestrator.stats import sample_efficiency as efficiency
from orchestrator.stats.fixed_sample import (
    Interval,
    PairedMeans,
    hierarchical_draws,
    holm,
    interval_of,
    mean_interval,
    paired_means,
)
from orchestrator.stats.sample_efficiency import Estimate, estimated
from orchestrator.tracking.mlflow_reader import MeasuredArm, holds_out, read_sweep
from orchestrator.tracking.mlflow_writer import DIMENSIONS, TrackingError


@dataclass(frozen=True)
class HeldOutCurve:
    """The result of a sweep on held-out episodes: its measured arms, and the points and comparisons computed
    from them.
    """

    name: str
    arms: tuple[MeasuredArm, ...]
    sweep: Mapping[str, Any] = field(default_factory=dict)
    """The resolved sweep file."""
    tags: Mapping[str, str] = field(default_factory=dict)
    dimensions: tuple[str, ...] = ()
    """Names of the action dimensions; empty: they are numbered."""

    def __post_init__(self) -> None:
        if len(protocols := {measured.protocol for measured in self.arms}) > 1:
            raise ValueError(
                f"{self.name}: arms that were measured by different protocols"
                f" ({', '.join(sorted(protocols))}) cannot be on one curve"
            )

    # -- points

    @property
    def protocol(self) -> str:
        """Fingerprint of the protocol that all action errors share."""
        return self.arms[0].protocol

    @property
    def seeds(self) -> list[int]:
        """Seeds of the measured arms, sorted."""
        return sorted({measured.arm.seed for measured in self.arms})

    @cached_property
    def lines(self) -> list[Series]:
        """Lines in the order of `lines_of`."""
        return lines_of((measured.arm for measured in self.arms), self.sweep)

    def label(self, line: Series) -> str:
        """Return the name of a line in legends."""
        return line.named_label if are_named(self.lines) else line.label

    @cached_property
    def _cells(self) -> dict[Cell, list[MeasuredArm]]:
        """Arms of every point, line by line, each by demo count."""
        cells: dict[Cell, list[MeasuredArm]] = {}
        for measured in sorted(self.arms, key=lambda one: (self.lines.index(Series.of(one.arm)), one.arm)):
            cells.setdefault((Series.of(measured.arm), measured.arm.demo_count), []).append(measured)
        return cells

    @cached_property
    def points(self) -> list[ErrorPoint]:
        """Points, line by line, each by demo count."""
        return [
            self._point(cell, arms, draws)
            for (cell, arms), draws in zip(self._cells.items(), self._draws.T, strict=True)
        ]

    def _point(self, cell: Cell, arms: list[MeasuredArm], draws: NDArray[np.float64]) -> ErrorPoint:
        line, demos = cell
        by_episode = self._by_episode(cell)
        task_of = {error.episode: error.task for error in arms[0].errors}
        counted = mean_interval([*by_episode.values()])
        spread = interval_of(np.maximum(draws, 0))
        errors = [error for measured in arms for error in measured.errors]
        costs = [measured.cost for measured in arms if measured.cost]
        return ErrorPoint(
            policy=line.policy,
            demo_count=demos,
            action_free_ratio=line.action_free_ratio,
            error=float(np.mean([*by_episode.values()])),
            interval=_from_zero(counted),
            band=_from_zero(Interval(min(spread.low, counted.low), max(spread.high, counted.high))),
            constant=float(np.mean([error.constant for error in errors])),
            episodes=len(by_episode),
            seeds=len(arms),
            missing_seeds=tuple(sorted(set(self.seeds) - {measured.arm.seed for measured in arms})),
            dimensions=mean_dimensions(errors),
            loss=mean_loss(errors),
            by_task={
                task: _task_error([by_episode[one] for one in by_episode if task_of[one] == task])
                for task in sorted(set(task_of.values()))
            },
            cost=added(costs) if len(costs) == len(arms) else None,
        )

    def _by_episode(self, cell: Cell, seeds: set[int] | None = None) -> dict[str, float]:
        """Return a point's error by episode, averaged over its seeds, or over some of them."""
        found: dict[str, list[float]] = {}
        for measured in self._cells.get(cell, []):
            if seeds is None or measured.arm.seed in seeds:
                for error in measured.errors:
                    found.setdefault(error.episode, []).append(error.error)
        return {episode: float(np.mean(values)) for episode, values in found.items()}

    @cached_property
    def _draws(self) -> NDArray[np.float64]:
        """Joint draws of the errors of all points, (B, C), by `hierarchical_draws`."""
        listed: dict[str, ActionError] = {
            error.episode: error for measured in self.arms for error in measured.errors
        }
        episodes = sorted(listed)
        place = {episode: number for number, episode in enumerate(episodes)}
        tasks = np.unique([listed[episode].task for episode in episodes], return_inverse=True)[1]
        values = np.full((len(self._cells), len(self.seeds), len(episodes)), np.nan)
        for cell, arms in enumerate(self._cells.values()):
            for measured in arms:
                row = values[cell, self.seeds.index(measured.arm.seed)]
                row[[place[error.episode] for error in measured.errors]] = [
                    error.error for error in measured.errors
                ]
        return hierarchical_draws(values, tasks)

    def of_line(self, line: Series) -> list[ErrorPoint]:
        """Return the points of one line, by demo count."""
        return [point for point in self.points if point.series == line]

    @property
    def constant(self) -> float:
        """Error of the mean action of the held-out episodes."""
        return self.points[0].constant

    # -- comparisons

    @cached_property
    def comparisons(self) -> list[ErrorComparison]:
        """Comparisons of the points that `compared_cells` names, episode by episode."""
        counts = sorted({measured.arm.demo_count for measured in self.arms})
        told = []
        for pairs in compared_cells(self.lines, counts):
            both = [(pair, result) for pair in pairs if (result := self._compared(*pair))]
            corrected = holm([result.p_value for _, result in both])
            told += [
                self._comparison(pair, result, p, len(both))
                for (pair, result), p in zip(both, corrected, strict=True)
            ]
        return told

    def _common_seeds(self, first: Cell, second: Cell) -> set[int]:
        seeds = [{measured.arm.seed for measured in self._cells.get(cell, [])} for cell in (first, second)]
        return seeds[0] & seeds[1]

    def _compared(self, first: Cell, second: Cell) -> PairedMeans | None:
        seeds = self._common_seeds(first, second)
        return (
            paired_means(self._by_episode(first, seeds), self._by_episode(second, seeds)) if seeds else None
        )

    def _comparison(
        self, pair: tuple[Cell, Cell], result: PairedMeans, p: float, compared: int
    ) -> ErrorComparison:
        ((line, count), (other, other_count)), cells = pair, list(self._cells)
        words = line.words(count, " with video" if line.policy != other.policy else "")
        other_words = other.words(other_count)
        if are_named(self.lines):
            words, other_words = line.named_words(count), other.named_words(other_count)
        first, second = (cells.index(cell) for cell in pair)
        return ErrorComparison(
            first=words,
            second=other_words,
            first_policy=line.policy,
            second_policy=other.policy,
            result=result,
            interval=interval_of(self._draws[:, first] - self._draws[:, second]),
            seeds=len(self._common_seeds(*pair)),
            compared=compared,
            p_corrected=p,
        )

    def data_equivalence(self, line: Series) -> Estimate | None:
        """Return how many times as many demos the lowest ratio needs for the action errors of this line; None
        for that ratio itself and for baselines.
        """
        return self._worth.get(line)

    @cached_property
    def _worth(self) -> dict[Series, Estimate]:
        base = self.lines[0]
        return {
            line: self._worth_of(line, base)
            for line in self.lines
            if not (line.baseline or base.baseline or line == base)
        }

    def _worth_of(self, line: Series, base: Series) -> Estimate:
        (demos, errors, draws), (more, mixed, mixed_draws) = self._errors(base), self._errors(line)
        return estimated(
            efficiency.data_equivalence((demos, -errors), (more, -mixed)),
            [
                efficiency.data_equivalence((demos, -own), (more, -other))
                for own, other in zip(draws, mixed_draws, strict=True)
            ],
        )

    def _errors(self, line: Series) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return a line's demo counts (N,), errors (N,) and drawn errors (B, N)."""
        mine = [number for number, (own, _) in enumerate(self._cells) if own == line]
        points = [self.points[number] for number in mine]
        demos = np.array([float(point.demo_count) for point in points])
        return demos, np.array([point.error for point in points]), self._draws[:, mine]

    # -- in words

    def answer(self) -> list[str]:
        """Return the sweep's main results in sentences."""
        told = [sentence for line in self.lines if (sentence := self.equivalence_in_words(line))]
        if are_named(self.lines) or match_of(self.sweep) != "steps":
            common = in_common(self.sweep, [measured.cost for measured in self.arms])
            told.insert(0, f"Between lines and demo counts, {common}.")
        for line in self.lines:
            points = self.of_line(line)
            first, best = points[0], min(points, key=lambda point: point.error)
            label = self.label(line)
            label = label if are_named(self.lines) else label[0].upper() + label[1:]
            told.append(
                f"{label}: action error {first.error:.3f} with {first.demo_count} demos"
                + (f", lowest {best.error:.3f} with {best.demo_count}." if best is not first else ".")
            )
        told.append(
            f"A constant action has an action error of {self.constant:.3f}; no success rate was measured."
        )
        if len(self.seeds) == 1:
            told.append(
                "One seed: what is said holds for these trained policies; another training of each could come"
                " out differently."
            )
        return [*told, *mixed_arithmetic(self.arms)]

    def equivalence_in_words(self, line: Series) -> str:
        """Return the sentence on how many demos action-free video replaces by action error; empty for the
        lowest ratio and for baselines.
        """
        factor = self.data_equivalence(line)
        if factor is None:
            return ""
        value, (low, high) = factor.value, factor.interval
        base, ratio = f"{self.lines[0].action_free_ratio:g}", f"{line.action_free_ratio:g}"
        if not 0 < value < math.inf:  # nan too
            return (
                f"By action error, an action-free ratio of {ratio} and one of {base} share no error within"
                " the demos tried, so that what the videos are worth is not bounded."
            )
        interval = f"95 % interval {_factor(low)} to {_factor(high)}"
        if not low > 1 and not high < 1:
            return (
                f"No evidence that an action-free ratio of {ratio} replaces demos, by action error:"
                f" {value:.2g} times the demos ({interval})."
            )
        return (
            f"By action error, an action-free ratio of {ratio} is worth {value:.2g} times the demos of one of"
            f" {base} ({interval})."
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
        if trained := trained_for(sweep, [measured.cost for measured in self.arms]):
            said.append(f"{trained}, the last checkpoint measured")
        said.append(f"seeds {', '.join(map(str, self.seeds))}" + (", one thin line each" if several else ""))
        said.append("bars: 95 % intervals by Student's t over episodes")
        said.append(
            "shaded: 95 % with the spread between seeds"
            if several
            else "without the spread that other seeds would show"
        )
        return "; ".join(said) + f". Protocol {self.protocol}."

    def dimension(self, place: int) -> str:
        """Return the name of an action dimension."""
        return self.dimensions[place] if self.dimensions else f"dimension {place}"

    def cost_report(self, cost: Cost | None) -> CostReport | None:
        """Return a cost in hours, counts, and money at the sweep's prices."""
        if cost is None:
            return None
        return CostReport.of(cost, cost.money(Prices(**self.sweep.get("prices", {}))))

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
            "match": match_of(self.sweep),
            "answer": self.answer(),
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
        }

    def _worth_json(self, line: Series) -> dict[str, Any] | None:
        factor = self.data_equivalence(line)
        if factor is None:
            return None
        value = factor.value if np.isfinite(factor.value) else None
        return {"value": value, **_bounds(factor.interval), "text": self.equivalence_in_words(line)}

    def _point_json(self, point: ErrorPoint) -> dict[str, Any]:
        return {
            "policy": point.policy,
            "demo_count": point.demo_count,
            "action_free_ratio": point.action_free_ratio,
            "action_error": point.error,
            **_bounds(point.interval),
            "band_low": _bounds(point.band)["low"],
            "band_high": _bounds(point.band)["high"],
            "constant_action": point.constant,
            "episodes": point.episodes,
            "seeds": point.seeds,
            "missing_seeds": list(point.missing_seeds),
            "by_dimension": {self.dimension(place): error for place, error in enumerate(point.dimensions)},
            "loss": point.loss,
            "by_task": {
                task: {"action_error": own.error, "episodes": own.episodes, **_bounds(own.interval)}
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
            **_bounds(_from_zero(mean_interval(values))),
            "loss": mean_loss(measured.errors),
            "episodes": [
                {"episode": error.episode, "task": error.task, "action_error": error.error}
                for error in measured.errors
            ],
            "cost": (cost := self.cost_report(measured.cost)) and cost.to_json(),
            "run_id": measured.run_id,
        }

    def draw(self, kind: str) -> bytes:
        """Return the figure as bytes; kind: png, svg or pdf."""
        from orchestrator.report.held_out_plots import draw

        return draw(self, kind)

    def page(self) -> str:
        """Return the report as one HTML page."""
        from orchestrator.report.held_out_plots import page

        sweep_file = yaml.safe_dump(dict(self.sweep), sort_keys=False) if self.sweep else ""
        return page(self, sweep_file)

    def save(self, path: str | Path) -> None:
        """Write the curve as PNG, SVG, PDF or JSON, by the file's suffix."""
        path = Path(path)
        path.write_bytes(
            json.dumps(self.to_json(), indent=1).encode()
            if path.suffix == ".json"
            else self.draw(path.suffix.removeprefix("."))
        )


def _from_zero(interval: Interval) -> Interval:
    """Return an interval of an error, which is never negative."""
    return Interval(max(0.0, interval.low), interval.high)


def _factor(value: float) -> str:
    return f"{value:.2g}" if np.isfinite(value) else "unbounded"


def _task_error(values: list[float]) -> TaskError:
    return TaskError(float(np.mean(values)), len(values), _from_zero(mean_interval(values)))


def _bounds(interval: Interval) -> dict[str, float | None]:
    return {name: bound if np.isfinite(bound) else None for name, bound in interval._asdict().items()}


def _comparison_json(comparison: ErrorComparison) -> dict[str, Any]:
    result = comparison.result
    return {
        "first": comparison.first,
        "second": comparison.second,
        "first_policy": comparison.first_policy,
        "second_policy": comparison.second_policy,
        **_bounds(comparison.interval),
        "seeds": comparison.seeds,
        "compared": comparison.compared,
        "test": "paired t-test over held-out episodes",
        "p_corrected": comparison.p_corrected,
        "difference": result.difference,
        "episodes": result.episodes,
        "lower": result.lower,
        "p_value": result.p_value,
        "verdict": comparison.verdict,
        "text": str(comparison),
    }


def read_curve(tracking_uri: str, name: str, store: str = "", storage: str = "") -> Curve | HeldOutCurve:
    """Return a sweep's curve from MLflow alone: of success rates, or of action errors on held-out episodes.
    store, storage: select the sweep's storage, see `read_sweep`.

    Raises TrackingError if there is no such sweep, if there are several, or if no arm of it is scored yet.
    """
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
