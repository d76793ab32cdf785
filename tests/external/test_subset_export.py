"""The exported subset of an arm holds exactly its episodes, by content, in every format."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import zarr

from orchestrator.config.arms import Arm
from orchestrator.config.policy_manifest import DataFormat
from orchestrator.data.episode_format import Episode, EpisodeError, _decode_video, decode
from orchestrator.data.episode_store import fetch, load_manifest
from orchestrator.data.exporters.diffusion_policy_zarr import export_zarr
from orchestrator.data.exporters.lerobot_v3 import contract_of_export
from orchestrator.data.importers.base import ImportOptions, open_source
from orchestrator.data.merged_store import StorePart, merge, publish_merged
from orchestrator.data.subset import Subset, select_episodes
from orchestrator.external.subset_export import DATA, Export, export_digest, exported, sample_weights
from orchestrator.storage.base import Storage, open_storage
from orchestrator.testing.episodes import CAMERA, make_episode_store
from policy.interface import Contract

FORMATS: tuple[DataFormat, ...] = ("lerobot_v3", "robomimic_hdf5", "diffusion_policy_zarr")
ARM = Arm(3, 1.0, 0)


@dataclass(frozen=True)
class Content:
    """What a data set says of one episode; `action` is None where it says that there is none."""

    frames: npt.NDArray[np.uint8]
    proprio: npt.NDArray[np.float32]
    action: npt.NDArray[np.float32] | None


def in_lerobot(folder: Path) -> dict[str, Content]:
    rows = pq.read_table(folder / "data/chunk-000/file-000.parquet").to_pydict()
    lines = pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    found = {}
    for line in lines:
        first, last, index = line["dataset_from_index"], line["dataset_to_index"], line["episode_index"]
        video = folder / f"videos/observation.images.{CAMERA}/chunk-000/file-{index:03d}.mp4"
        has_action = rows.get("has_action", [True] * last)[first:last]
        assert len(set(has_action)) == 1
        action = np.array(rows["action"][first:last], np.float32)
        found[line["demoscale/episode_id"]] = Content(
            _decode_video(video.read_bytes(), np.arange(last - first), last - first),
            np.array(rows["observation.state"][first:last], np.float32),
            action if has_action[0] else _none(action),
        )
    return found


def in_robomimic(path: Path) -> dict[str, Content]:
    found = {}
    with h5py.File(path) as file:
        without = [name.decode() for name in file["mask/action_free"]] if "mask/action_free" in file else []
        keys = json.loads(file["data"].attrs["demoscale.proprio_keys"])
        for name, demo in file["data"].items():
            found[demo.attrs["demoscale.episode_id"]] = Content(
                demo[f"obs/{CAMERA}_image"][()],
                np.concatenate([demo[f"obs/{key}"][()] for key in keys], 1),
                _none(demo["actions"][()]) if name in without else demo["actions"][()],
            )
    return found


def in_zarr(folder: Path) -> dict[str, Content]:
    root = zarr.open_group(str(folder), mode="r")
    data, ends = root["data"], root["meta/episode_ends"][:]
    found = {}
    for name, first, last in zip(root["meta"].attrs["episode_ids"], [0, *ends[:-1]], ends, strict=True):
        action = data["action"][first:last]
        without = "has_action" in data and not data["has_action"][first:last].any()
        found[name] = Content(
            data[f"{CAMERA}_image"][first:last],
            data["state"][first:last],
            _none(action) if without else action,
        )
    return found


def _none(action: npt.NDArray[np.float32]) -> None:
    assert not action.any(), "no value of an action may be there"


READ = dict(zip(FORMATS, (in_lerobot, in_robomimic, in_zarr), strict=True))


def stored(storage: Storage, ids: tuple[str, ...]) -> Iterator[tuple[str, Episode]]:
    manifest = load_manifest(storage)
    for entry in manifest.select(ids):
        yield entry.episode_id, decode(fetch(storage, entry), manifest.contract.cameras, with_actions=True)


def assert_holds(content: dict[str, Content], storage: Storage, subset: Subset, action_free: bool) -> None:
    """Check that the data set has the subset's episodes and no other, value by value."""
    wanted = dict(stored(storage, subset.episodes if action_free else subset.demos))
    assert content.keys() == wanted.keys()
    for name, episode in wanted.items():
        assert np.array_equal(content[name].frames, episode.frames[CAMERA])
        assert np.array_equal(content[name].proprio, episode.proprio)
        if name in subset.demos:
            assert np.array_equal(content[name].action, episode.action)
        else:
            assert content[name].action is None


