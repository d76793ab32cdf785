"""Scaling of pictures."""

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

Pictures = npt.NDArray[np.uint8]
"""(L, H, W, 3) RGB, upright."""


def resized(pictures_LHW3: Pictures, size: tuple[int, int]) -> Pictures:
    """Return pictures scaled to (H, W) by area averaging; the aspect ratio is not kept."""
    if pictures_LHW3.shape[1:3] == size:
        return pictures_LHW3
    reformatter = VideoReformatter()
    height, width = size
    scaled = [
        reformatter.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(p), format="rgb24"),
            width=width,
            height=height,
            interpolation="AREA",
        )
        for p in pictures_LHW3
    ]
    return np.stack([frame.to_ndarray(format="rgb24") for frame in scaled])
