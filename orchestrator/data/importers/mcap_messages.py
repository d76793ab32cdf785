"""Reader of MCAP files: checked records, and numbers and pictures of messages (CDR of ROS 2, Protobuf
pictures of Foxglove, JSON).
"""

import base64
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
from PIL import Image

from orchestrator.data.importers.base import ImportOptions
from orchestrator.data.importers.image_ops import (
    JPEG,
    MOST_PIXELS,
    PNG,
    Numbers,
    Pictures,
    image,
    refuse_cut,
)
from orchestrator.data.importers.source_files import cause, refuse_pointer

MAGIC = b"\x89MCAP0\r\n"
CHANNELS = {
    "rgb8": (3, [0, 1, 2]),
    "bgr8": (3, [2, 1, 0]),
    "rgba8": (4, [0, 1, 2]),
    "bgra8": (4, [2, 1, 0]),
    "mono8": (1, [0, 0, 0]),
}
"""Encoding of a raw picture -> (bytes per pixel, positions of red, green and blue)."""
DEPTH = re.compile(r"(16|32|64)[USF]|mono16", re.IGNORECASE)
"""Start of a compressed picture's format where image_transport encoded more than 8 bits."""
KINDS = {
    "sensor_msgs/Image": ("raw", ""),
    "foxglove.RawImage": ("raw", ""),
    "sensor_msgs/CompressedImage": ("compressed", ""),
    "foxglove.CompressedImage": ("compressed", ""),
    "foxglove.CompressedVideo": ("video", ""),
    "sensor_msgs/JointState": ("joints", "position"),
    **dict.fromkeys(
        ("std_msgs/Float32", "std_msgs/Float64", "std_msgs/Float32MultiArray", "std_msgs/Float64MultiArray"),
        ("vector", "data"),
    ),
    **dict.fromkeys(("geometry_msgs/Pose", "geometry_msgs/Twist"), ("vector", "")),
    "geometry_msgs/PoseStamped": ("vector", "pose"),
    "geometry_msgs/TwistStamped": ("vector", "twist"),
    "geometry_msgs/WrenchStamped": ("vector", "wrench"),
}
"""Message type -> (kind of its messages, default field)."""
CAMERA_KINDS = ("raw", "compressed", "video")
NO_VALUES = ("header", "timestamp", "stamp", "layout")
"""Fields of a message that are metadata, not values."""
STREAMS = {
    "image",
    "image_raw",
    "image_color",
    "image_rect",
    "image_rect_color",
    "image_rect_raw",
    "compressed",
    "color",
    "rgb",
}
"""Last parts of a topic that do not distinguish cameras."""
MOST_RECORD_BYTES = 1 << 30
"""Maximum bytes of one record of a file, and of one decompressed chunk."""


@dataclass
class TopicSeries:
    """M messages of a topic, in the order of their log times."""

    topic: str
    kind: str
    names: tuple[str, ...] = ()
    """Names of the D values of a vector: its joints, `position.x`, numbers."""
    fault: str = ""
    """Reason why the topic cannot be used; empty if it can."""
    rows: list[tuple[int, int, tuple[float, ...]]] = field(default_factory=list)
    """Messages in the order of the files, until `pack`: log time and header stamp (0: none) in ns; checksum,
    height and width, or values.
    """
    order: Numbers = field(init=False)
    """(M,) index of each message in the order of the files."""
    logged: Numbers = field(init=False)
    """(M,) log times in ns."""
    stamped: Numbers = field(init=False)
    """(M,) header stamps in ns; 0 where a message has none."""
    values: npt.NDArray[Any] = field(init=False)
    """(M, 3) int64 of (checksum, height, width), or (M, D) float32 values."""

    def pack(self) -> None:
        """Convert the rows to arrays."""
        logged, stamped, values = zip(*self.rows, strict=True)
        self.order = np.argsort(np.asarray(logged, np.int64), kind="stable")
        self.logged, self.stamped = (np.asarray(column, np.int64)[self.order] for column in (logged, stamped))
        with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, which is refused
            self.values = np.asarray(values, np.int64 if self.kind in CAMERA_KINDS else np.float32).reshape(
                len(logged), -1
            )[self.order]
        self.rows = []


# -- files ---------------------------------------------------------------------------------------------------