@dataclass(frozen=True)
class Place:
    """An episode store, an arm's subset, and a folder for copies of nodes."""

    storage: Storage
    subset: Subset
    folder: Path

    def export(self, layout: DataFormat, action_free: bool, keeps: Storage, node: str = "node") -> Export:
        manifest = load_manifest(self.storage)
        return exported(self.storage, manifest, self.subset, layout, action_free, keeps, self.node(node))

    def node(self, name: str) -> Path:
        (self.folder / name).mkdir(exist_ok=True)
        return self.folder / name


@pytest.fixture
def place(store: str, tmp_path: Path) -> Place:
    storage = open_storage(store)
    return Place(storage, select_episodes(load_manifest(storage), ARM), tmp_path)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("action_free", [False, True])
def test_export_holds_exactly_the_episodes_of_the_arm(
    layout: DataFormat, action_free: bool, place: Place
) -> None:
    export = place.export(layout, action_free, open_storage(str(place.folder / "runs")))
    assert export.data.name == DATA[layout]
    assert (export.episodes, export.frames) == ((6, 72) if action_free else (3, 36))
    assert_holds(READ[layout](export.data), place.storage, place.subset, action_free)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("proprio", [(8, 0, 1), ()])
def test_export_holds_the_chosen_proprioception(
    layout: DataFormat, proprio: tuple[int, ...], place: Place
) -> None:
    manifest, keeps = load_manifest(place.storage), open_storage(str(place.folder / "runs"))
    arguments = (place.storage, manifest, place.subset, layout, True, keeps, place.node("node"))
    export = exported(*arguments, proprio=proprio)
    assert export.digest != export_digest(manifest, place.subset, layout, True)
    assert _contract_of(export.data) == replace(
        manifest.contract, proprio=tuple(manifest.contract.proprio[column] for column in proprio)
    )
    if not proprio:
        assert not _proprio_in(layout, export.data)
        return
    content = READ[layout](export.data)
    for name, episode in stored(place.storage, place.subset.episodes):
        assert episode.proprio is not None
        assert np.array_equal(content[name].proprio, episode.proprio[:, list(proprio)])


def _contract_of(data: Path) -> Contract:
    if data.suffix != ".zarr":
        return contract_of_export(data)
    stated = zarr.open_group(str(data), mode="r")["meta"].attrs["demoscale.contract"]
    return Contract.from_json(json.loads(stated))


def _proprio_in(layout: DataFormat, data: Path) -> list[str]:
    if layout == "robomimic_hdf5":
        with h5py.File(data) as file:
            return [key for key in file["data/demo_0/obs"] if key != f"{CAMERA}_image"]
    if layout == "lerobot_v3":
        columns = pq.read_schema(data / "data/chunk-000/file-000.parquet").names
        return [
            name
            for name in (*columns, *json.loads((data / "meta/info.json").read_text())["features"])
            if "state" in name
        ]
    return [name for name in zarr.open_group(str(data), mode="r")["data"] if name == "state"]


def test_sample_weights_give_each_store_its_share_of_demos_and_of_videos(tmp_path: Path) -> None:
    stores = [make_episode_store(tmp_path / name, 4, length=n) for name, n in (("a", 8), ("b", 12))]
    weighted = [StorePart(store=one, weight=weight) for one, weight in zip(stores, (3, 1), strict=True)]
    manifest = merge(weighted)
    ids = manifest.episode_ids
    a, b = ([name for name in ids if name.startswith(f"{store}:")] for store in "ab")
    subset = Subset((a[0], b[0], b[1]), (b[2],))
    shares = sample_weights(manifest, subset, True)
    assert shares == pytest.approx([0.75, 0.125, 0.125, 1.0])
    assert sample_weights(manifest, subset, False) == shares[:3]
    assert sample_weights(merge([replace(one, weight=None) for one in weighted]), subset, True) == []


def test_actions_of_action_free_episodes_count_in_no_statistics(place: Place) -> None:
    export = place.export("lerobot_v3", True, open_storage(str(place.folder / "runs")))
    actions = np.concatenate([episode.action for _, episode in stored(place.storage, place.subset.demos)])
    statistics = json.loads((export.data / "meta/stats.json").read_text())["action"]
    assert statistics["count"] == [36]
    assert np.allclose(statistics["mean"], actions.mean(0), atol=1e-6)
    info = json.loads((export.data / "meta/info.json").read_text())
    assert info["features"]["has_action"] == {"dtype": "bool", "shape": [1], "names": None}


