"""From outcomes to the curve: its points, its sentences, how it is drawn and how it is read from MLflow."""

import itertools
import json
import re
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import escape

from orchestrator.cli.curve_output import print_curve
from orchestrator.cli.main import main
from orchestrator.config.arms import Arm
from orchestrator.report import summary as report
from orchestrator.report.held_out_curve import HeldOutCurve
from orchestrator.report.html import page
from orchestrator.report.matplotlib_plot import spread_labels
from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.report.summary import reach_in_words
from orchestrator.stats.sequential import PairedEvidence, anytime_interval
from orchestrator.tracking.mlflow_reader import CLIPS, ScoredArm, read_sweep
from orchestrator.tracking.mlflow_writer import (
    ARM,
    SCORE_METRICS,
    SCORED_STEP,
    SUBSET,
    MlflowWriter,
    outcomes_artifact,
)
from orchestrator.tracking.stages import EpisodeStage, encode, stages_artifact
from synthetic_curves import SEEDS, scored, several, with_a_baseline

DEMOS = ["a", "b"]
STAGES = {"Lift-0-0": EpisodeStage("grasped", 0.01, -0.02), "Lift-1-1": EpisodeStage("none", None, None)}


def test_curve_points_pool_replicates_and_keep_their_denominators() -> None:
    curve = Curve("c", (scored(2, 0, 3), scored(2, 0, 5, seed=1), scored(8, 0, 9)))
    first, second = curve.points
    assert (first.successes, first.episodes, first.seeds, second.seeds) == (8, 20, 2, 1)
    assert first.success_rate == 0.4


def test_demos_to_reach_interpolates_in_log_demos_or_is_not_reached() -> None:
    wins = ((2, 0, 2), (8, 0, 6), (2, 1, 8), (8, 1, 9))
    curve = Curve("c", tuple(scored(*won, seed=seed) for won in wins for seed in SEEDS))
    demos_only, mixed = curve.demos_to_reach(0.4)
    assert demos_only.value == pytest.approx(4.0)
    assert demos_only.interval.low <= 4 <= demos_only.interval.high
    assert (mixed.value, mixed.interval) == (0, (0, 0)), (
        "with fewer demos than were tried, whatever the episodes leave open"
    )
    assert [found.reached for found in curve.demos_to_reach(0.7)] == [False, True]


def test_demos_to_reach_are_said_only_if_the_counts_bound_them() -> None:
    wins = ((2, 0, 0), (4, 0, 5), (8, 0, 10), (2, 1, 2), (4, 1, 5), (8, 1, 5))
    curve = Curve("c", tuple(scored(*won, seed=seed) for won in wins for seed in SEEDS))
    bounded, unbounded = curve.lines
    assert reach_in_words(curve, bounded, 0.5) == "0.5 is reached with 4 demos (95 % interval 3 to 5)."
    assert reach_in_words(curve, unbounded, 0.5) == (
        "0.5 is reached with 2 or fewer to more than 8 demos: these counts do not bound the number (95 % interval)."
    )
    first, second = (line.reach[0].demos for line in curve.report().lines)
    assert (first, second) == (pytest.approx(4.0), None)


def test_comparisons_pair_replicates_of_the_same_seed() -> None:
    curve = Curve("c", (scored(2, 0, 0), scored(2, 0, 0, seed=1), scored(8, 0, 10), scored(8, 0, 10, seed=1)))
    (comparison,) = curve.comparisons
    assert comparison.result.episodes == 20
    assert comparison.result.only_first == 20
    assert "20 won only by the first" in str(comparison)


def test_curve_with_a_baseline_has_a_line_of_it() -> None:
    curve = with_a_baseline()
    assert [(p.policy, p.action_free_ratio, p.demo_count, p.successes) for p in curve.points] == [
        ("video_action", 0, 2, 2),
        ("video_action", 0, 8, 6),
        ("video_action", 1, 2, 8),
        ("video_action", 1, 8, 9),
        ("diffusion_policy", 0, 2, 1),
        ("diffusion_policy", 0, 8, 3),
    ]
    assert [line.label for line in curve.lines] == [
        "demos only",
        "+ 1 action-free per demo",
        "diffusion policy (no video)",
    ]
    assert {point["policy"] for point in curve.to_json()["points"]} == {"video_action", "diffusion_policy"}


