"""Import of HDF5 files of unknown origin: the common form is imported, other demonstrations are omitted by
name, and no other file is read.
"""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from orchestrator.data.importers import hdf5_arrays
from orchestrator.data.importers.base import ImportOptions, Source, SourceError, open_source
from policy.interface import Contract
from sim_workers.envs.robosuite import ACTION, PROPRIO, PROPRIO_KEYS

SIZE = 16
LENGTHS = (3, 4, 5)
CONTROLLER = {"type": "OSC_POSE", "input_max": 1, "control_delta": True, "output_max": [0.05] * 3 + [0.5] * 3}
KWARGS = {"robots": ["Panda"], "control_freq": 20, "controller_configs": CONTROLLER}
ARGS = {"env_name": "Lift", "env_version": "1.4.1", "type": 1, "env_kwargs": KWARGS}
UPRIGHT = ImportOptions(images="upright")


def pictures(length: int, demo: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(demo).integers(0, 256, (length, size, size, 3), np.uint8)


def recording(path: Path, args: Any = ARGS, lengths: tuple[int, ...] = LENGTHS) -> Path:
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["env_args"] = args if isinstance(args, str) else json.dumps(args)
        for i, length in enumerate(lengths):
            demo = file.create_group(f"data/demo_{i}")
            demo["actions"] = np.random.default_rng(i).uniform(-1, 1, (length, 7))
            demo["rewards"] = np.eye(length)[-1]
            demo["obs/agentview_image"] = pictures(length, i)
            for key, width in zip(PROPRIO_KEYS, (3, 4, 2), strict=True):
                demo[f"obs/{key}"] = np.random.default_rng(i).normal(size=(length, width))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return recording(tmp_path / "lift.hdf5")


def changed(path: Path, name: str, values: Any, **options: Any) -> None:
    """Replace a dataset by `values`, or by what a function makes there."""
    with h5py.File(path, "a") as file:
        if name in file:
            del file[name]
        if values is None:
            file.create_dataset(name, **options)
        elif isinstance(values, (h5py.ExternalLink, h5py.SoftLink)):
            file[name] = values
        else:
            file.create_dataset(name, data=values, **options)


def taken(source: Source) -> list[str]:
    return [item.name for item in source.items if not item.problem]


def said(path: Path, reading: ImportOptions = UPRIGHT) -> str:
    with pytest.raises(SourceError) as error:
        open_source(path, reading)
    assert type(error.value) is SourceError
    return str(error.value)


# -- one demonstration unlike the others ---------------------------------------------------------------------

UNLIKE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a short vector": (
        "demo_1",
        lambda p: changed(p, "data/demo_1/obs/robot0_eef_pos", np.zeros((3, 3))),
        "its parts differ in length",
    ),
    "the first has another gripper": (
        "demo_0",
        lambda p: changed(p, "data/demo_0/obs/robot0_gripper_qpos", np.zeros((3, 6))),
        "its vectors have another width (robot0_gripper_qpos 6, most 2)",
    ),
    "the first has more actions": (
        "demo_0",
        lambda p: changed(p, "data/demo_0/actions", np.zeros((3, 8))),
        "it has no actions of 7 dimensions",
    ),
    "the first has larger pictures": (
        "demo_0",
        lambda p: changed(p, "data/demo_0/obs/agentview_image", pictures(3, 0, 32)),
        "its pictures have another size (agentview 32x32, most 16x16)",
    ),
    "actions that are not numbers": (
        "demo_2",
        lambda p: changed(p, "data/demo_2/actions", np.full((5, 7), np.nan)),
        "a value of its actions is not a number (row 0)",
    ),
    "actions that are words": (
        "demo_1",
        lambda p: changed(p, "data/demo_1/actions", [[b"left"]] * 4),
        "it has no actions of 7 dimensions",
    ),
    "pictures never written": (
        "demo_1",
        lambda p: changed(
            p,
            "data/demo_1/obs/agentview_image",
            None,
            shape=(4, SIZE, SIZE, 3),
            dtype="u1",
            chunks=(1, SIZE, SIZE, 3),
        ),
        "of its agentview_image only 0 of 4 chunks were ever written",
    ),
    "actions never written": (
        "demo_1",
        lambda p: changed(p, "data/demo_1/actions", None, shape=(4, 7), dtype="f4"),
        "of its actions nothing was ever written",
    ),
    "a link to a file": (
        "demo_1",
        lambda p: changed(p, "data/demo_1/obs/agentview_image", h5py.ExternalLink("other.hdf5", "/x")),
        "its agentview_image is a link into another file (other.hdf5)",
    ),
    "a demonstration in another file": (
        "demo_1",
        lambda p: changed(p, "data/demo_1", h5py.ExternalLink("other.hdf5", "/x")),
        "its demo_1 is a link into another file (other.hdf5)",
    ),
    "a link behind a link": (
        "demo_1",
        lambda p: (
            changed(p, "elsewhere", h5py.ExternalLink("other.hdf5", "/x")),  # type: ignore[func-returns-value]
            changed(p, "data/demo_1/actions", h5py.SoftLink("/elsewhere/actions")),  # type: ignore[func-returns-value]
        )[-1],
        "its elsewhere is a link into another file (other.hdf5)",
    ),
    "a link in a circle": (
        "demo_1",
        lambda p: changed(p, "data/demo_1/actions", h5py.SoftLink("actions")),
        "leads in a circle",
    ),
    "a link to nothing": (
        "demo_1",
        lambda p: changed(p, "data/demo_1/obs", h5py.SoftLink("/gone")),
        "its link obs leads to /gone, which is not",
    ),
    "bytes of another file": (
        "demo_1",
        lambda p: changed(
            p, "data/demo_1/states", None, shape=(4, 7), dtype="f4", external=[("/etc/hostname", 0, 112)]
        ),
        "the data of its states are in another file (/etc/hostname)",
    ),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_hdf5_import_omits_a_demonstration_unlike_the_others_by_name(name: str, path: Path) -> None:
    demo, change, sentence = UNLIKE[name]
    change(path)
    source = open_source(path, UPRIGHT)
    assert len(source.problems) == 1
    assert source.problems[0].startswith(f"lift.hdf5, {demo}: ")
    assert sentence in source.problems[0]
    assert source.problems[0].endswith("; left out")
    assert taken(source) == [f"demo_{i}" for i in range(3) if f"demo_{i}" != demo]
    unusable = next(item for item in source.items if item.name == demo)
    assert unusable.problem == source.problems[0]
    with pytest.raises(SourceError, match=demo):
        source.read(unusable)
    assert all(source.read(item).length == item.length for item in source.items if not item.problem)


