"""Import of folders of films."""

import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest

from lerobot_datasets import imported, numbered, numbers_of, write_film
from orchestrator.data.import_episodes import missing
from orchestrator.data.importers.base import ImportOptions, SourceError, open_source
from orchestrator.data.importers.image_ops import film_frames, film_index
from orchestrator.storage.base import open_storage

F: dict[str, Any] = {"cameras": {"front": "front"}, "task": "pick"}


def names(path: Path, **said: Any) -> list[str]:
    return [item.name for item in open_source(path, ImportOptions(**(F | said))).items if not item.problem]


def films(folder: Path, *paths: str) -> Path:
    for number, path in enumerate(paths):
        write_film(folder / path, numbered(range(10 * number, 10 * number + 8)), 10)
    return folder


def test_film_import_reads_every_suffix_and_skips_hidden_files(tmp_path: Path) -> None:
    root = films(tmp_path / "films", "a.mp4", "b.mov", "c.mkv", "d.avi", "pick/monday/e.mp4")
    shutil.copy(root / "a.mp4", root / "f.MP4")
    shutil.copy(root / "a.mp4", root / "g.m4v")
    write_film(root / "h.webm", numbered(range(8)), 10, "libvpx-vp9", {"crf": "10"})
    films(root, "i.ts")
    films(root, ".trash/old.mp4")
    (root / "pick/._e.mp4").write_bytes(b"\0\5\26\7")
    assert names(root) == ["a", "b", "c", "d", "f", "g", "h", "i", "pick/monday/e"]
    _, episodes, left_out = imported(root, tmp_path / "store", **F)
    assert left_out == []
    assert [numbers_of(episodes[name].frames["front"]) for name in "abcd"] == [
        list(range(10 * i, 10 * i + 8)) for i in range(4)
    ]


def test_film_import_accepts_a_single_film(tmp_path: Path) -> None:
    path = films(tmp_path, "take.mp4") / "take.mp4"
    assert [item.episode_id for item in open_source(path, ImportOptions(**F)).items] == ["take-take"]


@pytest.mark.parametrize(
    "stems",
    [("take.1", "take.2"), ("2024-05-01 10.22.31", "2024-05-02 10.22.32"), ("v1.0.final", "v1.1.final")],
)
def test_film_import_does_not_take_a_dot_in_a_name_for_a_camera(
    tmp_path: Path, stems: tuple[str, ...]
) -> None:
    root = films(tmp_path / "films", *(f"{stem}.mp4" for stem in stems))
    assert names(root) == list(stems)
    with pytest.raises(SourceError, match="its films do not name their camera"):
        open_source(root, ImportOptions(task="pick"))


def test_film_import_joins_the_cameras_of_a_scene(tmp_path: Path) -> None:
    root = films(tmp_path / "films", "pick/a.front.mp4", "pick/a.wrist.mp4", "pick/b.front.mp4")
    source = open_source(root, ImportOptions())
    assert source.contract.cameras == ("front", "wrist")
    assert source.problems == ["films, pick/b: there is no film of camera wrist; left out"]
    assert names(root, cameras={"front": "top"}) == ["pick/a", "pick/b"]
    with pytest.raises(
        SourceError, match="there is no film of camera top, side; --cameras can choose from front, wrist"
    ):
        open_source(root, ImportOptions(cameras={"top": "top", "side": "side"}))


def test_film_import_gives_distinct_episode_ids(tmp_path: Path) -> None:
    root = films(
        tmp_path / "films", "pick/red-cube.mp4", "pick-red/cube.mp4", "pick-red-cube.mp4", "a.mp4", "a.mov"
    )
    items = open_source(root, ImportOptions(**F)).items
    assert len({item.episode_id for item in items}) == len(items) == 5


def test_film_import_omits_an_uneven_film_unless_resampled(tmp_path: Path) -> None:
    moments = [0, 1, 2, 3, 4, 9, 10, 11, 12, 13]
    write_film(tmp_path / "films/a.mp4", numbered(moments), 10, moments=moments)
    write_film(tmp_path / "films/b.mp4", numbered(range(10)), 10)
    source = open_source(tmp_path / "films", ImportOptions(**F))
    assert [item.name for item in source.items if not item.problem] == ["b"]
    assert "its frames come at uneven moments" in source.problems[0]
    assert "ffmpeg -i FILM -vf fps=10 NEW" in source.problems[0]


def test_film_import_of_small_jitter_takes_the_nearest_picture(tmp_path: Path) -> None:
    moments = [10 * i + (2 if i % 2 else 0) for i in range(10)]
    path = write_film(tmp_path / "films/a.mp4", numbered(range(10)), 100, moments=moments)
    assert len(film_index(path).times) == 10
    _, episodes, _ = imported(tmp_path / "films", tmp_path / "store", resample_hz=10.0, **F)
    assert numbers_of(episodes["a"].frames["front"])[:5] == [0, 1, 2, 3, 4]


