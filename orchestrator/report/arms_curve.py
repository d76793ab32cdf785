"""Curve of a sweep's arms over demo count, whatever was measured on them: lines, points, pairs of points, and
the table that commands print. Success rates and action errors say what is measured, and in which words.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray

from orchestrator.config.schema import Prices
from orchestrator.cost import Cost, added
from orchestrator.report.curve_report import CostReport
from orchestrator.report.curve_types import (
    Cell,
    Comparison,
    ErrorComparison,
    ErrorPoint,
    Point,
    Series,
    are_named,
    compared_cells,
    lines_of,
    policy_lines,
)
from orchestrator.report.exchange_report import ExchangeReport, exchange_report
from orchestrator.report.training_in_words import in_common, match_of
from orchestrator.stats import sample_efficiency as efficiency
from orchestrator.stats.claims import POLICY_VERDICTS, Claim, enough_seeds
from orchestrator.stats.fixed_sample import (
    Interval,
    PairedComparison,
    PairedMeans,
    hierarchical_draws,
    holm,
)
from orchestrator.stats.sample_efficiency import Estimate, estimated
from orchestrator.tracking.mlflow_reader import MeasuredArm, ScoredArm
from policy.config import VIDEO_ACTION

NAMED_PAIRS = 3
"""Number of pairs of trained policies that a headline names."""
NO_BAND = "without the spread between seeds, which takes at least 3 of them"
"""Part of a figure's caption that has no bands."""

ArmT = TypeVar("ArmT", ScoredArm, MeasuredArm)
PointT = TypeVar("PointT", Point, ErrorPoint)
ResultT = TypeVar("ResultT", PairedComparison, PairedMeans)
ComparisonT = TypeVar("ComparisonT", Comparison, ErrorComparison)


