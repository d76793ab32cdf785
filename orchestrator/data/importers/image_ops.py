"""Pictures of third-party recordings: read by time or row, turned upright and scaled, a block of frames at a
time.
"""

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any
from zlib import crc32

import av
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageOps

from orchestrator.data.image_scaling import Pictures as Pictures
from orchestrator.data.image_scaling import resized

Numbers = npt.NDArray[np.int64]
Seconds = npt.NDArray[np.float64]

TURNS = ("upright", "upside-down", "rotated")
"""Orientations of stored pictures: upright, rows reversed (OpenGL's order), or rotated by 180 degrees."""
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
"""First bytes of image files."""
NO_COLOUR = re.compile(r"depth|seg|mask|normal", re.IGNORECASE)
"""Names of pictures that no policy is shown as colours."""
BLOCK = 32
"""Number of frames of an array that are read and scaled at once."""
MOST_PIXELS = 1 << 26
"""Maximum pixels of one picture; a file that announces more is not decoded."""
SMALLEST = 16
"""Minimum pixels a side of pictures in arrays that could hold other data: poses of objects have such shapes
too.
"""
MOST_VECTOR_BYTES = 1 << 30
"""Maximum bytes of one array of vectors, which is read whole."""
FAR = 64
"""Number of frames above which a gap in a film is skipped by a seek; shorter gaps are decoded."""
LARGEST_BIAS = 0.25
"""Share of a film's frame period: pictures whose mean offset from their rows is larger belong to
other rows.
"""


# -- orientation and size ------------------------------------------------------------------------------------


def turned(pictures_LHW3: Pictures, stored: str) -> Pictures:
    """Return pictures that are stored in one of TURNS as upright ones."""
    if stored == "upside-down":
        return np.ascontiguousarray(pictures_LHW3[:, ::-1])
    if stored == "rotated":
        return np.ascontiguousarray(pictures_LHW3[:, ::-1, ::-1])
    return pictures_LHW3


def kept_frames(length: int, native_hz: float, hz: float) -> npt.NDArray[np.int64]:
    """Return the indices of the frames nearest to the steps of another rate, out of `length` frames."""
    if hz == native_hz:
        return np.arange(length)
    count = int((length - 1) * hz / native_hz + 1e-9) + 1
    nearest: npt.NDArray[np.int64] = np.round(np.arange(count) * native_hz / hz).astype(np.int64)
    return nearest.clip(max=length - 1)


