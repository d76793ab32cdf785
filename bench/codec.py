"""What it costs to keep pictures one way or another: the codec that orchestrator/data/episode_format.py
writes, and its neighbours.
"""

import io
import time
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from orchestrator.data import episode_format as episodes
from orchestrator.data.episode_format import Episode

_SAME = {"preset": "medium", "g": "8", "bf": "0"}
CODECS = {
    "H.264 as RGB, crf 18, fastdecode (ours)": (
        episodes.CODEC,
        episodes.PIXEL_FORMAT,
        episodes.CODEC_OPTIONS,
    ),
    "H.264 as RGB, crf 18": ("libx264rgb", "bgr24", {**_SAME, "crf": "18"}),
    "H.264 yuv420p, crf 18, fastdecode": ("libx264", "yuv420p", {**_SAME, "crf": "18", "tune": "fastdecode"}),
    "H.264 yuv420p, crf 18": ("libx264", "yuv420p", {**_SAME, "crf": "18"}),
    "H.264 yuv444p, crf 10": ("libx264", "yuv444p", {**_SAME, "crf": "10"}),
}


@dataclass(frozen=True)
class LatentEntry:
    """How pictures fare in one codec."""

    kib: float
    """Per 100 frames of one camera."""
    psnr: float
    """dB, over all pixels of all frames."""
    decoded: float
    """Frames per CPU second, one film after another, as RGB arrays."""


def _film(
    frames_LHW3: npt.NDArray[np.uint8], codec: str, pixel_format: str, options: dict[str, str]
) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(20), options=options)
        stream.height, stream.width = frames_LHW3.shape[1:3]
        stream.pix_fmt = pixel_format
        stream.codec_context.thread_count = 1
        for picture in frames_LHW3:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def compare(recorded: list[Episode], repeat: int) -> dict[str, LatentEntry]:
    """Every codec on the same pictures; decoded `repeat` times in turns, the fastest counts."""
    pictures = [frames for episode in recorded for frames in episode.frames.values()]
    numbers = [np.arange(len(frames)) for frames in pictures]
    total = sum(map(len, pictures))
    films = {name: [_film(frames, *how) for frames in pictures] for name, how in CODECS.items()}
    fastest = dict.fromkeys(CODECS, float("inf"))
    squares = {}
    for turn in range(repeat):
        for name, kept in films.items():
            began = time.process_time()
            decoded = [
                episodes._decode_video(film, which, len(which))
                for film, which in zip(kept, numbers, strict=True)
            ]
            fastest[name] = min(fastest[name], time.process_time() - began)
            if turn == 0:
                squares[name] = np.mean(
                    [np.mean((a.astype(np.float32) - b) ** 2) for a, b in zip(pictures, decoded, strict=True)]
                )
    return {
        name: LatentEntry(
            sum(map(len, kept)) / 1024 / total * 100,
            float(10 * np.log10(255**2 / squares[name])),
            total / fastest[name],
        )
        for name, kept in films.items()
    }
