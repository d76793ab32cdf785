"""Import of MCAP recordings: ROS 2 bags and Foxglove."""

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter

from lerobot_datasets import imported, numbered, numbers_of
from mcap_recordings import JOINTS, bag, encoded, foxglove, header, joints, ns, raw, ros2
from orchestrator.data.importers.base import ImportOptions, SourceError, open_source

FREE: dict[str, Any] = {"task": "Lift", "hz": 10.0, "action_free": True}
SAID: dict[str, Any] = {"task": "Lift", "hz": 10.0, "proprio": ("/joint_states",), "action": "/command"}


def only(path: Path, store: Path, **said: Any) -> Any:
    """Import a recording without faults and return its episode."""
    source, episodes, left_out = imported(path, store, **said)
    assert (source.problems, left_out) == ([], [])
    (episode,) = episodes.values()
    return episode


def refused(path: Path, **said: Any) -> str:
    with pytest.raises(SourceError) as error:
        open_source(path, ImportOptions(**said))
    return str(error.value)


@pytest.mark.parametrize("compression", list(CompressionType))
def test_mcap_import_pairs_pictures_with_last_state_and_next_command(
    tmp_path: Path, compression: CompressionType
) -> None:
    bag(tmp_path / "bags/a.mcap", compression=compression)
    bag(tmp_path / "bags/pick/b.mcap", first=50, length=12, compression=compression)
    source, episodes, left_out = imported(tmp_path / "bags", tmp_path / "store", **SAID)
    assert (
        source.format,
        source.contract.cameras,
        source.contract.image_size,
        source.problems,
        left_out,
    ) == ("MCAP", ("top",), (32, 64), [], [])
    assert source.contract.proprio == tuple(f"/joint_states_{joint}" for joint in JOINTS)
    assert [item.episode_id for item in source.items] == ["bags-a", "bags-pick-b"]
    for name, first, length in (("a", 0, 8), ("pick/b", 50, 12)):
        got = episodes[name]
        assert numbers_of(got.frames["top"]) == list(range(first, first + length))
        assert np.allclose(got.proprio[:, 0], np.arange(length) / 10, atol=1e-6)
        assert np.allclose(got.proprio[:, 2], 200 + np.arange(length) / 10)
        assert np.allclose(got.action, np.arange(length)[:, None] + [0, 100, 200])
        assert "moments by header stamp" in got.source


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8", "mono8"])
@pytest.mark.parametrize("padding", [0, 5])
def test_mcap_import_reads_raw_pictures_of_every_encoding_and_row_padding(
    tmp_path: Path, encoding: str, padding: int
) -> None:
    shown = numbered(range(6))
    shown[..., 2] //= 2
    with ros2(tmp_path / "a.mcap") as write:
        for i, picture in enumerate(shown):
            write(
                "/cam/color/image_raw",
                "sensor_msgs/msg/Image",
                raw(picture, i / 10, encoding, padding),
                i / 10,
            )
    source = open_source(tmp_path / "a.mcap", ImportOptions(**FREE))
    assert source.contract.cameras == ("cam",)
    pictures = source.read(source.items[0]).frames["cam"]
    assert np.array_equal(pictures, shown if encoding != "mono8" else np.repeat(shown[..., :1], 3, 3))
    assert np.array_equal(source.first_pictures(source.items[0])["cam"], pictures[0])


@pytest.mark.parametrize(
    ("kind", "form", "swapped"),
    [
        ("JPEG", "jpeg", False),
        ("PNG", "png", False),
        ("JPEG", "rgb8; jpeg compressed bgr8", False),
        ("PNG", "rgb8; png compressed rgb8", True),
    ],
)
def test_mcap_import_reads_compressed_pictures(tmp_path: Path, kind: str, form: str, swapped: bool) -> None:
    shown = numbered(range(6))
    shown[..., 2] //= 4
    with ros2(tmp_path / "a.mcap") as write:
        for i, picture in enumerate(shown):
            data = encoded(np.ascontiguousarray(picture[..., ::-1]) if swapped else picture, kind)
            write(
                "/cam/image_raw/compressed",
                "sensor_msgs/msg/CompressedImage",
                {"header": header(i / 10), "format": form, "data": data},
                i / 10,
            )
    source = open_source(tmp_path / "a.mcap", ImportOptions(**FREE))
    pictures = source.read(source.items[0]).frames["cam"]
    assert np.abs(pictures.astype(int) - shown).mean() < 6


