"""Labelled tasks as a choice of lines: which episodes an arm learns from, what of it shapes ids, and mistakes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.config.sweep_config import SweepConfig, SweepError
from orchestrator.data.episode_store import commit, put_episode
from orchestrator.planning.plan import make_plan
from orchestrator.storage.base import open_storage
from orchestrator.sweep.state import SweepState
from orchestrator.testing.episodes import CONTRACT, make_episode

TASKS = ("Lift", "Stack", "Door")
CONTROL = {"name": "no_videos", "policy": "video_action", "data": {"unlabelled_videos": 0}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a store with four episodes of each of three tasks."""
    storage = open_storage(str(tmp_path_factory.mktemp("store")))
    one = put_episode(storage, make_episode(), 20.0)
    listed = [replace(one, episode_id=f"{task}-{seed}", task=task) for task in TASKS for seed in range(4)]
    commit(storage, CONTRACT, listed)
    return storage.uri


def sections(folder: Path, store: str, lines: Any = (), **data: Any) -> dict[str, Any]:
    return {
        "name": "labels",
        "data": {"episodes": store, "demo_count": [2], **data},
        "policy": {"lines": list(lines)},
        "train": {"mode": "two_stage", "steps": 4, "checkpoint_every": 4, "batch_size": 2},
        "suite": {"tasks": ["Lift"], "episodes": 4, "horizon": 50, "video_clips": 0},
        "storage": str(folder / "runs"),
    }


def state(folder: Path, store: str, *arguments: Any, **data: Any) -> SweepState:
    return SweepState.open(SweepConfig.model_validate(sections(folder, store, *arguments, **data)))


def counts(of: SweepState, line: str) -> tuple[dict[str, int], dict[str, int]]:
    """Return the numbers of demos and of videos by task of a line's only arm."""
    (arm,) = (arm for arm in of.sweep.grid() if arm.kind == line)
    subset = of.subset(arm)
    of_task = {entry.episode_id: entry.task for entry in of.manifest.entries}
    demos, videos = ([of_task[episode] for episode in ids] for ids in (subset.demos, subset.action_free))
    return {task: demos.count(task) for task in TASKS}, {task: videos.count(task) for task in TASKS}


def test_lines_have_labels_and_videos_of_their_own(tmp_path: Path, store: str) -> None:
    lines = [
        "video_action",
        CONTROL,
        {"name": "one", "policy": "video_action", "data": {"labelled": 1, "unlabelled_videos": 4}},
        {"name": "all", "policy": "video_action", "data": {"labelled": "all"}},
        {"name": "bc", "policy": "diffusion_policy", "data": {"labelled": 1}},
    ]
    own = state(tmp_path, store, lines, labelled_tasks=["Lift", "Stack"], unlabelled_videos=3)
    assert counts(own, "video_action") == (
        {"Lift": 2, "Stack": 2, "Door": 0},
        {"Lift": 0, "Stack": 0, "Door": 3},
    )
    assert counts(own, "no_videos")[1] == dict.fromkeys(TASKS, 0)
    assert counts(own, "one") == ({"Lift": 2, "Stack": 0, "Door": 0}, {"Lift": 0, "Stack": 4, "Door": 4})
    assert counts(own, "all") == (dict.fromkeys(TASKS, 2), dict.fromkeys(TASKS, 0))
    told = str(make_plan(own.sweep))
    assert "video_action: 2 of 3 tasks, 3 videos of each of the others" in told
    assert "no_videos: 2 of 3 tasks, no videos of each of the others" in told
    assert "all: 3 of 3 tasks\n" in told
    assert len(own.used()) == 2 + 4 + 4, "every episode of some arm"


def test_labels_of_a_line_change_its_ids_alone_and_none_of_earlier_sweeps(tmp_path: Path, store: str) -> None:
    """A field that no line sets, and videos that a line does not learn from, are in no key."""
    bc = "diffusion_policy"
    plain = state(tmp_path, store, ["video_action", bc], labelled_tasks=["Lift"])
    with_control = state(tmp_path, store, ["video_action", CONTROL, bc], labelled_tasks=["Lift"])
    counted = state(tmp_path, store, ["video_action", bc], labelled_tasks=["Lift"], unlabelled_videos=1)
    ids, other, fewer = (
        {arm.kind: arm_id for arm_id, arm in own.arms().items()} for own in (plain, with_control, counted)
    )
    assert other | ids == other
    parts = {kind: plain.key_of(arm).parts for kind, arm in _arms(plain).items()}
    assert not any("unlabelled videos" in own for own in parts.values())
    assert fewer["video_action"] != ids["video_action"]
    assert fewer[bc] == ids[bc]
    assert with_control.key_of(_arms(with_control)["no_videos"]).parts["unlabelled videos"] == 0