def test_demos_to_reach_are_those_of_every_line() -> None:
    curve = with_a_baseline(SEEDS)
    found = curve.demos_to_reach(0.3)
    assert [reach.series for reach in found] == curve.lines
    assert {reach.rate for reach in found} == {0.3}
    assert [reach.value for reach in found] == [pytest.approx(2 * 2**0.5), 0.0, pytest.approx(8.0)]


def test_comparisons_with_a_baseline_are_at_equal_demo_counts() -> None:
    curve = with_a_baseline()
    mixed = [c for c in curve.comparisons if c.first_policy != c.second_policy]
    assert [(c.first, c.second, c.result.only_first, c.result.only_second) for c in mixed] == [
        ("2 demos with video", "2 demos without video (diffusion policy)", 1, 0),
        ("2 demos with video + 1 action-free per demo", "2 demos without video (diffusion policy)", 7, 0),
        ("8 demos with video", "8 demos without video (diffusion policy)", 3, 0),
        ("8 demos with video + 1 action-free per demo", "8 demos without video (diffusion policy)", 6, 0),
    ]
    assert {(c["first_policy"], c["second_policy"]) for c in curve.to_json()["comparisons"]} == {
        ("video_action", "video_action"),
        ("video_action", "diffusion_policy"),
        ("diffusion_policy", "diffusion_policy"),
    }


def test_curve_with_a_baseline_keeps_points_and_comparisons_of_the_others() -> None:
    both = with_a_baseline()
    ours = Curve("c", tuple(s for s in both.arms if s.arm.kind == "video_action"))
    assert [p for p in both.points if p.policy == "video_action"] == ours.points
    assert [str(c) for c in both.comparisons if {c.first_policy, c.second_policy} == {"video_action"}] == [
        str(c) for c in ours.comparisons
    ]


def test_curve_of_a_baseline_alone_has_comparisons_and_a_picture() -> None:
    alone = Curve("c", tuple(s for s in with_a_baseline(SEEDS).arms if s.arm.kind == "diffusion_policy"))
    (found,) = alone.demos_to_reach(0.5)
    assert (found.series.policy, found.reached) == ("diffusion_policy", False)
    (comparison,) = alone.comparisons
    assert (comparison.first, comparison.second) == (
        "8 demos without video (diffusion policy)",
        "2 demos without video (diffusion policy)",
    )
    assert alone.draw("png").startswith(b"\x89PNG")


def test_print_curve_names_policies_only_with_a_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    both = with_a_baseline()
    print_curve(both)
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split()[:2] == ["policy", "demos"]
    assert "\ndiffusion_policy      8                     0     0.30      3/10" in printed
    assert "8 demos with video against 8 demos without video (diffusion policy): +0.30 [+" in printed
    print_curve(Curve("c", both.arms[:4]))
    printed = capsys.readouterr().out
    assert "policy" not in printed
    assert "with video" not in printed


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8).map(sorted))
def test_spread_labels_keeps_the_gap_and_moves_labels_as_little_as_possible(places: list[float]) -> None:
    moved = spread_labels(places, 0.05)
    assert all(after - before >= 0.05 - 1e-9 for before, after in itertools.pairwise(moved))
    assert all(
        abs(new - old) <= 0.05 * (len(places) - 1) + 1e-9 for new, old in zip(moved, places, strict=True)
    )
    assert np.mean(moved) == pytest.approx(np.mean(places))


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Curve]:
    """Return a folder whose database has the sweep `both`: three arms recorded now, one as recorded before
    runs named their policy.
    """
    folder, curve = tmp_path_factory.mktemp("tracked"), Curve("both", with_a_baseline().arms[2:])
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    tracker = MlflowWriter(
        uri, "both", training="t", protocol="protocol", steps=100, artifacts=str(folder / "mlartifacts")
    )
    for index, s in enumerate(curve.arms):
        tracker.arm(f"arm-{index}", s.arm, {})
        tracker.artifact(f"arm-{index}", outcomes_artifact(100), json.dumps(s.outcomes).encode())
        if index:  # the first one as an earlier version published it
            tracker.artifact(f"arm-{index}", SUBSET, json.dumps({"demos": DEMOS}).encode())
            tracker.artifact(f"arm-{index}", stages_artifact(100), encode(STAGES))
        values = (s.successes / s.episodes, s.successes, s.episodes, s.errors, 0.0, 1.0)
        tracker.metrics(
            f"arm-{index}",
            100,
            dict(zip(SCORE_METRICS, map(float, values), strict=True)) | {SCORED_STEP: 100.0},
        )
    forget_the_policy(folder / "mlflow.db", "arm-1")
    return folder, curve


