"""Import questions and refusals: missing facts are asked for, and unreadable sources are one sentence."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

import dataset_layouts
import robosuite_recordings
from dataset_layouts import RENAMED, UPRIGHT, ZARR, damaged, opened, psnr, refusal, usable, written
from orchestrator.data.contact_sheet import contact_sheet
from orchestrator.data.importers.base import ImportOptions, SourceError, open_source
from orchestrator.data.importers.image_ops import image
from robosuite_recordings import CAMERAS

pytestmark = pytest.mark.sim  # the recordings are robosuite's own


# -- questions -----------------------------------------------------------------------------------------------


def test_hdf5_import_asks_for_the_orientation_of_pictures(recorded: Path) -> None:
    source = open_source(written(recorded, "LIBERO"), ImportOptions(cameras=RENAMED))
    assert source.questions == [
        "Lift_demo.hdf5: pictures of this format are stored both ways up (this file's convention is opengl,"
        " upside-down); look at them with --dry-run --sheet sheet.png, then say --images upright or"
        " upside-down or rotated"
    ]


def test_import_sheet_shows_pictures_as_stored(recorded: Path) -> None:
    first = robosuite_recordings.load(recorded)[0].frames[CAMERAS[1]][0]
    for name, stored in (("robomimic", first), ("robomimic upside-down", first[::-1])):
        source = opened(recorded, name)
        assert np.array_equal(source.first_pictures(source.items[0])[CAMERAS[1]], stored)
    for name in ("LeRobot v3", "LeRobot v3, images", "zarr", "films"):
        source = opened(recorded, name)
        assert psnr(source.first_pictures(source.items[0])[CAMERAS[1]], first) > 35
    sheet = image(contact_sheet([("first", first), ("second", first)] * 4))
    assert sheet.shape[0] > 200
    assert sheet.shape[1] > 800


def test_zarr_and_film_imports_ask_for_their_task(recorded: Path, tmp_path: Path) -> None:
    assert [question.rpartition(" ")[2] for question in opened(recorded, "zarr", task=None).questions] == [
        "--task",
        "--instruction",
    ]
    assert "say it with --hz" in refusal(written(recorded, "zarr"), ImportOptions(task="Lift"))
    dataset_layouts.film(tmp_path / "a.mp4", robosuite_recordings.load(recorded)[0].frames[CAMERAS[0]])
    assert "its films do not name their camera; say what the store calls it with --cameras NAME" in refusal(
        tmp_path, ImportOptions()
    )
    source = open_source(tmp_path, ImportOptions(cameras={"agentview": "agentview"}))
    assert "say it with --task" in source.questions[0]
    assert source.contract.cameras == ("agentview",)


# -- refusals ------------------------------------------------------------------------------------------------


def test_import_of_a_robosuite_recording_without_pictures_raises(recorded: Path) -> None:
    assert refusal(recorded / "demo.hdf5", UPRIGHT).endswith(
        "hold states and actions but no pictures, as robosuite's own recorder leaves them; "
        "render them first, for example with robomimic's dataset_states_to_obs.py"
    )


def test_import_answers_unknown_names_with_the_available_ones(recorded: Path, tmp_path: Path) -> None:
    path = written(recorded, "robomimic")
    assert "there is no camera top; --cameras can choose from agentview, robot0_eye_in_hand" in refusal(
        path, ImportOptions(cameras={"top": "top"})
    )
    assert "gives two cameras one name" in refusal(path, ImportOptions(cameras=dict.fromkeys(CAMERAS, "one")))
    assert "with --proprio; there are robot0_eef_pos, robot0_eef_quat, robot0_gripper_qpos" in refusal(
        path, ImportOptions(proprio=("joints",))
    )
    assert "there is no mask valid; --mask can choose from train" in refusal(
        path, ImportOptions(mask="valid")
    )
    assert "there is no such file or folder" in refusal(tmp_path / "nowhere", ImportOptions())
    assert "neither robomimic-style HDF5" in refusal(tmp_path, ImportOptions())
    assert "it has no feature joints; there are" in refusal(
        written(recorded, "LeRobot v3"), ImportOptions(proprio=("joints",))
    )
    (tmp_path / "text.hdf5").write_text("no HDF5")
    assert "it cannot be read as HDF5" in refusal(tmp_path / "text.hdf5", UPRIGHT)


def test_hdf5_import_omits_demonstrations_with_missing_parts_by_name(recorded: Path, tmp_path: Path) -> None:
    path = damaged(recorded, "robomimic", tmp_path)
    with h5py.File(path, "a") as file:
        del file["data/demo_0/obs"]
        del file["data/demo_2/obs/robot0_eef_pos"]
    source = open_source(path, UPRIGHT)
    assert usable(source) == ["demo_1"]
    assert source.problems == [
        "lift.hdf5, demo_0: it has no pictures; left out",
        "lift.hdf5, demo_2: obs has no robot0_eef_pos; left out",
    ]


def test_hdf5_import_of_pictures_without_actions_requires_action_free(recorded: Path, tmp_path: Path) -> None:
    path = damaged(recorded, "robomimic", tmp_path)
    with h5py.File(path, "a") as file:
        for demo in file["data"]:
            del file[f"data/{demo}/actions"]
    assert "demo_0 has no vectors `actions`; add --action-free" in refusal(path, UPRIGHT)
    source = open_source(path, replace(UPRIGHT, action_free=True))
    read = source.read(source.items[0])
    assert read.action is None
    assert read.proprio is not None


def test_hdf5_import_of_parts_of_different_length_raises(recorded: Path, tmp_path: Path) -> None:
    path = damaged(recorded, "robomimic", tmp_path)
    with h5py.File(path, "a") as file:
        actions = file["data/demo_1/actions"][:-3]
        del file["data/demo_1/actions"]
        file["data/demo_1/actions"] = actions
    source = open_source(path, UPRIGHT)
    with pytest.raises(
        SourceError,
        match=r"lift.hdf5, demo_1: its parts differ in length \(camera agentview \d+, .* actions \d+\)",
    ):
        source.read(source.items[1])


def test_lerobot_import_omits_episodes_with_a_missing_video(recorded: Path, tmp_path: Path) -> None:
    path = damaged(recorded, "LeRobot v3", tmp_path)
    (path / "videos/observation.images.robot0_eye_in_hand/chunk-000/file-001.mp4").unlink()
    source = open_source(path, ImportOptions())
    assert usable(source) == ["episode_000000", "episode_000001"]
    assert "episode 2: there is no file videos/observation.images.robot0_eye_in_hand" in source.problems[0]
    video = path / "videos/observation.images.robot0_eye_in_hand/chunk-000/file-000.mp4"
    # longer: all three episodes
    shutil.copy(video.parent.parent.parent / "observation.images.agentview/chunk-000/file-000.mp4", video)
    assert source.read(source.items[1]).length == source.items[1].length
    (path / "videos/observation.images.agentview/chunk-000/file-000.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match=r"the video file-000.mp4 cannot be read \("):
        source.read(source.items[1])
    assert usable(open_source(path, ImportOptions())) == []


def test_lerobot_import_of_an_unknown_version_raises(recorded: Path, tmp_path: Path) -> None:
    path = damaged(recorded, "LeRobot v2.1", tmp_path)
    info = json.loads((path / "meta/info.json").read_text())
    (path / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v1.6"}))
    assert "LeRobot v1.6 is not read, only 2.0, 2.1 and 3.0" in refusal(path, ImportOptions())
    (path / "meta/info.json").write_text(json.dumps(info)[:50])
    assert "its metadata cannot be read (JSONDecodeError" in refusal(path, ImportOptions())


def test_zarr_import_of_a_damaged_buffer_names_what_is_missing(recorded: Path, tmp_path: Path) -> None:
    path = damaged(recorded, "zarr", tmp_path)
    assert "say which arrays are the proprioception with --proprio; there are robot0_eef_pos" in refusal(
        path, replace(ZARR, proprio=("state",))
    )
    shutil.rmtree(path / "data/robot0_eef_quat")
    assert "say which arrays are the proprioception" in refusal(path, ZARR)
    assert open_source(path, replace(ZARR, proprio=("robot0_eef_pos",))).contract.proprio == tuple(
        f"robot0_eef_pos_{i}" for i in range(3)
    )
    shutil.rmtree(path / "data/action")
    assert "it has no data/action; name the action with --action, or add --action-free" in refusal(path, ZARR)
    assert open_source(path, replace(ZARR, action_free=True)).contract.action == ()
    shutil.rmtree(path / "meta/episode_ends")
    assert "it is no replay buffer" in refusal(path, ZARR)
