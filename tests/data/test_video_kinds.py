"""Kinds of videos: which episodes a line learns from, what shapes its id, and mistakes."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.config.arms import Arm
from orchestrator.config.sweep_config import SweepConfig, SweepError
from orchestrator.data.episode_store import commit, load_manifest, put_episode
from orchestrator.data.manifest import EpisodeEntry, Manifest, MergedPart
from orchestrator.data.subset import Labels, Subset, SubsetError, select_episodes
from orchestrator.planning.plan import make_plan
from orchestrator.storage.base import open_storage
from orchestrator.sweep.state import SweepState
from orchestrator.testing.episodes import CAMERA, CONTRACT, make_episode

DEMOS_ALONE = {"name": "no_videos", "policy": "video_action", "action_free": False}
SAME_TASK = {"name": "same_task", "policy": "video_action"}


def line(kind: str) -> dict[str, Any]:
    return {"name": kind, "policy": "video_action", "data": {"videos": kind}}


def part(name: str, kind: str = "") -> MergedPart:
    return MergedPart(name, f"/{name}", 1, "f", {}, None, 1, 1, kind)


def merged(**episodes: list[tuple[str, str]]) -> Manifest:
    """Return the manifest of merged parts. episodes: of each part's name pairs (task, id); those of `lift`
    have actions; parts other than `lift` and `plain` are kinds of their own.
    """
    rows = [
        EpisodeEntry(
            f"{name}:{episode}", "k", 0, 1, f"{name}{task}{episode}", 10, 20.0, (CAMERA,), (64, 64),
            task, "", name == "lift", True, "", None, None,
        )
        for name, own in episodes.items()
        for task, episode in own
    ]  # fmt: skip
    parts = [part(name, "" if name in ("lift", "plain") else name) for name in episodes]
    shown = {task for own in episodes.values() for task, _ in own}
    films = sorted(shown - {task for task, _ in episodes["lift"]})
    return Manifest.of_table(CONTRACT, Manifest.of(CONTRACT, rows).table, parts, films)


LIFT = [("Lift", f"{i:02}") for i in range(20)]
STACK = [("Stack", f"s{i:02}") for i in range(8)]
DOOR = [("Door", f"d{i:02}") for i in range(8)]


def stores(subset: Subset) -> tuple[dict[str, int], dict[str, int]]:
    """Return the numbers of demos and of videos by part."""
    demos, videos = (
        Counter(one.partition(":")[0] for one in ids) for ids in (subset.demos, subset.action_free)
    )
    return dict(demos), dict(videos)


def test_a_line_takes_its_videos_from_its_kind_alone() -> None:
    robot = [("Lift", f"r{i:02}") for i in range(8)]
    manifest = merged(lift=LIFT, plain=DOOR[:2], other=[*STACK, *DOOR], robot=robot)
    one, two, mixed = Labels(video_kind="robot"), Labels(video_kind="other"), Labels()
    assert stores(select_episodes(manifest, Arm(3, 2.0, 0), labels=one)) == ({"lift": 3}, {"robot": 6})
    assert stores(select_episodes(manifest, Arm(3, 2.0, 0), labels=two)) == ({"lift": 3}, {"other": 6})
    assert stores(select_episodes(manifest, Arm(3, 2.0, 0), labels=mixed)) == (
        {"lift": 3},
        {"plain": 2, "lift": 4},
    ), "parts without a name serve lines that name none, as before"
    assert stores(select_episodes(manifest, Arm(3, 0.0, 0), labels=one)) == ({"lift": 3}, {})
    for labels in (one, two, mixed):
        few, more = (select_episodes(manifest, Arm(n, r, 5), labels=labels) for n, r in ((2, 1.0), (4, 2.0)))
        assert set(few.action_free) < set(more.action_free)
        assert few.demos == select_episodes(merged(lift=LIFT), Arm(2, 1.0, 5)).demos, "the same demos"
    taken = select_episodes(manifest, Arm(3, 2.0, 0), labels=two).action_free
    assert Counter(episode.partition(":")[2][0] for episode in taken) == {"s": 3, "d": 3}, "tasks take turns"
    other_seed = select_episodes(manifest, Arm(3, 2.0, 1), labels=two).action_free
    assert taken != other_seed
    damaged = select_episodes(manifest, Arm(3, 2.0, 0), {taken[0]}, two).action_free
    assert len(set(taken) - set(damaged)) == 1
    with pytest.raises(SubsetError, match=r"robot: 10 videos are asked for, 2 for each of 5 demos of 1 task"):
        select_episodes(manifest, Arm(5, 2.0, 0), labels=one)


def test_videos_are_counted_per_demonstrated_task() -> None:
    manifest = merged(lift=[*LIFT, *STACK], other=DOOR)
    subset = select_episodes(manifest, Arm(3, 1.0, 0), labels=Labels(video_kind="other"))
    assert stores(subset) == ({"lift": 6}, {"other": 6})


def test_parts_without_names_keep_subsets_and_files_of_earlier_versions(tmp_path: Path) -> None:
    """The digest is that of a commit before parts had names."""
    manifest = merged(lift=[*LIFT, *STACK], plain=DOOR)
    known = [select_episodes(manifest, Arm(n, 1.5, seed)).digest for n in (2, 3) for seed in (0, 1)]
    assert known == GOLDEN
    assert "video_kind" not in json.dumps([one.to_json() for one in manifest.parts])
    data = {"episodes": [{"store": "a"}, {"store": "b", "action_free_only": True}], "demo_count": [1]}
    lines = [{"name": "a", "policy": "video_action", "data": {"unlabelled_videos": 1}}]
    stored = SweepConfig.model_validate(sections(tmp_path, [], lines) | {
        "data": data | {"labelled_tasks": ["Lift"]}
    }).model_dump(mode="json")  # fmt: skip
    assert all("name" not in entry for entry in stored["data"]["episodes"]), "a resumed sweep compares them"
    assert stored["policy"]["lines"][0]["data"].keys() == {"labelled", "unlabelled_videos"}


GOLDEN = ["a0f331146d104e0e", "bd1d56b6acd6f2d5", "ab279b31a93adeb2", "f357125fef53adc4"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return the parts of three stores: 8 demonstrations of Lift, 6 videos of Stack, 6 of another robot."""
    folder, entries = tmp_path_factory.mktemp("stores"), []
    for name, task, number in (("lift", "Lift", 8), ("stack", "Stack", 6), ("sawyer", "Lift", 6)):
        storage = open_storage(str(folder / name))
        one = put_episode(storage, make_episode(len(name)), 20.0)
        commit(
            storage,
            CONTRACT,
            [
                replace(one, episode_id=f"{task}-{i}", task=task, sha256=f"{len(name)}{i:063}")
                for i in range(number)
            ],
        )
        entries.append({"store": storage.uri})
    videos = {"action_free_only": True}
    return [entries[0], entries[1] | videos | {"name": "other_task"}, entries[2] | videos | {"name": "robot"}]