def test_mcap_import_reads_foxglove_protobuf_and_json(tmp_path: Path) -> None:
    said = FREE | {"action_free": False, "action": "/arm:target.joints", "proprio": ("/arm",)}
    got = only(foxglove(tmp_path / "a.mcap"), tmp_path / "store", **said)
    assert numbers_of(got.frames["front"]) == numbers_of(got.frames["wrist"]) == list(range(8))
    assert np.allclose(got.action, np.arange(8)[:, None] * [1, 2.5])
    assert np.allclose(got.proprio, np.column_stack([np.arange(8), 2.5 * np.arange(8), np.full(8, 0.5)]))
    source = open_source(tmp_path / "a.mcap", ImportOptions(**said))
    assert source.contract.proprio == ("/arm_target.joints.0", "/arm_target.joints.1", "/arm_target.gripper")


def test_mcap_import_lists_and_reads_every_vector_type(tmp_path: Path) -> None:
    xyz, quaternion = {"x": 1.0, "y": 2.0, "z": 3.0}, {"x": 0.0, "y": 0.0, "z": 0.0, "w": 1.0}
    pose, twist = {"position": xyz, "orientation": quaternion}, {"linear": xyz, "angular": xyz}
    messages = {
        "/array32": ("std_msgs/msg/Float32MultiArray", {"data": [1.0, 2.0]}),
        "/array64": ("std_msgs/msg/Float64MultiArray", {"data": [1.0, 2.0, 3.0]}),
        "/grip32": ("std_msgs/msg/Float32", {"data": 0.5}),
        "/grip64": ("std_msgs/msg/Float64", {"data": 0.5}),
        "/hand": ("geometry_msgs/msg/Pose", pose),
        "/hand_stamped": ("geometry_msgs/msg/PoseStamped", {"pose": pose}),
        "/joints": ("sensor_msgs/msg/JointState", joints(0, [1, 2, 3])),
        "/twist": ("geometry_msgs/msg/Twist", twist),
        "/twist_stamped": ("geometry_msgs/msg/TwistStamped", {"twist": twist}),
        "/wrench": ("geometry_msgs/msg/WrenchStamped", {"wrench": {"force": xyz, "torque": xyz}}),
    }
    with ros2(tmp_path / "a.mcap") as write:
        for i in range(5):
            write("/note", "std_msgs/msg/String", {"data": "hello"}, i / 10)
            write("/top/image_raw", "sensor_msgs/msg/Image", raw(numbered([i])[0], None), i / 10)
            for topic, (kind, message) in messages.items():
                write(topic, kind, message, i / 10)
    source = open_source(tmp_path / "a.mcap", ImportOptions(task="Lift", hz=10))
    listed = (
        "/array32 (2), /array64 (3), /grip32 (1), /grip64 (1), /hand (7), /hand_stamped (7), /joints (3),"
        " /twist (6), /twist_stamped (6), /wrench (6)"
    )
    assert [question.endswith(listed) for question in source.questions] == [True, True]
    assert "--action" in source.questions[0]
    assert "--proprio" in source.questions[1]
    keys = (*messages, "/joints:velocity", "/hand_stamped:pose.position")
    got = only(tmp_path / "a.mcap", tmp_path / "store", **FREE, proprio=keys)
    assert np.allclose(got.proprio[0, -6:], [0.1, 0.2, 0.3, 1, 2, 3])
    assert "moments by log time" in got.source
    names = open_source(tmp_path / "a.mcap", ImportOptions(**FREE, proprio=keys)).contract.proprio
    assert {
        "/grip32",
        "/array32_1",
        "/hand_position.x",
        "/joints_elbow",
        "/joints:velocity_wrist",
        "/hand_stamped:pose.position_z",
    } <= set(names)
    assert len(names) == got.proprio.shape[1]


def test_mcap_import_without_actions_needs_cameras_only(tmp_path: Path) -> None:
    got = only(bag(tmp_path / "a.mcap"), tmp_path / "store", **FREE)
    assert (got.action, got.proprio, numbers_of(got.frames["top"])) == (None, None, list(range(8)))
    resampled = only(tmp_path / "a.mcap", tmp_path / "slower", **FREE, resample_hz=5.0)
    assert numbers_of(resampled.frames["top"]) == [0, 2, 4, 6]


# -- moments -------------------------------------------------------------------------------------------------


