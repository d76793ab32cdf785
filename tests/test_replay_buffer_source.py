"""zarr replay buffers as people have them."""

import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from numbered import imported, numbered, numbers_of
from orchestrator.data.sources.source import Reading, SourceError, open_source

SAID: dict[str, Any] = {"hz": 10.0, "task": "PushT", "instruction": "push the T", "proprio": ("state",)}
LENGTHS = (10, 12, 8)


def buffer(root: Path, pictures: np.ndarray | None = None, chunk: int = 5, form: Any = 2, **arrays: np.ndarray) -> Path:
    rows = sum(LENGTHS)
    vectors = np.sin(np.arange(rows)[:, None] + np.arange(3) + 1).astype(np.float32)
    group = zarr.open_group(str(root), mode="w", zarr_format=form)
    everything = {"img": numbered(range(rows)) if pictures is None else pictures, "state": vectors, "action": vectors[:, :2]} | arrays
    for name, values in everything.items():
        group.create_array(f"data/{name}", data=values, chunks=(chunk, *values.shape[1:]))
    group.create_array("meta/episode_ends", data=np.cumsum(LENGTHS))
    return root


def shown(path: Path, store: Path, **said: Any) -> dict[str, list[int]]:
    _, episodes, _ = imported(path, store, **(SAID | said))
    return {name: numbers_of(episode.frames["img"]) for name, episode in episodes.items()}


def whole() -> dict[str, list[int]]:
    ends = np.cumsum([0, *LENGTHS])
    return {f"episode_{i:06d}": list(range(ends[i], ends[i + 1])) for i in range(3)}


def problems(path: Path, **said: Any) -> list[str]:
    return open_source(path, Reading(**(SAID | said))).problems


@pytest.mark.parametrize("form", [2, 3])
def test_a_buffer_is_read_wherever_it_is(tmp_path: Path, form: int) -> None:
    root = buffer(tmp_path / "around/pusht.zarr", form=form)
    assert shown(root, tmp_path / "s1") == whole()
    assert shown(tmp_path / "around", tmp_path / "s2") == whole()
    for name, start in (("plain.zarr.zip", root), ("wrapped.zarr.zip", root.parent)):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for file in sorted(root.rglob("*")):
                if file.is_file():
                    archive.write(file, file.relative_to(start).as_posix())
        assert shown(tmp_path / name, tmp_path / f"store-{name}") == whole()


@pytest.mark.parametrize(
    ("key", "chunk", "left"), [("img", "2.0.0.0", {0, 2}), ("action", "2.0", {0, 2}), ("state", "0.0", {1, 2}), ("img", "5.0.0.0", {0, 1})]
)
def test_a_chunk_that_is_not_there_leaves_its_episodes_out(tmp_path: Path, key: str, chunk: str, left: set[int]) -> None:
    root = buffer(tmp_path / "a.zarr")
    (root / "data" / key / chunk).unlink()
    assert shown(root, tmp_path / "store") == {name: numbers for i, (name, numbers) in enumerate(whole().items()) if i in left}
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
def test_black_and_white_are_the_same_for_all_episodes(tmp_path: Path, values: Any, said: str | None) -> None:
    assert shown(buffer(tmp_path / "a.zarr", values(numbered(range(30)))), tmp_path / "store", picture_range=said) == whole()


def test_a_dark_episode_is_dark_and_an_overshoot_changes_nothing(tmp_path: Path) -> None:
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


def test_pictures_of_no_known_range_are_asked_about(tmp_path: Path) -> None:
    pictures = numbered(range(30)).astype(np.float32) * 3
    assert "say what black and white are with --picture-range" in open_source(buffer(tmp_path / "a.zarr", pictures), Reading(**SAID)).questions[0]


def test_vectors_that_are_not_numbers_or_of_other_shapes_are_told(tmp_path: Path) -> None:
    action = np.ones((30, 2), np.float32)
    action[25] = np.nan
    assert "episode_000002: it holds a value that is not a number" in problems(buffer(tmp_path / "a.zarr", action=action))[0]
    with pytest.raises(SourceError, match=r"data/action has the shape \(30, 2, 7\)"):
        open_source(buffer(tmp_path / "b.zarr", action=np.ones((30, 2, 7), np.float32)), Reading(**SAID))
    root = buffer(tmp_path / "c.zarr", actions_abs=np.ones((30, 4), np.float32))
    assert open_source(root, Reading(action="actions_abs", **SAID)).contract.action == tuple(f"actions_abs_{i}" for i in range(4))


def test_a_chunk_cut_short_leaves_its_episode_out(tmp_path: Path) -> None:
    root = buffer(tmp_path / "a.zarr")
    chunk = root / "data/img/3.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:40])
    assert sorted(shown(root, tmp_path / "store")) == ["episode_000000", "episode_000002"]


def test_ends_that_the_arrays_do_not_have_are_named(tmp_path: Path) -> None:
    root = buffer(tmp_path / "a.zarr")
    shutil.rmtree(root / "meta/episode_ends")
    zarr.open_group(str(root), mode="a").create_array("meta/episode_ends", data=np.asarray([10, 8, 40]))
    assert [problem.partition(" says ")[2] for problem in problems(root)[:2]] == [
        "rows 10 to 8, which are not there; left out",
        "rows 8 to 40, which are not there; left out",
    ]
