"""Where more demonstrations help: how far failing episodes come, which scenes are hard for every arm, and
success over the starting place of the object. Pure.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.config.arms import in_demos
from orchestrator.report.curve_types import Series
from orchestrator.stats.fixed_sample import Interval, mean_interval
from orchestrator.stats.outcome_matrix import outcome_matrix
from orchestrator.stats.scene_difficulty import CERTAIN, SceneClass, SceneDifficulty, scene_difficulties
from sim_workers.envs.stage_names import LADDERS, NO_STAGE
from sim_workers.rollout.suite import EpisodeSpec

if TYPE_CHECKING:
    from orchestrator.report.sample_efficiency_curve import Curve

KINDS: dict[SceneClass, str] = {
    "hard": "hard for every arm",
    "more demos": "solved with more demonstrations",
    "depends on the policy": "solved by some policies only",
    "easy": "easy for every arm",
    "undecided": "not decided",
}
"""Classes of scenes in words, in the order of the page."""


@dataclass(frozen=True)
class StageRow:
    """Failing episodes of a point of the curve on one task."""

    series: Series
    demo_count: int
    failures: int
    """With a known stage."""
    by_stage: tuple[int, ...]
    """Number of failures by furthest stage, in the order of `StageTable.stages`."""


@dataclass(frozen=True)
class StageTable:
    """How far failing episodes of one task come."""

    task: str
    stages: tuple[str, ...]
    """`none`, then the stages before success."""
    rows: tuple[StageRow, ...]

    def in_words(self) -> str:
        """Return how far the failing episodes of all lines with the most demos come; empty if none fails."""
        most = max(row.demo_count for row in self.rows)
        counts = np.sum([row.by_stage for row in self.rows if row.demo_count == most], axis=0).tolist()
        if not (failures := sum(counts)):
            return ""
        parts = [f"{stage} {count}" for stage, count in zip(self.stages, counts, strict=True) if count]
        episodes = f"{failures} failing episodes" if failures > 1 else "one failing episode"
        return f"{self.task} with {in_demos(most)}, furthest stage of {episodes}: {', '.join(parts)}."

    def to_json(self) -> dict[str, Any]:
        """Return the table as a JSON-safe object."""
        return {
            "task": self.task,
            "stages": list(self.stages),
            "rows": [
                {
                    "policy": row.series.policy,
                    "action_free_ratio": row.series.action_free_ratio,
                    "demo_count": row.demo_count,
                    "failures": row.failures,
                    "by_stage": dict(zip(self.stages, row.by_stage, strict=True)),
                }
                for row in self.rows
            ],
        }


@dataclass(frozen=True)
class PlacedScene:
    """A scene whose object begins at a place."""

    scene: str
    x: float
    """In metres in the world's frame."""
    y: float
    solved: int
    """Number of arms that solved it."""
    arms: int

    @property
    def share(self) -> float:
        """Share of arms that solved it."""
        return self.solved / self.arms


@dataclass(frozen=True)
class Quarter:
    """Part of the object's starting area, cut at the medians of x and y."""

    name: str
    scenes: int
    success: float
    """Mean over scenes of the share of arms that solved it."""
    interval: Interval
    """95 %, over scenes."""


@dataclass(frozen=True)
class PlaceMap:
    """Success over the object's starting place, of one task and demo count."""

    task: str
    demo_count: int
    scenes: tuple[PlacedScene, ...]

    @property
    def quarters(self) -> tuple[Quarter, ...]:
        """Success by quarter of the area; those with scenes."""
        middle = median(one.x for one in self.scenes), median(one.y for one in self.scenes)
        found = []
        for small_x in (True, False):
            for small_y in (True, False):
                own = [
                    one.share
                    for one in self.scenes
                    if (one.x <= middle[0]) == small_x and (one.y <= middle[1]) == small_y
                ]
                if own:
                    low, high = mean_interval(own)
                    name = f"x {_side(small_x, middle[0])}, y {_side(small_y, middle[1])}"
                    bounds = Interval(max(0.0, low), min(1.0, high))
                    found.append(Quarter(name, len(own), float(np.mean(own)), bounds))
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Return the map as a JSON-safe object."""
        return {
            "task": self.task,
            "demo_count": self.demo_count,
            "scenes": [vars(scene) for scene in self.scenes],
            "quarters": [
                {"name": one.name, "scenes": one.scenes, "success": one.success, **one.interval._asdict()}
                for one in self.quarters
            ],
        }


def _side(small: bool, middle: float) -> str:
    shown = f"{round(middle, 3) + 0.0:g} m"  # 0.0 instead of a negative zero
    return f"up to {shown}" if small else f"above {shown}"


@dataclass(frozen=True)
class WhereReport:
    """Where more demonstrations help."""

    stages: tuple[StageTable, ...]
    """Of tasks whose episodes have stages."""
    scenes: tuple[SceneDifficulty, ...]
    """The hardest first."""
    maps: tuple[PlaceMap, ...]
    """Of tasks whose starting places are known: with the fewest demos, and with the most."""
    text: tuple[str, ...]

    def of_kind(self, kind: SceneClass) -> tuple[SceneDifficulty, ...]:
        """Return the scenes of a class, the hardest first."""
        return tuple(scene for scene in self.scenes if scene.kind == kind)

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON-safe object."""
        return {
            "text": list(self.text),
            "stages": [table.to_json() for table in self.stages],
            "scenes": [_rounded(scene) for scene in self.scenes],
            "places": [one.to_json() for one in self.maps],
        }