def test_mcap_import_of_jittering_cameras_keeps_their_pictures(tmp_path: Path) -> None:
    random.seed(0)
    with ros2(tmp_path / "a.mcap") as write:
        for i in range(200):
            second = i / 9.95 + random.uniform(-0.02, 0.02)
            write("/top/image_raw", "sensor_msgs/msg/Image", raw(numbered([i])[0], second), second)
    got = only(tmp_path / "a.mcap", tmp_path / "store", **FREE)
    numbers = numbers_of(got.frames["top"])
    assert np.abs(np.asarray(numbers) / 9.95 - np.arange(len(numbers)) / 10).max() < 0.09
    assert len(numbers) >= 198


def test_mcap_import_refuses_a_dropped_picture_with_its_time(tmp_path: Path) -> None:
    with ros2(tmp_path / "a.mcap") as write:
        for i in (0, 1, 2, 3, 6, 7):
            write("/top/image_raw", "sensor_msgs/msg/Image", raw(numbered([i])[0], i / 10), i / 10)
    said = (
        "a.mcap, a: no picture of /top/image_raw at second 0.400: the nearest is 0.100 s away, in a gap of"
        " 0.300 s; half a step is 0.050 s"
    )
    assert said in refused(tmp_path / "a.mcap", **FREE)


def test_mcap_import_prefers_header_stamps_unless_clocks_differ(tmp_path: Path) -> None:
    """The log times lag by half a second that varies, so that pictures would be uneven by them."""
    random.seed(1)

    def record(path: Path, off_s: float, stamped: bool) -> Path:
        with ros2(path) as write:
            for i in range(12):
                late = i / 10 + random.uniform(0.3, 0.34)
                write("/top/image_raw", "sensor_msgs/msg/Image", raw(numbered([i])[0], i / 10), late)
                write(
                    "/joint_states",
                    "sensor_msgs/msg/JointState",
                    joints(i / 10 + off_s if stamped or i else None, [i, 0, 0]),
                    late + 0.001,
                )
        return path

    said = FREE | {"proprio": ("/joint_states",)}
    by_stamp = only(record(tmp_path / "a.mcap", 0.0, True), tmp_path / "a", **said)
    assert "moments by header stamp" in by_stamp.source
    assert by_stamp.proprio[:, 0].tolist() == list(range(12)), (
        "by the log, every state comes after its picture"
    )
    for name, off_s, stamped in (("another clock", 7.0, True), ("one stamp is missing", 0.0, False)):
        by_log = only(record(tmp_path / f"{name}.mcap", off_s, stamped), tmp_path / name, **said)
        assert "moments by log time" in by_log.source, name
        assert (by_log.proprio[:, 0] <= numbers_of(by_log.frames["top"])).all(), "no state from the future"


def test_mcap_import_refuses_header_stamps_that_go_back(tmp_path: Path) -> None:
    with ros2(tmp_path / "a.mcap") as write:
        for i, stamp in enumerate([0.0, 0.1, 0.2, 0.15, 0.4]):
            write("/top/image_raw", "sensor_msgs/msg/Image", raw(numbered([i])[0], stamp), i / 10)
    assert "the header stamps of /top/image_raw go back by 0.050 s at its message 3" in refused(
        tmp_path / "a.mcap", **FREE
    )


def test_mcap_import_holds_states_and_commands_up_to_a_limit(tmp_path: Path) -> None:
    """The state is the last one; the command is the first within the step, else the last one, unless it is
    overdue.
    """

    def record(path: Path, commands: list[float]) -> Path:
        with ros2(path) as write:
            for i in range(10):
                write("/top/image_raw", "sensor_msgs/msg/Image", raw(numbered([i])[0], None), i / 10)
            for second in commands:
                write("/grip", "std_msgs/msg/Float64", {"data": second}, second)
        return path

    said = SAID | {"proprio": ("/grip",), "action": "/grip"}
    got = only(
        record(tmp_path / "a.mcap", [0.0, 0.13, 0.17, 0.25, 0.41, 0.5, 0.62]), tmp_path / "store", **said
    )
    assert np.allclose(got.proprio[:, 0], [0, 0, 0.17, 0.25, 0.25, 0.5, 0.5])
    assert np.allclose(got.action[:, 0], [0, 0.13, 0.25, 0.25, 0.41, 0.5, 0.62])
    overdue = refused(record(tmp_path / "b.mcap", [0.0, 0.1, 0.2, 0.3, 0.8, 0.9]), **said)
    assert "no message of /grip for 0.300 s before second 0.600; usually one comes every 0.100 s" in overdue
    apart = refused(record(tmp_path / "c.mcap", [3.0, 3.1]), **said)
    assert "its topics have no moment in common" in apart
    thinned = record(tmp_path / "d.mcap", [i / 20 for i in range(20)])
    assert "/grip does not have one message per step" in refused(thinned, **said, deltas=True)
    assert open_source(thinned, ImportOptions(**said)).problems == []


