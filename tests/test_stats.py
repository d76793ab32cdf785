"""What may be concluded: against textbook formulas, exhaustive counting, and simulation."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.arms import Arm
from orchestrator.cli import _print_curve, main
from orchestrator.curve import Curve, _apart
from orchestrator.stats import paired_comparison, wilson
from orchestrator.tracked import ScoredArm, read_arms
from orchestrator.tracking import SCORE_METRICS, Tracker, outcomes_artifact
from policy.config import PolicyKind


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_the_textbook_formula(counts: tuple[int, int]) -> None:
    k, n = counts
    z, p = 1.959963984540054, k / n
    centre, half = (p + z * z / (2 * n)) / (1 + z * z / n), z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson(k, n) == pytest.approx((max(0, centre - half), min(1, centre + half)), abs=1e-9)


def test_wilson_covers_what_it_promises() -> None:
    rng = np.random.default_rng(0)
    for n in (20, 50):
        for p in (0.1, 0.5, 0.9):
            hits = [low <= p <= high for low, high in (wilson(int(k), n) for k in rng.binomial(n, p, 2000))]
            assert np.mean(hits) > 0.92


def test_no_episodes_no_knowledge() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_paired_test_counts_only_what_differs_on_common_episodes() -> None:
    first = {"a": True, "b": True, "c": True, "d": False, "only here": True}
    second = {"a": True, "b": False, "c": False, "d": True, "only there": False}
    result = paired_comparison(first, second)
    assert (result.episodes, result.only_first, result.only_second) == (4, 2, 1)
    assert result.difference == pytest.approx(0.25)
    # By hand: three coins, two or more on either side: always.
    assert result.p_value == 1.0


def test_the_paired_test_is_the_exact_binomial_one() -> None:
    first = {str(i): i < 12 for i in range(30)}
    second = {str(i): 10 <= i < 14 for i in range(30)}
    result = paired_comparison(first, second)
    assert (result.only_first, result.only_second) == (10, 2)
    assert result.p_value == pytest.approx(2 * sum(math.comb(12, k) for k in range(3)) / 2**12)
    assert result.verdict == "better"


def test_equal_policies_are_called_different_at_most_one_time_in_twenty() -> None:
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(1000):
        a, b = rng.random((2, 40)) < 0.5
        result = paired_comparison(dict(enumerate(a)), dict(enumerate(b)))  # type: ignore[arg-type]
        wrong += result.p_value < 0.05
    assert wrong <= 50


def test_policies_without_a_common_episode_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="no episode in common"):
        paired_comparison({"a": True}, {"b": True})


def scored(demos: int, ratio: float, wins: int, episodes: int = 10, seed: int = 0, kind: PolicyKind = "video_action") -> ScoredArm:
    outcomes = {f"Lift-{i}": i < wins for i in range(episodes)}
    return ScoredArm(Arm(demos, ratio, seed, kind), "protocol", 100, wins, episodes, 0, outcomes)


def beside_a_baseline() -> Curve:
    """Two ratios of ours, and a baseline with the same demo counts and ratio 0."""
    ours = (scored(2, 0.0, 2), scored(8, 0.0, 6), scored(2, 1.0, 8), scored(8, 1.0, 9))
    return Curve("c", (*ours, scored(2, 0.0, 1, kind="diffusion_policy"), scored(8, 0.0, 3, kind="diffusion_policy")))


def test_points_pool_replicates_and_keep_their_denominators() -> None:
    curve = Curve("c", (scored(2, 0, 3), scored(2, 0, 5, seed=1), scored(8, 0, 9)))
    first, second = curve.points
    assert (first.successes, first.episodes, first.seeds, second.seeds) == (8, 20, 2, 1)
    assert first.success_rate == 0.4


def test_demos_to_reach_interpolates_in_log_demos_or_says_not_reached() -> None:
    curve = Curve("c", (scored(2, 0, 2), scored(8, 0, 6), scored(2, 1, 8), scored(8, 1, 9)))
    assert curve.demos_to_reach(0.4) == {0: pytest.approx(4.0), 1: 2.0}
    assert curve.demos_to_reach(0.7) == {0: "not reached", 1: 2.0}


def test_replicates_are_compared_with_the_replicate_of_their_seed() -> None:
    curve = Curve("c", (scored(2, 0, 0), scored(2, 0, 0, seed=1), scored(8, 0, 10), scored(8, 0, 10, seed=1)))
    (comparison,) = curve.comparisons()
    assert comparison.result.episodes == 20
    assert comparison.result.only_first == 20
    assert "20 won only by the first" in str(comparison)


def test_a_baseline_is_a_line_of_its_own() -> None:
    curve = beside_a_baseline()
    assert [(p.policy, p.action_free_ratio, p.demo_count, p.successes) for p in curve.points] == [
        ("video_action", 0, 2, 2),
        ("video_action", 0, 8, 6),
        ("video_action", 1, 2, 8),
        ("video_action", 1, 8, 9),
        ("diffusion_policy", 0, 2, 1),
        ("diffusion_policy", 0, 8, 3),
    ]
    assert [line.label for line in curve.lines] == ["demos only", "+ 1 action-free per demo", "diffusion policy (no video)"]
    assert {point["policy"] for point in curve.to_json()["points"]} == {"video_action", "diffusion_policy"}


def test_demos_to_reach_names_ours_by_ratio_and_a_baseline_by_its_kind() -> None:
    assert beside_a_baseline().demos_to_reach(0.3) == {0.0: pytest.approx(2 * 2**0.5), 1.0: 2.0, "diffusion_policy": pytest.approx(8.0)}


def test_with_video_is_compared_with_without_at_equal_demo_counts() -> None:
    curve = beside_a_baseline()
    mixed = [c for c in curve.comparisons() if c.first_policy != c.second_policy]
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


def test_a_baseline_changes_nothing_that_is_said_of_ours() -> None:
    both = beside_a_baseline()
    ours = Curve("c", tuple(s for s in both.arms if s.arm.kind == "video_action"))
    assert [p for p in both.points if p.policy == "video_action"] == ours.points
    assert [str(c) for c in both.comparisons() if {c.first_policy, c.second_policy} == {"video_action"}] == [str(c) for c in ours.comparisons()]


def test_a_baseline_alone_is_a_curve_too() -> None:
    alone = Curve("c", tuple(s for s in beside_a_baseline().arms if s.arm.kind == "diffusion_policy"))
    assert alone.demos_to_reach(0.5) == {"diffusion_policy": "not reached"}
    (comparison,) = alone.comparisons()
    assert (comparison.first, comparison.second) == ("8 demos without video (diffusion policy)", "2 demos without video (diffusion policy)")
    assert alone.draw("png").startswith(b"\x89PNG")


def test_the_table_names_policies_only_where_there_is_a_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    both = beside_a_baseline()
    _print_curve(both)
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split()[:2] == ["policy", "demos"]
    assert "\ndiffusion_policy      8                     0     0.30      3/10" in printed
    assert "8 demos with video against 8 demos without video (diffusion policy): +0.30 on 10 common episodes" in printed
    _print_curve(Curve("c", both.arms[:4]))
    printed = capsys.readouterr().out
    assert "policy" not in printed
    assert "with video" not in printed


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8).map(sorted))
def test_labels_are_kept_apart_and_moved_no_further_than_that_takes(places: list[float]) -> None:
    moved = _apart(places, 0.05)
    assert all(after - before >= 0.05 - 1e-9 for before, after in itertools.pairwise(moved))
    assert all(abs(new - old) <= 0.05 * (len(places) - 1) + 1e-9 for new, old in zip(moved, places, strict=True))
    assert np.mean(moved) == pytest.approx(np.mean(places))


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Curve]:
    """A folder whose database has the sweep `both`: three arms recorded now, one as it was before runs named their policy."""
    folder, curve = tmp_path_factory.mktemp("tracked"), Curve("both", beside_a_baseline().arms[2:])
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    tracker = Tracker(uri, "both", training="t", protocol="protocol", steps=100, artifacts=str(folder / "mlartifacts"))
    with pytest.MonkeyPatch.context() as patch:
        for index, s in enumerate(curve.arms):
            if index == 1:
                patch.setattr("orchestrator.tracking._params", lambda arm: {name: value for name, value in vars(arm).items() if name != "kind"})
            tracker.arm(f"arm-{index}", s.arm, {})
            patch.undo()
            tracker.artifact(f"arm-{index}", outcomes_artifact(100), json.dumps(s.outcomes).encode())
            values = (s.successes / s.episodes, s.successes, s.episodes, s.errors, 0.0, 1.0)
            tracker.metrics(f"arm-{index}", 100, dict(zip(SCORE_METRICS, map(float, values), strict=True)))
    return folder, curve


def test_mlflow_remembers_an_arm_s_policy(tracked: tuple[Path, Curve]) -> None:
    from mlflow import MlflowClient

    folder, curve = tracked
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    assert read_arms(uri, "both") == sorted(curve.arms, key=lambda s: s.arm)
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("demoscale").experiment_id], "tags.`demoscale.arm` != '-'")
    policies = [run.data.params.get("policy", "not named") for run in runs]
    assert sorted(policies) == ["diffusion_policy", "diffusion_policy", "not named", "video_action"]


def test_the_curve_command_tells_the_policies_apart(tracked: tuple[Path, Curve]) -> None:
    folder, curve = tracked
    done = CliRunner().invoke(main, ["curve", "both", "--storage", str(folder), "--json", "--save", str(folder / "c.png")], catch_exceptions=False)
    assert done.exit_code == 0
    assert [(p["policy"], p["demo_count"], p["successes"]) for p in json.loads(done.stdout)["points"]] == [
        (p.policy, p.demo_count, p.successes) for p in curve.points
    ]
    assert (folder / "c.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_the_curve_draws(kind: str) -> None:
    curve = Curve("c", tuple(scored(d, r, w, seed=s) for s in (0, 1) for d, r, w in ((2, 0, 2), (8, 0, 6), (2, 1, 8), (8, 1, 9))))
    picture = curve.draw(kind)
    assert picture.startswith(b"\x89PNG") if kind == "png" else b"<svg" in picture


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_the_curve_draws_a_baseline_dashed(kind: str) -> None:
    picture = beside_a_baseline().draw(kind)
    assert picture.startswith(b"\x89PNG") if kind == "png" else b"stroke-dasharray" in picture
    assert kind == "png" or b"diffusion policy (no video)" in picture