def sections(folder: Path, parts: Any, lines: Any, **train: Any) -> dict[str, Any]:
    return {
        "name": "kinds",
        "data": {"episodes": parts, "demo_count": [1, 2], "action_free_ratio": [2]},
        "policy": {"lines": list(lines)},
        "train": {"mode": "two_stage", "steps": 4, "checkpoint_every": 4, "batch_size": 2, **train},
        "suite": {"tasks": ["Lift"], "episodes": 4, "horizon": 50, "video_clips": 2},
        "storage": str(folder / "runs"),
    }


def state(folder: Path, parts: Any, lines: Any) -> SweepState:
    return SweepState.open(SweepConfig.model_validate(sections(folder, parts, lines)), pin=True)


def test_a_new_kind_changes_no_arm_of_other_lines(tmp_path: Path, parts: list[dict[str, Any]]) -> None:
    """Failed rollouts can be added once a policy that fails is trained."""
    before = state(tmp_path, parts[:2], [DEMOS_ALONE, SAME_TASK, line("other_task")])
    after = state(tmp_path, parts, [DEMOS_ALONE, SAME_TASK, line("other_task"), line("robot")])
    alone = state(tmp_path, parts[:1], [DEMOS_ALONE, SAME_TASK])
    renamed = state(
        tmp_path, [parts[0], parts[1] | {"name": "x"}], [{**line("x"), "name": "other_task"}, SAME_TASK]
    )
    assert before.arms().items() <= after.arms().items()
    assert alone.arms().items() <= before.arms().items()
    assert set(renamed.arms()) < set(before.arms()), "the name of a kind shapes no policy"
    stages = [{arm.name: job.arm_id for arm in one.sweep.grid() if (job := one.stage_one(arm))}
              for one in (before, after)]  # fmt: skip
    assert stages[0].items() < stages[1].items()
    (robot,) = (arm for arm in after.sweep.grid() if arm.kind == "robot" and arm.demo_count == 2)
    unnamed = state(tmp_path, [parts[0], {**parts[2], "name": ""}], [SAME_TASK | {"name": "robot"}])
    assert unnamed.arm_id(robot) != after.arm_id(robot), "as the only source it is another arm"
    job = after.job(robot)
    manifest = load_manifest(open_storage(job.episodes), 1)
    assert {one.store for one in manifest.parts} == {parts[0]["store"], parts[2]["store"]}
    assert {entry.labelled for entry in manifest.select(job.subset.action_free)} == {False}
    test = after.video_test(after.sweep.lines[0])
    assert test
    assert all(clip.episode.episode_id.startswith("lift:") for clip in test.held_out.clips)
    assert "6 of 6 episodes of" in (told := str(make_plan(after.sweep)))
    assert "for lines of videos: robot" in told


