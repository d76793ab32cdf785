"""Latents cached in a store: equal to online encoding, read like any episode, made once over
interruptions.
"""

from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from backbones import SENTENCE_DIM, svd_config, svd_folder
from orchestrator.cli.encode_command import encode
from orchestrator.data import clip_stream as stream
from orchestrator.data.clip_sampler import ClipSampler
from orchestrator.data.clips import ClipBatch, cut_clip
from orchestrator.data.episode_format import EpisodeError, decode
from orchestrator.data.episode_store import commit, fetch, load_manifest, put_episode
from orchestrator.data.latent_cache import (
    LatentEntry,
    has_latents,
    latent_entries,
    picture_bytes,
    publish_index,
    read_sentences,
    why_pictures,
    write_latents,
    write_sentences,
)
from orchestrator.data.manifest import Manifest
from orchestrator.data.merged_store import StorePart, merge, publish_merged
from orchestrator.data.ray_encode import Encoders, encode_on_cluster
from orchestrator.storage.base import Storage, open_storage
from orchestrator.testing.episodes import CAMERA, make_episode
from policy.config import ClipShape
from policy.errors import DemoscaleError
from policy.latent_codec import VaeLatents, latent_codec
from policy.presets import PRESETS
from policy.text_encoder import OpenClipText, sentence_encoder
from sim_workers.envs.robosuite import contract

SIZE = 32
CONTRACT = contract((CAMERA,), (SIZE, SIZE), "fast")
SHAPE = ClipShape(frames_per_view=3, frame_stride=2, horizon=4)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def svd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return svd_folder(tmp_path_factory.mktemp("svd"))


@pytest.fixture(scope="module")
def codec(svd: Path) -> VaeLatents:
    codec = latent_codec(svd_config(), svd)
    assert isinstance(codec, VaeLatents)
    return codec


def put(storage: Storage, seeds: range) -> Manifest:
    """Commit episodes of 5 frames and more; every other one without actions, with another instruction."""
    episodes = [
        replace(
            make_episode(seed, length=5 + seed, labelled=seed % 2 == 0, size=SIZE),
            instruction=f"task {seed % 2}",
        )
        for seed in seeds
    ]
    return commit(storage, CONTRACT, [put_episode(storage, one, 20.0) for one in episodes])


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    storage = open_storage(str(tmp_path / "store"))
    put(storage, range(4))
    return storage


def keep(storage: Storage, codec: VaeLatents) -> str:
    """Write and index the latents as the job does; return the codec's fingerprint."""
    manifest, fingerprint = load_manifest(storage), codec.fingerprint((SIZE, SIZE))
    rows = [
        answer
        for answer in write_latents(storage, manifest, codec, fingerprint, CPU)
        if isinstance(answer, LatentEntry)
    ]
    publish_index(storage, manifest, fingerprint, rows)
    return fingerprint


def test_cached_latents_equal_online_encoding(storage: Storage, codec: VaeLatents) -> None:
    manifest = put(storage, range(2))
    fingerprint = keep(storage, codec)
    for entry, kept in zip(
        manifest.entries, latent_entries(storage, manifest, fingerprint, manifest.entries), strict=True
    ):
        pictures = decode(fetch(storage, entry), (CAMERA,), entry.labelled)
        read = decode(fetch(storage, kept), (CAMERA,), entry.labelled)
        assert read.frames[CAMERA].dtype == np.float16
        assert np.array_equal(
            read.frames[CAMERA], codec.encode(torch.from_numpy(pictures.frames[CAMERA])).numpy()
        )
        assert read.frames[CAMERA].nbytes == entry.length * picture_bytes(codec, (SIZE, SIZE))
        assert np.array_equal(read.proprio, pictures.proprio)
        assert (read.action is None) == (not entry.labelled)
        assert (read.episode_id, read.task, read.instruction, read.length) == (
            entry.episode_id,
            entry.task,
            entry.instruction,
            entry.length,
        )
        some = decode(fetch(storage, kept), (CAMERA,), False, [4, 1])
        assert np.array_equal(some.frames[CAMERA], read.frames[CAMERA][[1, 4]])
        assert some.action is None