def _messages(file: Path) -> Iterator[tuple[Any, Any, Any]]:
    """Yield schema (or None), channel and message, in the order of the file. Raises ValueError if the file is
    cut or damaged.
    """
    from mcap.records import Channel, Chunk, Message, Schema, Statistics
    from mcap.stream_reader import StreamReader, breakup_chunk

    refuse_pointer(file)
    with file.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise ValueError(f"{file.name} is no MCAP file")
        stream.seek(-len(MAGIC), 2)
        if stream.read(len(MAGIC)) != MAGIC:
            raise ValueError(
                f"{file.name} was cut: its end is missing; copy it again, or repair it with `mcap recover"
                f" {file.name} -o NEW.mcap`"
            )
        stream.seek(0)
        schemas, channels, count, announced = {0: None}, {}, 0, None
        try:
            for record in StreamReader(
                stream, emit_chunks=True, validate_crcs=True, record_size_limit=MOST_RECORD_BYTES
            ).records:
                for part in (
                    breakup_chunk(_unpacked(record), validate_crc=True)
                    if isinstance(record, Chunk)
                    else [record]
                ):
                    if isinstance(part, Schema):
                        schemas[part.id] = part
                    elif isinstance(part, Channel):
                        channels[part.id] = part
                    elif isinstance(part, Statistics):
                        announced = part.message_count
                    elif isinstance(part, Message):
                        count += 1
                        channel = channels[part.channel_id]
                        yield schemas[channel.schema_id], channel, part
        except Exception as error:
            raise ValueError(
                f"{file.name} is damaged ({type(error).__name__}: {error}); copy it again"
            ) from None
        if announced not in (None, count):
            raise ValueError(
                f"{file.name} is damaged: it holds {count} messages and announces {announced}; copy it again"
            )


def _unpacked(chunk: Any) -> Any:
    """Decompress a chunk. Raises ValueError if its size differs from the announced one, or exceeds
    MOST_RECORD_BYTES.
    """
    import lz4.frame
    import zstandard

    size = chunk.uncompressed_size
    if size > MOST_RECORD_BYTES:
        raise ValueError(f"a chunk of {size >> 30} GiB is announced")
    if chunk.compression == "zstd":
        data = zstandard.ZstdDecompressor().stream_reader(chunk.data).read(size + 1)
    elif chunk.compression == "lz4":
        data = lz4.frame.LZ4FrameDecompressor().decompress(chunk.data, max_length=size + 1)
    else:
        data = chunk.data
    if len(data) != size:
        raise ValueError(f"a chunk of {size} bytes is announced, and it has {len(data)}")
    return replace(chunk, compression="", data=data)


# -- messages ------------------------------------------------------------------------------------------------


def _kind(schema: Any, channel: Any) -> tuple[str, str]:
    """Return the kind of a channel's messages and their default field, ('', '') for unsupported types. Raises
    ValueError for ROS 1.
    """
    if channel.message_encoding == "ros1" or (schema and schema.encoding == "ros1msg"):
        raise ValueError("it is a ROS 1 recording; convert it to a ROS 2 bag")
    name = schema.name.replace("/msg/", "/").replace("foxglove_msgs/", "foxglove.") if schema else ""
    return KINDS.get(name, ("vector", "") if channel.message_encoding == "json" else ("", ""))


def _decoder(schema: Any, channel: Any) -> Callable[[bytes], Any]:
    """Return the function that decodes a message's bytes to an object with its fields. Raises ValueError for
    an unsupported encoding.
    """
    from mcap_protobuf.decoder import DecoderFactory as Protobuf
    from mcap_ros2.decoder import DecoderFactory as Ros2

    if channel.message_encoding == "json":
        return lambda data: json.loads(data, object_hook=lambda values: SimpleNamespace(**values))
    for factory in (Ros2(), Protobuf()):
        decode: Callable[[bytes], Any] | None = factory.decoder_for(channel.message_encoding, schema)
        if decode is not None:
            return decode
    raise ValueError(
        f"messages in {channel.message_encoding} with a schema in {schema.encoding} are not read"
    )


def scan(files: list[Path], reading: ImportOptions) -> dict[str, TopicSeries]:
    """Return the series of a recording, per topic and per TOPIC:FIELD that the reading names; of other topics
    only one message.

    Raises ValueError if a file is damaged, or a message of a chosen topic cannot be decoded.
    """
    found: dict[str, TopicSeries] = {}
    for file in files:
        wanted: dict[int, list[tuple[TopicSeries, str, bool]]] = {}
        decoders: dict[int, Callable[[bytes], Any]] = {}
        for schema, channel, message in _messages(file):
            if channel.id not in wanted:
                wanted[channel.id] = list(_wanted(schema, channel, found, reading))
            decoded = None
            for series, path, needed in wanted[channel.id]:
                if series.fault or (series.rows and not needed):
                    continue
                try:
                    if channel.id not in decoders:
                        decoders[channel.id] = _decoder(schema, channel)
                    decoded = decoded or decoders[channel.id](message.data)
                    if (
                        series.kind in CAMERA_KINDS
                        and not series.rows
                        and (fault := _no_picture(series.kind, decoded))
                    ):
                        series.fault = fault
                        continue
                    values = (
                        _facts(series.kind, decoded)
                        if series.kind in CAMERA_KINDS
                        else _vector(series, decoded, path)
                    )
                    series.rows.append((message.log_time, _stamp(decoded), values))
                except Exception as error:
                    if needed:
                        raise ValueError(
                            f"message {len(series.rows)} of {series.topic}: {cause(error)}"
                        ) from None
                    series.fault = cause(error)
    for series in found.values():
        if not series.fault:
            series.pack()
    return found