def test_film_import_omits_broken_films_by_name(tmp_path: Path) -> None:
    root = films(tmp_path / "films", "a.mp4")
    (root / "b.mp4").write_bytes(b"no film")
    (root / "c.mp4").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    source = open_source(root, ImportOptions(**F))
    assert [item.name for item in source.items if not item.problem] == ["a"]
    assert "films, b: the video b.mp4 cannot be read" in source.problems[0]
    assert "run `git lfs pull`" in source.problems[1]


def test_film_import_of_another_folder_of_the_same_name_raises(tmp_path: Path) -> None:
    first = films(tmp_path / "day1/clips", "a.mp4")
    second = tmp_path / "day2/clips"
    write_film(second / "a.mp4", numbered(range(100, 108)), 10)
    imported(first, tmp_path / "store", **F)
    storage = open_storage(str(tmp_path / "store"))
    assert missing(open_source(first, ImportOptions(**F)), storage) == []
    with pytest.raises(SourceError, match="episode clips-a is already there from another recording"):
        missing(open_source(second, ImportOptions(**F)), storage)


def test_film_import_scales_pictures(tmp_path: Path) -> None:
    write_film(tmp_path / "films/a.mp4", np.repeat(numbered(range(6), 320, 640), 1, axis=0), 10)
    _, episodes, _ = imported(tmp_path / "films", tmp_path / "store", image_size=(32, 64), **F)
    assert episodes["a"].frames["front"].shape == (6, 32, 64, 3)
    assert numbers_of(episodes["a"].frames["front"]) == list(range(6))


