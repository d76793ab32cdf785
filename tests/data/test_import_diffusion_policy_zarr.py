"""Import of zarr replay buffers in their many variants."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr

from lerobot_datasets import imported, numbered, numbers_of
from orchestrator.data.importers.base import ImportOptions, SourceError, open_source

SAID: dict[str, Any] = {"hz": 10.0, "task": "PushT", "instruction": "push the T", "proprio": ("state",)}
LENGTHS = (10, 12, 8)


def buffer(
    root: Path,
    pictures: np.ndarray | None = None,
    chunk: int = 5,
    form: Any = 2,
    shards: Any = None,
    compressors: Any = "auto",
    **arrays: np.ndarray,
) -> Path:
    rows = sum(LENGTHS)
    vectors = np.sin(np.arange(rows)[:, None] + np.arange(3) + 1).astype(np.float32)
    group = zarr.open_group(str(root), mode="w", zarr_format=form)
    everything = {
        "img": numbered(range(rows)) if pictures is None else pictures,
        "state": vectors,
        "action": vectors[:, :2],
    } | arrays
    for name, values in everything.items():
        how = {"shards": shards, "compressors": compressors} if name == "img" else {}
        group.create_array(f"data/{name}", data=values, chunks=(chunk, *values.shape[1:]), **how)
    group.create_array("meta/episode_ends", data=np.cumsum(LENGTHS))
    return root


def zip_of(root: Path, path: Path, start: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(start).as_posix())
    return path


def shown(path: Path, store: Path, **said: Any) -> dict[str, list[int]]:
    _, episodes, _ = imported(path, store, **(SAID | said))
    return {name: numbers_of(episode.frames["img"]) for name, episode in episodes.items()}


def whole() -> dict[str, list[int]]:
    ends = np.cumsum([0, *LENGTHS])
    return {f"episode_{i:06d}": list(range(ends[i], ends[i + 1])) for i in range(3)}


def problems(path: Path, **said: Any) -> list[str]:
    return open_source(path, ImportOptions(**(SAID | said))).problems


@pytest.mark.parametrize("form", [2, 3])
def test_zarr_import_reads_folders_and_zips_of_both_formats(tmp_path: Path, form: int) -> None:
    root = buffer(tmp_path / "around/pusht.zarr", form=form)
    assert shown(root, tmp_path / "s1") == whole()
    assert shown(tmp_path / "around", tmp_path / "s2") == whole()
    for name, start in (("plain.zarr.zip", root), ("wrapped.zarr.zip", root.parent)):
        assert shown(zip_of(root, tmp_path / name, start), tmp_path / f"store-{name}") == whole()


@pytest.mark.parametrize(
    ("key", "chunk", "left"),
    [
        ("img", "2.0.0.0", {0, 2}),
        ("action", "2.0", {0, 2}),
        ("state", "0.0", {1, 2}),
        ("img", "5.0.0.0", {0, 1}),
    ],
)
def test_zarr_import_omits_episodes_with_a_missing_chunk(
    tmp_path: Path, key: str, chunk: str, left: set[int]
) -> None:
    root = buffer(tmp_path / "a.zarr")
    (root / "data" / key / chunk).unlink()
    assert shown(root, tmp_path / "store") == {
        name: numbers for i, (name, numbers) in enumerate(whole().items()) if i in left
    }
    assert f"the chunk of data/{key} with rows" in problems(root)[0]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (lambda p: (p / 255).astype(np.float32), None),
        (lambda p: p.astype(np.float32), None),
        (lambda p: p.astype(np.float16), None),
        (lambda p: (p / 127.5 - 1).astype(np.float32), None),
        (lambda p: p.astype(np.uint16) * 257, None),
        (lambda p: p.astype(np.uint16), None),
        (lambda p: np.moveaxis(p, -1, 1), None),
        (lambda p: (p / 255 * 0.9 + 0.1).astype(np.float32), "0..1"),
    ],
)
def test_zarr_import_scales_pictures_by_one_range_for_all_episodes(
    tmp_path: Path, values: Any, said: str | None
) -> None:
    assert (
        shown(
            buffer(tmp_path / "a.zarr", values(numbered(range(30)))), tmp_path / "store", picture_range=said
        )
        == whole()
    )


def test_zarr_import_keeps_a_dark_episode_dark(tmp_path: Path) -> None:
    pictures = numbered(range(30)).astype(np.float32)
    pictures[10:22] = 1.0
    _, episodes, _ = imported(buffer(tmp_path / "a.zarr", pictures), tmp_path / "s1", **SAID)
    assert episodes["episode_000001"].frames["img"].max() <= 3
    pictures = (numbered(range(30)) / 255).astype(np.float32)
    pictures[15, 0, 0, 0] = 1.004
    assert shown(buffer(tmp_path / "b.zarr", pictures), tmp_path / "s2") == whole()
    pictures[15, 0, 0, 0] = np.nan
    root = buffer(tmp_path / "c.zarr", pictures)
    assert sorted(shown(root, tmp_path / "s3")) == ["episode_000000", "episode_000002"]
    assert "hold a value that is not a number" in problems(root)[0]


def test_zarr_import_of_an_unknown_picture_range_asks(tmp_path: Path) -> None:
    pictures = numbered(range(30)).astype(np.float32) * 3
    assert (
        "say what black and white are with --picture-range"
        in open_source(buffer(tmp_path / "a.zarr", pictures), ImportOptions(**SAID)).questions[0]
    )


def test_zarr_import_names_non_finite_and_misshapen_vectors(tmp_path: Path) -> None:
    action = np.ones((30, 2), np.float32)
    action[25] = np.nan
    assert (
        "episode_000002: it holds a value that is not a number"
        in problems(buffer(tmp_path / "a.zarr", action=action))[0]
    )
    with pytest.raises(SourceError, match=r"data/action has the shape \(30, 2, 7\)"):
        open_source(
            buffer(tmp_path / "b.zarr", action=np.ones((30, 2, 7), np.float32)), ImportOptions(**SAID)
        )
    root = buffer(tmp_path / "c.zarr", actions_abs=np.ones((30, 4), np.float32))
    assert open_source(root, ImportOptions(action="actions_abs", **SAID)).contract.action == tuple(
        f"actions_abs_{i}" for i in range(4)
    )


def test_zarr_import_omits_an_episode_with_a_truncated_chunk(tmp_path: Path) -> None:
    root = buffer(tmp_path / "a.zarr")
    chunk = root / "data/img/3.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:40])
    assert sorted(shown(root, tmp_path / "store")) == ["episode_000000", "episode_000002"]


@pytest.mark.parametrize(("kept", "left"), [(0.5, {0, 2}), (0.9999, {0, 2})])
def test_zarr_import_detects_a_truncated_blosc_chunk(tmp_path: Path, kept: float, left: set[int]) -> None:
    # Blosc stores it uncompressed
    noise = np.random.default_rng(0).integers(0, 256, (30, 32, 64, 3), np.uint8)
    noise[:, :16] = numbered(range(30))[:, :16]
    root = buffer(tmp_path / "a.zarr", noise, compressors=numcodecs.Blosc("lz4", 5, 1))
    chunk = root / "data/img/3.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[: int(kept * chunk.stat().st_size)])
    assert [item.name for item in open_source(root, ImportOptions(**SAID)).items if not item.problem] == [
        f"episode_{i:06d}" for i in sorted(left)
    ]
    assert "the chunk of data/img with rows 15 to 20 is cut short" in problems(root)[0]
    zipped = zip_of(root, tmp_path / "a.zarr.zip", root)
    assert len(problems(zipped)) == 1


@pytest.mark.parametrize("compressors", ["auto", zarr.codecs.BloscCodec()])
@pytest.mark.parametrize("location", ["start", "end"])
def test_zarr_import_omits_episodes_with_chunks_missing_in_a_shard(
    tmp_path: Path, compressors: Any, location: Any
) -> None:
    layout = {"shape": (20, 32, 64, 3), "index_location": location}
    pictures = numbered(range(30))
    root = buffer(tmp_path / "a.zarr", pictures, chunk=2, form=3, shards=layout, compressors=compressors)
    assert shown(root, tmp_path / "s1") == whole()
    pictures[13:16] = 0  # the chunk of rows 14 and 15 is black, and zarr does not store it
    root = buffer(tmp_path / "b.zarr", pictures, chunk=2, form=3, shards=layout, compressors=compressors)
    assert sorted(shown(root, tmp_path / "s2")) == ["episode_000000", "episode_000002"]
    assert "the chunk of data/img with rows 14 to 16 is not stored" in problems(root)[0]
    (root / "data/img/c/1/0/0/0").unlink()
    assert sorted(shown(root, tmp_path / "s3")) == ["episode_000000"]


def test_zarr_import_with_lost_episode_ends_raises(tmp_path: Path) -> None:
    root = buffer(tmp_path / "a.zarr")
    shutil.rmtree(root / "meta/episode_ends")
    zarr.open_group(str(root), mode="a").create_array(
        "meta/episode_ends", data=np.cumsum(LENGTHS), chunks=(1,)
    )
    assert shown(root, tmp_path / "store") == whole()
    (root / "meta/episode_ends/1").unlink()
    with pytest.raises(SourceError, match="the chunk of meta/episode_ends with rows 1 to 2 is not stored"):
        open_source(root, ImportOptions(**SAID))


def test_zarr_import_ignores_macos_files_in_a_zip(tmp_path: Path) -> None:
    root = buffer(tmp_path / "pusht.zarr")
    path = zip_of(root, tmp_path / "pusht.zarr.zip", tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/pusht.zarr/meta/episode_ends/._0", b"\0\5\26\7")
    assert shown(path, tmp_path / "store") == whole()


def test_zarr_import_of_a_zip_with_two_buffers_names_them(tmp_path: Path) -> None:
    for name in ("a", "b"):
        buffer(tmp_path / f"both/{name}.zarr")
    with pytest.raises(SourceError, match=r"it holds 2 buffers \(a.zarr, b.zarr\)"):
        open_source(
            zip_of(tmp_path / "both", tmp_path / "both.zip", tmp_path / "both"), ImportOptions(**SAID)
        )


@pytest.mark.parametrize(
    ("name", "shape"),
    [("meta/episode_ends", [1 << 40]), ("data/action", [1 << 40, 2]), ("data/state", [1 << 40, 3])],
)
def test_zarr_import_of_terabyte_shapes_raises(tmp_path: Path, name: str, shape: list[int]) -> None:
    root = buffer(tmp_path / "a.zarr")
    metadata = root / name / ".zarray"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"shape": shape}))
    with pytest.raises(SourceError, match="it is no array of vectors"):
        open_source(root, ImportOptions(**SAID))


def test_zarr_import_with_a_picture_range_for_bytes_raises(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"--picture-range 0\.\.1 cannot be applied to pictures that are bytes"
    ):
        open_source(buffer(tmp_path / "a.zarr"), ImportOptions(picture_range="0..1", **SAID))


def test_zarr_import_keeps_two_arrays_of_one_camera_apart(tmp_path: Path) -> None:
    root = buffer(tmp_path / "a.zarr", front_rgb=numbered(range(30)), front_image=numbered(range(1, 31)))
    assert sorted(open_source(root, ImportOptions(**SAID)).contract.cameras) == [
        "front_image",
        "front_rgb",
        "img",
    ]


def test_zarr_import_names_a_codec_that_is_not_installed(tmp_path: Path) -> None:
    root = buffer(tmp_path / "a.zarr")
    metadata = root / "data/img/.zarray"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"compressor": {"id": "of_nobody"}}))
    with pytest.raises(
        SourceError,
        match=r"a codec that is not installed; run `pip install imagecodecs` if it is UMI's.*of_nobody",
    ):
        open_source(root, ImportOptions(**SAID))


@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part in the Zarr format 3")
@pytest.mark.parametrize("form", [2, 3])
def test_zarr_import_reads_episodes_added_after_metadata_were_consolidated(tmp_path: Path, form: int) -> None:
    root = buffer(tmp_path / "a.zarr", form=form)
    zarr.consolidate_metadata(str(root))
    group = zarr.open_group(str(root), mode="a", use_consolidated=False)
    for name in ("img", "state", "action"):
        group[f"data/{name}"].append(group[f"data/{name}"][:10])
    group["meta/episode_ends"].append(np.array([40]))
    assert shown(root, tmp_path / "store") == whole() | {"episode_000003": list(range(10))}


def test_zarr_import_reports_rows_after_the_last_episode(tmp_path: Path) -> None:
    root = buffer(tmp_path / "a.zarr")
    zarr.open_group(str(root), mode="a")["meta/episode_ends"][:] = [10, 12, 20]
    assert problems(root) == ["a.zarr: rows 20 to 30 belong to no episode of meta/episode_ends; left out"]


def test_zarr_import_reports_pictures_of_other_channels(tmp_path: Path) -> None:
    root = buffer(tmp_path / "a.zarr", tactile=np.zeros((30, 16, 16, 1), np.uint8))
    assert "data/tactile has pictures of 1 channel, and only those of 3 are read" in problems(root)[0]
    assert problems(root, cameras={"img": "img"}) == []


def test_zarr_import_of_arrays_with_other_numbers_of_rows_raises(tmp_path: Path) -> None:
    root = buffer(tmp_path / "a.zarr", pictures=numbered(range(60)))
    with pytest.raises(
        SourceError, match=r"differ in rows \(data/img 60, data/state 30, data/action 30\), .* at row 30"
    ):
        open_source(root, ImportOptions(**SAID))


@pytest.mark.parametrize(
    ("ends", "left"),
    [
        ([10, 8, 40], set()),
        ([10, 20, 0, 30], {0}),
        ([10, 25, 20, 22, 30], {0, 4}),
        ([10, 10, 30], {0, 2}),
        ([10, 20, 31], {0, 1}),
        ([-5, 10, 30], {2}),
    ],
)
def test_zarr_import_omits_episodes_with_inconsistent_ends(
    tmp_path: Path, ends: list[int], left: set[int]
) -> None:
    root = buffer(tmp_path / "a.zarr")
    shutil.rmtree(root / "meta/episode_ends")
    zarr.open_group(str(root), mode="a").create_array("meta/episode_ends", data=np.asarray(ends))
    source = open_source(root, ImportOptions(**SAID))
    assert {int(item.name[-6:]) for item in source.items} == left
    assert len(source.problems) == len(ends) - len(left)