def test_mcap_import_reorders_joints_and_refuses_other_joints(tmp_path: Path) -> None:
    orders = {
        "a": [JOINTS, JOINTS[::-1]],
        "b": [JOINTS[::-1], JOINTS],
        "c": [("x", "y", "z")] * 2,
        "d": [JOINTS, ("x", "y", "z")],
    }
    for name, names in orders.items():
        with ros2(tmp_path / f"bags/{name}.mcap") as write:
            for i in range(6):
                write("/top/image_raw", "sensor_msgs/msg/Image", raw(numbered([i])[0], i / 10), i / 10)
                values = dict(zip(JOINTS, (i, 10 + i, 20 + i), strict=True))
                order = names[i % 2]
                write(
                    "/joint_states",
                    "sensor_msgs/msg/JointState",
                    joints(i / 10, [values.get(n, 0) for n in order], order),
                    i / 10,
                )
    source, episodes, _ = imported(tmp_path / "bags", tmp_path / "store", **FREE, proprio=("/joint_states",))
    assert sorted(episodes) == ["a", "b"]
    for got in episodes.values():
        assert np.array_equal(got.proprio, np.arange(6)[:, None] + [0, 10, 20])
    assert (
        "bags, d: message 1 of /joint_states: its values are x, y, z, those before shoulder, elbow, wrist;"
        " left out" in source.problems
    )
    assert any(problem.startswith("bags, c: its values are /joint_states_x") for problem in source.problems)


# -- cameras and topics --------------------------------------------------------------------------------------


def test_mcap_import_skips_depth_and_video_topics_by_name(tmp_path: Path) -> None:
    depth = encoded(np.zeros((32, 64), np.uint16), "PNG")
    with ros2(tmp_path / "a.mcap") as write:
        for i in range(4):
            write("/top/image_raw", "sensor_msgs/msg/Image", raw(numbered([i])[0], i / 10), i / 10)
            write("/depth/image_raw", "sensor_msgs/msg/Image", raw(numbered([i])[0], i / 10, "16UC1"), i / 10)
            write(
                "/film",
                "foxglove_msgs/msg/CompressedVideo",
                {"timestamp": header(i / 10)["stamp"], "format": "h264", "data": b"0"},
                i / 10,
            )
            for topic, form in (("/far", "16UC1; png compressed"), ("/deep", "png")):
                write(
                    topic,
                    "sensor_msgs/msg/CompressedImage",
                    {"header": header(i / 10), "format": form, "data": depth},
                    i / 10,
                )
    source, episodes, _ = imported(tmp_path / "a.mcap", tmp_path / "store", **FREE)
    assert list(episodes["a"].frames) == ["top"]
    assert sorted(problem.split(":")[0] for problem in source.problems) == [
        f"a.mcap, {t}" for t in ("/deep", "/depth/image_raw", "/far", "/film")
    ]
    assert "a.mcap, /depth/image_raw: pictures in 16UC1 are not read; passed over" in source.problems
    assert open_source(tmp_path / "a.mcap", ImportOptions(**FREE, cameras={"top": "front"})).problems == []
    assert "there is no camera depth; --cameras can choose from top" in refused(
        tmp_path / "a.mcap", **FREE, cameras={"depth": "depth"}
    )


def test_mcap_import_distinguishes_two_topics_of_one_camera(tmp_path: Path) -> None:
    with ros2(tmp_path / "a.mcap") as write:
        for i in range(4):
            write("/top/image_raw", "sensor_msgs/msg/Image", raw(numbered([i])[0], i / 10), i / 10)
            data = encoded(numbered([i + 50])[0], "PNG")
            write(
                "/top/image_raw/compressed",
                "sensor_msgs/msg/CompressedImage",
                {"header": header(i / 10), "format": "png", "data": data},
                i / 10,
            )
    both = refused(tmp_path / "a.mcap", **FREE)
    assert (
        "/top/image_raw and /top/image_raw/compressed would both be camera top; choose with --cameras"
        " /top/image_raw=top" in both
    )
    chosen = {"/top/image_raw/compressed": "/top/image_raw/compressed", "/top/image_raw": "plain"}
    got = only(tmp_path / "a.mcap", tmp_path / "store", **FREE, cameras=chosen)
    assert {name: numbers_of(pictures)[0] for name, pictures in got.frames.items()} == {"top": 50, "plain": 0}


