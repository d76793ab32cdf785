"""Sweeps side by side, and a sweep next to published results."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator.cli.main import main
from orchestrator.report.compared_sweeps import (
    NamedSweep,
    ProtocolsDifferError,
    compared,
    differences,
    labels,
)
from orchestrator.report.matplotlib_plot import draw
from orchestrator.report.published import PublishedError, PublishedResult, read_published, warnings_for
from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.report.simulator_versions import SIMULATOR_TAG
from orchestrator.stats.fixed_sample import blaker, unpaired_p_value
from orchestrator.sweep.state import SweepState
from orchestrator.sweep.tracking_publisher import TrackingPublisher
from orchestrator.testing.episodes import make_episode_store
from orchestrator.tracking.mlflow_reader import ScoredArm, TrackedSweep
from reporting_sweep import make_sweep
from sim_workers.rollout.suite import EpisodeSpec
from synthetic_curves import scored

PUBLISHED = Path(__file__).parents[2] / "examples" / "published"
RULES = {"suite": {"tasks": ["Lift"], "episodes": 10, "max_steps": 50}, "packages": {"mujoco": "3.9.0"}}
FILE = {"train": {"steps": 100, "match": "steps"}, "policy": {"preset": "tiny"}, "seeds": [0]}


def tracked(*arms: ScoredArm, rules: Any = None, **file: Any) -> TrackedSweep:
    return TrackedSweep(arms, (), FILE | file, {}, RULES if rules is None else rules)


def test_compared_sweeps_are_paired_by_scene_whatever_their_seeds() -> None:
    """The first wins scenes 0 to 3 and 0 to 5, the second 0 to 7 and 0 to 9."""
    weak = tracked(scored(8, 0, 4), scored(8, 0, 6, seed=1))
    strong = tracked(scored(8, 0, 8, seed=5), scored(8, 0, 10, seed=7))
    curve = compared([NamedSweep("weak", weak), NamedSweep("strong", strong)])
    assert [(point.policy, point.successes, point.seeds) for point in curve.points] == [
        ("weak", 10, 2),
        ("strong", 18, 2),
    ]
    (comparison,) = curve.comparisons
    assert (comparison.first, comparison.second) == ("8 demos, weak", "8 demos, strong")
    assert (comparison.result.episodes, comparison.result.only_second) == (20, 8)
    # Unpaired, the same successes say less.
    assert comparison.result.p_value < unpaired_p_value((10, 20), (18, 20))


def test_compared_sweeps_state_no_common_training_that_they_do_not_have() -> None:
    arms = scored(2, 0, 3), scored(8, 0, 6)
    long = tracked(*arms, train={"steps": 200, "match": "steps", "mode": "joint"})
    sweeps = [NamedSweep("short", tracked(*arms)), NamedSweep("long", long)]
    report = compared(sweeps).to_json()
    assert "each sweep is trained as its own file says" in report["answer"][-1]
    assert "steps" not in report["caption"].replace("control steps", "")
    assert [str(one) for one in differences(sweeps)] == ["train.steps: 100 / 200", "train.mode: none / joint"]
    timed = [
        NamedSweep(
            f"{seconds} s", tracked(*arms, train={"steps": 0, "match": "gpu_seconds", "seconds": seconds})
        )
        for seconds in (60, 90)
    ]
    assert "each sweep is trained as its own file says" in compared(timed).to_json()["answer"][-1]
    assert "trained for" not in compared(timed).to_json()["caption"]
    same = compared([sweeps[0], NamedSweep("again", tracked(*arms))]).to_json()
    assert "every arm is trained for as many optimiser steps" in same["answer"][-1]


@pytest.mark.parametrize(
    ("rules", "suite", "told"),
    [
        (RULES | {"packages": {"mujoco": "3.3.1"}}, {}, "packages.mujoco: 3.9.0 / 3.3.1"),
        (
            {**RULES, "suite": RULES["suite"] | {"episodes": 20}, "episode list": "a1"},
            {},
            "suite.episodes: 10 / 20",
        ),
        ({}, {"suite": {"horizon": 60}}, "suite.horizon: none / 60"),
        ({}, {}, "--rebuild` adds them"),
    ],
)
def test_sweeps_of_other_protocols_are_refused_with_the_field(rules: Any, suite: Any, told: str) -> None:
    """The last two are sweeps of an earlier version, which published no rules."""
    other = scored(8, 0, 4)
    if not rules:
        other = ScoredArm(**{**vars(other), "protocol": "another"})
    with pytest.raises(ProtocolsDifferError, match="a and b cannot be compared") as refused:
        compared(
            [NamedSweep("a", tracked(scored(8, 0, 4))), NamedSweep("b", tracked(other, rules=rules, **suite))]
        )
    assert told in str(refused.value)
    assert refused.value.exit_code == 2


def test_versions_of_the_simulator_are_compared_only_where_asked() -> None:
    newer = RULES | {"simulator": "robosuite 1.5.2, mujoco 3.9.0"}
    older = {**newer, "packages": {"mujoco": "3.3.2"}, "simulator": "robosuite 1.5.2, mujoco 3.3.2"}
    sweeps = [
        NamedSweep(
            name, replace(tracked(scored(8, 0, 4), rules=rules), tags={SIMULATOR_TAG: rules["simulator"]})
        )
        for name, rules in (("new", newer), ("old", older))
    ]
    with pytest.raises(ProtocolsDifferError, match=r"packages.mujoco: 3.9.0 / 3.3.2; .*--across-versions"):
        compared(sweeps)
    report = compared(sweeps, across_versions=True).to_json()
    assert "played on robosuite 1.5.2, mujoco 3.9.0 and robosuite 1.5.2, mujoco 3.3.2" in report["caption"]
    other = NamedSweep(
        "other", tracked(scored(8, 0, 4), rules=older | {"suite": RULES["suite"] | {"episodes": 20}})
    )
    with pytest.raises(ProtocolsDifferError, match=r"suite\.episodes: 10 / 20"):
        compared([sweeps[0], other], across_versions=True)


def test_labels_name_the_place_where_names_are_equal() -> None:
    assert labels(["a", "b"], ["runs", "runs"]) == ["a", "b"]
    assert labels(["a", "a"], ["here", "there"]) == ["a in here", "a in there"]


def test_shipped_published_results_have_sources_and_intervals() -> None:
    kitchen, libero = (read_published(PUBLISHED / f"{name}.yaml") for name in ("robocasa-24", "libero-10"))
    assert all(result.source for result in (*kitchen, *libero))
    (cosmos,) = [result for result in libero if result.name == "Cosmos3-Nano"]
    assert (cosmos.successes, cosmos.episodes, cosmos.rounded) == (488, 500, False)
    assert cosmos.interval == blaker(488, 500)
    video = kitchen[0]
    assert str(video).startswith(
        "published: Video Policy, 50 demos: about 756/1200 = 0.63 [0.60, 0.66] (arXiv"
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("results: [{name: a, source: s, episodes: 10, successes: 11}]", "successes is 11, more than its 10"),
        ("results: [{name: a, source: s, episodes: 10}]", "write either successes or rate"),
        ("results: [{name: a, episodes: 10, successes: 1}]", "source is missing"),
        ("results: [{name: a, source: s, episodes: 10, rate: 63}]", "write a number from 0 to 1"),
        ("results: [{name: a, source: s, episodes: 10, wins: 1}]", "unknown field wins; there are name"),
        ("results: []", "write a list of results under `results`"),
        ("results: {", "it is no YAML file"),
    ],
)
def test_published_file_with_a_mistake_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(PublishedError, match=r"file\.yaml") as refused:
        read_published(tmp_path / "file.yaml")
    assert told in str(refused.value)


def test_warnings_name_versions_and_tasks_that_differ() -> None:
    curve = Curve("c", (scored(8, 0, 4),), tags={"demoscale.version.mujoco": "3.9.0"})
    old, silent = (
        PublishedResult(
            name=name, source="s", successes=5, episodes=10, versions=versions, tasks=tasks, demos=demos
        )
        for name, versions, tasks, demos in (
            ("old", {"mujoco": "3.3.1"}, ("Lift", "Stack"), None),
            ("silent", {}, (), 50),
        )
    )
    said = "\n".join(warnings_for(curve, [old, silent]))
    assert "old: played with mujoco 3.3.1, here with 3.9.0" in said
    assert "old: its tasks differ (Lift, Stack; here Lift)" in said
    assert "Versions of the simulator are not stated for silent" in said
    svg = draw(curve, "svg", [old, silent]).decode()
    assert "old (published)" in svg
    assert "silent (published)" in svg


def test_published_task_with_a_suite_in_its_name_is_the_one_in_ids_of_episodes() -> None:
    spec = EpisodeSpec("libero_10/KITCHEN_SCENE3_moka_pot", 0, 0)
    curve = Curve("c", (replace(scored(8, 0, 4), outcomes={spec.episode_id: True}),))
    result = PublishedResult(name="old", source="s", successes=5, episodes=10, tasks=(spec.task,))
    assert "its tasks differ" not in "\n".join(warnings_for(curve, [result]))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Publish two sweeps of one protocol, and one with fewer control steps; return their storage."""
    folder = tmp_path_factory.mktemp("compare")
    store = make_episode_store(folder / "lift", 8)
    for name, wins, horizon in (("first", 3, 50), ("second", 1, 50), ("short", 2, 40)):
        sweep = make_sweep(folder, store, f"sqlite:///{folder / 'mlflow.db'}", name=name, arms=4)
        sweep = sweep.model_copy(update={"suite": sweep.suite.model_copy(update={"horizon": horizon})})
        _score(SweepState.open(sweep, pin=True), wins)
    return folder