def test_film_frames_keeps_no_frames_in_memory(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mp4", numbered(range(60), 720, 1280), 30)
    process = psutil.Process()
    for number, _ in enumerate(film_frames(path, range(60))):
        if number == 10:
            before = process.memory_info().rss
    assert process.memory_info().rss - before < 20 * 720 * 1280 * 1.5, "of fifty frames"


@pytest.mark.parametrize(
    "stems", [("cut 10.22.31 AM", "cut 10.22.45 AM"), ("take.v1", "take.v2"), ("a.0001 (1)", "a.0001 (2)")]
)
def test_film_import_does_not_take_times_and_numbers_for_cameras(
    tmp_path: Path, stems: tuple[str, ...]
) -> None:
    root = films(tmp_path / "films", *(f"{stem}.mp4" for stem in stems))
    with pytest.raises(SourceError, match="its films do not name their camera"):
        open_source(root, ImportOptions(task="pick"))
    assert names(root) == list(stems)
    assert open_source(root, ImportOptions(**F)).problems == []


def test_film_import_of_other_cameras_than_the_requested_one_raises(tmp_path: Path) -> None:
    root = films(tmp_path / "films", "a.front.mp4", "a.wrist.mp4", "b.front.mp4", "b.wrist.mp4")
    with pytest.raises(
        SourceError, match="there is no film of camera side; --cameras can choose from front, wrist"
    ):
        open_source(root, ImportOptions(cameras={"side": "side"}, task="pick"))
    source = open_source(films(tmp_path / "two", "take.red.mp4", "take.blue.mp4"), ImportOptions(**F))
    assert [item.name for item in source.items] == ["take.blue", "take.red"]
    assert "look like one scene filmed by blue, red" in source.problems[0]


def test_film_import_reports_films_outside_a_scene(tmp_path: Path) -> None:
    root = films(
        tmp_path / "films",
        *(f"{scene}.{camera}.mp4" for scene in "abc" for camera in ("front", "wrist")),
        "a.mp4",
        "b.side.mp4",
        "b.front.mov",
    )
    source = open_source(root, ImportOptions(task="pick"))
    assert [item.name for item in source.items if not item.problem] == ["a", "c"]
    assert source.problems == [
        "films, a.mp4: it names none of the cameras front, wrist; left out",
        "films, b: camera front has several films (b.front.mov, b.front.mp4), remove all but one; left out",
        "films, b.side.mp4: it names none of the cameras front, wrist; left out",
        "films, b: there is no film of camera front; left out",
    ]


def test_film_import_omits_a_truncated_film_by_name(tmp_path: Path) -> None:
    root = films(tmp_path / "films", "a.mp4")
    write_film(
        tmp_path / "whole.mp4", np.random.default_rng(0).integers(0, 256, (60, 32, 64, 3), np.uint8), 10
    )
    with (
        av.open(str(tmp_path / "whole.mp4")) as old,
        av.open(str(tmp_path / "fast.mp4"), "w", options={"movflags": "faststart"}) as new,
    ):
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    whole = (tmp_path / "fast.mp4").read_bytes()
    (root / "b.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    source = open_source(root, ImportOptions(**F))
    assert [item.name for item in source.items if not item.problem] == ["a"]
    assert "b.mp4 tells a length of 6.00 s, but its pictures end after" in source.problems[0]


def test_film_import_of_cameras_of_two_rates_requires_resampling(tmp_path: Path) -> None:
    write_film(tmp_path / "films/a.front.mp4", numbered(range(20)), 10)
    write_film(tmp_path / "films/a.wrist.mp4", numbered(range(40)), 20)
    with pytest.raises(SourceError, match=r"differ in frames per second.*--resample-hz"):
        open_source(tmp_path / "films", ImportOptions(task="pick"))
    _, episodes, _ = imported(tmp_path / "films", tmp_path / "store", task="pick", resample_hz=5.0)
    assert numbers_of(episodes["a"].frames["front"]) == list(range(0, 20, 2))
    assert numbers_of(episodes["a"].frames["wrist"]) == list(range(0, 40, 4))


def test_film_import_resampled_with_jitter_takes_the_nearest_pictures(
    tmp_path: Path,
) -> None:
    moments = [0, 33, 70, 98, 131, 168, 201, 233, 265, 301, 334, 365]
    write_film(tmp_path / "films/a.mp4", numbered(range(12)), 1000, moments=moments)
    _, episodes, _ = imported(tmp_path / "films", tmp_path / "store", resample_hz=12.0, **F)
    assert numbers_of(episodes["a"].frames["front"]) == [
        int(np.abs(np.asarray(moments) - k * 1000 / 12).argmin()) for k in range(5)
    ]


def test_film_import_accepts_a_rounded_rate(tmp_path: Path) -> None:
    write_film(tmp_path / "films/a.mp4", numbered(range(8)), 29.97)
    assert len(names(tmp_path / "films", hz=29.97)) == 1
    with pytest.raises(SourceError, match="it was recorded at"):
        open_source(tmp_path / "films", ImportOptions(hz=25.0, **F))


def test_film_import_omits_an_avi_with_dropped_frames(tmp_path: Path) -> None:
    root = films(tmp_path / "films", "a.avi")
    write_film(root / "b.avi", numbered(range(17)), 10, moments=[*range(8), *range(11, 20)])
    source = open_source(root, ImportOptions(**F))
    assert [item.name for item in source.items if not item.problem] == ["a"]


def test_film_with_another_rotation_is_another_recording(tmp_path: Path) -> None:
    path = write_film(tmp_path / "day1/a.mp4", numbered(range(8)), 10)
    content = path.read_bytes()
    upright = b"".join(number.to_bytes(4, "big") for number in (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30))
    turned = b"".join(
        (number % (1 << 32)).to_bytes(4, "big")
        for number in (-(1 << 16), 0, 0, 0, -(1 << 16), 0, 64 << 16, 32 << 16, 1 << 30)
    )
    place = content.index(upright, content.index(b"tkhd"))
    (tmp_path / "day2").mkdir()
    (tmp_path / "day2/a.mp4").write_bytes(content[:place] + turned + content[place + 36 :])
    first, second = (open_source(tmp_path / day, ImportOptions(label="x", **F)) for day in ("day1", "day2"))
    assert np.array_equal(
        first.first_pictures(first.items[0])[""][::-1, ::-1], second.first_pictures(second.items[0])[""]
    )
    assert first.items[0].origin.partition("content ")[2] != second.items[0].origin.partition("content ")[2]


def test_film_import_lists_a_film_once_whatever_links_lead_to_it(tmp_path: Path) -> None:
    root = films(tmp_path / "films", "pick/b.mp4")
    films(tmp_path, "elsewhere/c.mp4")
    for name, target in {
        "again": ".",
        "pick/up": "..",
        "pick/a.mp4": "b.mp4",
        "self.mp4": "self.mp4",
        "gone.mp4": "nowhere.mp4",
        "place": "../elsewhere",
    }.items():
        (root / name).symlink_to(target)
    assert names(root) == ["pick/b", "place/c"]


def test_film_import_omits_films_that_the_decoder_finds_damaged(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 32, 64, 3), np.uint8)
    path = write_film(tmp_path / "films/a.mp4", noise, 10)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 16] = bytes(16)
    path.write_bytes(content)
    _, episodes, left_out = imported(tmp_path / "films", tmp_path / "store", **F)
    assert not episodes
    assert "the video a.mp4 is damaged at its frame" in left_out[0]


def test_film_import_omits_a_film_of_several_streams(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        streams: list[Any] = [container.add_stream("libx264", rate=10) for _ in range(2)]
        for stream in streams:
            stream.height, stream.width, stream.pix_fmt = 32, 64, "yuv420p"
        for stream in streams:
            for picture in numbered(range(8)):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
    with pytest.raises(SourceError, match=r"the video a.mkv has 2 streams of pictures; copy the one"):
        open_source(tmp_path, ImportOptions(**F))
