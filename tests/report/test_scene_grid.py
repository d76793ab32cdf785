"""Arms x scenes: every result is where it belongs, and the drawing stays small."""

import csv
import io
import re

import pytest

import synthetic_reports
from orchestrator.report.html import page
from orchestrator.report.scene_grid import MOST_CELLS, ROW, SceneBlock, scene_blocks, scene_grid
from synthetic_curves import several, whole


def results_of(block: SceneBlock, row: int, count: int) -> list[bool | None]:
    """Return the results that a row draws, scene by scene."""
    found: list[bool | None] = [None] * count
    for result, path in ((True, block.rows[row].won), (False, block.rows[row].lost)):
        for x, y, length in re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)", path):
            assert float(y) == (row + 0.5) * ROW
            first = round((float(x) - block.left) / block.cell)
            for place in range(first, first + round(float(length) / block.cell)):
                assert found[place] is None
                found[place] = result
    return found


def test_scene_grid_draws_every_result_of_a_curve_once_easiest_scenes_first() -> None:
    curve = whole()
    grid = scene_grid(curve)
    assert [(arm.series, arm.demo_count, arm.seed) for arm in grid.arms] == sorted(
        ((arm.series, arm.demo_count, arm.seed) for arm in grid.arms),
        key=lambda own: (curve.lines.index(own[0]), *own[1:]),
    )
    outcomes = {scored.arm.name: scored.outcomes for scored in curve.arms}
    assert grid.cells == sum(map(len, outcomes.values()))
    blocks = scene_blocks(grid, {line: curve.label(line) for line in curve.lines}, {})
    for task, block in zip(grid.tasks, blocks, strict=True):
        wins = [sum(own[episode] for own in outcomes.values()) for episode in task.episodes]
        assert wins == sorted(wins, reverse=True)
        for row, arm in enumerate(grid.arms):
            own = [outcomes[arm.arm][episode] for episode in task.episodes]
            assert results_of(block, row, len(own)) == own
            assert block.rows[row].count == f"{sum(own)}/{len(own)}"
    assert blocks[0].columns[0].words == f"{grid.tasks[0].episodes[0]}: 14 of 14 arms succeed"


def test_scene_grid_leaves_a_gap_where_an_arm_did_not_play() -> None:
    curve = several(1.0, 0.3)
    early = curve.arms[0]
    kept = dict(list(early.outcomes.items())[:40])
    object.__setattr__(early, "outcomes", kept)
    grid = scene_grid(curve)
    row = next(place for place, arm in enumerate(grid.arms) if arm.arm == early.arm.name)
    (block,) = scene_blocks(grid, {line: "" for line in curve.lines}, {})
    drawn = results_of(block, row, 100)
    assert [drawn.count(result) for result in (True, False)] == [
        sum(kept.values()),
        40 - sum(kept.values()),
    ]
    written = list(csv.DictReader(io.StringIO(grid.to_csv())))
    assert {line["episode"]: line[early.arm.name] for line in written} == {
        episode: "" if episode not in kept else f"{kept[episode]:d}" for episode in grid.tasks[0].episodes
    }


def test_scene_grid_links_filmed_episodes_to_their_films() -> None:
    report = synthetic_reports.rich()
    text = page(report, synthetic_reports.films(b"no film"), "", scenes=synthetic_reports.scenes(report))
    links = re.findall(r'<a href="#(film-\d)" aria-label="Film, (success|failure): ([^"]*)"', text)
    assert links == [
        (f"film-{number}", result, f"+ 1 action-free per demo, 100 demos, seed 0, {task}-100001{place}-0")
        for number, (task, place, result) in enumerate(
            (
                (task, place, result)
                for task in synthetic_reports.TASKS
                for place, result in enumerate(("success", "failure"))
            ),
            1,
        )
    ]
    for film, *_ in links:
        assert text.count(f'id="{film}"') == 1


@pytest.mark.parametrize(
    ("episodes", "drawn", "bytes_of_section"), [(500, True, 700_000), (1000, False, 20_000)]
)
def test_page_of_many_scenes_stays_light(episodes: int, drawn: bool, bytes_of_section: int) -> None:
    """35 arms on 1,000 and 2,000 scenes in two tasks."""
    report = synthetic_reports.rich()
    grid = synthetic_reports.scenes(report, episodes)
    assert (grid.cells <= MOST_CELLS) is grid.drawn is drawn
    text = page(report, [], "", scenes=grid)
    _, _, section = text.partition('<section id="scenes"')
    section, _, _ = section.partition("</section>")
    assert len(section) < bytes_of_section
    assert ("are too many to draw one by one" in section) is not drawn