def forget_the_policy(database: Path, arm_id: str) -> None:
    """Remove what a run of an earlier version did not record; MLflow itself keeps a param for good."""
    with closing(sqlite3.connect(database)) as connection, connection:
        run = "SELECT run_uuid FROM tags WHERE key = ? AND value = ?"
        deleted = connection.execute(
            f"DELETE FROM params WHERE key = 'policy' AND run_uuid IN ({run})", (ARM, arm_id)
        )
        assert deleted.rowcount == 1


def test_read_sweep_returns_the_policy_of_each_arm(tracked: tuple[Path, Curve]) -> None:
    from mlflow import MlflowClient

    folder, curve = tracked
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    assert [(s.arm, s.outcomes, s.successes, s.errors) for s in read_sweep(uri, "both").arms] == [
        (s.arm, s.outcomes, s.successes, s.errors) for s in sorted(curve.arms, key=lambda s: s.arm)
    ]
    by_arm = {s.arm: s for s in read_sweep(uri, "both").arms}
    first, second = (by_arm[s.arm] for s in curve.arms[:2])
    assert (first.demos, first.stages) == ((), {})
    assert (second.demos, second.stages) == (tuple(DEMOS), STAGES)
    client = MlflowClient(uri)
    runs = client.search_runs(
        [client.get_experiment_by_name("demoscale").experiment_id], "tags.`demoscale.arm` != '-'"
    )
    policies = [run.data.params.get("policy", "not named") for run in runs]
    assert sorted(policies) == ["diffusion_policy", "diffusion_policy", "not named", "video_action"]


@pytest.mark.parametrize("sweep", ["{suite: {episodes: 10}}", "{suite: {held_out: 0.2}}"])
def test_curve_of_best_checkpoints_is_refused_without_scenes_that_choose(
    tracked: tuple[Path, Curve], sweep: str
) -> None:
    folder, _ = tracked
    uri, name = f"sqlite:///{folder / 'mlflow.db'}", re.sub(r"\W+", "-", sweep).strip("-")
    artifacts = str(folder / "mlartifacts")
    tracker = MlflowWriter(uri, name, training="t", protocol="protocol", steps=100, artifacts=artifacts)
    tracker.artifact(None, "sweep.yaml", sweep.encode())
    done = CliRunner().invoke(main, ["curve", name, "--storage", str(folder), "--checkpoint", "best"])
    assert done.exit_code == 2
    assert done.stderr.count("leave out --checkpoint best") == 1


