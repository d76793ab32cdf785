"""Pictures as a film people can open."""

import io
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt


def mp4(frames: Sequence[npt.NDArray[np.uint8]], fps: float) -> bytes:
    """H.264 that any browser plays, from (H, W, 3) pictures with even sides."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": "20"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


class Film:
    """Placeholder until composed."""

    def __init__(self, env: Any, imagine: Any) -> None:
        self._env = env
        self._frames: list[Any] = []

    def looked(self, observation: Any) -> None: ...

    def stepped(self, steps: int, succeeded: bool) -> None:
        if steps % 2 == 0:
            self._frames.append(self._env.picture(self._env.film_camera, (256, 256)))

    def mp4(self) -> bytes:
        return mp4(self._frames, 10.0)
