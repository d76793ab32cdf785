"""The LeRobot package itself: an import equals what it reads, and it reads what an export wrote.

LeRobot runs in the environment that `make lerobot` makes, by `lerobot_cli.py`. Both sides decode with PyAV
and convert with FFmpeg's swscale, so pictures and values are compared for equality.
"""

import os
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import CHECKOUT, LEROBOT

from orchestrator.data.episode_format import Episode, decode
from orchestrator.data.episode_store import commit, fetch, load_manifest, put_episode
from orchestrator.data.exporters.lerobot_v3 import export
from orchestrator.data.importers.base import ImportOptions, open_source
from orchestrator.storage.base import open_storage
from orchestrator.testing.episodes import CAMERA, make_episode
from sim_workers.envs.robosuite import contract

pytestmark = pytest.mark.lerobot

RECORDED = {
    "video": 3,  # AV1, 30 per second, a sentence per episode
    "image": 3,
    "two_cameras": 3,  # H.264 with reordered frames, 15 per second
    "hevc": 3,  # values without names
    "video_and_image": 3,
    "streamed": 3,  # encoded while it is recorded
    "names_in_dictionary": 3,
    "single_values": 3,
    "matrix_and_doubles": 3,
    "channels_first": 3,
    "depth": 3,  # with a depth camera
    "many_files": 5,
    "many_image_files": 5,
    "resumed": 5,
    "other_two_cameras": 2,
}
EDITED = {
    "video_deleted": 2,
    "image_deleted": 2,
    "two_cameras_deleted": 2,
    "many_files_deleted": 4,
    "many_image_files_deleted": 4,
    "two_cameras_train": 2,
    "two_cameras_val": 1,
    "merged": 5,
    "merged_apart": 5,
    "deleted_and_merged": 9,
    "feature_added": 3,
    "camera_removed": 3,
    "image_to_video": 3,
    "reencoded": 3,
    "tasks_modified": 3,
}
"""Dataset -> number of episodes."""


def run_in_lerobot(*arguments: str | Path) -> None:
    """Run `lerobot_cli.py` in LeRobot's environment, without a network and with a cache of its own."""
    command = [LEROBOT / "bin" / "python", CHECKOUT / "tests" / "helpers" / "lerobot_cli.py", *arguments]
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": cache},
        )
    assert done.returncode == 0, done.stderr[-4000:]


def read_by_lerobot(archive: Path) -> dict[int, dict[str, np.ndarray]]:
    """Return episode -> feature -> the values that LeRobot read."""
    episodes: dict[int, dict[str, np.ndarray]] = {}
    with np.load(archive) as arrays:
        for name, values in arrays.items():
            episode, _, feature = name.partition("/")
            episodes.setdefault(int(episode), {})[feature] = values
    return episodes


def assert_equal(episode: Episode, read: dict[str, np.ndarray]) -> None:
    assert set(read["task"]) == {episode.instruction}
    assert {f"observation.images.{camera}" for camera in episode.frames} == {
        name for name in read if name.startswith("observation.images.")
    }
    for camera, frames in episode.frames.items():
        assert np.array_equal(frames, read[f"observation.images.{camera}"]), camera
    assert episode.proprio is not None
    assert episode.action is not None
    assert np.array_equal(episode.proprio, read["observation.state"])
    assert np.array_equal(episode.action, read["action"].astype(np.float32))


