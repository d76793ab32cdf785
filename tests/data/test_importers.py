"""Importers: a real episode laid out in each format is read back the same."""

import pickle
import re
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CHECKOUT

import dataset_layouts
import robosuite_recordings
from dataset_layouts import LAYOUTS, UPRIGHT, opened, psnr, refusal, usable, written
from orchestrator.data.importers.base import ImportOptions, Source, kept_frames, open_source
from orchestrator.data.importers.image_ops import film, turned
from robosuite_recordings import CAMERAS, HZ, INSTRUCTION
from sim_workers.envs.libero import libero_contract
from sim_workers.envs.robosuite import ACTION, PROPRIO

pytestmark = pytest.mark.sim  # the recordings are robosuite's own


# -- one episode in every layout -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_importers_read_the_same_episodes_from_every_layout(name: str, recorded: Path) -> None:
    layout, episodes = LAYOUTS[name], robosuite_recordings.load(recorded)
    # as a worker on another machine gets it
    source: Source = pickle.loads(pickle.dumps(opened(recorded, name)))
    assert len(source.items) == len(episodes)
    assert len({len(episode.action) for episode in episodes}) == len(episodes), (
        "equal lengths would hide a mixed-up episode"
    )
    assert not source.problems
    assert not source.questions
    assert (source.contract.cameras, source.contract.image_size, source.contract.control_hz) == (
        CAMERAS,
        (64, 64),
        HZ,
    )
    for item, meant in reversed(list(zip(source.items, episodes, strict=True))):
        read = source.read(item)
        assert (read.task, read.length) == (item.task, item.length) == ("Lift", len(meant.action))
        assert read.instruction.startswith(INSTRUCTION)
        for camera in CAMERAS:
            quality = psnr(read.frames[camera], meant.frames[camera])
            assert quality == float("inf") if layout.exact else quality > 35, camera
        if name == "films":
            assert read.action is None
            assert read.proprio is None
            continue
        assert read.action is not None
        assert read.proprio is not None
        assert np.array_equal(read.action[:, :7], meant.action.astype(np.float32))
        if layout.proprio:
            assert np.array_equal(read.proprio, meant.proprio.astype(np.float32))


def test_robomimic_import_has_the_conventions_of_the_simulator(recorded: Path) -> None:
    source = opened(recorded, "robomimic")
    assert (source.contract.action, source.contract.proprio) == (ACTION, PROPRIO)
    assert source.contract.simulator.startswith("robosuite 1.5.2, mujoco unknown")
    assert source.contract.render_profile == "imported"
    assert source.read(source.items[0]).success is True


def test_robomimic_import_of_another_controller_has_generic_action_names(
    recorded: Path, tmp_path: Path
) -> None:
    episodes = robosuite_recordings.load(recorded)
    controller = {"type": "OSC_POSE", "control_delta": True, "output_max": [0.1] * 6, "input_max": 1}
    path = dataset_layouts.robomimic(
        recorded, tmp_path / "lift.hdf5", episodes, controller_configs=controller
    )
    assert open_source(path, UPRIGHT).contract.action == tuple(f"action_{i}" for i in range(7))
    old = {"type": "OSC_POSE", "control_delta": True, "output_max": [0.05] * 3 + [0.5] * 3, "input_max": 1}
    path = dataset_layouts.robomimic(recorded, tmp_path / "old.hdf5", episodes, controller_configs=old)
    assert open_source(path, UPRIGHT).contract.action == ACTION


def test_panda_option_gives_the_names_of_the_simulator(recorded: Path) -> None:
    contract = opened(recorded, "LeRobot v3", panda=True).contract
    assert (contract.action, contract.proprio) == (ACTION, PROPRIO)
    reading = replace(LAYOUTS["LIBERO"].reading, panda=True, proprio=("ee_pos",))
    assert "--panda means 7 action dimensions and 9 values of proprioception, here are 7 and 3" in refusal(
        written(recorded, "LIBERO"), reading
    )


def test_libero_import_has_the_proprioception_of_the_simulator(recorded: Path) -> None:
    """LIBERO's recorder converts the quaternion into axis times angle; the import restores the quaternion
    with the same sign.
    """
    source = opened(recorded, "LIBERO")
    assert (source.contract.action, source.contract.proprio) == (ACTION, PROPRIO)
    for item, meant in zip(source.items, robosuite_recordings.load(recorded), strict=True):
        read = source.read(item).proprio
        assert read is not None
        assert np.abs(read - meant.proprio).max() < 1e-6


@pytest.mark.libero
def test_libero_import_matches_the_contract_of_libero(recorded: Path) -> None:
    """Import as jobs/libero10.yaml says."""
    offered = libero_contract(("robot0_eye_in_hand", "agentview"), (256, 256), "default")
    cameras = {"eye_in_hand": "robot0_eye_in_hand", "agentview": "agentview"}
    said: dict[str, Any] = {
        "images": "upside-down",
        "cameras": cameras,
        "image_size": (256, 256),
        "panda": True,
    }
    reading = ImportOptions(**said, render_profile="default", simulator=offered.simulator)
    assert open_source(written(recorded, "LIBERO"), reading).contract.mismatches(offered) == []
    assert f'--simulator "{offered.simulator}"' in (CHECKOUT / "jobs" / "libero10.yaml").read_text()


def test_imported_episode_source_names_origin_and_orientation(recorded: Path) -> None:
    source = opened(recorded, "robomimic upside-down", image_size=(32, 48))
    read = source.read(source.items[1])
    assert re.fullmatch(
        r"lift.hdf5, demo_1; stored upside-down, turned upright; scaled from 64x64; content [0-9a-f]{12}",
        read.source,
    )
    assert read.frames[CAMERAS[0]].shape[1:] == (32, 48, 3)