def _rounded(scene: SceneDifficulty) -> dict[str, Any]:
    """Return a scene as a JSON-safe object; fitted values with four digits, more than they are worth."""
    return {
        name: round(value, 4) if isinstance(value, float) else value for name, value in vars(scene).items()
    }


def where_report(curve: "Curve") -> WhereReport:
    """Return where more demonstrations help, as far as a curve's outcomes tell."""
    scenes, stages = _scenes(curve), _stage_tables(curve)
    text = [_scenes_in_words(scenes)] if scenes else []
    text += [sentence for table in stages if (sentence := table.in_words())]
    return WhereReport(stages, scenes, _maps(curve), tuple(text))


def _scenes(curve: "Curve") -> tuple[SceneDifficulty, ...]:
    names, outcomes = outcome_matrix([scored.outcomes for scored in curve.arms])
    lines = {series: number for number, series in enumerate(curve.lines)}
    return scene_difficulties(
        names,
        np.array([lines[Series.of(scored.arm)] for scored in curve.arms]),
        np.array([float(scored.arm.demo_count) for scored in curve.arms]),
        outcomes,
    )


def _scenes_in_words(scenes: Sequence[SceneDifficulty]) -> str:
    counts = Counter(scene.kind for scene in scenes)
    told = [f"{counts[kind]} {words}" for kind, words in KINDS.items() if counts[kind]]
    number = f"Of {len(scenes)} scenes" if len(scenes) > 1 else "Of one scene"
    return f"{number}: {', '.join(told)} (at a probability of {CERTAIN:g})."


def _stage_tables(curve: "Curve") -> tuple[StageTable, ...]:
    counted: dict[str, dict[tuple[Series, int], Counter[str]]] = {}
    for scored in curve.arms:
        for episode, reached in scored.stages.items():
            cells = counted.setdefault(EpisodeSpec.task_of(episode), {})
            cell = cells.setdefault((Series.of(scored.arm), scored.arm.demo_count), Counter())
            if scored.outcomes.get(episode) is False:
                cell[reached.stage] += 1
    order = {series: number for number, series in enumerate(curve.lines)}
    tables = []
    for task, cells in sorted(counted.items()):
        stages = (NO_STAGE, *LADDERS.get(task, ()))  # the last: done once, and not at the end
        if not any(cell[stages[-1]] for cell in cells.values()):
            stages = stages[:-1]
        rows = [
            StageRow(
                series, demos, sum(cell[stage] for stage in stages), tuple(cell[stage] for stage in stages)
            )
            for (series, demos), cell in sorted(cells.items(), key=lambda one: (order[one[0][0]], one[0][1]))
        ]
        tables.append(StageTable(task, stages, tuple(rows)))
    return tuple(tables)


def _maps(curve: "Curve") -> tuple[PlaceMap, ...]:
    places: dict[str, tuple[float, float]] = {}
    for scored in curve.arms:
        for episode, stage in scored.stages.items():
            if stage.x is not None and stage.y is not None:
                places.setdefault(episode, (stage.x, stage.y))
    counts = sorted({scored.arm.demo_count for scored in curve.arms})
    maps = []
    for task in sorted({EpisodeSpec.task_of(episode) for episode in places}):
        for demos in dict.fromkeys((counts[0], counts[-1])):
            arms = [scored.outcomes for scored in curve.arms if scored.arm.demo_count == demos]
            played = {
                episode: [own[episode] for own in arms if episode in own]
                for episode in sorted(places)
                if EpisodeSpec.task_of(episode) == task
            }
            scenes = [
                PlacedScene(episode, *places[episode], sum(own), len(own))
                for episode, own in played.items()
                if own
            ]
            if scenes:
                maps.append(PlaceMap(task, demos, tuple(scenes)))
    return tuple(maps)
