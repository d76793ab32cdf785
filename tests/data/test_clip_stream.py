"""The clip stream through Ray Data: in the sampler's order, from any step on, damaged episodes named and
never decoded.
"""

import hashlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray

from orchestrator.config.arms import Arm
from orchestrator.data import clip_stream as stream
from orchestrator.data.clip_sampler import ClipSampler
from orchestrator.data.clip_stream import FetchPlan, ThreadFetcher
from orchestrator.data.clips import ClipBatch
from orchestrator.data.episode_format import EpisodeError, decode
from orchestrator.data.episode_store import commit, load_manifest, put_episode
from orchestrator.data.manifest import EpisodeEntry, Manifest
from orchestrator.data.ray_prefetch import RayDataDecoder, RayDataFetcher
from orchestrator.data.subset import select_episodes
from orchestrator.storage.base import open_storage
from orchestrator.testing.episodes import CONTRACT, make_episode
from policy.config import ClipShape

SHAPE = ClipShape(frames_per_view=2, frame_stride=2, horizon=4)
Store = tuple[str, Manifest, ClipSampler]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of eight short episodes."""
    folder = tmp_path_factory.mktemp("made")
    storage = open_storage(str(folder))
    commit(
        storage,
        CONTRACT,
        [put_episode(storage, make_episode(seed, length=10 + seed), 20.0) for seed in range(8)],
    )
    return folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    """Return a copy of the store that a test may damage; three demos and three action-free episodes are
    chosen.
    """
    storage = open_storage(str(shutil.copytree(made, tmp_path / "store")))
    manifest = load_manifest(storage)
    subset = select_episodes(manifest, Arm(3, 1.0, seed=0))
    order = ClipSampler(
        tuple(manifest.select(subset.demos)),
        tuple(manifest.select(subset.action_free)),
        manifest.fingerprint,
        0,
        0,
        1,
        5,
    )
    return storage.uri, manifest, order


def draw(
    store: Store,
    first_step: int = 0,
    num_steps: int = 40,
    cache_bytes: int = stream.CACHE_BYTES,
    **source: Any,
) -> list[ClipBatch]:
    uri, manifest, order = store
    steps = {"first_step": first_step, "num_steps": num_steps}
    return list(
        stream.batches(uri, manifest.contract, order, SHAPE, **steps, cache_bytes=cache_bytes, **source)
    )


def assert_same(ours: list[ClipBatch], theirs: list[ClipBatch]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        for name in ("frames", "proprio", "actions", "action_mask", "frame_mask"):
            assert np.array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("first_step", [1, 7, 25, 39])
def test_clip_stream_resumed_at_any_step_continues_with_the_exact_clips(
    store: Store, first_step: int
) -> None:
    assert_same(draw(store, first_step), draw(store)[first_step:])


def test_clip_stream_batches_are_full_bytes_and_hold_both_kinds(store: Store) -> None:
    for batch in draw(store):
        assert batch.frames.shape == (5, 1, 2, 64, 64, 3)
        assert batch.frames.dtype == np.uint8
        assert 2 <= batch.action_mask.any(1).sum() <= 3


@pytest.mark.ray
@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_ray_data_fetches_the_episodes_of_the_plan(
    store: Store, kind: str, ray_cluster: None, s3: str, tmp_path: Path
) -> None:
    uri, manifest, order = store
    if kind == "s3":
        source, target = open_storage(uri), open_storage(f"{s3}/{tmp_path.name}")
        for key in source.list(""):
            target.put(key, source.get(key))
        uri = target.uri
        assert load_manifest(target).fingerprint == manifest.fingerprint
    entries = FetchPlan.make(order, 3, 60, cache_bytes=30_000).entries
    expected = list(ThreadFetcher().fetch(uri, entries))
    assert len(expected) > 32
    assert list(RayDataFetcher().fetch(uri, entries)) == expected


@pytest.mark.ray
@pytest.mark.parametrize(
    ("source", "first_step"),
    [
        ({"fetcher": RayDataFetcher()}, 7),
        ({"decoder": RayDataDecoder()}, 7),
        pytest.param({"fetcher": RayDataFetcher()}, 0, marks=pytest.mark.full),
        pytest.param({"decoder": RayDataDecoder()}, 0, marks=pytest.mark.full),
    ],
    ids=["fetcher-7", "decoder-7", "fetcher-0", "decoder-0"],
)
def test_batches_are_the_same_wherever_episodes_are_fetched_and_decoded(
    store: Store, source: dict[str, Any], first_step: int, ray_cluster: None
) -> None:
    sizes: list[int] = []
    ours = draw(store, first_step, cache_bytes=30_000, on_fetched=sizes.append, **source)
    theirs = draw(store)[first_step:]
    assert_same(ours, theirs)
    assert [batch.seeds for batch in ours] == [batch.seeds for batch in theirs]
    assert [batch.instructions for batch in ours] == [batch.instructions for batch in theirs]
    assert set(sizes) == {entry.nbytes for entry in (*store[2].demos, *store[2].action_free)}


@pytest.mark.full
@pytest.mark.ray
def test_ray_data_waits_for_a_slow_trainer_without_taking_its_core(tmp_path: Path, ray_cluster: None) -> None:
    """Back-pressure: of 512 MiB at most AHEAD_BYTES and a block or two are fetched while the consumer rests,
    and the scheduling loop rests too.
    """
    storage, data = open_storage(str(tmp_path / "store")), os.urandom(2 * 2**20)
    storage.put("object", data)
    entry = replace(
        commit(storage, CONTRACT, [put_episode(storage, make_episode(0), 20.0)]).select(["Lift-000000"])[0],
        key="object",
        nbytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    fetched = RayDataFetcher().fetch(storage.uri, [entry] * 256)
    free = ray.available_resources()["object_store_memory"]
    assert next(fetched) == data
    time.sleep(5)
    began = time.process_time()
    time.sleep(5)
    used_s = time.process_time() - began
    held = free - ray.available_resources()["object_store_memory"]
    assert used_s < 5 * 0.3
    assert 0 < held < stream.AHEAD_BYTES + 8 * len(data)
    assert list(fetched) == [data] * 255


@pytest.mark.full
@pytest.mark.ray
def test_killed_fetching_process_is_restarted_without_a_change(store: Store, ray_cluster: None) -> None:
    """Ray restarts it; it makes the same visits again and continues."""
    uri, _, order = store

    def kill() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for process in psutil.process_iter(["cmdline"]):
                if process.info["cmdline"] and "MapWorker" in process.info["cmdline"][0]:
                    os.kill(process.pid, signal.SIGKILL)
                    return
            time.sleep(0.01)

    entries = FetchPlan.make(order, 0, 400, cache_bytes=0).entries
    fetched = RayDataFetcher().fetch(uri, entries)
    some = [next(fetched)]
    killer = threading.Thread(target=kill)
    killer.start()
    killer.join()
    some += list(fetched)
    assert some == list(ThreadFetcher().fetch(uri, entries))


@pytest.mark.ray
@pytest.mark.parametrize(
    ("fault", "decode"),
    [
        ("flipped", "trainer"),
        ("missing", "cluster"),
        pytest.param("flipped", "cluster", marks=pytest.mark.full),
        pytest.param("missing", "trainer", marks=pytest.mark.full),
        pytest.param("short", "trainer", marks=pytest.mark.full),
        pytest.param("short", "cluster", marks=pytest.mark.full),
    ],
)
def test_clip_stream_stops_at_a_damaged_episode_and_names_it(
    store: Store, ray_cluster: None, fault: str, decode: str
) -> None:
    uri, _, order = store
    victim = order.demos[0]
    path = Path(uri) / victim.key
    data = path.read_bytes()
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if fault == "short" else data[:100] + bytes([data[100] ^ 4]) + data[101:])
    damaged = b"" if fault == "missing" else path.read_bytes()
    brought: list[bytes] = []

    class Recorded(RayDataFetcher):
        def fetch(self, uri: str, entries: Sequence[EpisodeEntry]) -> Iterator[bytes]:
            for fetched in super().fetch(uri, entries):
                brought.append(fetched)
                yield fetched

    word = {"flipped": "damaged", "short": "cut short", "missing": "missing"}[fault]
    with pytest.raises(EpisodeError, match=f"episode {victim.episode_id} is {word}.*restore {victim.key}"):
        draw(store, fetcher=Recorded(), decoder=RayDataDecoder() if decode == "cluster" else None)
    assert not {data, damaged} & {*brought}, "only fetched episodes are decoded"
    assert path.exists() is (fault != "missing")


def test_prefetch_raises_the_error_of_its_thread() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise EpisodeError("broken")

    ahead = stream._ahead(broken(), 2)
    assert next(ahead) == 1
    with pytest.raises(EpisodeError, match="broken"):
        next(ahead)


def test_prefetch_stops_when_its_consumer_stops() -> None:
    made: list[int] = []
    ahead = stream._ahead((made.append(i) or i for i in range(10**9)), 2)
    assert next(ahead) == 0
    ahead.close()  # type: ignore[attr-defined]
    count = len(made)
    assert count < 6
    time.sleep(0.1)
    assert len(made) == count


def test_clip_stream_memory_stays_below_its_bound(store: Store) -> None:
    """The memory of the worker itself: pictures of open episodes and ready batches."""
    uri, manifest, order = store
    peak = 0
    opened: dict[int, int] = {}

    def counted(*arguments: Any) -> Any:
        nonlocal peak
        got = decode(*arguments)
        opened[id(got)] = sum(frames.nbytes for frames in got.frames.values())
        __import__("weakref").finalize(got, opened.pop, id(got))
        peak = max(peak, sum(opened.values()))
        return got

    plan = FetchPlan.make(order, 0, 200, stream.CACHE_BYTES)
    fetched = ThreadFetcher().fetch(uri, plan.entries)
    opened_by = stream.CachedDecoder(plan, fetched, SHAPE, manifest.contract, decode=counted)
    clips = stream.clips(order, 0, opened_by, SHAPE, manifest.contract)
    for _ in range(200):
        ClipBatch.stack(list(islice(clips, order.batch_size)))
    bound = stream.memory_bound(
        manifest.contract, SHAPE, [*order.demos, *order.action_free], 5, action_free=True
    )
    assert 0 < peak < bound


@pytest.mark.parametrize("kept", [0, 1, 2, 4, 6])
def test_clip_stream_does_not_depend_on_the_cache_size(store: Store, kept: int) -> None:
    _, _, order = store
    budget = kept * max(entry.nbytes for entry in (*order.demos, *order.action_free))
    assert_same(draw(store, 5, cache_bytes=budget), draw(store)[5:])


def test_clip_stream_fetches_an_episode_once_while_it_is_cached(store: Store) -> None:
    _, _, order = store
    episodes = [*order.demos, *order.action_free]
    visits = sum(draw.opens for draw in islice(order.walk(), 500))
    fetched = {
        size: [entry.sha256 for entry in FetchPlan.make(order, 0, 100, size).entries]
        for size in (0, 30_000, 10**9)
    }
    assert sorted(fetched[10**9]) == sorted(entry.sha256 for entry in episodes)
    assert len(fetched[0]) == visits
    assert len(episodes) < len(fetched[30_000]) < visits