def test_mcap_import_answers_wrong_names_with_the_available_ones(tmp_path: Path) -> None:
    path = bag(tmp_path / "a.mcap")
    assert "there is no vector /comand; there are /command, /joint_states" in refused(
        path, **SAID | {"action": "/comand"}
    )
    assert "message 0 of /command: it has no field torque" in refused(
        path, **SAID | {"action": "/command:torque"}
    )
    assert "there is no vector /top/image_raw" in refused(path, **SAID | {"action": "/top/image_raw"})
    assert "there is no camera left; --cameras can choose from top" in refused(
        path, **FREE, cameras={"left": "left"}
    )
    assert "say it with --hz" in refused(path, task="Lift", action_free=True)
    assert "--mask, --arm-only, --picture-range cannot be applied to MCAP" in refused(
        path, **SAID, mask="m", arm_only=True, picture_range="0..1"
    )
    assert "too few for 50 steps per second" in refused(path, **FREE | {"hz": 50.0})
    assert (
        "MCAP does not name a task" in open_source(path, ImportOptions(hz=10, action_free=True)).questions[0]
    )


def test_mcap_import_without_the_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bag(tmp_path / "a.mcap")
    monkeypatch.setitem(sys.modules, "mcap", None)
    assert "pip install 'demoscale[mcap]'" in refused(path, **FREE)


# -- files ---------------------------------------------------------------------------------------------------


def rosbag2(root: Path, files: list[str], **more: Any) -> Path:
    """Write metadata.yaml as JSON, which is valid YAML."""
    (root / "metadata.yaml").write_text(
        json.dumps({"rosbag2_bagfile_information": {"version": 9, "relative_file_paths": files, **more}})
    )
    return root


def split(root: Path) -> Path:
    """Write a rosbag2 folder of two files whose names are not in the order of their times."""
    for name, numbers in (("z_0.mcap", range(5)), ("a_1.mcap", range(5, 9))):
        with ros2(root / name) as write:
            for i in numbers:
                write("/top/image_raw", "sensor_msgs/msg/Image", raw(numbered([i])[0], i / 10), i / 10)
    return rosbag2(root, ["z_0.mcap", "a_1.mcap"], compression_mode="")


def test_mcap_import_joins_the_files_of_a_rosbag2_folder(tmp_path: Path) -> None:
    split(tmp_path / "bags/take")
    bag(tmp_path / "bags/take.mcap", first=30)
    _, episodes, left_out = imported(tmp_path / "bags", tmp_path / "store", **FREE)
    assert left_out == []
    assert {name: numbers_of(got.frames["top"]) for name, got in episodes.items()} == {
        "take": list(range(9)),
        "take.mcap": list(range(30, 38)),
    }
    assert numbers_of(only(tmp_path / "bags/take", tmp_path / "one", **FREE).frames["top"]) == list(range(9))


@pytest.mark.parametrize(
    ("files", "more", "said"),
    [
        (["z_0.mcap"], {}, "metadata.yaml names the files z_0.mcap, there are a_1.mcap, z_0.mcap"),
        (
            ["z_0.mcap", "a_1.mcap", "a_1.mcap"],
            {},
            "metadata.yaml names the files a_1.mcap, a_1.mcap, z_0.mcap",
        ),
        (["z_0.mcap", "../a_1.mcap"], {}, "which is not inside its folder"),
        (["z_0.mcap", "a_1.mcap"], {"compression_mode": "MESSAGE"}, "compressed by rosbag2 (mode MESSAGE)"),
    ],
)
def test_mcap_import_refuses_a_rosbag2_folder_against_its_metadata(
    tmp_path: Path, files: list[str], more: dict[str, Any], said: str
) -> None:
    split(tmp_path / "take")
    assert said in refused(rosbag2(tmp_path / "take", files, **more), **FREE)