def _score(state: SweepState, wins: int) -> None:
    from orchestrator.evaluation.scores import Score
    from orchestrator.testing.outcomes import make_outcome

    publisher, specs = TrackingPublisher(state), state.sweep.to_suite().episode_list()
    for arm_id in state.arms():
        played = [make_outcome(spec, i < wins) for i, spec in enumerate(specs)]
        publisher.score(arm_id, 100, f"{arm_id}-100", "nominal", Score.of(played, len(specs)), played)
    assert publisher.finish(done=True) == ""


def test_compare_command_reads_sweeps_from_mlflow_and_refuses_another_protocol(
    published: Path, tmp_path: Path
) -> None:
    def compare(*arguments: str) -> Any:
        return CliRunner().invoke(main, ["compare", *arguments, "--storage", str(published)])

    page = tmp_path / "pages" / "both.html"
    told = compare("first", "second", "--json", "--save", str(tmp_path / "both.png"), "--html", str(page))
    assert told.exit_code == 0, told.output
    report = json.loads(told.stdout)
    assert [(p["policy"], p["demo_count"], p["successes"]) for p in report["points"]] == [
        ("first", 1, 6),
        ("first", 2, 6),
        ("second", 1, 2),
        ("second", 2, 2),
    ]
    across = [one for one in report["comparisons"] if one["first_policy"] != one["second_policy"]]
    assert [(one["episodes"], one["only_first"]) for one in across] == [(8, 4), (8, 4)]
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
    text = page.read_text(encoding="utf-8")
    assert "first, second: scored by one protocol" in text
    assert "Their sweep files say the same" in text
    assert len(re.findall(r'<path class="won" d="M', text)) == 8  # arms, each with successes
    refused = compare("first", "short")
    assert refused.exit_code == 2
    assert "first and short cannot be compared, suite.horizon: 50 / 40" in refused.output
    assert compare("first").exit_code == 2
    beside = compare("first", "--published", str(PUBLISHED / "libero-10.yaml"))
    assert beside.exit_code == 0, beside.output
    assert "published: Cosmos3-Nano: 488/500 = 0.98 [0.96, 0.99]" in beside.output
    assert "note: Versions of the simulator are not stated for Cosmos3-Nano" in beside.output
