"""Folders of films as people have them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from numbered import imported, numbered, numbers_of, write_film
from orchestrator.data.sources.pictures import film_frames, film_index
from orchestrator.data.sources.source import Reading, SourceError, open_source
from orchestrator.ingest import missing
from orchestrator.storage import open_storage

F: dict[str, Any] = {"cameras": {"front": "front"}, "task": "pick"}


def names(path: Path, **said: Any) -> list[str]:
    return [item.name for item in open_source(path, Reading(**(F | said))).items if not item.problem]


def films(folder: Path, *paths: str) -> Path:
    for number, path in enumerate(paths):
        write_film(folder / path, numbered(range(10 * number, 10 * number + 8)), 10)
    return folder


def test_every_suffix_depth_and_capital_is_a_film_and_hidden_ones_are_not(tmp_path: Path) -> None:
    root = films(tmp_path / "films", "a.mp4", "b.mov", "c.mkv", "d.avi", "pick/monday/e.mp4")
    shutil.copy(root / "a.mp4", root / "f.MP4")
    shutil.copy(root / "a.mp4", root / "g.m4v")
    write_film(root / "h.webm", numbered(range(8)), 10, "libvpx-vp9", {"crf": "10"})
    films(root, ".trash/old.mp4")
    (root / "pick/._e.mp4").write_bytes(b"\0\5\26\7")
    assert names(root) == ["a", "b", "c", "d", "f", "g", "h", "pick/monday/e"]
    _, episodes, left_out = imported(root, tmp_path / "store", **F)
    assert left_out == []
    assert [numbers_of(episodes[name].frames["front"]) for name in "abcd"] == [list(range(10 * i, 10 * i + 8)) for i in range(4)]


def test_one_film_is_a_source(tmp_path: Path) -> None:
    path = films(tmp_path, "take.mp4") / "take.mp4"
    assert [item.episode_id for item in open_source(path, Reading(**F)).items] == ["take-take"]


@pytest.mark.parametrize("stems", [("take.1", "take.2"), ("2024-05-01 10.22.31", "2024-05-02 10.22.32"), ("v1.0.final", "v1.1.final")])
def test_a_dot_in_a_name_makes_no_camera(tmp_path: Path, stems: tuple[str, ...]) -> None:
    root = films(tmp_path / "films", *(f"{stem}.mp4" for stem in stems))
    assert names(root) == list(stems)
    with pytest.raises(SourceError, match="its films do not name their camera"):
        open_source(root, Reading(task="pick"))


def test_several_cameras_of_a_scene_are_one_episode(tmp_path: Path) -> None:
    root = films(tmp_path / "films", "pick/a.front.mp4", "pick/a.wrist.mp4", "pick/b.front.mp4")
    source = open_source(root, Reading())
    assert source.contract.cameras == ("front", "wrist")
    assert source.problems == ["films, pick/b: there is no film of camera wrist; left out"]
    assert names(root, cameras={"front": "top"}) == ["pick/a", "pick/b"]
    with pytest.raises(SourceError, match="there is no film of camera top, side; --cameras can choose from front, wrist"):
        open_source(root, Reading(cameras={"top": "top", "side": "side"}))


def test_two_films_never_get_one_id(tmp_path: Path) -> None:
    root = films(tmp_path / "films", "pick/red-cube.mp4", "pick-red/cube.mp4", "pick-red-cube.mp4", "a.mp4", "a.mov")
    items = open_source(root, Reading(**F)).items
    assert len({item.episode_id for item in items}) == len(items) == 5


def test_a_film_with_uneven_moments_is_left_out_until_it_is_resampled(tmp_path: Path) -> None:
    moments = [0, 1, 2, 3, 4, 9, 10, 11, 12, 13]
    write_film(tmp_path / "films/a.mp4", numbered(moments), 10, moments=moments)
    write_film(tmp_path / "films/b.mp4", numbered(range(10)), 10)
    source = open_source(tmp_path / "films", Reading(**F))
    assert [item.name for item in source.items if not item.problem] == ["b"]
    assert "its frames come at uneven moments" in source.problems[0]
    assert "ffmpeg -i FILM -vf fps=10 NEW" in source.problems[0]


def test_small_jitter_is_the_nearest_picture(tmp_path: Path) -> None:
    moments = [10 * i + (2 if i % 2 else 0) for i in range(10)]
    path = write_film(tmp_path / "films/a.mp4", numbered(range(10)), 100, moments=moments)
    assert len(film_index(path).times) == 10
    _, episodes, _ = imported(tmp_path / "films", tmp_path / "store", resample_hz=10.0, **F)
    assert numbers_of(episodes["a"].frames["front"])[:5] == [0, 1, 2, 3, 4]


def test_broken_empty_and_pointed_at_films_are_left_out_by_name(tmp_path: Path) -> None:
    root = films(tmp_path / "films", "a.mp4")
    (root / "b.mp4").write_bytes(b"no film")
    (root / "c.mp4").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    source = open_source(root, Reading(**F))
    assert [item.name for item in source.items if not item.problem] == ["a"]
    assert "films, b: the video b.mp4 cannot be read" in source.problems[0]
    assert "run `git lfs pull`" in source.problems[1]


def test_another_folder_of_the_same_name_is_not_already_there(tmp_path: Path) -> None:
    first = films(tmp_path / "day1/clips", "a.mp4")
    second = tmp_path / "day2/clips"
    write_film(second / "a.mp4", numbered(range(100, 108)), 10)
    imported(first, tmp_path / "store", **F)
    storage = open_storage(str(tmp_path / "store"))
    assert missing(open_source(first, Reading(**F)), storage) == []
    with pytest.raises(SourceError, match="episode clips-a is already there from another recording"):
        missing(open_source(second, Reading(**F)), storage)


def test_pictures_are_scaled_as_they_are_decoded(tmp_path: Path) -> None:
    write_film(tmp_path / "films/a.mp4", np.repeat(numbered(range(6), 320, 640), 1, axis=0), 10)
    _, episodes, _ = imported(tmp_path / "films", tmp_path / "store", image_size=(32, 64), **F)
    assert episodes["a"].frames["front"].shape == (6, 32, 64, 3)
    assert numbers_of(episodes["a"].frames["front"]) == list(range(6))


def test_reading_a_film_keeps_none_of_its_frames_in_memory(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mp4", numbered(range(60), 720, 1280), 30)
    process = psutil.Process()
    for number, _ in enumerate(film_frames(path, range(60))):
        if number == 10:
            before = process.memory_info().rss
    assert process.memory_info().rss - before < 20 * 720 * 1280 * 1.5, "of fifty frames"
