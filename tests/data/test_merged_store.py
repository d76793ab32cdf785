"""Parts of several stores as one: filters, names, views, weights, and what is refused."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.main import main
from orchestrator.config.arms import Arm
from orchestrator.config.pinned_data import PinnedData
from orchestrator.config.sweep_config import SweepConfig, SweepError
from orchestrator.data import clip_stream
from orchestrator.data.clip_sampler import ClipSampler
from orchestrator.data.clip_stream import decode_entry
from orchestrator.data.episode_store import commit, fetch, load_manifest, put_episode
from orchestrator.data.manifest import EpisodeEntry, Manifest
from orchestrator.data.merged_store import MergeError, StorePart, merge, publish_merged, weights_of
from orchestrator.data.subset import select_episodes
from orchestrator.planning.plan import make_plan
from orchestrator.storage.base import open_storage
from orchestrator.sweep.state import SweepState
from orchestrator.testing.episodes import CAMERA, CONTRACT, make_episode
from policy.config import ClipShape

SHAPE = ClipShape(frames_per_view=3, frame_stride=2, horizon=4)


def a_store(folder: Path, seeds: range, **changed: Any) -> str:
    """Write a store: every third episode failed, tasks alternate, sources name the operator."""
    storage = open_storage(str(folder))
    entries = []
    for seed in seeds:
        episode = replace(
            make_episode(seed),
            task=("Lift", "Stack")[seed % 2],
            success=bool(seed % 3),
            source=f"teleoperation by {('ann', 'bob')[seed // 4 % 2]}, take {seed}",
        )
        entries.append(put_episode(storage, replace(episode, **changed), 20.0))
    commit(storage, CONTRACT, entries)
    return storage.uri


def films_of(folder: Path, episodes: int = 6) -> str:
    """Write a store of another robot: two cameras of another size, other proprioception and actions."""
    storage = open_storage(str(folder))
    contract = replace(
        CONTRACT,
        cameras=("front", "side"),
        image_size=(32, 32),
        proprio=("a", "b"),
        action=("x", "y", "z"),
        simulator="a robot",
    )
    entries = []
    for seed in range(episodes):
        episode = make_episode(seed, size=32)
        pictures = episode.frames[CAMERA]
        films = {"front": pictures, "side": np.full_like(pictures, 40 * seed)}
        changed = replace(
            episode,
            frames=films,
            task="pour",
            proprio=np.zeros((12, 2), np.float32),
            action=np.eye(12, 3, dtype=np.float32),
        )
        entries.append(put_episode(storage, changed, 20.0))
    commit(storage, contract, entries)
    return storage.uri


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    folder = tmp_path_factory.mktemp("stores")
    return (
        a_store(folder / "one" / "lift", range(12)),
        a_store(folder / "two" / "lift", range(6, 24), instruction="lift it again"),
        films_of(folder / "films"),
    )


def ids(manifest: Manifest, name: str = "") -> list[int]:
    return sorted(int(one[-6:]) for one in manifest.episode_ids if one.startswith(name))


def test_filters_keep_what_they_name_and_ids_say_the_store(stores: tuple[str, str, str]) -> None:
    one, two, _ = stores
    both = merge([StorePart(one), StorePart(two)])
    assert ids(both, "lift-1:") == [*range(12)]
    assert ids(both, "lift-2:") == [*range(6, 24)]
    assert len(set(both.episode_ids)) == 30, "equal ids of two stores stay apart"
    assert [(part.name, part.episodes, part.of) for part in both.parts] == [
        ("lift-1", 12, 12),
        ("lift-2", 18, 18),
    ]
    stacked = merge([StorePart(one, tasks=("Stack",))])
    assert ids(stacked) == [1, 3, 5, 7, 9, 11]
    assert len(select_episodes(stacked, Arm(2, 0.0, 0)).demos) == 2, "tasks left out are not demonstrated"
    assert ids(merge([StorePart(one, success=True)])) == [1, 2, 4, 5, 7, 8, 10, 11]
    assert ids(merge([StorePart(one, success=False)])) == [0, 3, 6, 9]
    assert ids(merge([StorePart(one, source=("by bob",))])) == [4, 5, 6, 7]
    assert ids(merge([StorePart(one, source=("by bob",), tasks=("Lift",), success=True)])) == [4]
    for entry in both.entries:
        episode = decode_entry(fetch(open_storage("/nowhere"), entry), entry, both.contract, True)
        assert episode.episode_id == entry.episode_id
        recorded = make_episode(int(entry.episode_id[-6:])).action
        assert recorded is not None
        assert episode.action is not None
        np.testing.assert_array_equal(episode.action, recorded)


def test_quality_list_keeps_ids_or_leaves_out_findings(stores: tuple[str, str, str], tmp_path: Path) -> None:
    kept, found = tmp_path / "good.txt", tmp_path / "findings.json"
    kept.write_text("# watched by hand\nLift-000002\nLift-000004\n\n")
    found.write_text(
        json.dumps({"findings": [{"episodes": ["Lift-000002", "Lift-000004"]}, {"episodes": []}]})
    )
    assert ids(merge([StorePart(stores[0], quality=str(kept))])) == [2, 4]
    assert ids(merge([StorePart(stores[0], quality=str(found))])) == [0, 1, 3, *range(5, 12)]
    kept.write_text("Lift-000099\n")
    with pytest.raises(
        MergeError, match=r"0.quality: .*good.txt names episodes that the store does not have: Lift-"
    ):
        merge([StorePart(stores[0], quality=str(kept))])
    found.write_text("{}")
    with pytest.raises(MergeError, match="holds no findings of `demoscale data check --json`"):
        merge([StorePart(stores[0], quality=str(found))])


def test_every_mistake_is_one_sentence_with_the_near_names(
    stores: tuple[str, str, str], tmp_path: Path
) -> None:
    one, two, films = stores
    with pytest.raises(MergeError) as refused:
        merge(
            [
                StorePart(one, tasks=("Lifft",)),
                StorePart(two, source=("carol",)),
                StorePart(films),
                StorePart(films, action_free_only=True),
                StorePart(films, action_free_only=True, cameras=(("frnt", (CAMERA,)),)),
                StorePart(one, tasks=("Lift",), source=("take 11",)),
            ]
        )
    said = refused.value.problems
    assert said[0] == "0.tasks: the store has no task Lifft; did you mean Lift?"
    assert said[1].startswith("1.source: no episode's source contains carol; there are teleoperation by ")
    different = [one for one in said if one.startswith("2.store: ")]
    assert len(different) == 5
    assert "was recorded with another cameras than the first part: front, side and not" in different[0]
    assert [one for one in said if one.startswith("3.")] == [
        f"3.cameras: nothing shows {CAMERA}, which the demos have; the store has front, side: write cameras:"
        f" {{front: {CAMERA}}}"
    ]
    assert "4.cameras: the store has no camera frnt; did you mean front?" in said
    assert said[-1] == f"5: no episode of {one} is left of 12; widen its filters"
    with pytest.raises(MergeError, match=r"1: .*there is no episode store here"):
        merge([StorePart(one), StorePart(str(tmp_path / "none"))])
    with pytest.raises(
        MergeError, match=r"1: 6 of its episodes are also in part 0, such as lift-2:Lift-000000"
    ):
        merge([StorePart(one, tasks=("Lift",)), StorePart(one, tasks=("Lift",), action_free_only=True)])
    with pytest.raises(MergeError, match="every part is action_free_only"):
        merge([StorePart(one, action_free_only=True)])
    with pytest.raises(MergeError, match=r"1.weight: missing; give every part a weight, or none"):
        merge([StorePart(one, weight=1.0), StorePart(two)])


def test_videos_of_another_robot_serve_as_action_free_episodes(stores: tuple[str, str, str]) -> None:
    one, _, films = stores
    part = StorePart(films, action_free_only=True, cameras=(("side", (CAMERA,)),))
    merged = merge([StorePart(one), part])
    assert merged.contract == CONTRACT
    assert merged.video_tasks == {"pour"}
    subset = select_episodes(merged, Arm(2, 1.0, 0))
    assert Counter(one.partition(":")[0] for one in subset.demos) == {"lift": 4}
    assert Counter(one.partition(":")[0] for one in subset.action_free) == {"films": 4}, "the ratio holds"
    larger = select_episodes(merged, Arm(3, 1.5, 0))
    assert Counter(one.partition(":")[0] for one in larger.action_free) == {"films": 6, "lift": 2}
    assert set(subset.action_free) < set(larger.action_free)
    assert not any(one.startswith("films") for one in select_episodes(merged, Arm(2, 0.0, 0)).episodes)
    for entry in merged.select(one for one in merged.episode_ids if one.startswith("films")):
        episode = decode_entry(fetch(open_storage("/nowhere"), entry), entry, merged.contract, False)
        assert episode.action is None
        assert episode.proprio is None
        shown = episode.frames[CAMERA]
        assert shown.shape == (12, 64, 64, 3)
        assert abs(int(shown.mean()) - 40 * int(entry.episode_id[-6:])) < 4, "the camera that was mapped"


def test_arms_are_nested_and_a_filter_changes_no_order(stores: tuple[str, str, str]) -> None:
    one, two, _ = stores
    merged = merge([StorePart(one, success=True), StorePart(two)])
    for seed in range(4):
        small, large = (select_episodes(merged, Arm(demos, 0.5, seed)) for demos in (2, 6))
        assert set(small.demos) < set(large.demos)
        assert set(small.action_free) <= set(large.action_free)
        assert not set(large.demos) & set(large.action_free)


@given(
    weights=st.lists(st.floats(0.1, 10), min_size=2, max_size=3),
    batch=st.integers(1, 8),
    world=st.integers(1, 3),
    free=st.integers(0, 6),
)
def test_weights_hold_in_every_stretch_of_clips(
    weights: list[float], batch: int, world: int, free: int
) -> None:
    entries = [entry for name in "abc" for entry in synthetic(name, 3 + free)]
    named = tuple(zip(("a:", "b:", "c:"), weights, strict=False))
    known = [entry for entry in entries if entry.episode_id[:2] in {name for name, _ in named}]
    demos = tuple(entry for entry in known if int(entry.episode_id[2:]) < 3)
    action_free = tuple(entry for entry in known if int(entry.episode_id[2:]) >= 3)
    orders = [ClipSampler(demos, action_free, "0f", 1, rank, world, batch, named) for rank in range(world)]
    steps = 24
    walks = [list(islice(order.walk(), steps * batch)) for order in orders]
    drawn = [
        draw for step in range(steps) for walk in walks for draw in walk[step * batch : (step + 1) * batch]
    ]
    for with_actions in (True, False) if action_free else (True,):
        own = [draw.visit.entry.episode_id[:2] for draw in drawn if draw.visit.with_actions is with_actions]
        for stretch in (own, own[: len(own) // 2], own[len(own) // 3 :]):
            for name, weight in named:
                assert abs(stretch.count(name) - len(stretch) * weight / sum(weights)) < len(named) + 0.01
    resumed = list(islice(orders[0].walk(5), batch))
    assert [(draw.visit.entry.episode_id, draw.start) for draw in resumed] == [
        (draw.visit.entry.episode_id, draw.start) for draw in walks[0][5 * batch : 6 * batch]
    ]


def synthetic(name: str, count: int) -> list[EpisodeEntry]:
    return [
        EpisodeEntry(
            f"{name}:{i}",
            "",
            0,
            1,
            f"{name}{i}",
            10,
            20.0,
            (CAMERA,),
            (64, 64),
            "Lift",
            "",
            True,
            True,
            "",
            None,
            None,
        )
        for i in range(count)
    ]


def sweep(folder: Path, episodes: Any, **sections: Any) -> SweepConfig:
    everything = {
        "name": "merged",
        "data": {"episodes": episodes, "demo_count": [1, 3], "action_free_ratio": [1]},
        "train": {"steps": 4, "batch_size": 4, "checkpoint_every": 4},
        "suite": {"held_out": 0.2, "video_clips": 0},
        "storage": str(folder / "runs"),
    }
    return SweepConfig.model_validate(everything | sections)


def test_sweep_of_parts_keeps_to_the_merged_store_of_its_first_run(
    stores: tuple[str, str, str], tmp_path: Path
) -> None:
    one = a_store(tmp_path / "lift", range(16))
    quality = tmp_path / "good.txt"
    quality.write_text("".join(f"Lift-{seed:06d}\n" for seed in range(14)))
    episodes = [
        {"store": one, "quality": str(quality), "weight": 2},
        {"store": stores[2], "action_free_only": True, "cameras": {"front": CAMERA}, "weight": 1},
    ]
    asked = sweep(tmp_path, episodes)
    plan = make_plan(asked)
    assert "14 of 16 episodes of" in str(plan)
    assert plan.store_episodes == 20
    assert not (tmp_path / "runs").exists(), "a plan writes nothing"
    state = SweepState.open(asked, pin=True)
    quality.unlink()
    a_store(tmp_path / "lift", range(16, 20))
    again = SweepState.open(asked, pin=True)
    assert again.training == state.training
    assert again.manifest.sha256 == state.manifest.sha256
    assert make_plan(asked).store_episodes == 20
    assert SweepState.named("merged", str(tmp_path / "runs")).training == state.training
    other = SweepConfig.model_validate(asked.model_dump(mode="json") | {"name": "other"})
    with pytest.raises(SweepError, match=r"data.episodes.0.quality: .* cannot be read"):
        SweepState.open(other)
    arm = next(iter(state.arms().values()))
    job = state.job(arm)
    manifest = load_manifest(open_storage(job.episodes), job.version)
    assert weights_of(manifest) == (("lift:", 2.0), ("films:", 1.0))
    batches = list(
        clip_stream.batches(
            job.episodes, manifest.contract, job.order(manifest, 0, 1), SHAPE, first_step=0, num_steps=4
        )
    )
    assert all(batch.frames.shape == (4, 1, 3, 64, 64, 3) for batch in batches)
    assert {float(batch.action_mask.any(1).sum()) for batch in batches} == {2.0}


def test_key_of_several_stores_has_their_fingerprints_and_that_of_one_has_none(
    stores: tuple[str, str, str], tmp_path: Path
) -> None:
    one, two, _ = stores
    plain = SweepState.open(sweep(tmp_path, one))
    assert "stores" not in plain.training_key.parts
    assert plain.training_key.parts["data"] == load_manifest(open_storage(one)).fingerprint
    assert plain.episodes == one
    keys = {
        SweepState.open(sweep(tmp_path, episodes)).training
        for episodes in (
            one,
            [{"store": one}],
            [{"store": one}, {"store": two}],
            [{"store": one, "weight": 1}, {"store": two, "weight": 2}],
            [{"store": one, "success": True}, {"store": two}],
        )
    }
    assert len(keys) == 5


def test_subsets_and_order_of_one_whole_store_are_those_of_earlier_versions() -> None:
    """The digest is that of version 0.2.0."""
    entries = [
        EpisodeEntry(
            f"Lift-{i:06d}",
            "k",
            0,
            1,
            f"{i:064x}",
            10 + i,
            20.0,
            (CAMERA,),
            (64, 64),
            "Lift",
            "",
            i % 5 != 0,
            True,
            "",
            None,
            None,
        )
        for i in range(30)
    ]
    manifest, drawn = Manifest.of(CONTRACT, entries), hashlib.sha256()
    for seed in range(3):
        for demos in (2, 8):
            subset = select_episodes(manifest, Arm(demos, 0.5, seed))
            drawn.update(subset.digest.encode())
            for rank in range(2):
                known = (tuple(manifest.select(own)) for own in (subset.demos, subset.action_free))
                for draw in islice(ClipSampler(*known, "0f", seed, rank, 2, 3).walk(), 200):
                    visit = draw.visit
                    drawn.update(f"{visit.entry.episode_id}|{draw.start}|{visit.with_actions}".encode())
    assert drawn.hexdigest()[:16] == "ebf21f9e9f62191a"


def test_show_command_counts_what_the_filters_of_a_sweep_file_leave(
    stores: tuple[str, str, str], tmp_path: Path
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(
        f"""