def in_blocks(
    read: Callable[[int, int], Pictures], rows: Numbers, stored: str, size: tuple[int, int]
) -> Pictures:
    """Return the pictures of ascending rows, upright and scaled, (len(rows), H, W, 3).

    read: returns the pictures (K, h, w, 3) of rows `first` to `last` (excluded), at most BLOCK at a time.
    ValueError if it returns another number.
    """
    shaped = np.empty((len(rows), *size, 3), np.uint8)
    for block, members in groupby(range(len(rows)), key=lambda i: int(rows[i]) // BLOCK):
        places = list(members)
        first, last = int(rows[places[0]]), int(rows[places[-1]]) + 1
        pictures = read(first, last)
        if len(pictures) != last - first:
            raise ValueError(f"rows {first} to {last} of its pictures are not there (block {block})")
        shaped[places] = resized(turned(pictures[rows[places] - first], stored), size)
    return shaped


# -- the range of values -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ValueRange:
    """Values of black and white in a source's pictures."""

    black: float
    white: float

    def pictures(self, values: npt.NDArray[Any]) -> Pictures:
        """Convert values of this range to bytes. Raises ValueError for one that is not finite."""
        if values.dtype == np.uint8 and (self.black, self.white) == (0, 255):
            return values
        scaled = (np.asarray(values, np.float64) - self.black) * (255 / (self.white - self.black))
        if not np.isfinite(scaled).all():
            raise ValueError("its pictures hold a value that is not a number")
        pictures: Pictures = np.clip(np.round(scaled), 0, 255).astype(np.uint8)
        return pictures


RANGES = {
    "0..255": ValueRange(0, 255),
    "0..1": ValueRange(0, 1),
    "-1..1": ValueRange(-1, 1),
    "0..65535": ValueRange(0, 65535),
    "0..1023": ValueRange(0, 1023),
    "0..4095": ValueRange(0, 4095),
}


def range_of(dtype: np.dtype[Any], lowest: float, highest: float) -> str:
    """Return the name in RANGES that fits the number type and the extreme values of all pictures of a source.

    The limits have a margin, since a resize may overshoot a range by a few percent. Raises ValueError if no
    range fits, or if several do: 16-bit numbers may hold 10 or 12 bits of a sensor.
    """
    if dtype == np.uint8:
        return "0..255"
    if dtype.kind in "ui":
        if lowest < 0 or 255 < highest <= 32767 or highest > 65535:
            raise ValueError(f"its pictures are {dtype} from {lowest:g} to {highest:g}")
        return "0..255" if highest <= 255 else "0..65535"
    if dtype.kind != "f":
        raise ValueError(f"its pictures are {dtype}")
    if lowest >= -0.05 and highest <= 1.05:
        return "0..1"
    if lowest >= -1.05 and highest <= 1.05:
        return "-1..1"
    if lowest >= -13 and highest <= 268 and highest > 2:
        return "0..255"
    raise ValueError(f"its pictures are {dtype} from {lowest:g} to {highest:g}")


def other_channels(array: Any) -> int:
    """Return the number of channels of an array that holds grey pictures or pictures with transparency, which
    are not read; 0 for any other array.
    """
    if array.ndim != 4 or array.dtype != np.uint8 or min(array.shape[1:3]) < SMALLEST:
        return 0
    return int(array.shape[3]) if array.shape[3] in (1, 4) else 0


def passed_over(where: str, channels: Mapping[str, int]) -> list[str]:
    """Return a sentence for each array that looks like pictures of a camera and is not read: name -> its
    channels.
    """
    return [
        f"{where}: {name} has pictures of {amount} {'channel' if amount == 1 else 'channels'}, and only those"
        " of 3 are read; write it with 3, or choose others with --cameras; passed over"
        for name, amount in channels.items()
        if amount in (1, 4) and not NO_COLOUR.search(name)
    ]


# -- image files ---------------------------------------------------------------------------------------------


def refuse_cut(data: bytes) -> None:
    """Raise ValueError for a JPEG or PNG file without its end; a decoder would fill the rest of a JPEG with
    grey.
    """
    end = b"\xff\xd9" if data.startswith(JPEG) else b"IEND" if data.startswith(PNG) else b""
    if end not in data.rstrip(b"\0")[-1024:]:  # some cameras pad their files with zeros
        raise ValueError(f"a picture of {len(data)} bytes is cut short")


def image(data: bytes) -> Pictures:
    """Return the picture of a PNG or JPEG file as viewers show it, (H, W, 3). Raises ValueError if it cannot
    be decoded.
    """
    refuse_cut(data)
    try:
        if data.startswith(JPEG) and b"Exif" in data[:64]:  # it may tell a rotation
            with Image.open(io.BytesIO(data), formats=("JPEG",)) as file:
                _refuse_pixels(*file.size)
                return np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
        with av.open(io.BytesIO(data), "r") as container:
            _refuse_size(container.streams.video[0])
            return next(container.decode(video=0)).to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    except (av.FFmpegError, IndexError, StopIteration, OSError) as error:
        raise ValueError(f"a picture of {len(data)} bytes cannot be read ({type(error).__name__})") from None


def images(files: Iterable[bytes], size: tuple[int, int]) -> Pictures:
    """Return the pictures of image files, (L, H, W, 3). Raises ValueError if one cannot be decoded, or is not
    of the given size (H, W).
    """
    pictures = [image(data) for data in files]
    if different := next((picture.shape[:2] for picture in pictures if picture.shape[:2] != size), None):
        raise ValueError("its pictures are {}x{}, those of the others {}x{}".format(*different, *size))
    return np.stack(pictures)


def _refuse_size(stream: Any) -> None:
    _refuse_pixels(stream.codec_context.width, stream.codec_context.height)


def _refuse_pixels(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise ValueError(f"its pictures have {width}x{height} pixels, more than {MOST_PIXELS} in all")


# -- films ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VideoIndex:
    """Index of the N frames that a player shows of a film, in display order; made without decoding."""

    size: tuple[int, int]
    """(H, W) as stored, before the display matrix is applied."""
    times: Seconds
    """(N,) display times in seconds."""
    packet_sums: Numbers
    """(N,) checksums of the encoded frames: equal films have equal sums."""
    rate: float
    """Frames per second, from the usual distance between two frames."""
    _pts: Numbers
    _seek: Numbers
    """(N,) seek targets: for each frame, the decoding time of the key frame before it."""
    _timed: bool
    """False where packets carry no times (AVI) and frames are counted."""

    @property
    def period(self) -> float:
        """Seconds from a frame to the next."""
        return 1 / self.rate

    def nearest(self, moments: Seconds, tolerance_s: float) -> Numbers:
        """Return the index of the frame nearest to each moment.

        Raises ValueError if one is further off than the tolerance, or if the mean offset exceeds LARGEST_BIAS
        periods.
        """
        after = np.searchsorted(self.times, moments).clip(1, max(1, len(self.times) - 1))
        before = after - 1
        after = after.clip(max=len(self.times) - 1)
        chosen = np.where(moments - self.times[before] <= self.times[after] - moments, before, after)
        off = self.times[chosen] - moments
        if (far := int(np.abs(off).argmax())) >= 0 and abs(off[far]) > tolerance_s:
            raise ValueError(
                f"no picture at second {moments[far]:.3f}: the nearest is {abs(off[far]):.3f} s away, more"
                f" than half a step ({tolerance_s:.3f} s)"
            )
        if abs(off.mean()) > LARGEST_BIAS * self.period + 1e-6:
            side = "after" if off.mean() > 0 else "before"
            raise ValueError(
                f"its pictures are {1000 * abs(off.mean()):.0f} ms {side} their rows on average, of"
                f" {1000 * self.period:.0f} from one to the next"
            )
        return np.asarray(chosen, np.int64)


def film_index(path: Path) -> VideoIndex:
    """Return the index of a film, cached by path, size and time of change. Raises ValueError if it cannot be
    read or has no frames.
    """
    try:
        facts = path.stat()
    except OSError as error:
        raise ValueError(f"the video {path.name} cannot be read ({type(error).__name__})") from None
    return _film_index(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=64)
def _film_index(path: Path, _size: int, _changed: int) -> VideoIndex:
    try:
        with av.open(str(path), "r") as container:
            streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not streams:
                raise ValueError(f"the video {path.name} has no pictures")
            if len(streams) > 1 or streams[0] is not container.streams.video[0]:
                raise ValueError(
                    f"the video {path.name} has {len(container.streams.video)} streams of pictures; copy the"
                    " one that is meant with `ffmpeg -i FILM -map 0:v:NUMBER -c copy NEW`"
                )
            stream = container.streams.video[0]
            _refuse_size(stream)
            packets: list[Any] = [
                (p.pts, p.dts, p.is_keyframe, p.is_discard, crc32(p))
                for p in container.demux(stream)
                if p.size and (p.pts is not None or p.dts is not None)
            ]
            if not packets:
                raise ValueError(f"the video {path.name} has no frames")
            size, base = (
                (stream.codec_context.height, stream.codec_context.width),
                float(stream.time_base or 1),
            )
            average = float(stream.average_rate or stream.guessed_rate or 0)
            # AVI numbers its frames as they are decoded
            timed = all(pts is not None for pts, *_ in packets) and container.format.name != "avi"
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"the video {path.name} cannot be read ({type(error).__name__})") from None
    shown = sorted(
        (pts if timed else i, checksum)
        for i, (pts, _, _, discard, checksum) in enumerate(packets)
        if not discard
    )
    pts, sums = (np.asarray([row[i] for row in shown], np.int64) for i in (0, 1))
    times = pts * base if timed else pts / (average or 1)
    steps = np.diff(times)
    # times may jitter, and frames may be missing
    usual = steps[(steps > 0) & (steps < 1.5 * np.median(steps))] if len(steps) else steps
    rate = float(1 / usual.mean()) if len(usual) else average
    # times are rounded to the container's clock
    rate = average if average and abs(rate / average - 1) < 0.05 else rate
    keys = [
        (pts, dts if dts is not None else pts)
        for pts, dts, key, *_ in sorted(packets, key=lambda row: row[0] if timed else 0)
        if key
    ]
    first_keys = np.asarray([pts for pts, _ in keys] if timed and keys else [pts[0]], np.int64)
    starts = np.asarray([dts for _, dts in keys] if timed and keys else [pts[0]], np.int64)
    seek = starts[(np.searchsorted(first_keys, pts, side="right") - 1).clip(min=0)]
    return VideoIndex(
        size=size, times=times, packet_sums=sums, rate=rate or 1.0, _pts=pts, _seek=seek, _timed=timed
    )


def film_frames(path: Path, numbers: Sequence[int] | Numbers) -> Iterator[Pictures]:
    """Yield the frames of ascending indices as a player shows them, (H, W, 3) each. Raises ValueError if one
    cannot be decoded.
    """
    index = film_index(path)
    try:
        with av.open(str(path), "r") as container:
            stream: Any = container.streams.video[0]
            stream.codec_context.thread_count = 1  # several processes decode at once
            frames, decoded, current = container.decode(stream), -1, None
            first, matrix = True, None  # the matrix belongs to the stream
            sought = False
            for number in (int(number) for number in numbers):
                while current is None or decoded < number:
                    if (
                        index._timed
                        and number - decoded > FAR
                        and index._seek[number] > index._seek[max(decoded, 0)]
                    ):
                        container.seek(int(index._seek[number]), stream=stream)
                        frames = container.decode(stream)
                        decoded, sought = number - 1, True
                    current = next(frames, None)
                    if current is None:
                        raise ValueError(
                            f"the video {path.name} ends before its frame {number} of {len(index.times)}"
                        )
                    decoded = _number(index, current, decoded)
                    # behind a seek, the frames before the wanted one may lack what they refer to
                    if current.is_corrupt and decoded >= (number if sought else 0):
                        raise ValueError(f"the video {path.name} is damaged at its frame {decoded}")
                sought = False
                # the seek was inexact, or a frame is damaged: decode from the beginning, once
                if decoded != number and index._timed:
                    current = _from_the_beginning(path, int(index._pts[number]))
                matrix = display_matrix(current) if first else matrix
                first = False
                yield _upright(current, matrix)
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"the video {path.name} cannot be read ({type(error).__name__})") from None