def test_curve_command_distinguishes_policies(tracked: tuple[Path, Curve]) -> None:
    folder, curve = tracked
    done = CliRunner().invoke(
        main,
        ["curve", "both", "--storage", str(folder), "--json", "--save", str(folder / "c.png")],
        catch_exceptions=False,
    )
    assert done.exit_code == 0
    assert [(p["policy"], p["demo_count"], p["successes"]) for p in json.loads(done.stdout)["points"]] == [
        (p.policy, p.demo_count, p.successes) for p in curve.points
    ]
    assert (folder / "c.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_curve_draws_png_and_svg(kind: str) -> None:
    curve = Curve(
        "c",
        tuple(
            scored(d, r, w, seed=s)
            for s in (0, 1)
            for d, r, w in ((2, 0, 2), (8, 0, 6), (2, 1, 8), (8, 1, 9))
        ),
    )
    picture = curve.draw(kind)
    assert picture.startswith(b"\x89PNG") if kind == "png" else b"<svg" in picture


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_curve_draws_a_baseline_dashed(kind: str) -> None:
    picture = with_a_baseline().draw(kind)
    assert picture.startswith(b"\x89PNG") if kind == "png" else b"stroke-dasharray" in picture
    assert kind == "png" or b"diffusion policy (no video)" in picture


# -- a curve of several seeds


def test_data_equivalence_covers_the_simulated_gain() -> None:
    curve = several(gain=2.0, noise=0.05)
    worth = curve.data_equivalence(curve.lines[1])
    assert worth is not None
    assert worth.interval.low < 4 < worth.interval.high, "two doublings"
    assert worth.interval.low > 1
    told = report.answer(curve)[0]
    assert told.startswith("An action-free ratio of 1 is worth ")
    assert "times the demos of one of 0 (95 % interval " in told
    assert curve.data_equivalence(curve.lines[0]) is None


def test_answer_without_a_gain_says_no_evidence() -> None:
    curve = several(gain=0.0, noise=0.3, seed=3)
    assert report.answer(curve)[0].startswith("No evidence that an action-free ratio of 1 replaces demos: ")
    between = [c for c in curve.comparisons if "action-free" in c.first and "action-free" not in c.second]
    assert {c.verdict for c in between} == {"no evidence of a difference"}


def test_comparison_of_distant_seeds_finds_no_difference_between_recipes() -> None:
    """The trained policies differ significantly, the recipes do not; of two seeds only the first is said."""
    wins = {0.0: (10, 70, 65), 1.0: (90, 68, 75)}
    arms = [
        scored(8, ratio, won, episodes=100, seed=seed)
        for ratio, three in wins.items()
        for seed, won in enumerate(three)
    ]
    for seeds, verdict in ((3, "no evidence of a difference"), (2, "these trained policies differ")):
        (comparison,) = Curve("c", tuple(arm for arm in arms if arm.arm.seed < seeds)).comparisons
        assert comparison.p_corrected < 1e-6
        assert (comparison.interval.low < 0 < comparison.interval.high) is (seeds == 3)
        assert comparison.verdict == verdict


RECIPE = re.compile(r"better|worse|is worth|is reached|to reach a success|replaces demos|shaded: 95 %")
"""Words of statements about a recipe."""


def all_words(curve: Curve | HeldOutCurve, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what a curve says as JSON, as a page, as a figure and on the command line."""
    print_curve(curve)
    made = curve.page() if isinstance(curve, HeldOutCurve) else curve.page([])
    made = made.replace("lower is better", "").replace("the first is better", "")
    figure = curve.draw("svg").decode().replace("lower is better", "")
    caption = "caption" if isinstance(curve, HeldOutCurve) else ""
    said = json.dumps({name: one for name, one in curve.to_json().items() if name != caption})
    body = re.sub(r"<style>.*?</style>|<th.*?</th>|<a .*?</a>", "", made, flags=re.DOTALL)
    return "\n".join((said.replace("lower_is_better", ""), body, figure, capsys.readouterr().out))


@pytest.mark.parametrize("seeds", [1, 2])
def test_curve_of_fewer_than_three_seeds_says_nothing_about_recipes(
    seeds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same arms with three seeds say all of it."""
    arms = [
        scored(demos, ratio, won, 40, seed)
        for demos, ratio, won in ((4, 0, 10), (40, 0, 30), (4, 1, 25), (40, 1, 38))
        for seed in SEEDS
    ]
    few = Curve("c", tuple(arm for arm in arms if arm.arm.seed < seeds))
    said = all_words(few, capsys)
    assert RECIPE.findall(said) == []
    headline, more = report.answer(few)[:2]
    assert headline.startswith("These trained policies differ: 40 demos against 4 demos; ")
    assert f"eed{'s' * (seeds > 1)} of a point say{'s' * (seeds == 1)} nothing about its recipe" in more
    assert f"`seeds: [0, 1, 2]` in the sweep file takes {4 * (3 - seeds)} more arms" in more
    assert str(escape(headline)) in said
    written = few.to_json()
    assert written["claim"]["about"] == "trained policies"
    assert {line["worth"] for line in written["lines"]} == {None}
    assert all(line["reach"] == [] and line["area"] is None for line in written["lines"])
    assert {point["band_low"] for point in written["points"]} == {None}
    assert {one["verdict"] for one in written["comparisons"]} == {"these trained policies differ"}
    assert few.demos_to_reach(0.5) == []
    assert few.data_equivalence(few.lines[1]) is None
    three = Curve("c", tuple(arms))
    assert {"better", "is worth", "is reached", "shaded: 95 %"} <= {*RECIPE.findall(all_words(three, capsys))}
    assert three.to_json()["claim"] == {"about": "recipe", "seeds": 3, "seeds_for_recipe": 3, "text": ""}


def test_point_with_too_few_seeds_leaves_a_gap_in_the_band() -> None:
    curve = several(gain=1.0, noise=0.1, missing=(2,))
    assert [point.band is None for point in curve.of_line(curve.lines[0])] == [False, False, False, True]
    assert curve.demos_to_reach(0.5) == []
    assert any(c.verdict == "better" for c in curve.comparisons), "points with three seeds are compared"
    assert any(one.startswith("These trained policies differ: 80 demos") for one in report.answer(curve))


def test_bands_contain_the_intervals_of_the_episodes() -> None:
    for point in several(gain=1.0, noise=0.5).points:
        assert point.band
        (low, high), (band_low, band_high) = point.interval, point.band
        assert band_low <= low <= point.success_rate <= high <= band_high


def test_point_names_its_missing_seeds() -> None:
    curve = several(gain=1.0, noise=0.1, missing=(2,))
    assert {point.demo_count: point.missing_seeds for point in curve.points} == {
        10: (),
        20: (),
        40: (),
        80: (2,),
    }
    assert "2 of 8 points have fewer than 3 seeds." in report.answer(curve)


def test_point_cost_is_the_sum_over_its_arms() -> None:
    curve = several(gain=1.0, noise=0.1)
    costs = [point.cost for point in curve.report().points]
    assert {cost and (cost.cpu_hours, cost.episodes, cost.money) for cost in costs} == {(3.0, 300, 1.5)}
    assert {arm.cost and arm.cost.cpu_hours for arm in curve.report().arms} == {1.0}
    assert (report.cost_axis(costs)[0], report.cost_axis(costs, report.HOURS)[1]) == ("money", "CPU-hours")


def test_video_score_and_success_are_correlated_over_checkpoints() -> None:
    video = several(gain=1.0, noise=0.1).report().video
    assert video
    assert video.correlation
    assert video.correlation.number == 2 * 24 == len(video.points)
    assert video.correlation.interval.low > 0
    assert "they go together" in video.text


def test_video_report_says_whether_it_is_correlated_given_training_steps() -> None:
    curve = several(gain=1.0, noise=0.1)
    video = curve.report().video
    assert video
    assert video.given_steps
    assert video.given_steps.clusters == 24
    assert video.given_steps.interval.low < 0 < video.given_steps.interval.high, (
        "distance follows steps alone"
    )
    said = f"Given training steps: partial rank correlation {video.given_steps.rho:+.2f}"
    assert said in video.text
    assert (video.to_json()["given_steps"] or {})["rho"] == video.given_steps.rho


def test_video_scores_of_other_clips_are_not_mixed() -> None:
    curve = several(gain=1.0, noise=0.1)
    first, *others = curve.arms
    elsewhere = {step: {**told, CLIPS: 8.0} for step, told in first.imagined.items()}
    mixed = replace(curve, arms=(replace(first, imagined=elsewhere), *others))
    assert len(curve.imagined) - len(mixed.imagined) == len(elsewhere)


def test_curve_json_has_no_nan_or_infinity() -> None:
    for curve in (
        several(1.0, 0.2),
        with_a_baseline(),
        Curve("c", (scored(2, 0, 0),)),
        Curve("c", (scored(2, 0, 10), scored(8, 0, 10))),
    ):
        assert json.loads(json.dumps(curve.to_json(), allow_nan=False))["caption"].endswith(
            "Protocol " + curve.protocol + "."
        )


def test_sequentially_decided_scores_have_anytime_valid_statistics() -> None:
    plain = several(gain=1.0, noise=0.1)
    looked = replace(
        plain,
        sweep={
            **plain.sweep,
            "suite": {**plain.sweep["suite"], "decide": {"threshold": 0.5, "look_every": 10}},
        },
    )
    for ours, theirs in zip(looked.points, plain.points, strict=True):
        assert ours.interval == anytime_interval(ours.successes, ours.episodes)
        assert ours.interval.low < theirs.interval.low < theirs.interval.high < ours.interval.high
    for ours, theirs in zip(looked.comparisons, plain.comparisons, strict=True):
        assert (
            ours.result.p_value
            == PairedEvidence(ours.result.only_first, ours.result.only_second).p_value
            >= theirs.result.p_value
        )
        assert "anytime-valid p = " in str(ours)
    assert (
        "scored until threshold 0.5, look_every 10 was decided, 0 of 24 arms (*) before the end of the list"
        in report.caption(looked)
    )


def test_caption_states_the_protocol() -> None:
    caption = report.caption(several(1.0, 0.2))
    for told in (
        "100 held-out episodes per arm",
        "at most 100 control steps",
        "success counted at any step",
        "trained for 100 steps",
        "seeds 0, 1, 2",
        "no errors",
    ):
        assert told in caption


def test_page_contains_every_sentence_of_the_answer() -> None:
    for curve in (
        several(1.0, 0.2, missing=(1,)),
        with_a_baseline(),
        Curve("c", (scored(2, 0, 0),)),
        Curve("c", (scored(2, 0, 10), scored(8, 0, 10))),
    ):
        text = page(curve.report(), [], "")
        for sentence in report.answer(curve):
            assert escape(sentence) in text


def test_curve_of_arms_with_different_protocols_raises() -> None:
    other = ScoredArm(Arm(8, 0.0, 0), "another", 100, 5, 10, 0, {})
    with pytest.raises(ValueError, match="different protocols"):
        Curve("c", (scored(2, 0, 2), other))


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_curve_of_several_seeds_draws(kind: str) -> None:
    assert len(several(1.0, 0.2, missing=(1,)).draw(kind)) > 10_000


def test_curve_of_several_policies_is_by_line_in_the_order_of_the_sweep_file() -> None:
    """Ratios are compared within a policy; policies with each other at equal ratios, or at their only one."""
    lines = [{"name": name, "policy": name} for name in ("policies/b", "video_action", "a")]
    lines[0]["name"] = "b"
    sweep = {"policy": {"lines": lines}, "train": {"steps": 100, "match": "epochs"}}
    arms = [
        *(scored(2, ratio, 2 + int(ratio), kind=kind) for kind in ("video_action", "b") for ratio in (0, 1)),
        scored(2, 0, 9, kind="a"),
    ]
    curve = Curve("c", tuple(arms), sweep)
    assert [curve.label(line) for line in curve.lines] == [
        "b",
        "b + 1 action-free per demo",
        "video_action",
        "video_action + 1 action-free per demo",
        "a",
    ]
    assert [(c.first, c.second) for c in curve.comparisons][-6:] == [
        ("2 demos, b", "2 demos, video_action"),
        ("2 demos, b + 1 action-free per demo", "2 demos, video_action + 1 action-free per demo"),
        ("2 demos, b", "2 demos, a"),
        ("2 demos, b + 1 action-free per demo", "2 demos, a"),
        ("2 demos, video_action", "2 demos, a"),
        ("2 demos, video_action + 1 action-free per demo", "2 demos, a"),
    ]
    assert len(curve.comparisons) == 8
    written = curve.to_json()
    assert written["match"] == "epochs"
    assert "as many passes over its demos" in written["answer"][-1]
    assert "arms with the most demos trained for 100 steps, others for as many epochs" in written["caption"]
    assert ("line b", "policies/b") in curve.report().protocol_facts
    text = page(curve.report(), [], "")
    assert all(str(escape(curve.label(line))) in text for line in curve.lines)
    assert curve.draw("svg").startswith(b"<?xml")