def _arms(of: SweepState) -> dict[str, Any]:
    return {arm.kind: arm for arm in of.sweep.grid()}


def test_a_line_on_demos_alone_shares_a_stage_one_that_saw_no_other_videos(
    tmp_path: Path, store: str
) -> None:
    """With `videos: sweep`; its key says so, and those of policies without a video model stay as they were."""
    demos_alone = {"name": "demos_alone", "policy": "video_action", "action_free": False}
    raw = sections(tmp_path, store, ["video_action", demos_alone, "diffusion_policy"])
    raw["data"]["action_free_ratio"] = [1]
    raw["train"]["videos"] = "sweep"
    own = SweepState.open(SweepConfig.model_validate(raw))
    arms = _arms(own)
    most = max(raw["data"]["demo_count"])
    seen = {kind: stage_one.subset for kind, arm in arms.items() if (stage_one := own.stage_one(arm))}
    assert {kind: len(subset.action_free) for kind, subset in seen.items()} == {
        "video_action": most * len(TASKS),
        "demos_alone": 0,
    }
    videos = {kind: own.key_of(arm).parts["videos"] for kind, arm in arms.items()}
    assert videos == {
        "video_action": [most, 1.0],
        "demos_alone": [most, 0.0],
        "diffusion_policy": [most, 1.0],
    }


def test_stage_one_of_a_control_never_sees_unlabelled_tasks(tmp_path: Path, store: str) -> None:
    """With `videos: sweep` too, where arms share one stage 1."""
    raw = sections(tmp_path, store, ["video_action", CONTROL], labelled_tasks=["Lift"])
    raw["train"]["videos"] = "sweep"
    own = SweepState.open(SweepConfig.model_validate(raw))
    seen = {}
    for arm in own.sweep.grid():
        stage_one = own.stage_one(arm)
        assert stage_one
        seen[arm.kind] = {own.manifest[episode].task for episode in stage_one.subset.episodes}
    assert seen == {"video_action": set(TASKS), "no_videos": {"Lift"}}
    assert make_plan(own.sweep).video_models == 2


@pytest.mark.parametrize(
    ("lines", "data", "told"),
    [
        ([], {"unlabelled_videos": 3}, "data.unlabelled_videos: every task is labelled; name the labelled"),
        (
            [{"policy": "video_action", "data": {"labelled": 2}}],
            {"labelled_tasks": ["Lift"]},
            "policy.lines.0.data.labelled: 2 tasks, and data.labelled_tasks names 1; name as many",
        ),
        (
            [{"policy": "video_action", "data": {"labelled": "all", "unlabelled_videos": 1}}],
            {"labelled_tasks": ["Lift"]},
            "policy.lines.0.data.unlabelled_videos: every task of video_action is labelled",
        ),
        (
            [{"policy": "diffusion_policy", "data": {"unlabelled_videos": 0}}],
            {"labelled_tasks": ["Lift"]},
            "policy.lines.0: data.unlabelled_videos: diffusion_policy learns from demos alone",
        ),
        (
            [],
            {"labelled_tasks": ["Lift"], "unlabelled_videos": 5},
            "data: the largest arm does not fit. Door: 0 demos and 5 action-free",
        ),
        (
            [{"policy": "video_action", "data": {"unlabelled_videos": 5}}],
            {"labelled_tasks": ["Lift"]},
            "data: the largest arm does not fit. Door: 0 demos and 5 action-free",
        ),
    ],
)
def test_mistakes_of_labels_are_sentences(
    tmp_path: Path, store: str, lines: Any, data: dict[str, Any], told: str
) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(sections(tmp_path, store, lines, **data)))
    with pytest.raises(SweepError) as caught:
        make_plan(SweepConfig.load(path))
    assert any(problem.startswith(told) for problem in caught.value.problems), caught.value.problems
