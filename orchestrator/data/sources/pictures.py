"""Pictures of other people's recordings: turned upright, scaled, taken out of videos and image files."""

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

Pictures = npt.NDArray[np.uint8]

TURNS = ("upright", "upside-down", "rotated")
"""How pictures are stored: as people see them, rows reversed (OpenGL's order), or turned by 180 degrees."""


def turned(pictures_LHW3: Pictures, stored: str) -> Pictures:
    """Upright pictures from pictures stored in one of TURNS."""
    if stored == "upside-down":
        return np.ascontiguousarray(pictures_LHW3[:, ::-1])
    if stored == "rotated":
        return np.ascontiguousarray(pictures_LHW3[:, ::-1, ::-1])
    return pictures_LHW3


def resized(pictures_LHW3: Pictures, size: tuple[int, int]) -> Pictures:
    """Scaled to (H, W), averaging over areas; the aspect is not kept."""
    if pictures_LHW3.shape[1:3] == size:
        return pictures_LHW3
    reformatter = VideoReformatter()
    height, width = size
    scaled = [
        reformatter.reformat(av.VideoFrame.from_ndarray(np.ascontiguousarray(p), format="rgb24"), width=width, height=height, interpolation="AREA")
        for p in pictures_LHW3
    ]
    return np.stack([frame.to_ndarray(format="rgb24") for frame in scaled])


def image(data: bytes) -> Pictures:
    """(H, W, 3) from a PNG or JPEG file."""
    with av.open(io.BytesIO(data), "r") as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24").astype(np.uint8, copy=False)


def film(path: Path, start_s: float = 0.0, count: int | None = None, hz: float = 0.0) -> Pictures:
    """(L, H, W, 3): `count` frames of a video from `start_s` on, or all. ValueError if there are fewer, or a video is not readable.

    `hz` tells the frame at `start_s` from the one before it. A rotation that a phone wrote beside the pictures is carried out.
    """
    pictures: list[Any] = []
    reformatter = VideoReformatter()
    try:
        with av.open(str(path), "r") as container:
            stream: Any = container.streams.video[0]
            stream.codec_context.thread_count = 1  # many of these run at once
            first = start_s - (0.5 / hz if hz else 0)
            if start_s:
                container.seek(int(start_s / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                if count is not None and len(pictures) == count:
                    break
                if start_s and frame.time < first:
                    continue
                picture = reformatter.reformat(frame, format="rgb24").to_ndarray()
                pictures.append(np.rot90(picture, round(frame.rotation / 90)) if frame.rotation else picture)
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"the video {path.name} cannot be read ({type(error).__name__})") from None
    if not pictures or (count is not None and len(pictures) < count):
        raise ValueError(f"the video {path.name} has {len(pictures)} frames where {count or 'some'} were expected")
    stacked: Pictures = np.stack(pictures)
    return stacked


def film_facts(path: Path) -> tuple[int, float]:
    """(frames, frames per second) of a video, without decoding it; ValueError if it is none."""
    try:
        with av.open(str(path), "r") as container:
            stream = container.streams.video[0]
            frames = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
            return frames, float(stream.average_rate or 0)
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"the video {path.name} cannot be read ({type(error).__name__})") from None