def test_hdf5_import_omits_a_virtual_dataset(path: Path) -> None:
    layout = h5py.VirtualLayout((4, 7), "f4")
    layout[:] = h5py.VirtualSource("other.hdf5", "x", (4, 7))
    with h5py.File(path, "a") as file:
        del file["data/demo_1/actions"]
        file.create_virtual_dataset("data/demo_1/actions", layout)
    assert (
        "the data of its actions are put together from other datasets"
        in open_source(path, UPRIGHT).problems[0]
    )


def test_hdf5_import_follows_soft_links_within_the_file(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.move("data/demo_1/actions", "kept/actions")
        file["data/demo_1/actions"] = h5py.SoftLink("/kept/actions")
    source = open_source(path, UPRIGHT)
    assert taken(source) == ["demo_0", "demo_1", "demo_2"]
    assert source.read(source.items[1]).action is not None


def test_hdf5_import_refuses_external_links(path: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "linked.hdf5", "w") as file:
        file["data"], file["mask"] = (
            h5py.ExternalLink(str(path), "/data"),
            h5py.ExternalLink(str(path), "/mask"),
        )
    assert "its data is a link into another file" in said(tmp_path / "linked.hdf5")
    changed(path, "mask", h5py.ExternalLink("other.hdf5", "/mask"))
    assert taken(open_source(path, UPRIGHT))
    assert "its mask is a link into another file" in said(path, ImportOptions(images="upright", mask="train"))


def test_hdf5_import_bounds_announced_sizes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.data.importers.items.MOST_BYTES", 4 * SIZE * SIZE * 3)
    assert "would take" in open_source(path, UPRIGHT).problems[0]
    monkeypatch.undo()
    monkeypatch.setattr(hdf5_arrays, "MOST_VECTOR_BYTES", 4 * 7 * 8)
    assert [problem.partition(" take")[0] for problem in open_source(path, UPRIGHT).problems] == [
        "lift.hdf5, demo_2: the data of its actions"
    ]


def test_hdf5_import_names_a_filter_that_is_not_installed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(path, "data/demo_1/actions", np.zeros((4, 7)), compression="gzip")
    available = h5py.h5z.filter_avail
    monkeypatch.setattr(
        h5py.h5z, "filter_avail", lambda code: code != h5py.h5z.FILTER_DEFLATE and available(code)
    )
    monkeypatch.setitem(hdf5_arrays.FILTERS, h5py.h5z.FILTER_DEFLATE, "blosc")
    problem = open_source(path, UPRIGHT).problems[0]
    assert (
        "demo_1: the data of its actions are compressed with blosc (HDF5 filter 1), which is not installed"
        " here; run `pip install hdf5plugin`" in problem
    )


# -- what else is in a file ----------------------------------------------------------------------------------


def test_hdf5_import_skips_unrelated_groups_and_datasets(path: Path) -> None:
    changed(path, "data/total_frames", 7)
    changed(path, "data/statistics/mean", np.zeros(7))
    changed(path, "data/demo_0/obs/datagen_info/object_pose/cube_1", np.zeros((3, 4, 4)))
    changed(path, "data/broken", h5py.SoftLink("/gone"))
    source = open_source(path, UPRIGHT)
    assert taken(source) == ["demo_0", "demo_1", "demo_2"]
    assert source.problems == [
        "lift.hdf5, broken: its link broken leads to /gone, which is not there; left out"
    ]


def test_hdf5_import_omits_a_demonstration_with_more_rows_than_it_says(path: Path) -> None:
    with h5py.File(path, "a") as file:
        for i, said in enumerate((3, 3, 6)):  # 6: the attribute of a demonstration that was cut later
            file[f"data/demo_{i}"].attrs["num_samples"] = said
    source = open_source(path, UPRIGHT)
    assert taken(source) == ["demo_0", "demo_2"]
    assert source.problems == [
        "lift.hdf5, demo_1: its attribute num_samples says 3 steps, 4 are there; correct it, or cut the rest;"
        " left out"
    ]


def test_hdf5_import_takes_success_from_isaac_labs_attribute_without_rewards(path: Path) -> None:
    before = [item.origin for item in open_source(path, UPRIGHT).items]
    with h5py.File(path, "a") as file:
        for i, said in enumerate((True, False)):
            del file[f"data/demo_{i}/rewards"]
            file[f"data/demo_{i}"].attrs["success"] = said
        file["data/demo_2"].attrs["success"] = False  # its rewards say success
    source = open_source(path, UPRIGHT)
    assert [source.read(item).success for item in source.items] == [True, False, True]
    assert source.items[2].origin == before[2]


def test_hdf5_import_of_a_mask_without_names_raises(path: Path) -> None:
    changed(path, "mask/train", np.array([0, 1]))
    assert "its mask train lists none of its demonstrations" in said(path, replace(UPRIGHT, mask="train"))


def test_hdf5_import_reports_pictures_of_other_channels(path: Path) -> None:
    for i, length in enumerate(LENGTHS):
        changed(path, f"data/demo_{i}/obs/wrist_rgba", np.zeros((length, SIZE, SIZE, 4), np.uint8))
    assert open_source(path, UPRIGHT).problems == [
        "lift.hdf5: obs/wrist_rgba has pictures of 4 channels, and only those of 3 are read; write it with 3,"
        " or choose others with --cameras; passed over"
    ]
    assert not open_source(path, replace(UPRIGHT, cameras={"agentview": "agentview"})).problems


def test_hdf5_import_reports_files_in_folders_below(path: Path, tmp_path: Path) -> None:
    (tmp_path / "ph").mkdir()
    below = recording(tmp_path / "ph/image.hdf5")
    assert open_source(tmp_path, UPRIGHT).problems == [
        f"{tmp_path.name}: files in folders below it are not read (ph/image.hdf5); import those folders too; left"
        " out"
    ]
    path.unlink()
    assert said(tmp_path).endswith(f"is {below} meant?")


def test_hdf5_import_of_a_folder_named_like_a_file_raises(tmp_path: Path) -> None:
    (tmp_path / "lift.hdf5").mkdir()
    assert "it is a folder without HDF5 files" in said(tmp_path / "lift.hdf5")


def test_hdf5_import_reports_mask_entries_that_do_not_exist(path: Path, tmp_path: Path) -> None:
    changed(path, "mask/train", np.array([b"demo_0", b"demo_9"]))
    source = open_source(path, ImportOptions(images="upright", mask="train"))
    assert taken(source) == ["demo_0"]
    assert source.problems == [
        "lift.hdf5, demo_9: the mask train lists it, but it is not in the file; left out"
    ]
    changed(path, "mask/group/x", 1)
    assert "its mask group is no list of names" in said(path, ImportOptions(images="upright", mask="group"))


@pytest.mark.parametrize(
    "args",
    [
        "{",
        "[1]",
        "7",
        '{"env_kwargs": 3, "env_name": [1]}',
        "[" * 50_000,
        '{"env_kwargs": {"control_freq": "x", "robots": 3}}',
    ],
)
def test_hdf5_import_treats_invalid_attributes_as_missing(args: str, tmp_path: Path) -> None:
    path = recording(tmp_path / "odd.hdf5", args)
    with h5py.File(path, "a") as file:
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": [1, 2]})
        file["data/demo_0"].attrs["ep_meta"] = np.zeros(3)
    assert "say it with --hz" in said(path)
    source = open_source(path, ImportOptions(images="upright", hz=20))
    assert source.questions == ["odd.hdf5: it does not say in words what is done; say it with --instruction"]
    assert source.contract.action == tuple(f"action_{i}" for i in range(7))


def test_hdf5_import_joins_libero_words_into_a_sentence(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": ["put", "the", "cup\r\n"]})
    assert {item.instruction for item in open_source(path, UPRIGHT).items} == {"put the cup"}


def test_hdf5_import_computes_the_rate_of_isaac_lab(tmp_path: Path) -> None:
    args = {"env_name": "Isaac-Stack", "type": 2, "sim_args": {"dt": 0.01, "decimation": 5}}
    contract = open_source(recording(tmp_path / "isaac.hdf5", args), UPRIGHT).contract
    assert (contract.control_hz, contract.simulator) == (20, "unknown")
    args["sim_args"] = {"dt": 0, "decimation": 5}
    assert "say it with --hz" in said(recording(tmp_path / "isaac.hdf5", args))


# -- actions -------------------------------------------------------------------------------------------------


def test_hdf5_import_does_not_take_poses_for_displacements(path: Path) -> None:
    assert open_source(path, UPRIGHT).contract.action == ACTION
    # the gripper's value is no displacement
    changed(path, "data/demo_1/actions", np.tile([0, 0, 0, 0, 0, 0, 9.0], (4, 1)))
    assert open_source(path, UPRIGHT).contract.action == ACTION
    changed(path, "data/demo_1/actions", np.tile([0.1, 0, 1.02, 2.2, 2.2, 0, -1], (4, 1)))
    source = open_source(path, UPRIGHT)
    assert source.questions[0].startswith("lift.hdf5: its actions reach 2.2, but displacements")
    assert source.contract.action == tuple(f"action_{i}" for i in range(7))
    assert open_source(path, ImportOptions(images="upright", deltas=True)).contract.action == ACTION
    assert (
        open_source(path, ImportOptions(images="upright", deltas=False))
        .contract.action[0]
        .startswith("eef_absolute")
    )


def test_hdf5_import_looks_at_the_controller_of_the_arm_that_moves(tmp_path: Path) -> None:
    for kind, named in (("delta", ACTION), ("absolute", tuple(f"action_{i}" for i in range(7)))):
        arm = {"type": "OSC_POSE", "output_max": [0.05] * 3 + [0.5] * 3}
        parts = {"right": {**arm, "input_type": kind}, "left": {**arm, "input_type": "delta"}}
        kwargs = KWARGS | {"controller_configs": {"type": "BASIC", "body_parts": parts}}
        path = recording(tmp_path / f"{kind}.hdf5", ARGS | {"env_kwargs": kwargs})
        assert open_source(path, UPRIGHT).contract.action == named


def test_hdf5_import_accepts_another_dataset_as_action(path: Path) -> None:
    for i, length in enumerate(LENGTHS):
        changed(path, f"data/demo_{i}/actions_abs", np.full((length, 7), 2.0))
    source = open_source(path, ImportOptions(images="upright", action="actions_abs"))
    assert source.contract.action == tuple(f"action_{i}" for i in range(7))
    action = source.read(source.items[0]).action
    assert action is not None
    assert (action == 2).all()
    assert "there are no vectors poses; --action can choose from actions, actions_abs" in said(
        path, ImportOptions(images="upright", action="poses")
    )
    assert (
        open_source(path, ImportOptions(images="upright", action="actions_abs", panda=True)).contract.action
        == ACTION
    )


def test_hdf5_import_arm_only_omits_demonstrations_with_a_moving_base(tmp_path: Path) -> None:
    path = recording(tmp_path / "kitchen.hdf5", {**ARGS, "env_kwargs": {**KWARGS, "robots": ["PandaMobile"]}})
    for i, length in enumerate(LENGTHS):
        changed(
            path,
            f"data/demo_{i}/actions",
            np.pad(np.full((length, 7), 0.5), ((0, 0), (0, 5)), constant_values=0.1 * (i == 1)),
        )
    whole, arm = open_source(path, UPRIGHT), open_source(path, ImportOptions(images="upright", arm_only=True))
    assert (len(whole.contract.action), whole.contract.action[:7]) == (12, ACTION)
    assert arm.contract.action == ACTION
    assert arm.problems == ["kitchen.hdf5, demo_1: the base moves, which --arm-only cannot express; left out"]
    assert [source.read(source.items[0]).action.shape for source in (whole, arm)] == [(3, 12), (3, 7)]  # type: ignore[union-attr]
    changed(path, "data/demo_0/actions", np.full((3, 12), 1.5))
    assert "its actions reach 1.5" in open_source(path, UPRIGHT).questions[0]


def test_hdf5_import_converts_libero_orientation_to_quaternions(path: Path) -> None:
    angle = np.array([0.5, 1.0, 3.0])
    for i, length in enumerate(LENGTHS):
        turn = np.zeros((length, 3))
        turn[:3, 1] = angle
        with h5py.File(path, "a") as file:
            obs = file[f"data/demo_{i}/obs"]
            obs["ee_ori"] = turn
            for new, old in (("ee_pos", PROPRIO_KEYS[0]), ("gripper_states", PROPRIO_KEYS[2])):
                obs.move(old, new)
            del obs[PROPRIO_KEYS[1]]
    source = open_source(path, UPRIGHT)
    assert source.contract.proprio == PROPRIO
    proprio = source.read(source.items[0]).proprio
    assert proprio is not None
    assert np.allclose(proprio[:, [4, 6]], np.stack([np.sin(angle / 2), np.cos(angle / 2)], 1))
    assert open_source(path, ImportOptions(images="upright", proprio=("ee_ori",))).contract.proprio == (
        "ee_ori_0",
        "ee_ori_1",
        "ee_ori_2",
    )


# -- pictures ------------------------------------------------------------------------------------------------

STORED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "channels first": lambda x: x.transpose(0, 3, 1, 2),
    "0..1": lambda x: (x / 255).astype(np.float32),
    "-1..1": lambda x: (x / 127.5 - 1).astype(np.float64),
    "0..255 floats": lambda x: x.astype(np.float32),
    "uint16": lambda x: x.astype(np.uint16) * 257,
    "0..1, channels first": lambda x: (x / 255).astype(np.float32).transpose(0, 3, 1, 2),
}


@pytest.mark.parametrize("name", STORED)
def test_hdf5_import_reads_pictures_of_every_number_format(name: str, path: Path) -> None:
    for i, length in enumerate(LENGTHS):
        changed(path, f"data/demo_{i}/obs/agentview_image", STORED[name](pictures(length, i)))
    source: Source = pickle.loads(pickle.dumps(open_source(path, UPRIGHT)))
    assert not source.problems
    assert not source.questions
    for i, item in enumerate(source.items):
        assert np.array_equal(source.read(item).frames["agentview"], pictures(LENGTHS[i], i))
        assert np.array_equal(source.first_pictures(item)["agentview"], pictures(LENGTHS[i], i)[0])


def test_hdf5_import_decides_the_picture_range_over_all_pictures(path: Path) -> None:
    for i, length in enumerate(LENGTHS):
        # the first is dark
        changed(
            path, f"data/demo_{i}/obs/agentview_image", (pictures(length, i) * (i > 0)).astype(np.float32)
        )
    changed(path, "data/demo_2/obs/agentview_image", np.full((5, SIZE, SIZE, 3), np.nan, np.float32))
    source = open_source(path, UPRIGHT)
    assert source.problems == ["lift.hdf5, demo_2: its pictures hold a value that is not a number; left out"]
    assert np.array_equal(source.read(source.items[1]).frames["agentview"], pictures(4, 1))
    changed(path, "data/demo_2/obs/agentview_image", np.full((5, SIZE, SIZE, 3), 700, np.float32))
    assert (
        "its pictures are float32 from 0 to 700; say what black and white are with --picture-range"
        in open_source(path, UPRIGHT).questions[0]
    )
    source = open_source(path, ImportOptions(images="upright", picture_range="0..1"))
    assert not source.questions
    assert source.read(source.items[1]).frames["agentview"].max() == 255


def test_hdf5_import_decides_the_picture_range_of_each_camera(path: Path) -> None:
    for i, length in enumerate(LENGTHS):
        changed(path, f"data/demo_{i}/obs/agentview_image", pictures(length, i).astype(np.float32))
        changed(path, f"data/demo_{i}/obs/wrist_image", (pictures(length, i) / 255).astype(np.float32))
    source = open_source(path, UPRIGHT)
    for camera in ("agentview", "wrist"):
        assert np.array_equal(source.read(source.items[1]).frames[camera], pictures(4, 1))


def test_hdf5_import_asks_which_bits_of_wide_numbers_are_used(path: Path) -> None:
    for i, length in enumerate(LENGTHS):
        changed(path, f"data/demo_{i}/obs/agentview_image", pictures(length, i).astype(np.uint16) * 16)
    assert "its pictures are uint16 from 0 to 4080; say what black" in open_source(path, UPRIGHT).questions[0]
    source = open_source(path, ImportOptions(images="upright", picture_range="0..4095"))
    shown = source.read(source.items[0]).frames["agentview"].astype(int)
    assert np.abs(shown - pictures(3, 0)).max() <= 1


def test_hdf5_import_with_a_picture_range_for_bytes_raises(path: Path) -> None:
    assert "cannot be applied to pictures that are bytes" in said(
        path, replace(UPRIGHT, picture_range="0..1")
    )


def test_hdf5_import_of_files_with_different_picture_ranges_raises(tmp_path: Path) -> None:
    for name, factor in (("a", 1), ("b", 255)):
        path = recording(tmp_path / f"{name}.hdf5")
        for i, length in enumerate(LENGTHS):
            changed(
                path,
                f"data/demo_{i}/obs/agentview_image",
                (pictures(length, i) / 255 * factor).astype(np.float32),
            )
    assert "range over 0..255, those of a.hdf5 over 0..1" in said(tmp_path)


# -- folders -------------------------------------------------------------------------------------------------


def test_hdf5_import_of_a_folder_omits_unreadable_files(path: Path, tmp_path: Path) -> None:
    (tmp_path / "pointer.h5").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "cut.h5").write_bytes(path.read_bytes()[:1000])
    recording(tmp_path / "lift.h5")
    source = open_source(tmp_path, ImportOptions(images="upright", label="x"))
    assert {item.name.rpartition("-")[0] for item in source.items} == {"lift-h5", "lift-hdf5"}
    assert "it cannot be read as HDF5" in source.problems[0]
    assert "it is a git-LFS pointer" in source.problems[1]


