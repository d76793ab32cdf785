"""File format of an episode: a Parquet file of one row, with an MP4 per camera.

    episode_id, task, instruction, success, source, length    metadata
    proprio, action                                            lists of vectors; null where none were recorded
    cam.<name>                                                 H.264, one frame per control step, a key frame
                                                               every 8
    latents.<name>, latents_shape                              instead of cam in the latent cache: float16 (S,
                                                               h, w) per frame (latent_cache.py)

Readable with pyarrow, pandas or duckdb. The action column is never read where an episode is used as
action-free.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from av.video.reformatter import VideoReformatter

from policy.errors import DemoscaleError

SCHEMA_VERSION = "2"
# Encoded as RGB: the object of a task may be a few coloured pixels; and decoded planes are copied, not
# converted, which was the larger half of the time of reading (bench/data.py). `fastdecode` halves the other
# half. A key frame every 8 keeps reading single clips cheap.
CODEC, PIXEL_FORMAT, DECODED_FORMAT = "libx264rgb", "bgr24", "gbrp"
CODEC_OPTIONS = {"crf": "18", "preset": "medium", "tune": "fastdecode", "g": "8", "bf": "0"}
# x264's macroblock tree reads uninitialised memory if the width is no multiple of 64: 1 encoding in 100 had
# different bytes and a different hash.
WITHOUT_TREE = {"mbtree": "0"}


MOST_FRAMES = 10_000_000
"""Maximum frames of one episode: six days at 20 per second."""


class EpisodeError(DemoscaleError):
    """Error of an episode, in one sentence: which episode of which store, what is wrong, and the fix."""


@dataclass(frozen=True)
class Episode:
    """One demonstration, or one recording without actions, in memory. L frames, one per control step."""

    episode_id: str
    task: str
    instruction: str
    frames: dict[str, npt.NDArray[Any]]
    """Camera -> (L, H, W, 3) uint8 RGB pictures, upright; or (L, S, h, w) float16 latents that
    `policy.latent_codec` makes of them.
    """
    proprio: npt.NDArray[np.float32] | None
    """(L, P) proprioception; None in an action-free recording without any."""
    action: npt.NDArray[np.float32] | None
    """(L, A) demonstrator's action at each frame; None if none was recorded, or if the episode is used as
    action-free.
    """
    success: bool | None
    """Whether the task was achieved; None if unknown."""
    source: str
    """Origin: the command or file, with its seed."""
    numbers: npt.NDArray[np.int64] | None = None
    """Ascending indices of the frames in `frames`; None if it holds all of them."""
    whole_length: int = 0
    """L, where `frames` may hold only some of the frames; 0 otherwise."""

    @property
    def length(self) -> int:
        """Number of frames L of the whole episode."""
        return self.whole_length or len(next(iter(self.frames.values())))


def encode_video(frames_LHW3: npt.NDArray[np.uint8], hz: float) -> bytes:
    """Encode (L, H, W, 3) RGB pictures as an MP4. Equal pictures give equal bytes."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        height, width = frames_LHW3.shape[1:3]
        options = CODEC_OPTIONS | ({} if width % 64 == 0 else WITHOUT_TREE)
        stream: Any = container.add_stream(CODEC, rate=Fraction(hz).limit_denominator(1000), options=options)
        stream.height, stream.width = height, width
        stream.pix_fmt = PIXEL_FORMAT
        # several workers run at once, and the bytes must not depend on the number of cores
        stream.codec_context.thread_count = 1
        for picture in frames_LHW3:
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24"))
            )
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _needed(packets: list[Any], wanted: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the indices of the packets to decode: from the key frame before each wanted frame to the frame.
    One packet is one frame.
    """
    keys = np.flatnonzero([packet.is_keyframe for packet in packets])
    before = keys[np.searchsorted(keys, wanted, side="right") - 1]
    needed = np.zeros(len(packets), bool)
    for first, last in zip(before, wanted, strict=True):
        needed[first : last + 1] = True
    return np.flatnonzero(needed)


def _decode_video(data: bytes, wanted: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.uint8]:
    """Decode the frames of ascending, distinct indices of a film of `length` frames, (len(wanted), H, W, 3).

    Raises ValueError if the film has another number of frames, or if a wanted frame is missing or differs in
    size: the array is allocated uninitialised, so a part that is not filled would hold arbitrary memory.
    """
    reformatter = VideoReformatter()  # one for all frames: a new one per frame costs more than the decoding
    with av.open(io.BytesIO(data), "r") as container:
        decoder: Any = container.streams.video[0].codec_context
        decoder.thread_count = 1
        packets = [packet for packet in container.demux(video=0) if packet.size]
        if len(packets) != length:
            raise ValueError(f"its film has {len(packets)} frames and not {length}")
        if not packets[0].is_keyframe:
            raise ValueError("its film does not begin with a key frame")
        number = {packet.pts: i for i, packet in enumerate(packets)}
        height, width = decoder.height, decoder.width
        missing = set(wanted.tolist())
        frames = np.empty((len(wanted), height, width, 3), np.uint8)
        place = {number: i for i, number in enumerate(wanted.tolist())}
        for packet in [*(packets[i] for i in _needed(packets, wanted)), None]:
            for frame in decoder.decode(packet):
                i = place.get(number.get(frame.pts, -1))
                if i is None:
                    continue
                if (frame.height, frame.width) != (height, width):
                    raise ValueError(
                        f"its film has a frame of {frame.height} x {frame.width} pixels among those of"
                        f" {height} x {width}"
                    )
                missing.discard(number[frame.pts])
                if frame.format.name == DECODED_FORMAT:
                    for channel, plane in zip((1, 2, 0), frame.planes, strict=True):
                        frames[i, :, :, channel] = np.frombuffer(plane, np.uint8).reshape(
                            -1, plane.line_size
                        )[:height, :width]
                else:
                    frames[i] = reformatter.reformat(frame, format="rgb24").to_ndarray()
    if missing:
        raise ValueError(f"its film does not show frame {min(missing)}")
    return frames


def read_parquet(data: bytes, columns: list[str] | None = None) -> pa.Table:
    """Read a table on the caller's thread; `pyarrow.parquet.read_table` starts threads that abort a process
    that exits soon afterwards.
    """
    return pq.ParquetFile(pa.BufferReader(data)).read(columns=columns, use_threads=False)


def _vectors(array: npt.NDArray[np.float32] | None) -> pa.Array:
    rows = None if array is None else list(array.astype(np.float32))
    return pa.array([rows], pa.list_(pa.list_(pa.float32())))


def _array(column: pa.ChunkedArray, length: int) -> npt.NDArray[np.float32] | None:
    """Return the (length, D) vectors of a one-row column, None for null. Raises ValueError if there are more
    or fewer.
    """
    (rows,) = column.chunks
    if rows.null_count:
        return None
    vectors = rows.flatten()
    if len(vectors) != length or vectors.null_count:
        raise ValueError(f"it has {len(vectors) - vectors.null_count} vectors for {length} frames")
    values: npt.NDArray[np.float32] = vectors.flatten().to_numpy()
    return values.reshape(length, -1).copy()


def encode(episode: Episode, hz: float) -> bytes:
    """Encode an episode as a one-row Parquet file. Equal episodes give equal bytes."""
    cameras = {
        f"cam.{name}": pa.array([encode_video(frames, hz)], pa.binary())
        for name, frames in episode.frames.items()
    }
    return _file(episode, cameras, {"demoscale.hz": str(hz)})


def encode_latents(episode: Episode) -> bytes:
    """Encode an episode whose `frames` are latents, all of one shape, as a one-row Parquet file."""
    columns = {
        f"latents.{name}": pa.array([frames.astype("<f2").tobytes()], pa.binary())
        for name, frames in episode.frames.items()
    }
    shape = next(iter(episode.frames.values())).shape[1:]
    return _file(episode, {**columns, "latents_shape": pa.array([shape], pa.list_(pa.int64()))}, {})


def _file(episode: Episode, cameras: dict[str, pa.Array], metadata: dict[str, str]) -> bytes:
    columns = {
        "episode_id": pa.array([episode.episode_id]),
        "task": pa.array([episode.task]),
        "instruction": pa.array([episode.instruction]),
        "success": pa.array([episode.success], pa.bool_()),
        "source": pa.array([episode.source]),
        "length": pa.array([episode.length], pa.int64()),
        "proprio": _vectors(episode.proprio),
        "action": _vectors(episode.action),
        **cameras,
    }
    buffer = io.BytesIO()
    table = pa.table(columns).replace_schema_metadata({"demoscale.schema": SCHEMA_VERSION, **metadata})
    pq.write_table(table, buffer, compression="none", store_schema=False)
    return buffer.getvalue()


def decode(
    data: bytes, cameras: tuple[str, ...], with_actions: bool, wanted: Sequence[int] | None = None
) -> Episode:
    """Decode an episode with the named cameras, as pictures, or as latents if the file holds those.

    Without `with_actions` the action column is not read. With `wanted`, only the frames of those indices are
    decoded, and those between them and the preceding key frames. Raises EpisodeError, which names the
    episode, if its parts differ from its length or cannot be decoded.
    """
    file = pq.ParquetFile(pa.BufferReader(data))
    kept = ["latents_shape"] if "latents_shape" in file.schema_arrow.names else []
    pictures = [f"latents.{name}" if kept else f"cam.{name}" for name in cameras]
    columns = [
        "episode_id",
        "task",
        "instruction",
        "success",
        "source",
        "length",
        "proprio",
        *pictures,
        *kept,
    ]
    table = file.read(columns + ["action"] * with_actions, use_threads=False)
    try:
        return _episode(table, dict(zip(cameras, pictures, strict=True)), bool(kept), with_actions, wanted)
    except (ValueError, IndexError, TypeError, av.FFmpegError) as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise EpisodeError(
            f"episode {table['episode_id'][0].as_py()} cannot be decoded ({said}); restore its file, or"
            " record it again"
        ) from None


def _episode(
    table: pa.Table, columns: dict[str, str], latents: bool, with_actions: bool, wanted: Sequence[int] | None
) -> Episode:
    """Return the episode of a table. `columns`: camera -> column. Raises ValueError and others for parts that
    do not fit together.
    """
    length = table["length"][0].as_py()
    if not isinstance(length, int) or not 0 < length <= MOST_FRAMES:
        raise ValueError(f"its length is {length}; an episode has between 1 and {MOST_FRAMES} frames")
    numbers = np.arange(length) if wanted is None else np.unique(np.asarray(wanted, np.int64))
    if len(numbers) and not 0 <= numbers[0] <= numbers[-1] < length:
        raise ValueError(f"frames {numbers[0]} to {numbers[-1]} of {length} are asked for")

    def frames(column: str) -> npt.NDArray[Any]:
        if not latents:
            return _decode_video(table[column][0].as_py(), numbers, length)
        kept = np.frombuffer(table[column][0].as_buffer(), "<f2").reshape(
            length, *table["latents_shape"][0].as_py()
        )
        return kept[numbers]  # a copy, so that the other frames can be freed

    return Episode(
        frames={name: frames(column) for name, column in columns.items()},
        numbers=None if wanted is None else numbers,
        whole_length=length,
        proprio=_array(table["proprio"], length),
        action=_array(table["action"], length) if with_actions else None,
        **{
            name: table[name][0].as_py()
            for name in ("episode_id", "task", "instruction", "success", "source")
        },
    )