BOTH = [line("robot"), line("other_task")]


@pytest.mark.parametrize(
    ("lines", "changed", "told"),
    [
        ([line("robbot")], {}, "policy.lines.1.data.videos: no part of data.episodes is named robbot; did you"),
        ([line("robot")], {}, "data.episodes: no line learns from other_task; write data: {videos: other_task"),
        (BOTH, {"videos": "sweep"}, "train.videos: sweep shows every arm of a line"),
        ([line("robot") | {"action_free": False}], {}, "policy.lines.1: data.videos: video_action learns from"),
        (BOTH, {"ratio": [4]}, "data: the largest arm does not fit. robot: 8 videos are asked for, 4 for each"),
        (BOTH, {"labelled_tasks": ["Lift"]}, "data.labelled_tasks: lines differ in videos either by task or by"),
        (BOTH, {"tasks": ["Stack"]}, "suite.tasks: the store has no demonstrations of Stack; it has Lift"),
        (BOTH, {"demos": "x"}, "data.episodes.0: name: x names a kind of videos; write action_free_only: true"),
    ],
)  # fmt: skip
def test_mistakes_of_kinds_are_sentences(
    tmp_path: Path, parts: list[dict[str, Any]], lines: Any, changed: dict[str, Any], told: str
) -> None:
    raw = sections(tmp_path, parts, [DEMOS_ALONE, *lines])
    raw["train"] |= {key: value for key, value in changed.items() if key == "videos"}
    raw["data"] |= {"labelled_tasks": changed.get("labelled_tasks", [])}
    raw["data"] |= {"action_free_ratio": changed.get("ratio", [2])}
    raw["suite"] |= {"tasks": changed.get("tasks", ["Lift"])}
    if name := changed.get("demos"):
        raw["data"]["episodes"] = [parts[0] | {"name": name}, *parts[1:]]
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(SweepError) as caught:
        make_plan(SweepConfig.load(path))
    assert any(problem.startswith(told) for problem in caught.value.problems), caught.value.problems