def _wanted(
    schema: Any, channel: Any, found: dict[str, TopicSeries], reading: ImportOptions
) -> Iterator[tuple[TopicSeries, str, bool]]:
    """Yield (series, field that it consists of, whether it needs all messages) for each series of a
    channel.
    """
    kind, usual = _kind(schema, channel)
    topic, chosen = channel.topic, {*(reading.proprio or ()), reading.action} - {None}
    if kind in CAMERA_KINDS:
        paths, all_of_it = (
            {topic: ""},
            not reading.cameras or not {topic, camera_name(topic)}.isdisjoint(reading.cameras),
        )
    else:
        paths = (
            {topic: usual}
            | {key: key[len(topic) + 1 :] for key in chosen if key and key.startswith(f"{topic}:")}
            if kind
            else {}
        )
        all_of_it = False
    for key, path in paths.items():
        series = found.setdefault(
            key,
            TopicSeries(
                topic, kind, fault="a video stream is not read, only pictures are" if kind == "video" else ""
            ),
        )
        if series.kind != kind:
            raise ValueError(f"{topic} has messages of two types")
        yield series, path, all_of_it or key in chosen


def _vector(series: TopicSeries, message: Any, path: str) -> tuple[float, ...]:
    """Return the numbers of a message or of its field `path`, in the order of the series' names. Raises
    ValueError for other names.
    """
    whole = message
    for part in path.split(".") if path else ():
        if part not in _fields(message):
            raise ValueError(f"it has no field {path}")
        message = getattr(message, part)
    leaves = list(_leaves(message, ""))
    names, values = tuple(name for name, _ in leaves), tuple(value for _, value in leaves)
    if series.kind == "joints" and whole.name:
        names = tuple(whole.name)
    if not values or len(values) != len(set(names)) or len(names) != len(values):
        raise ValueError(f"it has {len(values)} numbers and {len(set(names))} names for them")
    series.names = series.names or names
    return (
        values if names == series.names else tuple(values[place] for place in places_of(names, series.names))
    )


