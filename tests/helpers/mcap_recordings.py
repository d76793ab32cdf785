"""MCAP recordings written by the format's own packages."""

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import DESCRIPTOR as TIMESTAMP
from mcap.writer import Writer as McapWriter
from mcap_ros2.writer import Writer
from PIL import Image

from lerobot_datasets import numbered

RULE = "\n" + "=" * 80 + "\n"
STAMPED = f"""{RULE}MSG: std_msgs/Header
builtin_interfaces/Time stamp
string frame_id
{RULE}MSG: builtin_interfaces/Time
int32 sec
uint32 nanosec
"""
POINT = "MSG: geometry_msgs/Point\nfloat64 x\nfloat64 y\nfloat64 z\n"
VECTOR3 = "MSG: geometry_msgs/Vector3\nfloat64 x\nfloat64 y\nfloat64 z\n"
QUATERNION = "MSG: geometry_msgs/Quaternion\nfloat64 x 0\nfloat64 y 0\nfloat64 z 0\nfloat64 w 1\n"
LAYOUT = (
    f"std_msgs/MultiArrayLayout layout\n{{}}[] data\n{RULE}MSG:"
    f" std_msgs/MultiArrayLayout\nstd_msgs/MultiArrayDimension[] dim\nuint32 data_offset\n{RULE}MSG:"
    " std_msgs/MultiArrayDimension\nstring label\nuint32 size\nuint32 stride\n"
)
POSE = f"geometry_msgs/Point position\ngeometry_msgs/Quaternion orientation\n{RULE}{POINT}{RULE}{QUATERNION}"
TWIST = "geometry_msgs/Vector3  linear\ngeometry_msgs/Vector3  angular\n"
DEFINITIONS = {
    "sensor_msgs/msg/Image": (
        "std_msgs/Header header\nuint32 height\nuint32 width\nstring encoding\nuint8 is_bigendian\nuint32"
        " step\nuint8[] data\n" + STAMPED
    ),
    "sensor_msgs/msg/CompressedImage": "std_msgs/Header header\nstring format\nuint8[] data\n" + STAMPED,
    "sensor_msgs/msg/JointState": (
        "std_msgs/Header header\n\nstring[] name\nfloat64[] position\nfloat64[] velocity\nfloat64[] effort\n"
        + STAMPED
    ),
    "std_msgs/msg/Float64MultiArray": LAYOUT.format("float64"),
    "std_msgs/msg/Float32MultiArray": LAYOUT.format("float32"),
    "std_msgs/msg/Float32": "float32 data\n",
    "std_msgs/msg/Float64": "float64 data\n",
    "std_msgs/msg/String": "string data\n",
    "geometry_msgs/msg/Pose": POSE,
    "geometry_msgs/msg/PoseStamped": (
        f"std_msgs/Header header\nPose pose\n{STAMPED}{RULE}MSG: geometry_msgs/Pose\n{POSE}"
    ),
    "geometry_msgs/msg/Twist": f"{TWIST}{RULE}{VECTOR3}",
    "geometry_msgs/msg/TwistStamped": (
        f"std_msgs/Header header\nTwist twist\n{STAMPED}{RULE}MSG:"
        f" geometry_msgs/Twist\n{TWIST}{RULE}{VECTOR3}"
    ),
    "geometry_msgs/msg/WrenchStamped": (
        "std_msgs/Header header\nWrench wrench\n"
        f"{STAMPED}{RULE}MSG: geometry_msgs/Wrench\nVector3  force\nVector3  torque\n{RULE}{VECTOR3}"
    ),
    "foxglove_msgs/msg/CompressedVideo": (
        "builtin_interfaces/Time timestamp\nstring frame_id\nuint8[] data\nstring format\n"
        f"{RULE}MSG: builtin_interfaces/Time\nint32 sec\nuint32 nanosec\n"
    ),
}
"""The definitions of the message types as ROS 2 stores them in bags, without comments."""
START = 1_700_000_000 * 10**9
"""Nanoseconds since 1970 of second 0."""
JOINTS = ("shoulder", "elbow", "wrist")


def ns(second: float) -> int:
    return START + round(second * 1e9)