def test_export_is_written_once_and_fetched_by_other_nodes(
    place: Place, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = place.export("diffusion_policy_zarr", True, storage)
    assert first.bytes_read > 0
    assert place.export("diffusion_policy_zarr", True, storage).bytes_read == 0, "this node has it"
    monkeypatch.setattr("orchestrator.external.subset_export._write", None)
    other = place.export("diffusion_policy_zarr", True, storage, "other node")
    assert other.bytes_read > 0
    assert_holds(in_zarr(other.data), place.storage, place.subset, True)


def test_unfinished_export_of_a_killed_writer_is_not_used(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeps = open_storage(str(place.folder / "runs"))
    with monkeypatch.context() as patched:
        patched.setattr("orchestrator.external.subset_export._keep", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            place.export("lerobot_v3", False, keeps)
    assert not list(place.node("node").glob("[!.]*/export.json"))
    export = place.export("lerobot_v3", False, keeps)
    assert_holds(in_lerobot(export.data), place.storage, place.subset, False)


def test_damaged_export_is_refused_by_name(place: Place) -> None:
    keeps = open_storage(str(place.folder / "runs"))
    export = place.export("robomimic_hdf5", False, keeps)
    (file,) = (place.folder / "runs").rglob("demonstrations.hdf5")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(EpisodeError, match=rf"are damaged .*; remove exports/{export.digest}, and they are"):
        place.export("robomimic_hdf5", False, keeps, "other node")
    shutil.rmtree(place.folder / "runs" / "exports" / export.digest)
    assert place.export("robomimic_hdf5", False, keeps, "other node").episodes == 3


def test_digest_is_that_of_the_episodes_contents(place: Place, tmp_path: Path) -> None:
    manifest, subset = load_manifest(place.storage), place.subset
    larger = load_manifest(open_storage(make_episode_store(tmp_path / "larger", 20)))
    digest = export_digest(manifest, subset, "lerobot_v3", True)
    assert digest == export_digest(larger, subset, "lerobot_v3", True), "another version, the same episodes"
    changed = [
        export_digest(manifest, subset, "lerobot_v3", False),
        export_digest(manifest, subset, "robomimic_hdf5", True),
        export_digest(manifest, Subset(subset.action_free, subset.demos), "lerobot_v3", True),
        export_digest(manifest, Subset(subset.demos[1:], subset.action_free), "lerobot_v3", True),
    ]
    assert len({digest, *changed}) == 5


def test_replay_buffer_comes_back_through_the_importer(place: Place, tmp_path: Path) -> None:
    manifest = load_manifest(place.storage)
    entries = manifest.select(place.subset.demos)
    assert list(export_zarr(place.storage, manifest.contract, entries, tmp_path / "b.zarr")) == entries
    options: dict[str, Any] = {"task": "Lift", "instruction": "lift it", "hz": 20, "proprio": ("state",)}
    source = open_source(tmp_path / "b.zarr", ImportOptions(**options))
    assert (source.problems, source.questions) == ([], [])
    for item, (_, episode) in zip(source.items, stored(place.storage, place.subset.demos), strict=True):
        raw = source.reader.read(item, source.info)
        assert np.array_equal(raw.frames[CAMERA], episode.frames[CAMERA])
        assert np.array_equal(raw.proprio, episode.proprio)
        assert np.array_equal(raw.action, episode.action)
    with pytest.raises(EpisodeError, match="not empty"):
        list(export_zarr(place.storage, manifest.contract, entries, tmp_path / "b.zarr"))


@pytest.mark.parametrize("layout", FORMATS)
def test_videos_of_another_store_are_exported_with_the_views_of_the_contract(
    layout: DataFormat, tmp_path: Path
) -> None:
    ours, others = (
        make_episode_store(tmp_path / name, 4, size=size) for name, size in (("a", 64), ("b", 32))
    )
    parts = [StorePart(store=ours), StorePart(store=others, action_free_only=True)]
    storage = open_storage(publish_merged(open_storage(str(tmp_path / "merged")), merge(parts)))
    manifest = load_manifest(storage)
    ids = manifest.episode_ids
    subset = Subset(tuple(ids[:2]), tuple(ids[-2:]))
    (tmp_path / "node").mkdir()
    keeps = open_storage(str(tmp_path / "runs"))
    export = exported(storage, manifest, subset, layout, True, keeps, tmp_path / "node")
    content = READ[layout](export.data)
    assert content.keys() == {*subset.demos, *subset.action_free}
    assert {one.frames.shape for one in content.values()} == {(12, 64, 64, 3)}
    assert [content[name].action is None for name in ids[:2] + ids[-2:]] == [False, False, True, True]