# -- identity ------------------------------------------------------------------------------------------------


def test_hdf5_content_digest_depends_on_content_and_settings(path: Path, tmp_path: Path) -> None:
    def noted(where: Path, **chosen: Any) -> str:
        return (
            open_source(where, ImportOptions(**{"images": "upright", **chosen}))
            .items[1]
            .origin.rpartition("content ")[2]
        )

    first = noted(path)
    assert noted(recording(tmp_path / "renamed.hdf5"), label="other") == first
    choices: list[dict[str, Any]] = [
        {"images": "rotated"},
        {"task": "x"},
        {"image_size": (8, 8)},
        {"cameras": {"agentview": "a"}},
    ]
    assert len({first, *(noted(path, **chosen) for chosen in choices)}) == 5
    changed(path, "data/demo_1/obs/agentview_image", pictures(4, 7))
    assert noted(path) != first


# -- exports of a store --------------------------------------------------------------------------------------


def test_hdf5_import_of_an_export_needs_no_questions(tmp_path: Path) -> None:
    path = recording(tmp_path / "mine.hdf5", args="{}")
    contract = Contract(
        ("agentview",),
        (SIZE, SIZE),
        "default",
        PROPRIO[:7],
        tuple(f"joint_{i}" for i in range(7)),
        12.5,
        "robosuite 9",
    )
    with h5py.File(path, "a") as file:
        file["data"].attrs["demoscale.contract"] = json.dumps(contract.to_json())
        file["data"].attrs["demoscale.proprio_keys"] = json.dumps(PROPRIO_KEYS[:2])
        for i in range(3):
            file[f"data/demo_{i}"].attrs.update(
                {"demoscale.task": f"task {i}", "demoscale.instruction": f"do {i}"}
            )
        file["data/demo_0"].attrs["demoscale.success"] = False
        del file["data/demo_2/actions"]
    source = open_source(path, ImportOptions())
    assert not source.questions
    assert not source.problems
    assert source.contract == contract
    assert [(item.task, item.instruction, item.labelled) for item in source.items] == [
        (f"task {i}", f"do {i}", i < 2) for i in range(3)
    ]
    assert [source.read(item).success for item in source.items] == [False, None, None]
    assert source.read(source.items[2]).action is None
    assert open_source(path, ImportOptions(render_profile="imported")).contract.render_profile == "imported"
    assert {item.task for item in open_source(path, ImportOptions(task="x")).items} == {"x"}
    with h5py.File(path, "a") as file:
        file["data"].attrs["demoscale.contract"] = json.dumps({"cameras": 3})
    assert "say it with --hz" in said(path)
