"""Import of LeRobot datasets: pictures by timestamp, sentences by row, files wherever they are."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lerobot_datasets import KEY, SENTENCES, Dataset, imported, numbered, numbers_of, write_film
from orchestrator.data.clip_stream import decode_entry
from orchestrator.data.episode_store import fetch, load_manifest
from orchestrator.data.exporters.lerobot_v3 import export
from orchestrator.data.import_episodes import Importer, LeftOut, missing
from orchestrator.data.importers.base import ImportOptions, SourceError, open_source
from orchestrator.data.importers.image_ops import image
from orchestrator.storage.base import open_storage
from orchestrator.testing.episodes import make_episode_store

SPANS = ((0, 10), (10, 22), (22, 33))
"""The frames of the three episodes of a Dataset."""


def shown(root: Path, **said: Any) -> dict[str, list[int]]:
    """Return episode -> the numbers in its pictures."""
    _, episodes, _ = imported(root, root.parent / f"store-{root.name}", **said)
    return {name: numbers_of(next(iter(episode.frames.values()))) for name, episode in episodes.items()}


def expected(*episodes: int) -> dict[str, list[int]]:
    return {f"episode_{i:06d}": list(range(*SPANS[i])) for i in episodes}


def said_of(root: Path, episode: int) -> str:
    """Return why an episode is omitted."""
    return next(
        item.problem
        for item in open_source(root, ImportOptions()).items
        if item.name == f"episode_{episode:06d}"
    )


# -- moments -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"g": "10"}),
        ("libx264", {"x264-params": "open-gop=1:keyint=10:bframes=3"}),
        ("libx265", {"g": "2", "x265-params": "log-level=none"}),
        ("libx265", {"x265-params": "log-level=none:keyint=12:min-keyint=12"}),
        ("mpeg4", {"g": "12", "bf": "2", "q": "2"}),
        ("mpeg2video", {"g": "12", "bf": "2", "q": "2"}),
        ("libsvtav1", {"g": "2", "crf": "20", "preset": "12"}),
    ],
)
def test_lerobot_import_of_a_shared_film_assigns_each_episode_its_pictures(
    tmp_path: Path, codec: str, options: dict[str, str]
) -> None:
    hz = 25.0  # MPEG-2 supports few rates
    root = Dataset(
        hz=hz, film=lambda path, pictures, rate: write_film(path, pictures, rate, codec, options)
    ).write(tmp_path / "data")
    assert shown(root) == expected(0, 1, 2)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize("times", [2, 3])
def test_lerobot_import_of_a_film_at_another_rate_shows_the_picture_of_each_row(
    tmp_path: Path, version: str, times: int
) -> None:
    film = lambda path, pictures, hz: write_film(path, np.repeat(pictures, times, axis=0), times * hz)  # noqa: E731
    assert shown(Dataset(version=version, film=film).write(tmp_path / "data")) == expected(0, 1, 2)


def test_lerobot_import_of_an_uneven_film_shows_the_nearest_picture(tmp_path: Path) -> None:
    def late(path, pictures, hz):
        return write_film(
            path, pictures, 10 * hz, moments=[10 * i + (3 if i % 3 == 1 else 0) for i in range(len(pictures))]
        )

    assert shown(Dataset(film=late).write(tmp_path / "data")) == expected(0, 1, 2)


def test_lerobot_import_of_a_trimmed_episode_uses_its_timestamps(tmp_path: Path) -> None:
    lead = numbered([200, 201, 202])
    dataset = Dataset(
        version="v2.1",
        film=lambda path, pictures, hz: write_film(path, np.concatenate([lead, pictures]), hz),
        row=lambda i, columns: (
            columns | {"timestamp": pa.array((np.arange(len(columns["index"])) + 3) / 10, pa.float32())}
        ),
    )
    assert shown(dataset.write(tmp_path / "data")) == expected(0, 1, 2)


def test_lerobot_import_omits_an_episode_with_a_missing_picture(tmp_path: Path) -> None:
    def film(path: Path, pictures: np.ndarray, hz: float) -> None:
        kept = [i for i in range(len(pictures)) if i != 14]
        write_film(path, pictures[kept], hz, moments=kept)

    root = Dataset(film=film).write(tmp_path / "data")
    assert shown(root) == expected(0, 2)
    assert said_of(root, 1).startswith(
        "data, episode_000001: no picture at second 1.400: the nearest is 0.100 s away"
    )


def test_lerobot_import_omits_an_episode_with_fewer_pictures_than_rows(tmp_path: Path) -> None:
    """The recorder dropped two pictures and the metadata agrees; every later film span begins earlier."""
    starts, ends = (0.0, 1.0, 2.0), (1.0, 2.0, 3.1)
    dataset = Dataset(
        film=lambda path, pictures, hz: write_film(path, np.delete(pictures, (13, 14), axis=0), hz),
        line=lambda i, line: (
            line
            | {
                f"videos/{KEY}/from_timestamp": starts[i],
                f"videos/{KEY}/to_timestamp": ends[i],
            }
        ),
    )
    root = dataset.write(tmp_path / "data")
    assert shown(root) == expected(0, 2)
    assert "its video lasts 1.000 s by its metadata, its 12 rows 1.200 s" in said_of(root, 1)


@pytest.mark.parametrize("drift_s", [0.035, 0.06, -0.04])
def test_lerobot_import_omits_an_episode_whose_start_drifts(tmp_path: Path, drift_s: float) -> None:
    moved = lambda i, line: (  # noqa: E731
        line
        | {
            f"videos/{KEY}/{end}": line[f"videos/{KEY}/{end}"] + drift_s * (i == 1)
            for end in ("from_timestamp", "to_timestamp")
        }
    )
    root = Dataset(line=moved).write(tmp_path / "data")
    assert shown(root) == expected(0, 2)
    assert "their rows on average" in said_of(root, 1)


def test_lerobot_import_omits_rows_against_the_stated_rate_unless_hz_is_given(tmp_path: Path) -> None:
    slow = Dataset(
        version="v2.1",
        film=lambda path, pictures, hz: write_film(path, pictures, 5),
        row=lambda i, columns: (
            columns | {"timestamp": pa.array(np.arange(len(columns["index"])) / 5, pa.float32())}
        ),
    )
    root = slow.write(tmp_path / "data")
    assert shown(root) == {}
    assert "its rows are 0.200 s apart, meta/info.json says 10 a second" in said_of(root, 0)
    assert shown(root, hz=5.0) == expected(0, 1, 2)
    with pytest.raises(SourceError, match="not 7; leave --hz out"):
        open_source(root, ImportOptions(hz=7.0))


def test_lerobot_import_omits_an_episode_with_a_gap_in_its_rows(tmp_path: Path) -> None:
    def gap(episode: int, columns: dict[str, Any]) -> dict[str, Any]:
        moments = np.arange(len(columns["index"])) / 10
        moments[5:] += 0.3 * (episode == 2)
        return columns | {"timestamp": pa.array(moments, pa.float32())}

    root = Dataset(row=gap, version="v2.1").write(tmp_path / "data")
    assert "between rows 4 and 5 pass 0.400 s" in said_of(root, 2)


# -- sentences -----------------------------------------------------------------------------------------------


def task_index(numbers: dict[int, list[int]]) -> Any:
    return lambda i, columns: (
        columns
        | {"task_index": pa.array([numbers[i][k % len(numbers[i])] for k in range(len(columns["index"]))])}
    )


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_lerobot_import_takes_the_sentence_named_by_the_rows(tmp_path: Path, version: str) -> None:
    dataset = Dataset(
        version=version,
        row=task_index({0: [1], 1: [2], 2: [0]}),
        line=lambda i, line: line | {"tasks": ["valid", *SENTENCES]},
    )
    items = open_source(dataset.write(tmp_path / "data"), ImportOptions()).items
    assert [item.instruction for item in items] == [SENTENCES[1], SENTENCES[2], SENTENCES[0]]


def test_lerobot_import_omits_an_episode_with_several_sentences(tmp_path: Path) -> None:
    root = Dataset(row=task_index({0: [1], 1: [0, 2], 2: [0]})).write(tmp_path / "data")
    assert "its rows name 2 sentences (close it; lift the cube)" in said_of(root, 1)
    assert [item.instruction for item in open_source(root, ImportOptions(instruction="tidy up")).items] == [
        "tidy up"
    ] * 3


@pytest.mark.parametrize(
    "tasks", ["put the cup in", ["", "put the cup in"], ["put the cup in", "put the cup in"]]
)
def test_lerobot_import_takes_an_unknown_sentence_from_the_metadata(tmp_path: Path, tasks: Any) -> None:
    root = Dataset(version="v2.1", line=lambda i, line: line | {"tasks": tasks}).write(tmp_path / "data")
    assert {item.instruction for item in open_source(root, ImportOptions()).items} == {"put the cup in"}


# -- rows and files ------------------------------------------------------------------------------------------


def test_lerobot_import_finds_rows_in_any_file(tmp_path: Path) -> None:
    """The metadata names the first file for all rows, as after an edit of the dataset. Numbers are floats, as
    pandas writes them.
    """

    def stale(i, line):
        return {k: float(v) if k.endswith(("chunk_index", "file_index")) else v for k, v in line.items()}

    root = Dataset(rows_per_file=(1, 1, 1), line=stale).write(tmp_path / "data")
    assert shown(root) == expected(0, 1, 2)


def test_lerobot_import_joins_an_episode_over_two_files(tmp_path: Path) -> None:
    root = Dataset(lengths=(10, 12, 11)).write(tmp_path / "data")
    path = root / "data/chunk-000/file-000.parquet"
    table = pa.parquet.read_table(path)
    pa.parquet.write_table(table.slice(0, 15), path)
    pa.parquet.write_table(table.slice(15), root / "data/chunk-000/file-001.parquet")
    _, episodes, _ = imported(root, tmp_path / "store")
    assert numbers_of(episodes["episode_000001"].frames["top"]) == list(range(10, 22))
    action = episodes["episode_000001"].action
    assert action is not None
    assert np.allclose(action, np.sin(np.arange(12)[:, None] + np.arange(7) + 1), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda c: c | {"action": pa.array([*c["action"].to_pylist()[:-1], None])},
            "a row of action is missing",
        ),
        (
            lambda c: c | {"action": pa.array([*c["action"].to_pylist()[:-1], [0.0] * 6])},
            "rows of action have 6 to 7 values",
        ),
        (
            lambda c: c | {"action": pa.array([[0.0] * 8] * len(c["index"]))},
            "it has 8 action values, the others 7",
        ),
        (
            lambda c: c | {"action": pa.array(["left"] * len(c["index"]))},
            "action holds values that are no numbers",
        ),
        (
            lambda c: c | {"action": pa.array([[float("nan")] * 7] * len(c["index"]))},
            "a value that is not a number",
        ),
        (lambda c: {k: v for k, v in c.items() if k != "action"}, "it has no column action"),
        (lambda c: {k: v for k, v in c.items() if k != "episode_index"}, "has no column episode_index"),
        (lambda c: c | {"episode_index": pa.array([0] * len(c["index"]))}, "has rows of episode 0"),
        (
            lambda c: c | {"timestamp": pa.array([0.0] * len(c["index"]), pa.float32())},
            "its timestamps do not rise",
        ),
        (
            lambda c: {
                k: v.take(pa.array([1, 0, *range(2, len(v))])) for k, v in c.items() if k != "timestamp"
            },
            "its rows are out of order by their frame_index",
        ),
    ],
)
def test_lerobot_import_omits_a_faulty_episode_by_name(tmp_path: Path, change: Any, problem: str) -> None:
    root = Dataset(version="v2.1", row=lambda i, columns: change(columns) if i == 1 else columns).write(
        tmp_path / "data"
    )
    assert shown(root) == expected(0, 2)
    assert problem in said_of(root, 1)


def test_lerobot_import_reads_metadata_with_bom_and_blank_lines(tmp_path: Path) -> None:
    root = Dataset(version="v2.1", line=lambda i, line: line | {"tasks": ["lift\u2028it"]}).write(
        tmp_path / "data"
    )
    for name in ("episodes.jsonl", "info.json"):
        path = root / "meta" / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\n\n")
    assert shown(root) == expected(0, 1, 2)


def test_lerobot_import_omits_the_second_listing_of_an_episode(tmp_path: Path) -> None:
    root = Dataset(version="v2.1").write(tmp_path / "data")
    path = root / "meta/episodes.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
    source = open_source(root, ImportOptions())
    assert [item.name for item in source.items] == [f"episode_{i:06d}" for i in range(3)]
    assert source.problems == ["data, episode 1: it is listed twice; the second is left out"]


# -- conventions ---------------------------------------------------------------------------------------------


def test_lerobot_import_knows_openpi_names_and_accepts_others(tmp_path: Path) -> None:
    renamed = {"observation.state": "state", "action": "actions"}
    features = {
        "state": {"dtype": "float32", "shape": [5], "names": None},
        "actions": {"dtype": "float32", "shape": [7], "names": None},
    }
    dataset = Dataset(
        version="v2.1",
        row=lambda i, columns: {renamed.get(k, k): v for k, v in columns.items()},
        features=features,
    )
    root = dataset.write(tmp_path / "data")
    facts = json.loads((root / "meta/info.json").read_text())
    facts["features"] = {k: v for k, v in facts["features"].items() if k not in renamed}
    (root / "meta/info.json").write_text(json.dumps(facts))
    assert shown(root) == expected(0, 1, 2)
    assert open_source(root, ImportOptions(action="actions", proprio=("state",))).contract.action == tuple(
        f"actions_{i}" for i in range(7)
    )


def test_lerobot_import_names_values_by_nested_lists_and_modality(tmp_path: Path) -> None:
    names = [f"joint_{i}" for i in range(7)]
    root = Dataset(features={"action": {"dtype": "float32", "shape": [7], "names": [names]}}).write(
        tmp_path / "data"
    )
    assert open_source(root, ImportOptions()).contract.action == tuple(names)
    parts = {
        "base_motion": (0, 1),
        "end_effector_position": (1, 3),
        "end_effector_rotation": (3, 5),
        "gripper_close": (5, 7),
    }
    said = {"action": {name: {"start": a, "end": b} for name, (a, b) in parts.items()}}
    root = Dataset().write(tmp_path / "parts")
    (root / "meta/modality.json").write_text(json.dumps(said))
    assert open_source(root, ImportOptions()).contract.action[:3] == (
        "base_motion",
        "end_effector_position_0",
        "end_effector_position_1",
    )
    source, _, _ = imported(root, tmp_path / "store", arm_only=True)
    assert len(source.contract.action) == 6
    assert all("the base moves" in problem for problem in source.problems)
    with pytest.raises(SourceError, match="--arm-only is for RoboCasa's actions"):
        open_source(Dataset().write(tmp_path / "plain"), ImportOptions(arm_only=True))


def test_lerobot_import_names_values_by_a_dictionary_of_indices(tmp_path: Path) -> None:
    names = {f"joint_{i}": 6 - i for i in range(7)}
    root = Dataset(features={"action": {"dtype": "float32", "shape": [7], "names": names}}).write(tmp_path)
    assert open_source(root, ImportOptions()).contract.action == tuple(f"joint_{i}" for i in range(6, -1, -1))


@pytest.mark.parametrize(
    "columns",
    [
        {"__index_level_0__": pa.array(SENTENCES, pa.large_string())},
        {"__index_level_0__": pa.array(SENTENCES).dictionary_encode()},
        {"split": pa.array(["a", "b", "b"]), "__index_level_0__": pa.array(SENTENCES)},
    ],
)
def test_lerobot_import_finds_the_sentences_in_any_column_of_words(
    tmp_path: Path, columns: dict[str, Any]
) -> None:
    root = Dataset(
        row=lambda episode, rows: rows | {"task_index": pa.array([1] * len(rows["action"]))},
        line=lambda episode, line: line | {"tasks": []},
    ).write(tmp_path / "data")
    pq.write_table(pa.table({"task_index": [0, 1, 2], **columns}), root / "meta/tasks.parquet")
    assert {item.instruction for item in open_source(root, ImportOptions()).items} == {SENTENCES[1]}


@pytest.mark.parametrize("content", [lambda data: data[:-100], lambda data: b""])
def test_lerobot_import_omits_the_episodes_of_a_damaged_file(tmp_path: Path, content: Any) -> None:
    root = Dataset(rows_per_file=(1, 1, 1)).write(tmp_path / "data")
    path = root / "data/chunk-000/file-001.parquet"
    path.write_bytes(content(path.read_bytes()))
    source, episodes, _ = imported(root, tmp_path / "store")
    assert sorted(episodes) == ["episode_000000", "episode_000002"]
    assert (
        "data, episode 1: its rows are in no file that can be read; data/chunk-000/file-001.parquet: "
        in (source.problems[0])
    )


def test_lerobot_import_names_damaged_metadata(tmp_path: Path) -> None:
    root = Dataset().write(tmp_path / "v3")
    (root / "meta/tasks.parquet").write_bytes(b"PAR1")
    with pytest.raises(SourceError, match=r"its metadata cannot be read .*tasks.parquet: "):
        open_source(root, ImportOptions())
    root = Dataset(version="v2.1").write(tmp_path / "v2")
    with (root / "meta/episodes.jsonl").open("a") as file:
        file.write('{"episode_index": 3, "ta')
    with pytest.raises(SourceError, match=r"episodes.jsonl, line 4: "):
        open_source(root, ImportOptions())


@pytest.mark.parametrize(
    ("version", "problem"),
    [
        ("v3.0", "data: meta/episodes does not list episodes 2, whose rows are there; left out"),
        ("v2.1", "data: meta/info.json says 3 episodes, meta/episodes lists 2; copy what is missing"),
    ],
)
def test_lerobot_import_reports_episodes_that_the_metadata_does_not_list(
    tmp_path: Path, version: str, problem: str
) -> None:
    root = Dataset(version=version, info={"total_episodes": 3}).write(tmp_path / "data")
    if version == "v3.0":
        path = root / "meta/episodes/chunk-000/file-000.parquet"
        pq.write_table(pq.ParquetFile(path).read().slice(0, 2), path)
    else:
        path = root / "meta/episodes.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    assert open_source(root, ImportOptions()).problems == [problem]


def test_lerobot_import_reads_numbers_as_text_and_sentences_in_lists(tmp_path: Path) -> None:
    said = {"episode_index": str, "length": str}
    root = Dataset(
        version="v2.1",
        line=lambda episode, line: {key: kind(line[key]) for key, kind in said.items()},
    ).write(tmp_path / "data")
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": ["pick it up"]}) + "\n")
    source = open_source(root, ImportOptions())
    assert [item.instruction for item in source.items if not item.problem] == ["pick it up"] * 3
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": {"a": 1}}) + "\n")
    assert "say in words what is done" in open_source(root, ImportOptions()).questions[0]


def test_lerobot_import_asks_where_two_sentences_have_one_number(tmp_path: Path) -> None:
    root = Dataset(version="v2.1", line=lambda episode, line: line | {"tasks": []}).write(tmp_path / "data")
    tasks = [{"task_index": 0, "task": sentence} for sentence in SENTENCES[:2]]
    (root / "meta/tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    assert "say in words what is done" in open_source(root, ImportOptions()).questions[0]


@pytest.mark.parametrize("fps", [float("nan"), -20, 10**400, [20]])
def test_lerobot_import_refuses_an_impossible_rate(tmp_path: Path, fps: Any) -> None:
    root = Dataset(info={"fps": fps}).write(tmp_path / "data")
    with pytest.raises(SourceError, match=r"meta/info.json says .* where frames per second are meant"):
        open_source(root, ImportOptions())
    assert open_source(root, ImportOptions(hz=10)).contract.control_hz == 10


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_lerobot_import_omits_every_episode_of_a_film_that_begins_late(tmp_path: Path, version: str) -> None:
    def late(path: Path, pictures: np.ndarray, hz: float) -> None:
        write_film(path, pictures, hz, moments=range(2, 2 + len(pictures)), options={"bf": "0"})

    source = open_source(Dataset(version=version, film=late).write(tmp_path / "data"), ImportOptions())
    assert all("as long as its rows but begins at second 0.200" in problem for problem in source.problems)
    assert len(source.problems) == 3


def test_lerobot_import_keeps_the_sides_of_a_turned_film(tmp_path: Path) -> None:
    def turned(path: Path, pictures: np.ndarray, hz: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream("libx264", rate=10, options={"crf": "8"})
            stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], "yuv420p"
            stream.set_display_rotation(90)
            for picture in pictures:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))

    source, episodes, _ = imported(Dataset(film=turned).write(tmp_path / "data"), tmp_path / "store")
    assert source.contract.image_size == (64, 32)
    shown = np.rot90(episodes["episode_000001"].frames["top"], 1, (1, 2))
    assert list(range(10, 22)) in (numbers_of(shown), numbers_of(shown[:, ::-1, ::-1]))


@pytest.mark.parametrize("end", [10**30, -1])
def test_lerobot_import_refuses_impossible_parts(tmp_path: Path, end: int) -> None:
    root = Dataset().write(tmp_path / "data")
    parts = {"action": {"arm": {"start": 0, "end": end}}}
    (root / "meta/modality.json").write_text(json.dumps(parts))
    with pytest.raises(SourceError, match=r"modality.json: action arm goes from value 0 to"):
        open_source(root, ImportOptions())


def test_lerobot_import_reports_pictures_of_other_channels(tmp_path: Path) -> None:
    shapes = {"rgba": [32, 64, 4], "thermal": [1, 32, 64], "depth": [32, 64, 1]}
    features = {f"observation.images.{k}": {"dtype": "image", "shape": s} for k, s in shapes.items()}
    root = Dataset(features=features).write(tmp_path / "data")
    assert [problem.split(",")[0] for problem in open_source(root, ImportOptions()).problems] == [
        "data: observation.images.rgba has pictures of 4 channels",
        "data: observation.images.thermal has pictures of 1 channel",
    ]
    assert not open_source(root, ImportOptions(cameras={"top": "top"})).problems


def test_lerobot_import_takes_picture_size_from_the_film(tmp_path: Path) -> None:
    root = Dataset(
        features={KEY: {"dtype": "video", "shape": [64, 32, 3], "names": ["width", "height", "channels"]}}
    ).write(tmp_path / "data")
    assert open_source(root, ImportOptions()).contract.image_size == (32, 64)


def test_lerobot_import_mask_selects_a_split(tmp_path: Path) -> None:
    root = Dataset(info={"splits": {"train": "0:2", "test": "2:3"}}).write(tmp_path / "data")
    assert shown(root, mask="test") == expected(2)
    with pytest.raises(
        SourceError, match=r"there is no split valid in meta/info.json; --mask can choose from train, test"
    ):
        open_source(root, ImportOptions(mask="valid"))


def test_lerobot_export_states_codec_settings_that_lerobot_can_encode(tmp_path: Path) -> None:
    """LeRobot's tools take codec and pixel format from meta/info.json, and its h264 encoder takes no RGB; the
    default format is yuv420p.
    """
    storage = open_storage(make_episode_store(tmp_path / "store", episodes=1))
    manifest = load_manifest(storage)
    list(export(storage, manifest.contract, list(manifest.entries), tmp_path / "lift"))
    features = json.loads((tmp_path / "lift/meta/info.json").read_text())["features"]
    (stated,) = [feature["info"] for feature in features.values() if feature["dtype"] == "video"]
    assert {key: stated[f"video.{key}"] for key in ("codec", "crf", "g")} == {
        "codec": "h264",
        "crf": 18,
        "g": 8,
    }
    assert "video.pix_fmt" not in stated


def test_lerobot_export_states_the_statistics_of_its_pixels(tmp_path: Path) -> None:
    storage = open_storage(make_episode_store(tmp_path / "store", episodes=1, length=5))
    manifest = load_manifest(storage)
    (entry,) = export(storage, manifest.contract, list(manifest.entries), tmp_path / "export")
    stated = json.loads((tmp_path / "export" / "meta" / "stats.json").read_text())
    (camera,) = manifest.contract.cameras
    episode = decode_entry(fetch(storage, entry), entry, manifest.contract, with_actions=True)
    pixels = episode.frames[camera].reshape(-1, 3) / 255
    ours = stated[f"observation.images.{camera}"]
    expected = {"mean": pixels.mean(0), "std": pixels.std(0), "min": pixels.min(0), "max": pixels.max(0)}
    expected |= {f"q{q:02d}": np.quantile(pixels, q / 100, axis=0) for q in (1, 10, 50, 90, 99)}
    assert {*ours} == {*expected, "count"}
    for name, values in expected.items():
        np.testing.assert_allclose(np.ravel(ours[name]), values, atol=1e-9, err_msg=name)


def test_lerobot_import_asks_about_displacements_beyond_one(tmp_path: Path) -> None:
    far = lambda i, columns: columns | {"action": pa.array([[1.4] * 7] * len(columns["index"]))}  # noqa: E731
    nine = {"observation.state": {"dtype": "float32", "shape": [9], "names": None}}

    def rows(i: int, columns: dict[str, Any]) -> dict[str, Any]:
        return far(i, columns) | {
            "observation.state": pa.array([[0.1 * k for k in range(9)]] * len(columns["index"]))
        }

    root = Dataset(row=rows, features=nine).write(tmp_path / "data")
    source = open_source(root, ImportOptions(panda=True))
    assert "its actions reach 1.4" in source.questions[0]
    assert not source.contract.action[0].startswith("eef")
    assert open_source(root, ImportOptions(panda=True, deltas=True)).questions == []


# -- untrusted datasets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "info",
    [
        {"data_path": "../elsewhere/{episode_index}.parquet"},
        {"data_path": "/etc/passwd"},
        {"video_path": "../{video_key}.mp4"},
    ],
)
def test_lerobot_import_omits_paths_out_of_the_folder(tmp_path: Path, info: dict[str, Any]) -> None:
    source = open_source(Dataset(version="v2.1", info=info).write(tmp_path / "data"), ImportOptions())
    assert len(source.problems) == 3
    assert all("is not inside its folder" in problem for problem in source.problems)
    assert all(item.problem for item in source.items)


@pytest.mark.parametrize("template", ["{video_key.__class__}", "{video_key:9999999}", "{video_key!r}"])
def test_lerobot_import_refuses_templates_with_attributes(tmp_path: Path, template: str) -> None:
    root = Dataset(version="v2.1", info={"video_path": template}).write(tmp_path / "data")
    with pytest.raises(SourceError, match=r"in meta/info.json is not understood"):
        open_source(root, ImportOptions())


def test_lerobot_import_refuses_links_out_of_the_folder_but_hugging_face_blobs(tmp_path: Path) -> None:
    root = Dataset(version="v2.1").write(tmp_path / "hub/datasets--x/snapshots/main")
    for path in list((root / "data").rglob("*.parquet")):
        blob = tmp_path / "hub/datasets--x/blobs" / path.name
        blob.parent.mkdir(exist_ok=True)
        path.rename(blob)
        path.symlink_to(blob)
    assert len(imported(root, tmp_path / "store")[1]) == 3
    secret = tmp_path / "secret.parquet"
    victim = root / "data/chunk-000/episode_000001.parquet"
    victim.resolve().rename(secret)
    victim.unlink()
    victim.symlink_to(secret)
    assert "is a link to a file outside its folder" in said_of(root, 1)


def test_lerobot_import_recognises_a_git_lfs_pointer(tmp_path: Path) -> None:
    root = Dataset(version="v2.1").write(tmp_path / "data")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (root / f"videos/chunk-000/{KEY}/episode_000001.mp4").write_bytes(pointer)
    assert "run `git lfs pull`" in said_of(root, 1)
    (root / "meta/info.json").write_bytes(pointer)
    with pytest.raises(SourceError, match="git-LFS pointer"):
        open_source(root, ImportOptions())


def image_dataset(root: Path, cells: Any = None, first: int = 0) -> Path:
    """Write a dataset with PNG pictures in the rows, for a camera `wrist` besides the film."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

    def rows(episode: int, columns: dict[str, Any]) -> dict[str, Any]:
        pictures = numbered(range(first + SPANS[episode][0], first + SPANS[episode][1]))
        stored = [{"bytes": png(picture), "path": None} for picture in pictures]
        return columns | {
            "observation.images.wrist": pa.array(cells(stored) if cells and episode == 1 else stored, kind)
        }

    features = {
        "observation.images.wrist": {
            "dtype": "image",
            "shape": [32, 64, 3],
            "names": ["height", "width", "channels"],
        }
    }
    return Dataset(row=rows, features=features).write(root)


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(picture: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def test_image_is_turned_as_its_exif_says() -> None:
    exif, picture = Image.Exif(), numbered([5])[0]
    exif[0x112] = 6  # to be turned by 90 degrees to the right
    assert numbers_of(np.rot90(image(jpeg(picture, exif=exif)))[None]) == [5]


def test_lerobot_import_reads_film_and_image_cameras_together(tmp_path: Path) -> None:
    _, episodes, _ = imported(image_dataset(tmp_path / "data", first=100), tmp_path / "store")
    assert numbers_of(episodes["episode_000001"].frames["top"]) == list(range(10, 22))
    assert numbers_of(episodes["episode_000001"].frames["wrist"]) == list(range(110, 122))


@pytest.mark.parametrize(
    "cells",
    [
        lambda stored: [*stored[:-1], None],
        lambda stored: [*stored[:-1], {"bytes": b"", "path": None}],
        lambda stored: [*stored[:-1], {"bytes": None, "path": None}],
        lambda stored: [*stored[:-1], {"bytes": None, "path": "../../secret.png"}],
        lambda stored: [*stored[:-1], {"bytes": None, "path": "images/gone.png"}],
        lambda stored: [*stored[:-1], {"bytes": jpeg(numbered([1])[0])[:-200], "path": None}],
    ],
)
def test_lerobot_import_omits_an_episode_with_a_missing_image(tmp_path: Path, cells: Any) -> None:
    source, episodes, left_out = imported(image_dataset(tmp_path / "data", cells), tmp_path / "store")
    assert (sorted(episodes), left_out) == (["episode_000000", "episode_000002"], [])
    assert source.problems[0].startswith("data, episode_000001: ")


def test_lerobot_import_of_other_images_is_another_recording(tmp_path: Path) -> None:
    imported(image_dataset(tmp_path / "a/pick"), tmp_path / "store")
    with pytest.raises(SourceError, match="is already there from another recording"):
        missing(
            open_source(image_dataset(tmp_path / "b/pick", first=50), ImportOptions()),
            open_storage(str(tmp_path / "store")),
        )


# -- identity ------------------------------------------------------------------------------------------------


def test_import_of_the_same_source_is_known_and_of_another_raises(tmp_path: Path) -> None:
    root, store = Dataset().write(tmp_path / "a/pick"), tmp_path / "store"
    imported(root, store)
    storage = open_storage(str(store))
    assert missing(open_source(root, ImportOptions()), storage) == []
    other = Dataset(film=lambda path, pictures, hz: write_film(path, 255 - pictures, hz)).write(
        tmp_path / "b/pick"
    )
    for source in (
        open_source(other, ImportOptions()),
        open_source(root, ImportOptions(instruction="another")),
    ):
        with pytest.raises(
            SourceError,
            match=r"episode pick-episode_000000 is already there from another recording or import \(",
        ):
            missing(source, storage)


def test_lerobot_import_of_a_grown_dataset_adds_the_new_episodes(tmp_path: Path) -> None:
    store = tmp_path / "store"
    imported(Dataset(lengths=(10, 12), version="v2.1").write(tmp_path / "a/pick"), store)
    grown = open_source(
        Dataset(lengths=(10, 12, 11), version="v2.1").write(tmp_path / "b/pick"), ImportOptions()
    )
    assert [item.name for item in missing(grown, open_storage(str(store)))] == ["episode_000002"]


# -- the dry run ---------------------------------------------------------------------------------------------


def floats(rows: list[list[float]]) -> pa.Array:
    return pa.array(rows, pa.list_(pa.float32()))


FAULTS: dict[str, Any] = {
    "none": lambda columns: columns,
    "nan": lambda columns: columns | {"action": floats([[float("nan")] * 7] * len(columns["index"]))},
    "width": lambda columns: columns | {"action": floats([[0.0] * 6] * len(columns["index"]))},
    "late": (
        lambda columns: (
            columns | {"timestamp": pa.array(np.arange(len(columns["index"])) / 10 + 0.5, pa.float32())}
        )
    ),
    "gap": (
        lambda columns: columns | {"timestamp": pa.array(np.arange(len(columns["index"])) / 4, pa.float32())}
    ),
    "sentences": (
        lambda columns: columns | {"task_index": pa.array([i % 2 for i in range(len(columns["index"]))])}
    ),
}


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 14), min_size=1, max_size=4),
    faults=st.lists(st.sampled_from(sorted(FAULTS)), min_size=4, max_size=4),
    version=st.sampled_from(["v2.0", "v2.1", "v3.0"]),
    times=st.sampled_from([1, 2]),
)
def test_lerobot_dry_run_announces_what_the_import_does(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], faults: list[str], version: str, times: int
) -> None:
    folder = tmp_path_factory.mktemp("layout")
    columns = lambda i, columns: FAULTS[faults[i]](columns)  # noqa: E731
    film = lambda path, pictures, hz: write_film(path, np.repeat(pictures, times, axis=0), times * hz)  # noqa: E731
    root = replace(Dataset(), lengths=tuple(lengths), version=version, row=columns, film=film).write(
        folder / "data"
    )
    storage = open_storage(str(folder / "store"))
    source = open_source(root, ImportOptions())
    importer = Importer(source, storage.uri)
    announced = {item.name: item for item in missing(source, storage)}
    answers = {name: importer.record(item) for name, item in announced.items()}
    assert not [answer for answer in answers.values() if isinstance(answer, LeftOut)]
    assert {name: answer.length for name, answer in answers.items()} == {
        name: item.length for name, item in announced.items()
    }  # type: ignore[union-attr]
    assert len(announced) + len(source.problems) == len(lengths)


def test_image_of_a_gigapixel_is_not_decoded() -> None:
    header = (
        b"\x89PNG\r\n\x1a\n"
        + (13).to_bytes(4, "big")
        + b"IHDR"
        + (60_000).to_bytes(4, "big") * 2
        + b"\x08\x02\x00\x00\x00"
        + b"\0" * 4
    )
    with pytest.raises(ValueError, match=r"60000x60000 pixels|cannot be read"):
        image(header + b"\0" * 64 + b"IEND")