def orders(storage: Storage, fingerprint: str) -> tuple[ClipSampler, ClipSampler]:
    """Return the same clip order over pictures and over latents."""
    manifest = load_manifest(storage)
    demos, action_free = (
        [entry for entry in manifest.entries if entry.labelled == labelled] for labelled in (True, False)
    )

    def order(*kinds: list[object]) -> ClipSampler:
        first, second = (tuple(kind) for kind in kinds)
        return ClipSampler(first, second, manifest.fingerprint, 0, 0, 1, 4)  # type: ignore[arg-type]

    ours = (latent_entries(storage, manifest, fingerprint, kind) for kind in (demos, action_free))
    return order(demos, action_free), order(*ours)  # type: ignore[arg-type]


def test_training_clips_of_cached_latents_equal_encoded_pictures(store: Storage, codec: VaeLatents) -> None:
    steps = {"first_step": 2, "num_steps": 8}
    plans = orders(store, keep(store, codec))
    shown, kept = (list(stream.batches(store.uri, CONTRACT, order, SHAPE, **steps)) for order in plans)
    for pictures, latent in zip(shown, kept, strict=True):
        assert latent.frames.shape == (4, 1, 3, 12, 4, 4)
        assert np.array_equal(latent.frames, codec.encode(torch.from_numpy(pictures.frames)).numpy())
        assert latent.instructions == pictures.instructions
        for name in ("proprio", "actions", "action_mask", "frame_mask"):
            assert np.array_equal(getattr(latent, name), getattr(pictures, name))


def test_parts_of_stores_are_read_as_the_latents_of_each(
    store: Storage, codec: VaeLatents, tmp_path: Path, svd: Path
) -> None:
    fingerprint = keep(store, codec)
    other = open_storage(str(tmp_path / "other"))
    put(other, range(4, 8))
    merged = merge([StorePart(store=store.uri), StorePart(store=other.uri)])
    place = open_storage(publish_merged(open_storage(str(tmp_path / "runs")), merged))
    lacking = f"there are no latents by these weights in {other.uri}; `demoscale encode` writes them"
    assert why_pictures(place, merged, fingerprint, merged.entries) == lacking
    with pytest.raises(EpisodeError, match=rf"^{other.uri}: the pictures of this version are not encoded"):
        latent_entries(place, merged, fingerprint, merged.entries)
    assert keep(other, codec) == fingerprint
    assert has_latents(place, merged, fingerprint)
    assert why_pictures(place, merged, fingerprint, merged.entries) == ""
    scaled = replace(merged[merged.episode_ids[5]], image_size=(64, 64))
    assert f"{scaled.episode_id} has other cameras" in why_pictures(place, merged, fingerprint, [scaled])
    steps = {"first_step": 0, "num_steps": 4}
    shown, kept = (
        list(stream.batches(place.uri, CONTRACT, order, SHAPE, **steps))
        for order in orders(place, fingerprint)
    )
    for pictures, latent in zip(shown, kept, strict=True):
        assert np.array_equal(latent.frames, codec.encode(torch.from_numpy(pictures.frames)).numpy())
        assert np.array_equal(latent.actions, pictures.actions)
    tower = sentence_encoder(svd_config(), svd)
    assert read_sentences(place, merged) == {}
    for one in (store, other):
        write_sentences(one, load_manifest(one), tower, "tower")
    assert read_sentences(place, merged).keys() == {*merged.column("instruction").to_pylist()}


def test_memory_bound_counts_latents_at_their_size(store: Storage, codec: VaeLatents) -> None:
    _, order = orders(store, keep(store, codec))
    entries = [*order.demos, *order.action_free]
    bounds = [
        stream.memory_bound(CONTRACT, SHAPE, entries, 4, True, picture_bytes=size)
        for size in (None, 3 * SIZE**2, 6 * SIZE**2)
    ]
    assert bounds[0] == bounds[1] < bounds[2]
    clips = [cut_clip(decode(fetch(store, entries[0]), (CAMERA,), True), 0, SHAPE, CONTRACT)] * 4
    assert ClipBatch.stack(clips).frames.nbytes == 4 * SHAPE.frames_per_view * picture_bytes(
        codec, (SIZE, SIZE)
    )


