"""Sections "Where more demonstrations help" and "Which demonstrations" of a curve: numbers, sentences, page,
and the quality list that leaves demonstrations out.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from orchestrator.config.arms import Arm
from orchestrator.data.merged_store import _of_quality
from orchestrator.report.curve_types import Series
from orchestrator.report.demo_worth_report import demo_worth_report
from orchestrator.report.html import page
from orchestrator.report.place_plot import RADIUS, place_plot
from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.report.where_report import PlacedScene, PlaceMap, StageRow, StageTable
from orchestrator.tracking.mlflow_reader import ScoredArm
from orchestrator.tracking.stages import EpisodeStage

STORE, SCENES, SEEDS, COUNTS = 20, 40, 30, (5, 10)
BAD = (0, 1, 2, 3)
NAMES = [f"lift-{number:03}" for number in range(STORE)]


def planted(harm: float, seeds: int = SEEDS) -> Curve:
    """Return a curve of arms to which every bad demo among ten costs `harm` log odds. Scenes get harder with
    their number, and their objects begin further along x.
    """
    rng = np.random.default_rng(3)
    difficulties = np.linspace(-2.5, 2.5, SCENES)
    arms = []
    for seed in range(seeds):
        order = rng.permutation(STORE)
        for count in COUNTS:
            demos = order[:count]
            share = np.isin(demos, BAD).mean()
            odds = 0.8 * np.log(count / 7) - 10 * harm * (share - 0.2) - difficulties
            won = rng.random(SCENES) < expit(odds)
            names = [f"Lift-{10**6 + scene}-{10**6 + scene}" for scene in range(SCENES)]
            stages = [
                EpisodeStage(
                    "lifted" if own else ("none", "grasped")[scene % 2], scene / 100, 0.1 * (scene % 3)
                )
                for scene, own in enumerate(won)
            ]
            arms.append(
                ScoredArm(
                    Arm(count, 0.0, seed),
                    "p",
                    100,
                    int(won.sum()),
                    SCENES,
                    0,
                    dict(zip(names, map(bool, won), strict=True)),
                    demos=tuple(sorted(NAMES[demo] for demo in demos)),
                    stages=dict(zip(names, stages, strict=True)),
                )
            )
    return Curve("planted", tuple(arms))


@pytest.fixture(scope="module")
def harmed() -> Curve:
    return planted(0.8)


def test_bad_demonstrations_are_named_and_left_out_by_the_quality_list(harmed: Curve, tmp_path: Path) -> None:
    told = harmed.demonstrations
    assert told is not None
    assert told.worth is not None
    assert {one.episode for one in told.worth.hurting} == {NAMES[bad] for bad in BAD}
    assert told.text.startswith("4 demonstrations hurt in place of another among 5: lift-00")
    listed = tmp_path / "bad.json"
    listed.write_text(json.dumps(harmed.to_json()["demonstrations"]))
    kept = _of_quality(str(listed), NAMES)
    assert not isinstance(kept, str)
    assert [place for place, own in enumerate(kept) if not own] == [*BAD]


@pytest.mark.parametrize(
    ("curve", "text"),
    [
        (lambda: planted(0.0), "Nothing can be told about single demonstrations: success of 60 arms depends"),
        (lambda: planted(0.8, seeds=4), "that takes at least 8 further seeds of the points"),
    ],
)
def test_text_says_why_nothing_can_be_named(curve: Callable[[], Curve], text: str) -> None:
    told = demo_worth_report(curve())
    assert told is not None
    assert text in told.text
    assert told.to_json()["findings"] == []


def test_without_the_demos_of_every_arm_nothing_is_said(harmed: Curve) -> None:
    first, *others = harmed.arms
    curve = Curve("older", (replace(first, demos=(), stages={}), *others))
    assert curve.demonstrations is None
    assert "Which demonstrations" not in page(curve.report(), [], "")


def test_failing_episodes_are_counted_by_stage(harmed: Curve) -> None:
    (table,) = harmed.where.stages
    assert table.stages == ("none", "reached", "grasped")
    fewest, most = table.rows
    assert (fewest.demo_count, most.demo_count) == COUNTS
    lost = [sum(not won for won in arm.outcomes.values()) for arm in harmed.arms if arm.arm.demo_count == 10]
    assert most.failures == sum(lost) == sum(most.by_stage)
    assert most.by_stage[1] == 0
    assert (
        f"Lift with 10 demos, furthest stage of {most.failures} failing episodes: none "
        in harmed.where.text[1]
    )


def test_scenes_are_hard_easy_or_solved_with_more(harmed: Curve) -> None:
    where = harmed.where
    order = [int(scene.scene.split("-")[1]) for scene in where.scenes]
    assert where.of_kind("hard")
    assert where.of_kind("easy")
    assert np.corrcoef(order, np.arange(SCENES))[0, 1] < -0.95
    assert where.text[0].startswith(f"Of {SCENES} scenes: {len(where.of_kind('hard'))} hard for every arm, ")


def test_map_and_quarters_show_where_objects_began(harmed: Curve) -> None:
    few, most = harmed.where.maps
    assert (few.demo_count, most.demo_count, len(most.scenes)) == (*COUNTS, SCENES)
    near, far = (
        [quarter for quarter in most.quarters if quarter.name.startswith(side)]
        for side in ("x up to", "x above")
    )
    assert sum(quarter.scenes for quarter in (*near, *far)) == SCENES
    assert min(quarter.success for quarter in near) > max(quarter.success for quarter in far)
    assert all(0 <= q.interval.low <= q.success <= q.interval.high <= 1 for q in most.quarters)


@pytest.mark.parametrize("scenes", [1, 2, 3])
def test_map_is_linear_and_stays_inside_its_frame(scenes: int) -> None:
    placed = tuple(
        PlacedScene(f"Lift-{n}-{n}", 0.003 + 0.0135 * n, 0.3 * n, n, max(n, 1)) for n in range(scenes)
    )
    drawn = place_plot(PlaceMap("Lift", 5, placed), "p")
    assert all(52 < disc.x < 330 and 14 < disc.y < drawn.bottom for disc in drawn.discs)
    assert [disc.radius for disc in drawn.discs] == [0, RADIUS, RADIUS][:scenes]
    for axis in ("x", "y"):
        places = [getattr(disc, axis) for disc in drawn.discs]
        assert np.diff(places, 2) == pytest.approx(0, abs=1e-9)
    assert all(tick.at > 14 for tick in drawn.y_ticks)
    assert len(drawn.y_ticks) > 1


def test_page_has_both_sections_without_scripts(harmed: Curve) -> None:
    text = page(harmed.report(), [], "")
    for words in ("Where more demonstrations help", "Which demonstrations", "hard for every arm", "lift-003"):
        assert words in text
    assert text.count("solved by") >= 2 * SCENES
    assert "<script" not in text


def test_stages_in_words_count_the_failures_of_every_line_with_the_most_demos() -> None:
    """The last row belongs to the last line, which may have fewer demos or no failures."""
    first, second = Series("video_action", 0.0), Series("video_action", 1.0)
    fails, none = StageRow(first, 20, 3, (1, 2)), StageRow(second, 20, 0, (0, 0))
    table = StageTable("Lift", ("none", "reached"), (fails, none))
    told = "Lift with 20 demos, furthest stage of 3 failing episodes: none 1, reached 2."
    assert table.in_words() == told
    fewer = StageRow(second, 1, 4, (4, 0))
    assert replace(table, rows=(none, fewer)).in_words() == ""
    assert replace(table, rows=(fails, fewer)).in_words() == told