@dataclass(frozen=True)
class ArmsCurve(ABC, Generic[ArmT, PointT, ResultT, ComparisonT]):
    """The result of a sweep: its measured arms, and the points, measures and comparisons computed from
    them.
    """

    name: str
    arms: tuple[ArmT, ...]
    sweep: Mapping[str, Any] = field(default_factory=dict)
    """The resolved sweep file."""
    tags: Mapping[str, str] = field(default_factory=dict)

    MEASURED: ClassVar[str]
    """What was done to the arms, a participle."""
    SIGN: ClassVar[int]
    """1 if higher values are better, -1 if lower ones are."""

    def __post_init__(self) -> None:
        if len(protocols := {arm.protocol for arm in self.arms}) > 1:
            raise ValueError(
                f"{self.name}: arms that were {self.MEASURED} by different protocols"
                f" ({', '.join(sorted(protocols))}) cannot be on one curve"
            )

    # -- what is measured

    @abstractmethod
    def _values(self, arm: ArmT) -> Mapping[str, float]:
        """Return the measured value of every episode of an arm."""

    @abstractmethod
    def _tasks(self, episodes: Sequence[str]) -> list[str]:
        """Return the tasks of these episodes."""

    @abstractmethod
    def _point(self, cell: Cell, arms: list[ArmT], draws: NDArray[np.float64]) -> PointT:
        """Return the point of a cell. draws: its column of `_draws`."""

    @abstractmethod
    def _value(self, point: PointT) -> float:
        """Return what was measured, the mean over episodes and replicates."""

    @abstractmethod
    def _compared(self, first: Cell, second: Cell) -> ResultT | None:
        """Return the paired test of two cells; None without common episodes."""

    @abstractmethod
    def _comparison(
        self, pair: tuple[Cell, Cell], result: ResultT, p_corrected: float, compared: int
    ) -> ComparisonT:
        """Return the comparison of two cells. compared: number of comparisons of the same question."""

    @abstractmethod
    def _in_short(self, interval: Interval) -> str:
        """Return an interval of a measured value in words, for tables."""

    @abstractmethod
    def _value_columns(self) -> list[tuple[str, list[str]]]:
        """Return title and cells of the columns of the printed table left of the intervals."""

    @abstractmethod
    def _other_columns(self) -> list[tuple[str, list[str]]]:
        """Return title and cells of the columns of the printed table right of the intervals."""

    @abstractmethod
    def answer(self) -> list[str]:
        """Return the sweep's main results in sentences."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON."""

    @abstractmethod
    def draw(self, kind: str) -> bytes:
        """Return the figure as bytes; kind: png, svg or pdf."""

    # -- lines and points

    @property
    def protocol(self) -> str:
        """Fingerprint of the protocol that all arms share."""
        return self.arms[0].protocol

    @property
    def seeds(self) -> list[int]:
        """Seeds of the arms, sorted."""
        return sorted({arm.arm.seed for arm in self.arms})

    @cached_property
    def lines(self) -> list[Series]:
        """Lines in the order of `lines_of`."""
        return lines_of((arm.arm for arm in self.arms), self.sweep)

    @property
    def policy_lines(self) -> list[Mapping[str, Any]]:
        """`policy.lines` of the sweep file; empty if it has none."""
        return policy_lines(self.sweep)

    @cached_property
    def named(self) -> bool:
        """Whether lines are called by the names of their policies: there are others than `video_action` and
        the baseline.
        """
        return are_named(self.lines)

    def label(self, line: Series) -> str:
        """Return the name of a line in legends."""
        return line.named_label if self.named else line.label

    def title(self, line: Series) -> str:
        """Return the name of a line at the beginning of a sentence."""
        label = self.label(line)
        return label if self.named else label[0].upper() + label[1:]

    def base(self, line: Series) -> Series:
        """Return the line of the same policy with the lowest ratio."""
        return next(other for other in self.lines if other.policy == line.policy)

    @cached_property
    def _cells(self) -> dict[Cell, list[ArmT]]:
        """Arms of every point, line by line, each by demo count."""
        cells: dict[Cell, list[ArmT]] = {}
        for arm in sorted(self.arms, key=lambda arm: (self.lines.index(Series.of(arm.arm)), arm.arm)):
            cells.setdefault((Series.of(arm.arm), arm.arm.demo_count), []).append(arm)
        return cells

    @cached_property
    def points(self) -> list[PointT]:
        """Points, line by line, each by demo count."""
        return [
            self._point(cell, arms, draws)
            for (cell, arms), draws in zip(self._cells.items(), self._draws.T, strict=True)
        ]

    @cached_property
    def _draws(self) -> NDArray[np.float64]:
        """Joint draws of the values of all points, (B, C), by `hierarchical_draws`."""
        return hierarchical_draws(*self._matrix)

    @cached_property
    def _policy_draws(self) -> NDArray[np.float64]:
        """As `_draws`, of the trained policies on other scenes."""
        return hierarchical_draws(*self._matrix, recipes=False)

    @cached_property
    def _matrix(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Values by cell, seed and episode, (C, R, E), nan where there is none, and the episodes' tasks,
        (E,).
        """
        episodes = sorted({episode for arm in self.arms for episode in self._values(arm)})
        place = {episode: number for number, episode in enumerate(episodes)}
        tasks = np.unique(self._tasks(episodes), return_inverse=True)[1]
        values = np.full((len(self._cells), len(self.seeds), len(episodes)), np.nan)
        for cell, arms in enumerate(self._cells.values()):
            for arm in arms:
                row, own = values[cell, self.seeds.index(arm.arm.seed)], self._values(arm)
                row[[place[episode] for episode in own]] = list(own.values())
        return values, tasks

    def of_line(self, line: Series) -> list[PointT]:
        """Return the points of one line, by demo count."""
        return [point for point, (own, _) in zip(self.points, self._cells, strict=True) if own == line]

    def _missing_seeds(self, arms: Sequence[ArmT]) -> tuple[int, ...]:
        """Return the seeds that the curve has and these arms of a point have not."""
        return tuple(sorted(set(self.seeds) - {arm.arm.seed for arm in arms}))

    @staticmethod
    def _cost(arms: Sequence[ArmT]) -> Cost | None:
        """Return what these arms cost together; None if the cost of one is unknown."""
        costs = [arm.cost for arm in arms if arm.cost]
        return added(costs) if len(costs) == len(arms) else None

    def cost_report(self, cost: Cost | None) -> CostReport | None:
        """Return a cost in hours, counts, and money at the sweep's prices."""
        if cost is None:
            return None
        return CostReport.of(cost, cost.money(Prices(**self.sweep.get("prices", {}))))

    def _along(self, line: Series) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return a line's demo counts (N,), values (N,) and drawn values (B, N)."""
        mine = [number for number, (own, _) in enumerate(self._cells) if own == line]
        points = [self.points[number] for number in mine]
        return (
            np.array([float(point.demo_count) for point in points]),
            np.array([self._value(point) for point in points]),
            self._draws[:, mine],
        )

    # -- how the arms were trained

    @property
    def match(self) -> str:
        """What arms have in common: `train.match`."""
        return match_of(self.sweep)

    @property
    def costs(self) -> list[Cost | None]:
        """Costs of the arms; None where it is unknown."""
        return [arm.cost for arm in self.arms]

    def about_training(self) -> list[str]:
        """Return the sentence on what arms have in common; none if it is the usual, as many steps, and the
        lines are of one policy.
        """
        if not self.named and self.match == "steps":
            return []
        return [f"Between lines and demo counts, {in_common(self.sweep, self.costs)}."]

    # -- what the seeds allow to say

    @property
    def claim(self) -> Claim:
        """What the seeds of all points allow to say."""
        return self.claim_of(*self.lines)

    def claim_of(self, *lines: Series) -> Claim:
        """Return what the seeds of these lines' points allow to say."""
        return Claim(min(len(arms) for (line, _), arms in self._cells.items() if line in lines))

    def about_policies(self) -> list[str]:
        """Return what there is to say of trained policies whose recipe has too few seeds, and how many more
        it takes; nothing if all recipes have enough.
        """
        if self.claim.of_recipe:
            return []
        compared = [one for one in self.comparisons if not one.claim.of_recipe]
        differ = [
            f"{one.first} against {one.second}" for one in compared if one.verdict == POLICY_VERDICTS[1]
        ]
        found = ""
        if differ:
            more = f", and {len(differ) - NAMED_PAIRS} more pairs" if len(differ) > NAMED_PAIRS else ""
            found = f"These trained policies differ: {'; '.join(differ[:NAMED_PAIRS])}{more}."
        elif compared:
            pairs = "1 pair" if len(compared) == 1 else f"{len(compared)} pairs"
            found = f"No evidence that these trained policies differ, in {pairs}."
        takes = f"{self.claim.needs.removesuffix('.')}: {self._in_seeds()}"
        return [found, takes] if found else [takes]

    def _in_seeds(self) -> str:
        """Return what has to be added to the sweep file for statements about all recipes, and how many arms
        that are.
        """
        search = self.sweep.get("search")
        if isinstance(search, Mapping) and search.get("optuna"):
            return "Optuna proposes arms of one seed each, so list those of interest in another sweep."
        seeds = enough_seeds(self.seeds)
        lacking = sum(max(0, len(seeds) - len(arms)) for arms in self._cells.values())
        return (
            f"`seeds: [{', '.join(map(str, seeds))}]` in the sweep file takes {lacking} more"
            f" arm{'s' if lacking > 1 else ''} for these points; finished ones are kept."
        )

    # -- measures and comparisons

    def data_equivalence(self, line: Series) -> Estimate | None:
        """Return how many times as many demos the policy's lowest ratio needs as this line; None for that
        ratio itself, and if the seeds are too few for statements about recipes.
        """
        return self._worth.get(line)

    def equivalence_to(self, line: Series, base: Series) -> Estimate | None:
        """Return how many times as many demos another line needs as this one; None if the seeds are too few
        for statements about recipes.
        """
        if base == self.base(line):
            return self.data_equivalence(line)
        return self._worth_of(line, base) if self.claim_of(line, base).of_recipe else None

    @cached_property
    def exchange(self) -> ExchangeReport | None:
        """How many videos of each kind a demonstration is worth; None without lines to compare."""
        return exchange_report(self)

    @cached_property
    def _worth(self) -> dict[Series, Estimate]:
        return {
            line: self._worth_of(line, base)
            for line in self.lines
            if (base := self.base(line)) != line and self.claim_of(line, base).of_recipe
        }

    def _worth_of(self, line: Series, base: Series) -> Estimate:
        (demos, values, draws), (more, mixed, mixed_draws) = self._along(base), self._along(line)
        sign = self.SIGN
        return estimated(
            efficiency.data_equivalence((demos, sign * values), (more, sign * mixed)),
            [
                efficiency.data_equivalence((demos, sign * own), (more, sign * other))
                for own, other in zip(draws, mixed_draws, strict=True)
            ],
        )

    @cached_property
    def comparisons(self) -> list[ComparisonT]:
        """Comparisons of the points that `compared_cells` names."""
        counts = sorted({arm.arm.demo_count for arm in self.arms})
        return [one for pairs in compared_cells(self.lines, counts) for one in self.compare(pairs)]

    def compare(self, pairs: Sequence[tuple[Cell, Cell]]) -> list[ComparisonT]:
        """Return the comparisons of pairs of points with common episodes, corrected for their number."""
        both = [(pair, result) for pair in pairs if (result := self._compared(*pair))]
        corrected = holm([result.p_value for _, result in both])
        return [
            self._comparison(pair, result, p, len(both))
            for (pair, result), p in zip(both, corrected, strict=True)
        ]

    def _common_seeds(self, first: Cell, second: Cell) -> set[int]:
        seeds = [{arm.arm.seed for arm in self._cells.get(cell, [])} for cell in (first, second)]
        return seeds[0] & seeds[1]

    def _difference_draws(self, pair: tuple[Cell, Cell]) -> NDArray[np.float64]:
        """Return draws of the difference of two cells, (B,): between the recipes, or between the trained
        policies if the seeds are too few.
        """
        first, second = ([*self._cells].index(cell) for cell in pair)
        recipes = Claim(len(self._common_seeds(*pair))).of_recipe
        draws = self._draws if recipes else self._policy_draws
        return np.asarray(draws[:, first] - draws[:, second])

    def _pair_in_words(self, pair: tuple[Cell, Cell]) -> tuple[str, str]:
        (line, count), (other, other_count) = pair
        if self.named:
            return line.named_words(count), other.named_words(other_count)
        with_video = " with video" if line.policy != other.policy else ""
        return line.words(count, with_video), other.words(other_count)

    # -- output

    def table(self) -> list[tuple[str, list[str]]]:
        """Return title and cells of every column of the table of points that commands print."""
        points: Sequence[Point | ErrorPoint] = self.points
        bands = [self._in_short(point.band) if point.band else "" for point in points]
        columns: list[tuple[str, list[str]]] = []
        if any(point.policy != VIDEO_ACTION for point in points):
            columns.append(("policy", [point.policy for point in points]))
        columns += [
            ("demos", [f"{point.demo_count}" for point in points]),
            ("action-free per demo", [f"{point.action_free_ratio:g}" for point in points]),
            *self._value_columns(),
            ("95 % interval", [self._in_short(point.interval) for point in points]),
        ]
        if any(bands):
            columns.append(("with seeds", bands))
        return [*columns, *self._other_columns(), ("seeds", [f"{point.seeds}" for point in points])]

    @property
    def sweep_file(self) -> str:
        """The resolved sweep file as YAML; empty if it is not known."""
        return yaml.safe_dump(dict(self.sweep), sort_keys=False) if self.sweep else ""

    def save(self, path: str | Path) -> None:
        """Write the curve as PNG, SVG, PDF or JSON, by the file's suffix."""
        path = Path(path)
        path.write_bytes(
            json.dumps(self.to_json(), indent=1).encode()
            if path.suffix == ".json"
            else self.draw(path.suffix.removeprefix("."))
        )
