"""An episode cut into training clips: windows, padding and masks. Pure numpy.

Shapes: B clips; V views; K frames per view; T actions; H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.data.episodes import Episode
from policy.config import ClipShape


@dataclass(frozen=True)
class Clip:
    """One window: what is seen at `start`, what will be seen, and what the demonstrator did from there on."""

    frames: npt.NDArray[np.uint8]
    """(V, K, H, W, 3); past the episode's end the last frame, masked."""
    proprio: npt.NDArray[np.float32]
    """(P,) at the first frame."""
    actions: npt.NDArray[np.float32]
    """(T, A); past the episode's end, and in an action-free episode, masked."""
    action_mask: npt.NDArray[np.float32]
    """(T,) 1 where there is an action to learn."""
    frame_mask: npt.NDArray[np.float32]
    """(K,) 1 inside the episode."""
    instruction: str


def cut(episode: Episode, start: int, shape: ClipShape, action_dim: int) -> Clip:
    """The clip whose first frame is frame `start` (0 <= start < length)."""
    seen = start + shape.frame_stride * np.arange(shape.frames_per_view)
    done = start + np.arange(shape.horizon)
    last = episode.length - 1
    frames = np.stack([pictures[np.minimum(seen, last)] for pictures in episode.frames.values()])
    if episode.action is None:
        actions, action_mask = np.zeros((shape.horizon, action_dim), np.float32), np.zeros(shape.horizon, np.float32)
    else:
        actions, action_mask = episode.action[np.minimum(done, last)], (done <= last).astype(np.float32)
    return Clip(frames, episode.proprio[start], actions, action_mask, (seen <= last).astype(np.float32), episode.instruction)


def stack(clips: Sequence[Clip]) -> dict[str, Any]:
    """Clips as one batch: arrays with a leading B, and the list of instructions."""
    arrays = ("frames", "proprio", "actions", "action_mask", "frame_mask")
    return {name: np.stack([getattr(clip, name) for clip in clips]) for name in arrays} | {"instructions": [clip.instruction for clip in clips]}