def header(second: float | None) -> dict[str, Any]:
    """Return a message header; None: without a stamp."""
    moment = 0 if second is None else ns(second)
    return {"stamp": {"sec": moment // 10**9, "nanosec": moment % 10**9}, "frame_id": "base"}


@contextmanager
def ros2(path: Path, **options: Any) -> Iterator[Callable[..., None]]:
    """Write a bag: yields write(topic, type, message, second of the log)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        writer = Writer(file, **options)
        schemas: dict[str, Any] = {}

        def write(topic: str, kind: str, message: dict[str, Any], second: float) -> None:
            if kind not in schemas:
                schemas[kind] = writer.register_msgdef(kind, DEFINITIONS[kind])
            writer.write_message(topic, schemas[kind], message, log_time=ns(second), publish_time=ns(second))

        yield write
        writer.finish()


def raw(
    picture: np.ndarray, second: float | None, encoding: str = "rgb8", padding: int = 0
) -> dict[str, Any]:
    """Return a sensor_msgs/Image of an RGB picture."""
    height, width = picture.shape[:2]
    opaque = np.full((height, width, 1), 255, np.uint8)
    pixels = {
        "rgb8": picture,
        "bgr8": picture[..., ::-1],
        "rgba8": np.concatenate([picture, opaque], 2),
        "bgra8": np.concatenate([picture[..., ::-1], opaque], 2),
        "mono8": picture[..., :1],
        "16UC1": np.repeat(picture[..., :1], 2, 2),
    }[encoding]
    rows = np.pad(np.ascontiguousarray(pixels).reshape(height, -1), ((0, 0), (0, padding)), constant_values=7)
    facts = {
        "height": height,
        "width": width,
        "encoding": encoding,
        "is_bigendian": 0,
        "step": rows.shape[1],
        "data": rows.tobytes(),
    }
    return {"header": header(second), **facts}


def encoded(picture: np.ndarray, kind: str) -> bytes:
    """Return a PNG or JPEG file."""
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


def joints(second: float | None, values: Sequence[float], names: Sequence[str] = JOINTS) -> dict[str, Any]:
    return {
        "header": header(second),
        "name": list(names),
        "position": list(values),
        "velocity": [v / 10 for v in values],
        "effort": [],
    }


def bag(path: Path, length: int = 8, first: int = 0, hz: float = 10, **options: Any) -> Path:
    """Write a recording of one camera, joint states at ten times its rate and a command 20 ms after every
    picture.

    The state is its time in seconds, the command of picture i is i, both 100 higher per joint. One more
    command precedes the first picture.
    """
    with ros2(path, **options) as write:
        write("/command", "sensor_msgs/msg/JointState", joints(0.02 - 1 / hz, [-1, 99, 199]), 0.0205 - 1 / hz)
        for i in range(length):
            second = i / hz
            write(
                "/top/image_raw",
                "sensor_msgs/msg/Image",
                raw(numbered([first + i])[0], second),
                second + 0.001,
            )
            for k in range(10):
                moment = second + k / hz / 10
                write(
                    "/joint_states",
                    "sensor_msgs/msg/JointState",
                    joints(moment, [moment, 100 + moment, 200 + moment]),
                    moment + 0.0005,
                )
            write(
                "/command",
                "sensor_msgs/msg/JointState",
                joints(second + 0.02, [i, 100 + i, 200 + i]),
                second + 0.0205,
            )
    return path


def foxglove(path: Path, length: int = 8) -> Path:
    """Write a recording as Foxglove's SDK does: pictures in Protobuf, JPEG in JSON, a command in JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = (
        ("timestamp", 1, 11),
        ("frame_id", 2, 9),
        ("width", 3, 7),
        ("height", 4, 7),
        ("encoding", 5, 9),
        ("step", 6, 7),
        ("data", 7, 12),
    )
    described = FileDescriptorProto(
        name="foxglove/RawImage.proto", package="foxglove", syntax="proto3", dependency=[TIMESTAMP.name]
    )
    message = described.message_type.add(name="RawImage")
    for name, number, kind in facts:
        one = FieldDescriptorProto.LABEL_OPTIONAL
        message.field.add(
            name=name,
            number=number,
            type=kind,
            label=one,
            type_name=".google.protobuf.Timestamp" if kind == 11 else None,
        )
    files = FileDescriptorSet()
    TIMESTAMP.CopyToProto(files.file.add())
    files.file.append(described)
    pool = DescriptorPool()
    for file in files.file:
        pool.Add(file)
    make = GetMessageClass(pool.FindMessageTypeByName("foxglove.RawImage"))
    with path.open("wb") as stream:
        writer = McapWriter(stream)
        writer.start()
        schema = writer.register_schema("foxglove.RawImage", "protobuf", files.SerializeToString())
        jpeg = writer.register_schema("foxglove.CompressedImage", "jsonschema", b"{}")
        channels = {
            "/front/image": writer.register_channel("/front/image", "protobuf", schema),
            "/wrist/image": writer.register_channel("/wrist/image", "json", jpeg),
            "/arm": writer.register_channel("/arm", "json", 0),
        }
        for i in range(length):
            picture, moment = numbered([i])[0], ns(i / 10)
            stamp = {"sec": moment // 10**9, "nsec": moment % 10**9}
            height, width = picture.shape[:2]
            shown = make(width=width, height=height, encoding="rgb8", step=3 * width, data=picture.tobytes())
            shown.timestamp.seconds, shown.timestamp.nanos = stamp["sec"], stamp["nsec"]
            compressed = {
                "timestamp": stamp,
                "format": "jpeg",
                "data": base64.b64encode(encoded(picture, "JPEG")).decode(),
            }
            arm = {
                "timestamp": stamp,
                "mode": "servo",
                "target": {"joints": [i, 2.5 * i], "gripper": 0.5},
                "on": True,
            }
            for topic, data in (
                ("/front/image", shown.SerializeToString()),
                ("/wrist/image", json.dumps(compressed).encode()),
                ("/arm", json.dumps(arm).encode()),
            ):
                writer.add_message(channels[topic], moment, data, moment)
        writer.finish()
    return path