name: shown
data: {{episodes: [{{store: {stores[0]}, success: true}}, {{store: {stores[1]}}}], demo_count: [1]}}
train: {{steps: 4, checkpoint_every: 4}}
suite: {{held_out: 0.2}}
storage: {tmp_path / "runs"}
"""
    )
    shown = CliRunner().invoke(main, ["data", "show", str(file), "--json"])
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.output)
    assert (found["episodes"], found["labelled"]) == (26, 26)
    assert found["note"] == f"8 of 12 of {stores[0]}; 18 of 18 of {stores[1]}"
    listed = CliRunner().invoke(main, ["data", "ls", str(file)])
    assert len(listed.output.splitlines()) == 1 + 26


def test_list_with_mistakes_is_refused_before_anything_is_spent(
    stores: tuple[str, str, str], tmp_path: Path
) -> None:
    with pytest.raises(SweepError) as refused:
        make_plan(sweep(tmp_path, [{"store": stores[0], "tasks": ["Lifft"]}, {"store": stores[2]}]))
    assert refused.value.problems[0] == (
        "data.episodes.0.tasks: the store has no task Lifft; did you mean Lift?"
    )
    file = tmp_path / "sweep.yaml"
    file.write_text(
        f"""
name: wrong
data: {{episodes: [{{store: {stores[0]}, task: Lift}}], demo_count: [1]}}
train: {{steps: 4, checkpoint_every: 4}}
suite: {{held_out: 0.2}}
"""
    )
    with pytest.raises(SweepError, match=r"data.episodes.0.task: unknown field; did you mean tasks\?"):
        SweepConfig.load(file)


def test_batches_of_a_bucket_and_a_folder_are_those_of_two_folders(
    stores: tuple[str, str, str], s3: str, tmp_path: Path
) -> None:
    """Where the parts and the merged store lie shapes no batch."""
    frames = []
    for place, second in (
        (f"{s3}/results", f"{s3}/two/lift"),
        (str(tmp_path / "runs"), str(tmp_path / "lift")),
    ):
        storage = open_storage(second)
        entries = [put_episode(storage, make_episode(seed), 20.0) for seed in range(4)]
        commit(storage, CONTRACT, entries)
        uri = publish_merged(open_storage(place), merge([StorePart(stores[0]), StorePart(second)]))
        manifest = load_manifest(open_storage(uri), 1)
        demos = tuple(manifest.select(manifest.episode_ids, with_stats=False))
        order = ClipSampler(demos, (), manifest.fingerprint, 0, 0, 1, 4)
        read = clip_stream.batches(uri, manifest.contract, order, SHAPE, first_step=0, num_steps=3)
        frames.append(np.stack([batch.frames for batch in read]))
    np.testing.assert_array_equal(*frames)


def test_merged_store_of_a_storage_is_read_from_anywhere(
    stores: tuple[str, str, str], tmp_path: Path
) -> None:
    merged = merge([StorePart(stores[0])])
    uri = publish_merged(open_storage(str(tmp_path)), merged)
    assert publish_merged(open_storage(str(tmp_path)), merged) == uri
    read = load_manifest(open_storage(uri), 1)
    assert read.parts == merged.parts
    assert PinnedData(1, {}, merged=uri).manifest(sweep(tmp_path, [{"store": "/gone"}])).sha256 == read.sha256
