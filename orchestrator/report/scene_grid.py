"""Which arm succeeds on which scene: arms x scenes of a curve, as data, as CSV, and as geometry that
`scenes.html.jinja` draws.

Pure. Lengths are SVG user units, which are pixels. A drawing holds two paths per arm, one of its successes
and one of its failures, with one step per run of equal results, so that its size grows with the number of
runs and not with that of episodes.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.config.arms import in_demos
from orchestrator.report.curve_types import Series
from orchestrator.report.downloads import episodes_csv
from orchestrator.report.sample_efficiency_curve import Curve
from sim_workers.rollout.suite import EpisodeSpec

MOST_CELLS = 40_000
"""Arms times scenes up to which every episode is drawn; above it only counts by task are shown."""
ROW, CHARACTER, TOTAL, MARK = 15.0, 6.8, 52.0, 26.0
"""Height of an arm's row, width of a character at most, of the counts, and of a line's sign (px)."""


@dataclass(frozen=True)
class GridArm:
    """One row of the grid."""

    series: Series
    arm: str
    """Name of the arm."""
    demo_count: int
    seed: int


@dataclass(frozen=True)
class TaskScenes:
    """The scenes of one task."""

    task: str
    episodes: tuple[str, ...]
    """Episode ids: those on which most arms succeed come first, then in the order of their ids."""
    results: tuple[tuple[bool | None, ...], ...]
    """Success of every arm on every episode, (arms, episodes); None where it played none."""

    def counts(self, row: int) -> tuple[int, int]:
        """Return an arm's successes and episodes."""
        own = [result for result in self.results[row] if result is not None]
        return sum(own), len(own)


@dataclass(frozen=True)
class SceneGrid:
    """Results of all arms on all scenes."""

    arms: tuple[GridArm, ...]
    """Line by line, each by demo count and seed."""
    tasks: tuple[TaskScenes, ...]

    @property
    def cells(self) -> int:
        """Number of arms times number of scenes."""
        return len(self.arms) * sum(len(task.episodes) for task in self.tasks)

    @property
    def drawn(self) -> bool:
        """Whether every episode is drawn."""
        return self.cells <= MOST_CELLS

    def to_csv(self) -> str:
        """Return one line per scene: its task, its episode id, and every arm's result: 1 success, 0 failure,
        empty if it did not play it.
        """
        rows = (
            (task.task, episode, ("" if result is None else int(result) for result in results))
            for task in self.tasks
            for episode, results in zip(task.episodes, zip(*task.results, strict=True), strict=True)
        )
        return episodes_csv((arm.arm for arm in self.arms), rows)


def scene_grid(curve: Curve) -> SceneGrid:
    """Return the results of a curve's arms on the scenes that any of them played."""
    places = {line: place for place, line in enumerate(curve.lines)}
    arms = sorted(
        curve.arms,
        key=lambda one: (places[Series.of(one.arm)], one.arm.demo_count, one.arm.seed, one.arm.name),
    )
    tasks: dict[str, list[str]] = {}
    for episode in sorted({episode for arm in arms for episode in arm.outcomes}):
        tasks.setdefault(EpisodeSpec.task_of(episode), []).append(episode)
    return SceneGrid(
        tuple(GridArm(Series.of(one.arm), one.arm.name, one.arm.demo_count, one.arm.seed) for one in arms),
        tuple(_of_task(task, episodes, [arm.outcomes for arm in arms]) for task, episodes in tasks.items()),
    )


def _of_task(task: str, episodes: Sequence[str], outcomes: Sequence[Mapping[str, bool]]) -> TaskScenes:
    wins = {episode: sum(own.get(episode, False) for own in outcomes) for episode in episodes}
    ordered = sorted(episodes, key=lambda episode: (-wins[episode], episode))
    return TaskScenes(
        task, tuple(ordered), tuple(tuple(own.get(episode) for episode in ordered) for own in outcomes)
    )