def test_write_latents_encodes_each_episode_once_over_interruptions(
    store: Storage, codec: VaeLatents, monkeypatch: pytest.MonkeyPatch
) -> None:
    fingerprint = codec.fingerprint((SIZE, SIZE))
    encoded: list[int] = []
    encode = codec.encode
    monkeypatch.setattr(codec, "encode", lambda pictures: encoded.append(len(pictures)) or encode(pictures))
    killed = write_latents(store, load_manifest(store), codec, fingerprint, CPU)
    assert len(list(islice(killed, 2))) == len(encoded) == 2
    killed.close()  # type: ignore[attr-defined]
    with pytest.raises(
        EpisodeError, match=r"not encoded yet, or not by these weights; run `demoscale encode` again"
    ):
        latent_entries(store, load_manifest(store), fingerprint, [])
    assert not has_latents(store, load_manifest(store), fingerprint)
    keep(store, codec)
    assert len(encoded) == 4, "each episode has few enough pictures to be encoded in one call"
    keys = store.list("latents/")
    keep(store, codec)
    assert len(encoded) == 4
    first = [f"latents/{fingerprint}/{entry.sha256}/" for entry in load_manifest(store).entries]
    put(store, range(6))
    listed: list[str] = []
    list_keys = store.list
    monkeypatch.setattr(store, "list", lambda prefix: listed.append(prefix) or list_keys(prefix))
    keep(store, codec)
    assert len(encoded) == 6
    assert not {*first} & {*listed}, "nor read again, where an index names it"
    assert len(store.list("latents/")) == len(keys) + 3
    assert has_latents(store, load_manifest(store), fingerprint)
    assert has_latents(store, load_manifest(store, 1), fingerprint)


