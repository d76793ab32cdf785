"""Labelled and unlabelled tasks as lines of their own, from outcomes to page and JSON."""

from typing import Any

import numpy as np
import pytest

from orchestrator.config.arms import Arm
from orchestrator.report.labelled_tasks import lines_with_labels
from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.tracking.mlflow_reader import ScoredArm
from sim_workers.rollout.suite import EpisodeSpec

TASKS = ("Lift", "Stack", "Door", "Can")
EPISODES = 40
RATES = {  # on labelled and on unlabelled tasks
    "videos": (0.6, 0.4),
    "no_videos": (0.6, 0.1),
    "one": (0.6, 0.3),
    "all": (0.6, 0.0),
    "bc": (0.4, 0.1),
}
LINES = [
    {"name": "videos", "policy": "video_action"},
    {"name": "no_videos", "policy": "video_action", "data": {"labelled": None, "unlabelled_videos": 0}},
    {"name": "one", "policy": "video_action", "data": {"labelled": 1, "unlabelled_videos": None}},
    {"name": "all", "policy": "video_action", "data": {"labelled": "all", "unlabelled_videos": None}},
    {"name": "bc", "policy": "diffusion_policy", "data": None},
]
LABELLED = {"one": 1, "all": 4}


def arm(line: str, demos: int, seed: int) -> ScoredArm:
    rng = np.random.default_rng([seed, demos, *line.encode()])
    labelled = TASKS[: LABELLED.get(line, 2)]
    outcomes = {
        f"{task}-{scene}-{scene}": bool(rng.random() < RATES[line][task not in labelled])
        for task in TASKS
        for scene in range(EPISODES)
    }
    return ScoredArm(
        Arm(demos, 0.0, seed, line), "protocol", 100, sum(outcomes.values()), len(outcomes), 0, outcomes
    )


def curve(*lines: str, demos: tuple[int, ...] = (10,), seeds: tuple[int, ...] = (0, 1, 2)) -> Curve:
    sweep: dict[str, Any] = {
        "data": {"labelled_tasks": ["Lift", "Stack"], "unlabelled_videos": 20},
        "policy": {"preset": "tiny", "lines": [line for line in LINES if line["name"] in lines]},
        "train": {"steps": 100, "mode": "two_stage"},
        "suite": {"tasks": [*TASKS], "episodes": EPISODES, "horizon": 100, "success": "once"},
    }
    arms = [arm(line, count, seed) for line in lines for count in demos for seed in seeds]
    return Curve("labels", tuple(sorted(arms, key=lambda one: one.arm)), sweep)


def test_labelled_and_unlabelled_tasks_are_lines_with_their_own_counts() -> None:
    own = curve("videos", "no_videos", demos=(10, 20))
    report = own.labels
    assert report
    assert report.axis == "demos"
    assert [trace.label for trace in report.traces] == [
        "20 videos of each other task, labelled tasks",
        "20 videos of each other task, unlabelled tasks",
        "no videos of the others, labelled tasks",
        "no videos of the others, unlabelled tasks",
    ]
    for trace in report.traces:
        assert [report.place(point) for point in trace.points] == [10, 20]
        for point in trace.points:
            tasks = TASKS[:2] if trace.group == "labelled" else TASKS[2:]
            won = sum(
                won
                for scored in own.arms
                if (scored.arm.kind, scored.arm.demo_count) == (point.line.name, point.point.demo_count)
                for episode, won in scored.outcomes.items()
                if episode.partition("-")[0] in tasks
            )
            assert (point.point.successes, point.point.episodes) == (won, 3 * 2 * EPISODES)
            assert point.point.band
            assert point.point.interval.low < point.point.success_rate < point.point.interval.high