def _number(index: VideoIndex, frame: Any, before: int) -> int:
    """Return the index of a decoded frame; where times are unknown, the index after `before`.

    For a frame that is not shown: the index of the last frame that is shown before it, -1 if none.
    """
    if not index._timed:
        return before + 1
    place = int(np.searchsorted(index._pts, frame.pts)) if frame.pts is not None else before + 1
    return (
        place
        if place < len(index._pts) and index._pts[place] == frame.pts
        else min(place, len(index._pts)) - 1
    )


def _from_the_beginning(path: Path, pts: int) -> Any:
    with av.open(str(path), "r") as container:
        stream: Any = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            if frame.pts == pts:
                return frame
    raise ValueError(f"the video {path.name} does not show its frame at {pts}; it is damaged")


_REFORMATTER = VideoReformatter()


def display_matrix(frame: Any) -> tuple[int, ...] | None:
    """Return the rotation or reflection that players apply to a film's frames, in FFmpeg's form; None without
    one.

    It is read from a small copy of the frame, since PyAV 18 never frees a frame whose side data were
    accessed.
    """
    tiny: Any = _REFORMATTER.reformat(frame, width=16, height=16, format="gray")
    matrix = tiny.side_data.get(Type.DISPLAYMATRIX)
    return None if matrix is None else tuple(np.frombuffer(matrix, "<i4").tolist())


