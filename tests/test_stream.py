"""Clips on their way: every clip once per epoch, another order each epoch, the same order every time, any step to resume from."""

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.data import stream
from orchestrator.data.episodes import Manifest, commit, load_manifest, put_episode
from orchestrator.data.subset import Subset, choose
from orchestrator.storage import open_storage
from policy.config import ClipShape
from test_episodes import CONTRACT, episode

SHAPE = ClipShape(frames_per_view=2, frame_stride=2, horizon=4)


@pytest.fixture
def store(tmp_path: Path) -> tuple[str, Manifest, Subset]:
    """Eight short episodes in a folder, three demos and three action-free ones chosen."""
    storage = open_storage(str(tmp_path / "store"))
    manifest = commit(storage, CONTRACT, [put_episode(storage, episode(seed, length=10 + seed), 20.0) for seed in range(8)])
    return storage.uri, manifest, choose(manifest.entries, 3, 1.0, seed=0)


def clips_of(manifest: Manifest, subset: Subset, seed: int, world: int, count: int) -> list[list[tuple[str, int]]]:
    """The first `count` clips of every worker's plan."""
    plans = []
    for rank in range(world):
        visits = stream.plan(manifest, subset, seed, rank, world)
        plans.append(list(itertools.islice(((v.entry.episode_id, start) for v in visits for start in v.starts), count)))
    return plans


def test_an_epoch_holds_every_clip_of_every_chosen_episode_once(store: tuple[str, Manifest, Subset]) -> None:
    _, manifest, subset = store
    chosen = [*subset.demos, *subset.action_free]
    expected = {(i, start) for i in chosen for start in range(manifest[i].length)}
    (plan,) = clips_of(manifest, subset, seed=0, world=1, count=2 * len(expected))
    assert Counter(plan[: len(expected)]) == Counter(expected)
    assert Counter(plan[len(expected) :]) == Counter(expected)
    assert plan[: len(expected)] != plan[len(expected) :], "the second epoch came in the order of the first"


def test_the_order_is_a_function_of_the_seed(store: tuple[str, Manifest, Subset]) -> None:
    _, manifest, subset = store
    assert clips_of(manifest, subset, 0, 1, 100) == clips_of(manifest, subset, 0, 1, 100)
    assert clips_of(manifest, subset, 0, 1, 100) != clips_of(manifest, subset, 1, 1, 100)


def test_workers_share_an_epoch_without_overlap(store: tuple[str, Manifest, Subset]) -> None:
    _, manifest, subset = store
    chosen = [*subset.demos, *subset.action_free]
    episodes = [(manifest[i], True) for i in chosen]
    visits = stream._epoch(episodes, 0, 0)
    dealt = [list(itertools.islice(stream.plan(manifest, subset, 0, rank, 2), len(visits) // 2)) for rank in range(2)]
    seen = [(v.entry.episode_id, start) for visits in dealt for v in visits for start in v.starts]
    assert len(seen) == len(set(seen))


def fake_fetch(uri: str, visits: list[stream.Visit]) -> Any:
    storage = open_storage(uri)
    return (storage.get(visit.entry.key) for visit in visits)


def draw(store: tuple[str, Manifest, Subset], **changes: int) -> list[dict[str, Any]]:
    uri, manifest, subset = store
    arguments = {"seed": 0, "rank": 0, "world": 1, "batch_size": 5, "first_step": 0, "num_steps": 40} | changes
    return list(stream.batches(uri, manifest, subset, SHAPE, **arguments))


@pytest.mark.parametrize("first_step", [1, 7, 25, 26, 27, 39])
def test_resuming_at_any_step_continues_with_the_exact_clips(
    store: tuple[str, Manifest, Subset], first_step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_fetched", fake_fetch)
    whole, rest = draw(store), draw(store, first_step=first_step)
    assert len(rest) == 40 - first_step
    for a, b in zip(whole[first_step:], rest, strict=True):
        for name in ("frames", "proprio", "actions", "action_mask"):
            assert np.array_equal(a[name], b[name])


def test_batches_are_full_and_mix_labelled_with_action_free(store: tuple[str, Manifest, Subset], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_fetched", fake_fetch)
    batches = draw(store)
    assert all(len(batch["frames"]) == 5 for batch in batches)
    labelled = np.concatenate([batch["action_mask"].any(1) for batch in batches])
    assert 0.25 < labelled.mean() < 0.75


@pytest.mark.ray
@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_ray_data_delivers_the_plan_in_order(store: tuple[str, Manifest, Subset], kind: str, ray_cluster: None, s3: str, tmp_path: Path) -> None:
    uri, manifest, subset = store
    if kind == "s3":
        source, target = open_storage(uri), open_storage(f"{s3}/{tmp_path.name}")
        for key in source.list(""):
            target.put(key, source.get(key))
        uri = target.uri
        assert load_manifest(target).fingerprint == manifest.fingerprint
    visits = list(itertools.islice(stream.plan(manifest, subset, 0, 0, 1), 50))
    assert list(stream._fetched(uri, visits)) == list(fake_fetch(uri, visits))


@pytest.mark.ray
def test_a_damaged_episode_stops_the_stream_and_is_named(store: tuple[str, Manifest, Subset], ray_cluster: None) -> None:
    uri, manifest, subset = store
    storage = open_storage(uri)
    victim = manifest[subset.demos[0]]
    storage.put(victim.key, storage.get(victim.key)[:-1] + b"x")
    with pytest.raises(Exception, match=f"episode {victim.episode_id} is damaged"):
        draw(store)


def test_a_subset_names_its_episodes_in_the_manifest_it_was_drawn_from(store: tuple[str, Manifest, Subset]) -> None:
    _, manifest, subset = store
    fewer = replace(manifest, entries=tuple(e for e in manifest.entries if e.episode_id != subset.demos[0]))
    with pytest.raises(Exception, match=f"no episode {subset.demos[0]}"):
        next(stream.plan(fewer, subset, 0, 0, 1))