def test_videos_are_compared_with_their_control_on_each_group_of_tasks() -> None:
    report = curve("videos", "no_videos").labels
    assert report
    assert [(one.group, one.about, one.tasks) for one in report.comparisons] == [
        ("labelled", "videos", ("Lift", "Stack")),
        ("unlabelled", "videos", ("Can", "Door")),
    ]
    labelled, unlabelled = (one.comparison for one in report.comparisons)
    assert (unlabelled.first_policy, unlabelled.second_policy) == ("videos", "no_videos")
    assert unlabelled.result.episodes == 3 * 2 * EPISODES
    assert unlabelled.result.difference == pytest.approx(0.3, abs=0.08)
    assert unlabelled.p_corrected < 0.001 < labelled.p_corrected
    assert report.answer == [f"{unlabelled}."]
    assert report.answer[0].startswith(
        "On 2 unlabelled tasks, 10 demos, videos against 10 demos, no_videos: +0."
    )


def test_number_of_labelled_tasks_is_the_axis_where_lines_differ_in_it() -> None:
    """Lines that differ in labels are compared on the tasks of the one with fewer; lines that differ in two
    things are not.
    """
    report = curve("videos", "no_videos", "one", "all", "bc").labels
    assert report
    assert report.axis == "labelled tasks"
    places = {trace.label: [report.place(point) for point in trace.points] for trace in report.traces}
    assert places["video_action, 20 videos of each other task, labelled tasks"] == [1, 2, 4]
    assert places["video_action, 20 videos of each other task, unlabelled tasks"] == [1, 2], (
        "none is left of 4"
    )
    assert places["diffusion_policy, demos alone, unlabelled tasks"] == [2]
    compared = {
        (one.comparison.first_policy, one.comparison.second_policy): (one.about, one.tasks)
        for one in report.comparisons
        if one.group == "unlabelled"
    }
    assert compared == {
        ("videos", "no_videos"): ("videos", ("Can", "Door")),
        ("videos", "one"): ("labels", ("Can", "Door", "Stack")),
        ("all", "videos"): ("labels", ("Can", "Door")),
        ("all", "one"): ("labels", ("Can", "Door", "Stack")),
        ("videos", "bc"): ("policy", ("Can", "Door")),
        ("no_videos", "bc"): ("policy", ("Can", "Door")),
    }
    assert {one.comparison.compared for one in report.comparisons if one.group == "unlabelled"} == {6}


def test_page_picture_and_json_show_labelled_and_unlabelled_tasks() -> None:
    own = curve("videos", "no_videos", "one", seeds=(0,))
    told = own.to_json()["labels"]
    assert told["axis"] == "labelled tasks"
    assert {line["group"] for line in told["lines"]} == {"labelled", "unlabelled"}
    first = told["lines"][0]["points"][0]
    assert (first["labelled_tasks"], first["unlabelled_videos"], first["group"]) == (1, 20, "labelled")
    assert {one["differ_in"] for one in told["comparisons"]} == {"videos", "labels"}
    page = own.page([])
    assert "Labelled and unlabelled tasks" in page
    assert 'id="labels-wide-title"' in page
    assert own.draw("png")[:4] == b"\x89PNG"


def test_tasks_of_plug_ins_are_found_in_the_ids_of_their_episodes() -> None:
    specs = [EpisodeSpec(f"own_tasks/{side}", 0, 0) for side in ("CubeNorth", "CubeEast")]
    scored = [EpisodeSpec.task_of(spec.episode_id) for spec in specs]
    sweep = {
        "data": {"labelled_tasks": [specs[0].task], "unlabelled_videos": 20},
        "policy": {"lines": [LINES[0], LINES[3]]},
    }
    labels = lines_with_labels(sweep, scored)
    assert labels["videos"].group("labelled", scored) == {scored[0]}
    assert labels["videos"].group("unlabelled", scored) == {scored[1]}
    assert labels["all"].group("labelled", scored) == set(scored)


def test_sweep_without_labelled_tasks_has_none_of_it() -> None:
    own = curve("videos", "no_videos")
    plain = Curve("plain", own.arms, {**own.sweep, "data": {"labelled_tasks": []}})
    assert plain.labels is None
    assert "labels" not in plain.to_json()
    assert "Labelled and unlabelled tasks" not in plain.page([])