def _upright(frame: Any, matrix: tuple[int, ...] | None) -> Pictures:
    """Return the picture as players show it."""
    picture: Any = _REFORMATTER.reformat(frame, format="rgb24").to_ndarray()
    if matrix is None:
        return np.asarray(picture)
    a, b, _, c, d, *_ = matrix
    if abs(b) > abs(a):  # x' = c y, y' = b x
        picture, across, down = picture.swapaxes(0, 1), c, b
    else:  # x' = a x, y' = d y
        across, down = a, d
    upright: Pictures = np.ascontiguousarray(picture[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])
    return upright


def film_at(
    path: Path, numbers: Numbers, stored: str, size: tuple[int, int], shown: tuple[int, int] | None = None
) -> Pictures:
    """Return the frames of ascending, possibly repeated indices, (len(numbers), H, W, 3), turned and scaled
    while decoding. Raises ValueError if a frame is not shown in the size `shown`, where it is given.
    """
    distinct, places = np.unique(numbers, return_inverse=True)
    shaped = np.empty((len(distinct), *size, 3), np.uint8)
    for i, picture in enumerate(film_frames(path, distinct)):
        if shown and picture.shape[:2] != shown:
            its, others = ("{}x{}".format(*sides) for sides in (picture.shape[:2], shown))
            raise ValueError(f"the video {path.name} shows pictures of {its}, the others {others}")
        shaped[i] = resized(turned(picture[None], stored), size)[0]
    return shaped if len(distinct) == len(numbers) else shaped[places]


def film(path: Path) -> Pictures:
    """Return every frame of a film as a player shows it, (N, H, W, 3); all are in memory at once. Raises
    ValueError if it is no film.
    """
    return np.stack(list(film_frames(path, range(len(film_index(path).times)))))