def test_write_latents_replaces_damaged_latents_without_an_index(store: Storage, codec: VaeLatents) -> None:
    fingerprint = codec.fingerprint((SIZE, SIZE))
    first, second, *_ = write_latents(store, load_manifest(store), codec, fingerprint, CPU)
    assert isinstance(first, LatentEntry)
    assert isinstance(second, LatentEntry)
    whole = store.get(first.key)
    store.put(first.key, whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    store.put(second.key, b"")
    rows = {
        row.key: row
        for row in write_latents(store, load_manifest(store), codec, fingerprint, CPU)
        if isinstance(row, LatentEntry)
    }
    assert (rows[first.key], rows[second.key]) == (first, second)
    assert store.get(first.key) == whole


def test_damaged_latents_and_a_damaged_index_are_refused_by_name(store: Storage, codec: VaeLatents) -> None:
    fingerprint, manifest = keep(store, codec), load_manifest(store)
    entry = latent_entries(store, manifest, fingerprint, manifest.entries)[1]
    data = bytearray(store.get(entry.key))
    data[len(data) // 2] ^= 1
    store.put(entry.key, bytes(data))
    with pytest.raises(EpisodeError, match=f"episode Lift-000001 is damaged; restore {entry.key}"):
        fetch(store, entry)
    (index,) = store.list(f"latents/{fingerprint}/index/")
    whole = store.get(index)
    for damage in (b"", whole[:-30], whole[:60] + bytes([whole[60] ^ 1]) + whole[61:]):
        store.put(index, damage)
        with pytest.raises(
            EpisodeError,
            match=f"the index of latents is damaged; delete {index} and run `demoscale encode` again",
        ):
            latent_entries(store, manifest, fingerprint, manifest.entries)


def test_write_sentences_embeds_once_and_read_sentences_needs_no_tower(store: Storage, svd: Path) -> None:
    encoder = OpenClipText(SENTENCE_DIM, svd)
    assert read_sentences(store, load_manifest(store)) == {}
    assert write_sentences(store, load_manifest(store), encoder, "one") == 2
    kept = read_sentences(store, load_manifest(store))
    assert torch.equal(
        sentence_encoder(svd_config(), "/nowhere", kept).embed(["task 1", "task 0"]),
        encoder.embed(["task 1", "task 0"]),
    )
    put(store, range(6))  # no new sentence: no tower
    assert write_sentences(store, load_manifest(store), OpenClipText(SENTENCE_DIM, "/nowhere"), "one") == 2
    write_sentences(store, load_manifest(store), encoder, "other")
    with pytest.raises(EpisodeError, match="several encoders; name one"):
        read_sentences(store, load_manifest(store))
    assert read_sentences(store, load_manifest(store), "other").keys() == {"task 0", "task 1"}
    (key,) = store.list(f"text/other/{load_manifest(store).fingerprint}")
    store.put(key, store.get(key)[:-1])
    with pytest.raises(EpisodeError, match=f"the cached sentence embeddings are damaged; delete {key}"):
        read_sentences(store, load_manifest(store), "other")


# -- the command ---------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def small_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "svd-256", PRESETS["svd-256"].model_copy(update={"video": svd_config()}))


def command(*arguments: str) -> Result:
    return CliRunner().invoke(encode, [*arguments, "--device", "cpu"])


def test_encode_command_reports_what_it_wrote_and_repeats_nothing(
    store: Storage, svd: Path, codec: VaeLatents
) -> None:
    first = command(store.uri, "--weights", str(svd))
    assert first.exit_code == 0, first.output
    assert "2 sentences of 4 episodes are kept" in first.output
    assert f"4 episodes, 0.1 MiB of latents {codec.fingerprint((SIZE, SIZE))}" in first.output
    keys = store.list("")
    assert command(store.uri, "--weights", str(svd)).exit_code == 0
    assert store.list("") == keys
    assert has_latents(store, load_manifest(store), codec.fingerprint((SIZE, SIZE)))


def test_encode_command_names_damaged_episodes_and_encodes_the_others(
    store: Storage, svd: Path, codec: VaeLatents
) -> None:
    manifest = load_manifest(store)
    whole = store.get(manifest["Lift-000002"].key)
    store.put(manifest["Lift-000002"].key, whole[:-9])
    done = command(store.uri, "--weights", str(svd))
    assert done.exit_code == 1
    assert "episode Lift-000002 is cut short" in done.output
    assert "1 of 4 episodes cannot be read; the others are kept" in done.output
    assert not has_latents(store, manifest, codec.fingerprint((SIZE, SIZE)))
    store.put(manifest["Lift-000002"].key, whole)
    assert command(store.uri, "--weights", str(svd)).exit_code == 0


def test_encode_command_mistake_is_one_sentence(store: Storage, svd: Path, tmp_path: Path) -> None:
    missing = command(store.uri, "--weights", str(tmp_path / "nothing"))
    assert (missing.exit_code, missing.output.count("\n")) == (1, 1)
    assert "there is no such folder" in missing.output
    folded = command(store.uri, "--weights", str(svd), "--preset", "tiny")
    assert folded.exit_code == 2
    assert "there is nothing to keep" in folded.output
    empty = command(str(tmp_path / "empty"), "--weights", str(svd))
    assert empty.exit_code == 1
    assert "there is no episode store here" in empty.output


def test_encode_command_says_which_sweeps_read_the_latents_before_it_begins(
    store: Storage, svd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun_with(*_: object) -> None:
        raise DemoscaleError("it has begun")

    monkeypatch.setattr("orchestrator.data.latent_cache.write_sentences", begun_with)
    begun = command(store.uri, "--weights", str(svd))
    assert begun.stderr.index("it has begun") > begun.stderr.index("svd-256 trains with colour jitter")
    assert "only sweeps with train.color_jitter: false read these latents" in begun.stderr


@pytest.mark.parametrize(
    ("cluster", "episodes", "said"),
    [
        ({"CPU": 32.0, "GPU": 8.0}, 1000, "8 workers with a GPU each"),
        ({"CPU": 32.0, "GPU": 8.0}, 9, "3 workers with a GPU each"),
        ({"CPU": 32.0}, 1000, "8 workers with 4 cores each"),
        ({"CPU": 2.0}, 1000, "1 worker with 2 cores each"),
        ({"CPU": 1.0, "GPU": 0.5}, 1, "1 worker with 1 core each"),
    ],
)
def test_encoders_take_every_gpu_or_share_the_cores(
    cluster: dict[str, float], episodes: int, said: str
) -> None:
    assert str(Encoders.fit(cluster, episodes)) == said


@pytest.mark.full
@pytest.mark.ray
def test_encode_on_cluster_writes_the_latents_of_one_process(
    store: Storage, svd: Path, codec: VaeLatents, ray_cluster: None
) -> None:
    fingerprint, manifest = codec.fingerprint((SIZE, SIZE)), load_manifest(store)
    alone = {row.episode: row for row in write_latents(store, manifest, codec, fingerprint, CPU)}  # type: ignore[union-attr]
    for key in store.list("latents/"):
        store.delete(key)
    whole = store.get(manifest["Lift-000002"].key)
    store.put(manifest["Lift-000002"].key, whole[:-9])
    found = [
        *encode_on_cluster(
            store.uri,
            (CAMERA,),
            (SIZE, SIZE),
            [*manifest.entries],
            partial(latent_codec, svd_config(), svd),
            fingerprint,
            Encoders(1, 1.0, 0.0),
        )
    ]
    (damaged,) = (one for one in found if isinstance(one, EpisodeError))
    assert "episode Lift-000002 is cut short" in str(damaged)
    rows = {one.episode: one for one in found if isinstance(one, LatentEntry)}
    assert rows == {sha256: row for sha256, row in alone.items() if sha256 in rows}
    assert len(rows) == 3