# -- geometry ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filmed:
    """Cell of an episode whose film is on the page."""

    x: float
    y: float
    film: int
    """Number of the film on the page, from 1."""
    words: str


@dataclass(frozen=True)
class BlockRow:
    """One arm's row in a drawing. Paths are SVG path data, empty where there is nothing to draw."""

    arm: GridArm
    y: float
    """Middle of the row."""
    label: str
    won: str
    lost: str
    count: str


@dataclass(frozen=True)
class Column:
    """One scene."""

    x: float
    words: str
    """Tooltip."""


@dataclass(frozen=True)
class SceneBlock:
    """Drawing of one task's scenes."""

    task: str
    words: str
    """Text alternative."""
    width: float
    height: float
    left: float
    """Abscissa of the first scene's left edge."""
    cell: float
    """Width of a scene."""
    rows: tuple[BlockRow, ...]
    columns: tuple[Column, ...]
    films: tuple[Filmed, ...]


def scene_blocks(
    grid: SceneGrid, labels: Mapping[Series, str], films: Mapping[tuple[str, str], int]
) -> list[SceneBlock]:
    """Return one drawing per task. labels: names of the lines. films: number on the page of the film of an
    arm's episode, by the arm's name and the episode's id.
    """
    most = max((len(task.episodes) for task in grid.tasks), default=0)
    cell = 12.0 if most <= 30 else 8.0 if most <= 60 else 5.0
    return [_block(grid, task, labels, films, cell) for task in grid.tasks]


def _block(
    grid: SceneGrid,
    scenes: TaskScenes,
    labels: Mapping[Series, str],
    films: Mapping[tuple[str, str], int],
    cell: float,
) -> SceneBlock:
    seeds = len({arm.seed for arm in grid.arms}) > 1
    names = [in_demos(arm.demo_count) + (f", seed {arm.seed}" if seeds else "") for arm in grid.arms]
    left = MARK + max(map(len, names)) * CHARACTER + 8
    rows, filmed = [], list[Filmed]()
    for number, (arm, name, results) in enumerate(zip(grid.arms, names, scenes.results, strict=True)):
        y, (successes, episodes) = (number + 0.5) * ROW, scenes.counts(number)
        won, lost = (_runs(results, wanted, left, y, cell) for wanted in (True, False))
        rows.append(BlockRow(arm, y, name, won, lost, f"{successes}/{episodes}"))
        for place, (episode, result) in enumerate(zip(scenes.episodes, results, strict=True)):
            if film := films.get((arm.arm, episode)):
                ended = "success" if result else "failure"
                words = f"Film, {ended}: {labels[arm.series]}, {name}, {episode}"
                filmed.append(Filmed(left + place * cell, number * ROW, film, words))
    width = len(scenes.episodes) * cell
    columns = [
        Column(left + place * cell, f"{episode}: {sum(map(bool, own))} of {len(own)} arms succeed")
        for place, (episode, results) in enumerate(
            zip(scenes.episodes, zip(*scenes.results, strict=True), strict=True)
        )
        if (own := [result for result in results if result is not None])
    ]
    return SceneBlock(
        task=scenes.task,
        words="; ".join(f"{labels[row.arm.series]}, {row.label}: {row.count}" for row in rows),
        width=left + width + TOTAL,
        height=len(rows) * ROW,
        left=left,
        cell=cell,
        rows=tuple(rows),
        columns=tuple(columns),
        films=tuple(filmed),
    )


def _runs(results: Iterable[bool | None], wanted: bool, left: float, y: float, cell: float) -> str:
    """Return a horizontal stroke for every run of a result. The style sheet's dashes cut it into cells: a
    dash pattern starts at the beginning of every stroke.
    """
    path, place = "", 0
    for result, run in itertools.groupby(results):
        length = len(list(run))
        if result is wanted:
            path += f"M{left + place * cell:g} {y:g}h{length * cell:g}"
        place += length
    return path
