"""Scores -> the sample-efficiency curve: success against demo count, one line per action-free ratio and one per baseline. Reads MLflow only."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from orchestrator.cost import added
from orchestrator.report.curve_types import Comparison, Line, Point
from orchestrator.stats import sample_efficiency as efficiency
from orchestrator.stats.fixed_sample import (
    Correlation,
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
from orchestrator.tracking.mlflow_reader import CLIPS, VIDEO, ScoredArm, read_sweep
from orchestrator.tracking.mlflow_writer import TrackingError
from sim_workers.rollout.suite import EpisodeSpec


@dataclass(frozen=True)
class Curve:
    """The answer of a sweep."""

    name: str
    arms: tuple[ScoredArm, ...]
    sweep: Mapping[str, Any] = field(default_factory=dict)
    """The resolved sweep file."""
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(protocols := {scored.protocol for scored in self.arms}) > 1:
            raise ValueError(f"{self.name}: arms that were scored by different protocols ({', '.join(sorted(protocols))}) cannot be on one curve")

    @classmethod
    def read(cls, tracking_uri: str, name: str, store: str = "", storage: str = "") -> "Curve":
        """Read a sweep's curve from MLflow; store and storage say of which storage, see `read_sweep`.

        TrackingError if there is no such sweep, if there are several, or if nothing in it is scored yet.
        """
        tracked = read_sweep(tracking_uri, name, store, storage)
        if not tracked.arms:
            raise TrackingError(f"{name}: no arm's last checkpoint has a complete score yet; see `demoscale status {name}`")
        return cls(name, tracked.arms, tracked.sweep, tracked.tags)

    # -- its points

    @property
    def protocol(self) -> str:
        return self.arms[0].protocol

    @property
    def seeds(self) -> list[int]:
        return sorted({scored.arm.seed for scored in self.arms})

    @property
    def errors(self) -> int:
        return sum(scored.errors for scored in self.arms)

    @property
    def looked_at(self) -> bool:
        """Whether scores were looked at while they came, and may have ended early (`suite.decide`): then only anytime-valid statistics hold."""
        return bool(self.sweep.get("suite", {}).get("decide"))

    def interval(self, successes: int, episodes: int) -> tuple[float, float]:
        """95 %, of episodes of this curve: Wilson's, or an anytime-valid one."""
        return (anytime_interval if self.looked_at else wilson)(successes, episodes)

    @cached_property
    def lines(self) -> list[Line]:
        """Ours by ratio, then the baselines."""
        return sorted({Line.of(scored.arm) for scored in self.arms}, key=lambda line: (line.baseline, line.policy, line.action_free_ratio))

    @cached_property
    def _cells(self) -> dict[tuple[Line, int], list[ScoredArm]]:
        """The arms of every point, line by line, each by demo count."""
        cells: dict[tuple[Line, int], list[ScoredArm]] = {}
        for scored in sorted(self.arms, key=lambda scored: (self.lines.index(Line.of(scored.arm)), scored.arm)):
            cells.setdefault((Line.of(scored.arm), scored.arm.demo_count), []).append(scored)
        return cells

    @cached_property
    def points(self) -> list[Point]:
        """Line by line, each by demo count."""
        return [self._point(line, demos, arms, draws) for ((line, demos), arms), draws in zip(self._cells.items(), self._draws.T, strict=True)]

    def _point(self, line: Line, demos: int, arms: list[ScoredArm], draws: NDArray[np.float64]) -> Point:
        successes, episodes = sum(arm.successes for arm in arms), sum(arm.episodes for arm in arms)
        by_task: dict[str, tuple[int, int]] = {}
        for arm in arms:
            for episode, success in arm.outcomes.items():
                won, played = by_task.get(task := EpisodeSpec.task_of(episode), (0, 0))
                by_task[task] = won + success, played + 1
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
            **dict(zip(("low", "high"), self.interval(successes, episodes), strict=True)),
            **dict(zip(("band_low", "band_high"), band(draws, widest), strict=True)),
            seeds=len(arms),
            missing_seeds=tuple(sorted(set(self.seeds) - {arm.arm.seed for arm in arms})),
            by_task=dict(sorted(by_task.items())),
            cost=added(costs) if len(costs) == len(arms) else None,
            early=any(arm.early for arm in arms),
        )

    @cached_property
    def _draws(self) -> NDArray[np.float64]:
        """(B, C): what the rates of all points could be, drawn together."""
        episodes = sorted({episode for scored in self.arms for episode in scored.outcomes})
        place = {episode: number for number, episode in enumerate(episodes)}
        tasks = np.unique([EpisodeSpec.task_of(episode) for episode in episodes], return_inverse=True)[1]
        outcomes = np.full((len(self._cells), len(self.seeds), len(episodes)), np.nan)
        for cell, arms in enumerate(self._cells.values()):
            for scored in arms:
                row = outcomes[cell, self.seeds.index(scored.arm.seed)]
                row[[place[episode] for episode in scored.outcomes]] = list(scored.outcomes.values())
        return hierarchical_draws(outcomes, tasks)

    def of_line(self, line: Line) -> list[Point]:
        """The points of one line, by demo count."""
        return [point for point, (own, _) in zip(self.points, self._cells, strict=True) if own == line]

    def _rates(self, line: Line) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Demo counts (N,), rates (N,), drawn rates (B, N)."""
        mine = [number for number, (own, _) in enumerate(self._cells) if own == line]
        points = [self.points[number] for number in mine]
        return np.array([float(p.demo_count) for p in points]), np.array([p.success_rate for p in points]), self._draws[:, mine]

    # -- what it says

    def area(self, line: Line) -> Estimate:
        """Under the line over log demos, as a part of what could be: a line's success in one number."""
        demos, rates, draws = self._rates(line)
        return estimated(float(efficiency.area(demos, rates)), list(np.clip(efficiency.area(demos, draws), 0, 1)))

    def reach(self, line: Line, success_rate: float) -> Estimate:
        """Demos with which a line reaches a success rate, 0 for fewer than were tried and infinity for more (`efficiency.demos_to_reach`)."""
        if (line, success_rate) not in self._reached:
            demos, rates, draws = self._rates(line)
            value = efficiency.demos_to_reach(demos, rates, success_rate)
            drawn = [efficiency.demos_to_reach(demos, own, success_rate) for own in draws]
            self._reached[line, success_rate] = estimated(value, drawn)
        return self._reached[line, success_rate]

    @cached_property
    def _reached(self) -> dict[tuple[Line, float], Estimate]:
        return {}

    def demos_to_reach(self, success_rate: float) -> dict[float | str, tuple[float, float, float] | str]:
        """The demo count at which each line reaches a success rate, with a 95 % interval, or "not reached".

        Ours by their ratio, a baseline, which has none, by its name: {0.0: (31.5, 20.0, inf), 1.0: (12.0, 0.0, 18.0)}. 0 stands for fewer demos than
        were tried, infinity for more.
        """
        answer: dict[float | str, tuple[float, float, float] | str] = {}
        for line in self.lines:
            told = self.reach(line, success_rate)
            reached = (told.value, told.low, told.high) if told.value < float("inf") else "not reached"
            answer[line.policy if line.baseline else line.action_free_ratio] = reached
        return answer

    def worth(self, line: Line) -> Estimate | None:
        """How many times the demos the lowest ratio needs for what this one reaches; None for that one itself and for baselines."""
        return self._worth.get(line)

    @cached_property
    def _worth(self) -> dict[Line, Estimate]:
        base = self.lines[0]
        return {line: self._worth_of(line, base) for line in self.lines if not (line.baseline or base.baseline or line == base)}

    def _worth_of(self, line: Line, base: Line) -> Estimate:
        (demos, rates, draws), (more, mixed, mixed_draws) = self._rates(base), self._rates(line)
        value = efficiency.worth((demos, rates), (more, mixed))
        return estimated(value, [efficiency.worth((demos, own), (more, other)) for own, other in zip(draws, mixed_draws, strict=True)])

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Most demos against fewest on every line; at every demo count, every ratio against the lowest and against every baseline.

        P-values are corrected within each of these questions: an answer does not depend on what else was asked.
        """
        counts = sorted({scored.arm.demo_count for scored in self.arms})
        ours = [line for line in self.lines if not line.baseline]
        baselines = [line for line in self.lines if line.baseline]
        families = [
            [((line, counts[-1]), (line, counts[0])) for line in ours if len(counts) > 1],
            [((line, count), (ours[0], count)) for count in counts for line in ours[1:]],
            [((line, counts[-1]), (line, counts[0])) for line in baselines if len(counts) > 1],
            [((line, count), (baseline, count)) for count in counts for line in ours for baseline in baselines],
        ]
        told = []
        for pairs in families:
            both = [(pair, result) for pair in pairs if (result := self._compared(*pair))]
            corrected = holm([result.p_value for _, result in both])
            told += [self._comparison(*pair, result, p, len(both)) for (pair, result), p in zip(both, corrected, strict=True)]
        return told

    def _compared(self, first: tuple[Line, int], second: tuple[Line, int]) -> PairedComparison | None:
        outcomes, others = self._outcomes(first), self._outcomes(second)
        if not outcomes.keys() & others.keys():
            return None
        result = paired_comparison(outcomes, others)
        if self.looked_at:
            return replace(result, p_value=PairedEvidence(result.only_first, result.only_second).p_value)
        return result

    def _comparison(self, first: tuple[Line, int], second: tuple[Line, int], result: PairedComparison, p: float, compared: int) -> Comparison:
        (line, count), (other, other_count) = first, second
        words = line.words(count, " with video" if line.policy != other.policy else "")
        cells = list(self._cells)
        low, high = interval_of(np.clip(self._draws[:, cells.index(first)] - self._draws[:, cells.index(second)], -1, 1))
        seeds = {scored.arm.seed for scored in self._cells[first]} & {scored.arm.seed for scored in self._cells[second]}
        test = "anytime-valid" if self.looked_at else "exact McNemar"
        return Comparison(words, other.words(other_count), line.policy, other.policy, result, low, high, len(seeds), compared, test, p)

    def _outcomes(self, cell: tuple[Line, int]) -> dict[str, bool]:
        """Outcomes by seed and episode: replicates pair with the replicate of the same seed."""
        found = self._cells.get(cell, [])
        return {f"{scored.arm.seed}/{episode}": success for scored in found for episode, success in scored.outcomes.items()}

    @property
    def imagined(self) -> list[tuple[float, float]]:
        """Of all checkpoints with both: how far what they imagine is from what happens (VIDEO's distance), and their success rate.

        Distances on other clips are other numbers: only those on the clips that most checkpoints met are among them.
        """
        told = [told for scored in self.arms for told in scored.imagined.values()]
        clips = Counter(one[CLIPS] for one in told).most_common(1)
        return [(one[VIDEO[2]], one["success_rate"]) for one in told if one[CLIPS] == clips[0][0]]

    def video_and_success(self) -> Correlation | None:
        """Do checkpoints that imagine better succeed more?"""
        return rank_correlation([-distance for distance, _ in self.imagined], [success for _, success in self.imagined])

    # -- its forms

    def to_json(self) -> dict[str, Any]:
        """All that is drawn and said, as `orchestrator/report/summary.py` spells it out."""
        from orchestrator.report.summary import report

        return report(self)

    def draw(self, kind: str) -> bytes:
        """The picture: png, svg or pdf."""
        from orchestrator.report.matplotlib_plot import draw

        return draw(self, kind)

    def page(self, tracking_uri: str) -> str:
        """All of it as one HTML page, with the films that MLflow keeps of its arms."""
        from orchestrator.report.html import page
        from orchestrator.tracking.rollout_videos import films

        sweep_file = yaml.safe_dump(dict(self.sweep), sort_keys=False) if self.sweep else ""
        return page(self.to_json(), films(tracking_uri, self.arms), sweep_file)

    def save(self, path: str | Path) -> None:
        """As PNG, SVG, PDF or JSON, by the file's ending."""
        path = Path(path)
        path.write_bytes(json.dumps(self.to_json(), indent=1).encode() if path.suffix == ".json" else self.draw(path.suffix.removeprefix(".")))
