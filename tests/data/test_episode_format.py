"""Stored episodes: they round trip, damage is detected, versions never lose an episode."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import run

from orchestrator.data.clips import cut_clip
from orchestrator.data.episode_format import EpisodeError, decode, encode
from orchestrator.data.episode_store import commit, fetch, latest_version, load_manifest, put_episode
from orchestrator.storage.base import Storage, open_storage
from orchestrator.testing.episodes import CAMERA, CONTRACT, make_episode
from policy.config import ClipShape


def test_episode_round_trips_through_the_store(storage: Storage) -> None:
    written = make_episode()
    entry = put_episode(storage, written, 20.0)
    read = decode(fetch(storage, entry), (CAMERA,), with_actions=True)
    assert np.array_equal(read.proprio, written.proprio)
    assert read.action is not None
    assert np.array_equal(read.action, written.action)
    assert (read.task, read.instruction, read.success) == (written.task, written.instruction, written.success)
    error = read.frames[CAMERA].astype(float) - written.frames[CAMERA]
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 35, "the video codec lost too much"


def test_equal_episodes_have_equal_bytes_and_one_object(storage: Storage) -> None:
    assert encode(make_episode(), 20.0) == encode(make_episode(), 20.0)
    assert put_episode(storage, make_episode(), 20.0) == put_episode(storage, make_episode(), 20.0)
    assert len(storage.list("objects/")) == 1


def test_decode_without_actions_never_reads_the_action_column(storage: Storage) -> None:
    data = bytearray(encode(make_episode(), 20.0))
    metadata = pq.ParquetFile(__import__("io").BytesIO(bytes(data))).metadata.row_group(0)
    for i in range(metadata.num_columns):
        column = metadata.column(i)
        if column.path_in_schema.startswith("action"):
            start = min(o for o in (column.dictionary_page_offset, column.data_page_offset) if o)
            data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    read = decode(bytes(data), (CAMERA,), with_actions=False)
    assert read.action is None
    assert read.length == 12
    with pytest.raises(Exception, match=r".*"):
        decode(bytes(data), (CAMERA,), with_actions=True)


def test_action_free_clip_has_an_empty_action_mask() -> None:
    clip = cut_clip(
        make_episode(labelled=False), 0, ClipShape(frames_per_view=2, frame_stride=4, horizon=8), CONTRACT
    )
    assert clip.action_mask.sum() == 0


def test_clip_past_the_end_repeats_the_last_frame_masked() -> None:
    whole = make_episode(length=10)
    clip = cut_clip(whole, 7, ClipShape(frames_per_view=3, frame_stride=2, horizon=5), CONTRACT)
    assert clip.frame_mask.tolist() == [1, 1, 0]
    assert np.array_equal(clip.frames[0, 2], whole.frames[CAMERA][9])
    assert clip.action_mask.tolist() == [1, 1, 1, 0, 0]
    assert whole.action is not None
    assert np.array_equal(clip.actions[:3], whole.action[7:10])
    assert np.array_equal(clip.proprio, whole.proprio[7])


def test_fetch_of_a_flipped_bit_names_the_episode(storage: Storage) -> None:
    entry = put_episode(storage, make_episode(), 20.0)
    data = bytearray(storage.get(entry.key))
    data[len(data) // 2] ^= 1
    storage.put(entry.key, bytes(data))
    with pytest.raises(EpisodeError, match="episode Lift-000000 is damaged"):
        fetch(storage, entry)


def test_committed_episodes_are_visible_with_their_statistics(storage: Storage) -> None:
    first = put_episode(storage, make_episode(0), 20.0)
    assert latest_version(storage) == 0
    commit(storage, CONTRACT, [first])
    second = put_episode(storage, make_episode(1, labelled=False), 20.0)
    manifest = commit(storage, CONTRACT, [second])
    assert latest_version(storage) == 2
    read = load_manifest(storage)
    assert read.fingerprint == manifest.fingerprint
    assert read.contract == CONTRACT
    assert {e.episode_id: e.labelled for e in read.entries} == {"Lift-000000": True, "Lift-000001": False}
    stats = read["Lift-000000"].action_stats
    assert stats == first.action_stats
    assert [e.episode_id for e in load_manifest(storage, 1).entries] == ["Lift-000000"]


def test_commit_of_known_episodes_makes_no_version(storage: Storage) -> None:
    entry = put_episode(storage, make_episode(), 20.0)
    commit(storage, CONTRACT, [entry])
    commit(storage, CONTRACT, [entry])
    assert latest_version(storage) == 1


def test_commit_that_loses_the_race_for_a_version_takes_the_next(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = put_episode(storage, make_episode(0), 20.0), put_episode(storage, make_episode(1), 20.0)
    claim = type(storage).put_if_absent
    raced = False

    def slow_claim(self: Storage, key: str, data: bytes) -> bool:
        nonlocal raced
        if key.startswith("versions/") and not raced:
            raced = True
            commit(storage, CONTRACT, [theirs])
        return claim(self, key, data)

    monkeypatch.setattr(type(storage), "put_if_absent", slow_claim)
    commit(storage, CONTRACT, [ours])
    assert {e.episode_id for e in load_manifest(storage).entries} == {"Lift-000000", "Lift-000001"}


def test_commit_with_another_contract_raises_with_the_difference(storage: Storage) -> None:
    commit(storage, CONTRACT, [put_episode(storage, make_episode(), 20.0)])
    other = replace(CONTRACT, image_size=(128, 128))
    with pytest.raises(EpisodeError, match=r"other conventions \(image size .* 64, 64, here it is 128, 128"):
        commit(storage, other, [put_episode(storage, make_episode(1), 20.0)])


def test_process_that_reads_a_manifest_exits_zero(tmp_path: Path) -> None:
    store = open_storage(str(tmp_path / "store"))
    commit(store, CONTRACT, [put_episode(store, make_episode(), 20.0)])
    code = "import sys; from orchestrator.data.episode_store import load_manifest as l; "
    code += "from orchestrator.storage.base import open_storage as o; l(o(sys.argv[1]))"
    assert [run("-c", code, store.uri).returncode for _ in range(8)] == [0] * 8


def test_load_manifest_without_a_store_raises_with_the_remedy(storage: Storage) -> None:
    with pytest.raises(EpisodeError, match="there is no episode store here; record one with"):
        load_manifest(storage)


@pytest.mark.parametrize("size", [32, pytest.param(96, marks=pytest.mark.full)])
def test_encode_of_one_episode_has_one_hash_for_any_heap_contents(size: int) -> None:
    """x264 has read uninitialised memory: the heap is filled with noise between two encodings."""
    rng, noise, hashes = np.random.default_rng(0), [b""] * 20, set[tuple[int, bytes]]()
    for number in range(400):
        noise[number % 20] = rng.bytes(int(rng.integers(1, 200_000)))
        hashes.add(
            (
                number % 6,
                hashlib.sha256(
                    encode(make_episode(number % 6, length=5 + number % 6, size=size), 20.0)
                ).digest(),
            )
        )
    assert len(hashes) == 6