def assert_import_equals(path: Path, episodes: int) -> None:
    """Compare an import of a dataset with what LeRobot read, from the archive `<name>.npz` in the same
    folder.
    """
    source, read = open_source(path, ImportOptions()), read_by_lerobot(path.with_suffix(".npz"))
    assert (source.problems, source.questions) == ([], [])
    assert [item.name for item in source.items] == [f"episode_{i:06d}" for i in range(episodes)]
    assert sorted(read) == list(range(episodes))
    for item in source.items:
        assert_equal(source.read(item), read[int(item.name.removeprefix("episode_"))])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of datasets that LeRobot wrote and edited."""
    folder = tmp_path_factory.mktemp("lerobot")
    run_in_lerobot("write", folder)
    return folder


@pytest.mark.parametrize("name", [*RECORDED, *EDITED])
def test_lerobot_import_equals_what_lerobot_reads(written: Path, name: str) -> None:
    assert_import_equals(written / name, {**RECORDED, **EDITED}[name])


def test_lerobot_datasets_have_several_files_and_chunks(written: Path) -> None:
    for name in ("many_files", "many_files_deleted"):
        for pattern in ("data/chunk-*/file-*.parquet", "videos/*/chunk-*/file-*.mp4"):
            files = list((written / name).glob(pattern))
            assert len({path.parent for path in files}) > 1, files


def test_lerobot_import_omits_an_episode_whose_sentence_changes(written: Path) -> None:
    source, read = (
        open_source(written / "changing_sentence", ImportOptions()),
        read_by_lerobot(written / "changing_sentence.npz"),
    )
    assert len(set(read[1]["task"])) == 2
    assert [bool(item.problem) for item in source.items] == [False, True, False]
    assert "its rows name 2 sentences (lift the cube; open the drawer)" in source.items[1].problem
    assert_equal(source.read(source.items[2]), read[2])


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Episode]]:
    """Return the export of a store with two cameras and two sentences, and the episodes of the store."""
    folder = tmp_path_factory.mktemp("exported")
    storage, conventions = (
        open_storage(str(folder / "store")),
        contract((CAMERA, "agentview"), (64, 64), "fast"),
    )
    entries = []
    for seed, (length, sentence) in enumerate(
        ((12, "lift the red cube"), (9, "öffne die Schublade"), (120, "lift the red cube"))
    ):
        episode = make_episode(seed, length)
        frames = {
            CAMERA: episode.frames[CAMERA],
            "agentview": np.ascontiguousarray(episode.frames[CAMERA][:, ::-1]),
        }
        entries.append(
            put_episode(
                storage, replace(episode, instruction=sentence, frames=frames), conventions.control_hz
            )
        )
    commit(storage, conventions, entries)
    manifest = load_manifest(storage)
    list(export(storage, manifest.contract, list(manifest.entries), folder / "export"))
    return folder / "export", [
        decode(fetch(storage, entry), conventions.cameras, with_actions=True) for entry in manifest.entries
    ]


def test_lerobot_reads_an_export(stored: tuple[Path, list[Episode]], tmp_path: Path) -> None:
    path, episodes = stored
    run_in_lerobot("read", path, tmp_path / "export.npz")
    read = read_by_lerobot(tmp_path / "export.npz")
    assert sorted(read) == list(range(len(episodes)))
    for index, episode in enumerate(episodes):
        assert_equal(episode, read[index])
        assert np.allclose(read[index]["timestamp"], np.arange(episode.length) / 20, atol=1e-6)


def test_lerobot_edits_an_export(stored: tuple[Path, list[Episode]], tmp_path: Path) -> None:
    """Its tools copy the videos as they are, unless one cuts a file that several episodes share: that one is
    encoded again.
    """
    path, episodes = stored
    run_in_lerobot("edit", path, tmp_path)
    for name, kept in (("deleted", (0, 2)), ("first", (0,)), ("rest", (1, 2)), ("merged", (1, 2, 0))):
        assert_import_equals(tmp_path / name, len(kept))
        read = read_by_lerobot(tmp_path / f"{name}.npz")
        for index, number in enumerate(kept):
            assert_equal(episodes[number], read[index])
    assert_import_equals(tmp_path / "merged_and_deleted", 2)
    read = read_by_lerobot(tmp_path / "merged_and_deleted.npz")
    for index, number in enumerate((1, 0)):
        for camera, frames in episodes[number].frames.items():
            difference = np.abs(read[index][f"observation.images.{camera}"].astype(int) - frames)
            assert difference.mean() < 3, (
                "H.264 again, with colours at half the resolution; 1.5 of 255 levels were measured"
            )