def test_robocasa_import_has_instructions_and_base_actions(recorded: Path) -> None:
    source = opened(recorded, "RoboCasa")
    assert [item.instruction for item in source.items] == [f"{INSTRUCTION} number {i}" for i in range(3)]
    assert source.contract.action[:7] == ACTION
    assert source.contract.action[11] == "base_mode_minus1_arm_plus1_base"
    arm = opened(recorded, "RoboCasa", arm_only=True)
    assert arm.contract.action == ACTION
    assert usable(arm) == ["demo_0", "demo_1"]
    assert arm.problems == ["lift.hdf5, demo_2: the base moves, which --arm-only cannot express; left out"]
    assert "--arm-only is for RoboCasa's 12 action dimensions" in refusal(
        written(recorded, "robomimic"), replace(UPRIGHT, arm_only=True)
    )


def test_hdf5_import_of_a_folder_with_a_mask(recorded: Path, tmp_path: Path) -> None:
    for name in ("lift_a", "lift_b"):
        shutil.copy(written(recorded, "robomimic"), tmp_path / f"{name}.hdf5")
    source = open_source(tmp_path, replace(UPRIGHT, label="lift", mask="train"))
    assert [item.episode_id for item in source.items] == [
        f"lift-{file}-demo_{i}" for file in ("lift_a", "lift_b") for i in (0, 1)
    ]
    assert source.read(source.items[3]).length == len(robosuite_recordings.load(recorded)[1].action)
    dataset_layouts.robomimic(
        recorded, tmp_path / "lift_c.hdf5", robosuite_recordings.load(recorded), control_freq=10
    )
    assert "lift_c.hdf5: its control hz is 10.0, that of lift_a.hdf5 20.0; import them one by one" in refusal(
        tmp_path, UPRIGHT
    )


def test_upside_down_pictures_are_flipped_and_rotated_ones_turned(recorded: Path, tmp_path: Path) -> None:
    first = robosuite_recordings.load(recorded)[0].frames[CAMERAS[0]]
    assert np.array_equal(turned(first, "upside-down"), first[:, ::-1])
    assert np.array_equal(turned(first, "rotated"), first[:, ::-1, ::-1])
    data = bytearray(dataset_layouts.film(tmp_path / "phone.mp4", first).read_bytes())
    matrix = data.index(b"tkhd") + 44  # a phone held upright writes: show this turned a quarter clockwise
    data[matrix : matrix + 20] = struct.pack(">5i", 0, 1 << 16, 0, -1 << 16, 0)
    (tmp_path / "phone.mp4").write_bytes(data)
    assert psnr(film(tmp_path / "phone.mp4"), np.rot90(first, -1, (1, 2))) > 35


# -- rate and size -------------------------------------------------------------------------------------------


def test_kept_frames_are_the_nearest() -> None:
    assert kept_frames(7, 30, 20).tolist() == [0, 2, 3, 4, 6]
    assert kept_frames(7, 30, 10).tolist() == [0, 3, 6]
    assert kept_frames(3, 10, 20).tolist() == [0, 0, 1, 2, 2]
    assert kept_frames(5, 20, 20).tolist() == [0, 1, 2, 3, 4]


def test_import_at_another_rate_raises_or_resamples_action_free_episodes(recorded: Path) -> None:
    path, reading = written(recorded, "robomimic"), replace(UPRIGHT, resample_hz=10)
    assert "episodes with actions are not resampled from 20 to 10 per second" in refusal(path, reading)
    free = open_source(path, replace(reading, action_free=True))
    whole = open_source(path, UPRIGHT)
    read, all_of_it = free.read(free.items[0]), whole.read(whole.items[0])
    assert np.array_equal(read.frames[CAMERAS[0]], all_of_it.frames[CAMERAS[0]][::2])
    assert read.action is None
    assert "; resampled from 20 per second; content " in read.source
    assert "it was recorded at 20 steps per second, not 10" in refusal(path, replace(UPRIGHT, hz=10))


def test_film_import_of_different_rates_sizes_and_lengths_raises(recorded: Path, tmp_path: Path) -> None:
    pictures = robosuite_recordings.load(recorded)[0].frames[CAMERAS[0]]
    reading = ImportOptions(cameras={"agentview": "agentview"}, task="Lift")
    dataset_layouts.film(tmp_path / "a.mp4", pictures, hz=20)
    dataset_layouts.film(tmp_path / "b.mp4", pictures, hz=30)
    assert (
        "the films differ in frames per second (a 20, b 30); choose one rate with --resample-hz"
        in refusal(tmp_path, reading)
    )
    source = open_source(tmp_path, replace(reading, resample_hz=10))
    assert [item.length for item in source.items] == [
        (len(pictures) - 1) // 2 + 1,
        (len(pictures) - 1) // 3 + 1,
    ]
    assert [source.read(item).length for item in source.items] == [item.length for item in source.items]
    dataset_layouts.film(tmp_path / "b.mp4", pictures[:, :32, :48])
    assert "differ in size (a 64x64, b 32x48); choose one with --image-size" in refusal(tmp_path, reading)
    (tmp_path / "b.mp4").write_bytes(b"no film")
    assert open_source(tmp_path, reading).problems == [
        f"{tmp_path.name}, b: the video b.mp4 cannot be read (InvalidDataError); left out"
    ]
    dataset_layouts.film(tmp_path / "c.left.mp4", pictures)
    dataset_layouts.film(tmp_path / "c.right.mp4", pictures[:5])
    (tmp_path / "a.mp4").unlink()
    (tmp_path / "b.mp4").unlink()
    assert "c: its cameras' films differ in length or rate; left out" in refusal(
        tmp_path, ImportOptions(task="Lift")
    )
