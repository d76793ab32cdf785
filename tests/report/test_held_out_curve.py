"""The curve of action errors: points, comparisons episode by episode, page and figure."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from orchestrator.config.arms import Arm
from orchestrator.report.held_out_curve import HeldOutCurve
from orchestrator.stats.fixed_sample import mean_interval, paired_means
from synthetic_errors import EPISODES, arm_of, held_out


def test_points_average_episodes_and_seeds_with_two_kinds_of_intervals() -> None:
    made = held_out()
    assert [(point.policy, point.demo_count, point.action_free_ratio) for point in made.points] == [
        (policy, demos, ratio)
        for policy, ratio in (("video_action", 0.0), ("video_action", 1.0), ("diffusion_policy", 0.0))
        for demos in (5, 20)
    ]
    first, second = made.points[:2]
    assert first.error > second.error
    assert (first.episodes, first.seeds, first.constant) == (EPISODES, 3, pytest.approx(0.8))
    assert first.band
    assert first.band.low <= first.interval.low < first.error < first.interval.high <= first.band.high
    assert first.dimensions[1] is None
    assert first.loss == pytest.approx(first.error / 2)
    assert {task: own.episodes for task, own in first.by_task.items()} == {"pick": 8, "place": 8}
    single = HeldOutCurve("one", tuple(one for one in made.arms if one.arm.seed == 0))
    values = [error.error for error in single.arms[0].errors]
    assert single.points[0].interval == mean_interval(values)


def test_comparisons_are_paired_by_episode_and_corrected() -> None:
    made = held_out()
    more, *_ = made.comparisons
    assert (more.first, more.second) == ("20 demos", "5 demos")
    assert more.result.difference == pytest.approx(-0.3, abs=0.02)
    assert (more.result.lower, more.result.episodes) == (EPISODES, EPISODES)
    assert more.verdict == "better"
    same = [one for one in made.comparisons if one.first == "5 demos + 1 action-free per demo"]
    assert same[0].verdict == "no evidence of a difference"
    assert all(one.p_corrected >= one.result.p_value for one in made.comparisons)
    assert "lower on 16 of them" in str(more)


def test_videos_are_worth_the_demos_that_reach_the_same_error() -> None:
    base = [arm_of(demos, 0.0, seed) for demos in (5, 10, 20, 40) for seed in (0, 1, 2)]
    twice = [
        replace(arm_of(2 * demos, 1.0, seed), arm=Arm(demos, 1.0, seed))
        for demos in (5, 10, 20)
        for seed in (0, 1, 2)
    ]
    made = HeldOutCurve("worth", (*base, *twice))
    _, mixed = made.lines
    factor = made.data_equivalence(mixed)
    assert factor
    assert factor.value == pytest.approx(2, rel=0.1)
    assert made.answer()[0].startswith(
        "By action error, an action-free ratio of 1 is worth 2 times the demos of"
    )
    assert made.data_equivalence(made.lines[0]) is None
    assert made.exchange
    (row,) = made.exchange.rows
    assert row.rate
    assert row.rate.worth.value == pytest.approx(1, rel=0.2), "a video is worth a demo"
    assert made.to_json()["exchange"]["rows"] == [row.to_json()]
    assert f"<b>{row.worth_in_words}</b>" in made.page()
    same = held_out()
    assert same.answer()[0].startswith(
        "No evidence that an action-free ratio of 1 replaces demos, by action error"
    )
    assert all(line["worth"] is None or line["worth"]["text"] for line in same.to_json()["lines"])


@pytest.mark.parametrize("seeds", [1, 2])
def test_held_out_curve_of_fewer_than_three_seeds_says_nothing_about_recipes(seeds: int) -> None:
    made = HeldOutCurve("few", tuple(one for one in held_out().arms if one.arm.seed < seeds))
    headline, more = made.answer()[:2]
    assert headline.startswith("These trained policies differ: 20 demos against 5 demos")
    assert "nothing about its recipe" in more
    assert "`seeds: [0, 1, 2]`" in more
    written, page = made.to_json(), made.page()
    assert {line["worth"] for line in written["lines"]} == {None}
    assert {point["band_low"] for point in written["points"]} == {None}
    assert not {"better", "worse"} & {one["verdict"] for one in written["comparisons"]}
    assert "shaded" not in written["caption"] + page
    assert headline in page
    assert made.draw("svg").startswith(b"<?xml")


def test_paired_test_uses_the_differences_of_common_episodes() -> None:
    rng = np.random.default_rng(0)
    hard = {f"e{i}": float(value) for i, value in enumerate(rng.normal(5, 3, 20))}
    second = {episode: value - 0.1 + 0.02 * rng.normal() for episode, value in hard.items()}
    found = paired_means(hard, second | {"elsewhere": 100.0})
    assert (found.episodes, found.lower) == (20, 0)
    assert found.difference == pytest.approx(0.1, abs=0.02)
    assert found.p_value < 1e-6
    assert paired_means(hard, hard).p_value == 1
    with pytest.raises(ValueError, match="fewer than two episodes in common"):
        paired_means({"a": 1.0}, {"a": 2.0})


@pytest.mark.full
def test_intervals_of_a_mean_cover_it_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for sample in rng.gamma(9, 1 / 9, (2000, 20)):
        low, high = mean_interval(list(sample))
        hits += low <= 1 <= high
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)


class _Balanced(HTMLParser):
    void = ("meta", "link", "br", "img", "path", "circle")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.scripts += tag == "script"
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag


def test_page_and_figures_say_what_was_measured() -> None:
    made = held_out()
    page, parser = made.page(), _Balanced()
    parser.feed(page)
    assert (parser.open, parser.scripts) == ([], 0)
    assert "drawer: action error on held-out episodes against demonstrations" in page
    assert page.count("</svg>") >= 2
    assert "grip" in page
    assert "2.00" not in page.split("Cost")[0]
    said = json.loads(json.dumps(made.to_json()))
    assert said["points"][0]["by_dimension"]["y"] is None
    assert said["points"][0]["cost"]["money"] == 6
    assert "success" not in json.dumps(said["points"] + said["comparisons"] + said["arms"])
    for kind, head in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        assert made.draw(kind).startswith(head)


def test_arms_of_two_protocols_are_not_on_one_held_out() -> None:
    first, second = arm_of(5, 0, 0), replace(arm_of(20, 0, 0), protocol="another")
    with pytest.raises(ValueError, match="different protocols"):
        HeldOutCurve("mixed", (first, second))