def test_mcap_import_omits_cut_damaged_and_ros1_recordings(tmp_path: Path) -> None:
    root = tmp_path / "bags"
    for name in "abcde":
        bag(root / f"{name}.mcap", chunk_size=8192)
    data = (root / "b.mcap").read_bytes()
    (root / "b.mcap").write_bytes(data[: len(data) // 2])
    flipped = bytearray(data)
    flipped[len(data) // 3] ^= 4
    (root / "c.mcap").write_bytes(bytes(flipped))
    (root / "d.mcap").write_bytes(b"no recording")
    with (root / "e.mcap").open("wb") as stream:
        writer = McapWriter(stream)
        writer.start("ros1")
        channel = writer.register_channel(
            "/top/image_raw", "ros1", writer.register_schema("sensor_msgs/Image", "ros1msg", b"uint8[] data")
        )
        writer.add_message(channel, ns(0), b"", ns(0))
        writer.finish()
    source, episodes, _ = imported(root, tmp_path / "store", **SAID)
    assert list(episodes) == ["a"]
    b, c, d, e = source.problems
    assert (
        "bags, b: b.mcap was cut: its end is missing; copy it again, or repair it with `mcap recover b.mcap"
        " -o NEW.mcap`; left out" in b
    )
    assert c.startswith("bags, c: c.mcap is damaged (")
    assert "bags, d: d.mcap is no MCAP file; left out" in d
    assert "bags, e: it is a ROS 1 recording" in e


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"height": 1 << 30, "width": 1 << 30, "step": 3 << 30}, "does not have 6144 bytes"),
        ({"height": 31}, "a picture of 31x64 pixels in rgb8 with rows of 192 bytes does not have 6144 bytes"),
        ({"step": 100}, "with rows of 100 bytes"),
        ({"encoding": "16UC1"}, "message 3 of /top/image_raw: pictures in 16UC1 are not read"),
        (
            {"height": 64, "width": 32, "step": 96},
            "the pictures of /top/image_raw change their size, from 32x64 to 64x32",
        ),
    ],
)
def test_mcap_import_refuses_a_picture_against_its_header(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    with ros2(tmp_path / "a.mcap") as write:
        for i in range(5):
            write(
                "/top/image_raw",
                "sensor_msgs/msg/Image",
                raw(numbered([i])[0], i / 10) | (changed if i == 3 else {}),
                i / 10,
            )
    assert said in refused(tmp_path / "a.mcap", **FREE)


def test_mcap_import_refuses_a_truncated_compressed_picture(tmp_path: Path) -> None:
    for kind in ("JPEG", "PNG"):
        with ros2(tmp_path / f"{kind}.mcap") as write:
            for i in range(5):
                data = encoded(numbered([i])[0], kind)
                message = {
                    "header": header(i / 10),
                    "format": kind.lower(),
                    "data": data[: len(data) // 2 if i == 3 else None],
                }
                write("/top/image_raw", "sensor_msgs/msg/CompressedImage", message, i / 10)
        assert "is cut short" in refused(tmp_path / f"{kind}.mcap", **FREE)


def test_mcap_import_refuses_a_recording_that_changed_since_it_was_opened(tmp_path: Path) -> None:
    source = open_source(bag(tmp_path / "a.mcap"), ImportOptions(**SAID))
    bag(tmp_path / "a.mcap", first=20)
    with pytest.raises(ValueError, match="has changed since it was opened"):
        source.read(source.items[0])


def test_mcap_content_digest_depends_on_content_and_settings(tmp_path: Path) -> None:
    def content(path: Path, **said: Any) -> str:
        return open_source(path, ImportOptions(**(SAID | said))).items[0].origin.rpartition("content ")[2]

    first = content(bag(tmp_path / "a.mcap"))
    assert content(bag(tmp_path / "b.mcap", compression=CompressionType.NONE)) == first
    others = [
        content(bag(tmp_path / "c.mcap", first=1)),
        content(tmp_path / "a.mcap", hz=5.0),
        content(tmp_path / "a.mcap", action="/joint_states"),
    ]
    assert len({first, *others}) == 4


def test_mcap_flipped_bits_are_detected_or_harmless(tmp_path: Path) -> None:
    whole = bag(tmp_path / "a.mcap", chunk_size=16384).read_bytes()
    source = open_source(tmp_path / "a.mcap", ImportOptions(**SAID))
    right = source.read(source.items[0])
    chance = random.Random(2)
    noticed = 0
    for _ in range(150):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        (tmp_path / "a.mcap").write_bytes(bytes(data))
        try:
            source = open_source(tmp_path / "a.mcap", ImportOptions(**SAID))
        except SourceError:
            noticed += 1
            continue
        (item,) = source.items
        got = source.read(item)
        assert np.array_equal(got.frames["top"], right.frames["top"])
        assert np.array_equal(got.action, right.action)
        assert np.array_equal(got.proprio, right.proprio)
    assert noticed > 75