def _fields(message: Any) -> Sequence[str]:
    return getattr(message, "__slots__", None) or list(getattr(message, "__dict__", ()))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, float]]:
    """Yield (path, number) for every number in a value."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path, float(value)
    elif not isinstance(value, (bool, str, bytes, type(None))):
        parts = (
            enumerate(value)
            if isinstance(value, list)
            else ((name, getattr(value, name)) for name in _fields(value) if name not in NO_VALUES)
        )
        for name, part in parts:
            yield from _leaves(part, f"{path}.{name}" if path else str(name))


def _stamp(message: Any) -> int:
    """Return the header stamp in nanoseconds; 0 without one."""
    stamp = getattr(getattr(message, "header", None), "stamp", None) or getattr(message, "timestamp", None)
    seconds = getattr(stamp, "sec", getattr(stamp, "seconds", 0))
    return int(seconds) * 10**9 + int(
        getattr(stamp, "nanosec", getattr(stamp, "nsec", getattr(stamp, "nanos", 0)))
    )


def places_of(names: tuple[str, ...], wanted: tuple[str, ...]) -> list[int]:
    """Return the indices of the wanted names among the names. Raises ValueError if the two sets differ."""
    if len(names) != len(wanted) or set(names) != set(wanted):
        raise ValueError(f"its values are {', '.join(names)}, those before {', '.join(wanted)}")
    return [names.index(name) for name in wanted]


def camera_name(topic: str) -> str:
    """Return a camera's name: its topic without the last parts that do not distinguish cameras.
    `/wrist/color/image_raw` becomes `wrist`.
    """
    parts = [part for part in topic.split("/") if part]
    while len(parts) > 1 and parts[-1] in STREAMS:
        parts.pop()
    return re.sub(r"\W+", "_", "_".join(parts))


# -- pictures ------------------------------------------------------------------------------------------------


def pictures(
    files: list[Path], topics: dict[str, str], wanted: dict[str, set[int]], sums: dict[str, dict[int, int]]
) -> Iterator[tuple[str, int, Pictures]]:
    """Decode the wanted pictures; yield camera, index among the messages of its topic, and picture (H, W, 3).

    topics: camera -> topic. sums: camera -> index -> checksum. Raises ValueError if the files have changed.
    """
    cameras = {topic: camera for camera, topic in topics.items()}
    counts, left = Counter[str](), sum(map(len, wanted.values()))
    for file in files:
        decoders: dict[int, Callable[[bytes], Any]] = {}
        for schema, channel, message in _messages(file):
            camera = cameras.get(channel.topic, "")
            number = counts[camera]
            counts[camera] += 1
            if number not in wanted.get(camera, ()):
                continue
            if channel.id not in decoders:
                decoders[channel.id] = _decoder(schema, channel)
            decoded = decoders[channel.id](message.data)
            if _checksum(decoded) != sums[camera][number]:
                raise ValueError(f"{file.name} has changed since it was opened")
            yield camera, number, _picture(_kind(schema, channel)[0], decoded)
            left -= 1
            if not left:
                return
    raise ValueError(f"{files[-1].name} has changed since it was opened")


def _data(message: Any) -> bytes:
    """Return the bytes of a picture, which are base64 in JSON. Raises ValueError if there are none."""
    if not isinstance(message.data, (str, bytes)):
        raise ValueError(f"its picture is a {type(message.data).__name__}")
    return base64.b64decode(message.data, validate=True) if isinstance(message.data, str) else message.data


def _checksum(message: Any) -> int:
    """Return the CRC-32 of a picture as stored and of its encoding's name, which defines the order of
    channels.
    """
    return crc32(str(getattr(message, "encoding", "") or message.format).encode(), crc32(_data(message)))


def _no_picture(kind: str, message: Any) -> str:
    """Return the reason why a message's picture cannot be read, '' if it can. Depth has the same message
    types as pictures.
    """
    if kind == "raw":
        return "" if message.encoding in CHANNELS else f"pictures in {message.encoding} are not read"
    data, form = _data(message), str(message.format)
    if "depth" in form.lower() or DEPTH.match(form) or (data.startswith(PNG) and data[24:25] == b"\x10"):
        return f"pictures of more than 8 bits ({form}) are not read"
    return f"pictures in {form} are not read" if data and not data.startswith((PNG, JPEG)) else ""


def _facts(kind: str, message: Any) -> tuple[int, int, int]:
    """Return checksum, height and width of a picture without decoding it. Raises ValueError if it is cut
    short, or is none.
    """
    data = _data(message)
    if fault := _no_picture(kind, message):
        raise ValueError(fault)
    if kind == "raw":
        height, width = _pixels(message).shape[:2]
        return _checksum(message), height, width
    refuse_cut(data)
    try:
        with Image.open(BytesIO(data), formats=("JPEG", "PNG")) as file:
            width, height = file.size
    except OSError as error:
        raise ValueError(
            f"its picture of {len(data)} bytes cannot be read ({type(error).__name__})"
        ) from None
    if height * width > MOST_PIXELS:
        raise ValueError(f"its picture has {height}x{width} pixels, more than {MOST_PIXELS} in all")
    return _checksum(message), height, width


def _pixels(message: Any) -> Pictures:
    """Return a raw picture (H, W, C) without the padding of its rows. Raises ValueError if its number of
    bytes is wrong.
    """
    data, (depth, _) = _data(message), CHANNELS[message.encoding]
    height, width, step = int(message.height), int(message.width), int(message.step)
    if (
        min(height, width) < 1
        or step < width * depth
        or len(data) != height * step
        or height * width > MOST_PIXELS
    ):
        raise ValueError(
            f"a picture of {height}x{width} pixels in {message.encoding} with rows of {step} bytes does not"
            f" have {len(data)} bytes"
        )
    return (
        np.frombuffer(data, np.uint8).reshape(height, step)[:, : width * depth].reshape(height, width, depth)
    )


def _picture(kind: str, message: Any) -> Pictures:
    """Decode a picture to (H, W, 3)."""
    if kind == "raw":
        return np.ascontiguousarray(_pixels(message)[..., CHANNELS[message.encoding][1]])
    picture = image(_data(message))
    # image_transport names the order of channels that the encoder was given where it expects blue first
    return np.ascontiguousarray(picture[..., ::-1]) if "compressed rgb" in message.format else picture
