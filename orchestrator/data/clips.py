"""Training clips of an episode: windows, padding, masks, batches. Pure numpy but for `ClipBatch.to`.

Shapes: B clips; V views; K frames per view, `ClipShape.history` included; T actions; H W pixels.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from orchestrator.data.episode_format import Episode, EpisodeError
from policy.config import ClipShape
from policy.interface import Contract

if TYPE_CHECKING:
    import torch

    from policy.batch import Batch
    from policy.normalize import ClipNormalizer


def shown_frames(starts: Sequence[int], length: int, shape: ClipShape) -> npt.NDArray[np.int64]:
    """Return the indices of the frames of the clips at `starts`, (len(starts), K); before the start the first
    frame is repeated, past the end the last one.
    """
    return np.clip(np.asarray(starts, np.int64)[:, None] + _offsets(shape), 0, length - 1)


def _offsets(shape: ClipShape) -> npt.NDArray[np.int64]:
    """Return the (K,) distances of a clip's frames from its present one, in control steps."""
    after = shape.frame_stride * np.arange(shape.frames_per_view)
    return np.concatenate([np.arange(-shape.history, 0), after])


@dataclass(frozen=True)
class Clip:
    """Window of an episode: the frame at `start`, the frames after it and, if the shape has a history, before
    it, and the demonstrator's actions from there on.
    """

    episode: Episode
    """Owner of the pictures, which are copied only into a batch: the clips of a visit share most of them."""
    shown: npt.NDArray[np.int64]
    """(K,) indices of its frames among the episode's pictures."""
    proprio: npt.NDArray[np.float32]
    """(P,) proprioception at `start`; with a history (1 + history, P), the preceding rows first. Zeros where
    none was recorded.
    """
    actions: npt.NDArray[np.float32]
    """(T, A) actions; padding past the episode's end and in an action-free episode."""
    action_mask: npt.NDArray[np.float32]
    """(T,) 1 where there is an action to learn, else 0."""
    frame_mask: npt.NDArray[np.float32]
    """(K,) 1 where there is a frame to learn, else 0."""
    seed: int
    """Seed of the clip, the same in every run: a hash of its episode's id and `start`."""

    @property
    def frames(self) -> npt.NDArray[Any]:
        """(V, K, H, W, 3) pictures or (V, K, S, h, w) latents."""
        return np.stack([pictures[self.shown] for pictures in self.episode.frames.values()])


def cut_clip(episode: Episode, start: int, shape: ClipShape, contract: Contract) -> Clip:
    """Cut the clip whose present frame is frame `start` (0 <= start < length).

    `padding: masked` repeats the last frame and action and masks them. `padding: paper` follows the reference
    code (`sgm/data/video.py`): zero actions, before they are normalised, and repeated frames, both without a
    mask.
    """
    last = episode.length - 1
    seen = start + _offsets(shape)
    done = start + np.arange(shape.horizon)
    frame_mask, action_mask = ((numbers <= last).astype(np.float32) for numbers in (seen, done))
    if episode.action is None:
        actions, action_mask = (
            np.zeros((shape.horizon, len(contract.action)), np.float32),
            np.zeros_like(action_mask),
        )
    else:
        actions = episode.action[np.minimum(done, last)]
        if shape.padding == "paper":
            actions, action_mask = actions * action_mask[:, None], np.ones_like(action_mask)
    if shape.padding == "paper":
        frame_mask = np.ones_like(frame_mask)
    proprio = (
        np.zeros((episode.length, len(contract.proprio)), np.float32)
        if episode.proprio is None
        else episode.proprio
    )[np.maximum(seen[: shape.history + 1], 0)]
    shown = shown_frames([start], episode.length, shape)[0]
    places = shown if episode.numbers is None else np.searchsorted(episode.numbers, shown)
    seed = int.from_bytes(hashlib.blake2b(f"{episode.episode_id}|{start}".encode()).digest()[:7], "big")
    return Clip(
        episode, places, proprio if shape.history else proprio[0], actions, action_mask, frame_mask, seed
    )


@dataclass(frozen=True)
class ClipBatch:
    """Clips of one training step, as arrays in memory with a leading axis B."""

    frames: npt.NDArray[Any]
    """(B, V, K, H, W, 3) uint8 pictures or (B, V, K, S, h, w) float16 latents."""
    proprio: npt.NDArray[np.float32]
    """(B, P), or (B, 1 + history, P)."""
    actions: npt.NDArray[np.float32]
    """(B, T, A)"""
    action_mask: npt.NDArray[np.float32]
    """(B, T)"""
    frame_mask: npt.NDArray[np.float32]
    """(B, K)"""
    instructions: list[str]
    seeds: list[int]
    """`Clip.seed` of each."""

    @classmethod
    def stack(cls, clips: Sequence[Clip]) -> "ClipBatch":
        """Copy clips into one batch.

        Raises EpisodeError for an episode that lacks a picture of its clip, since its part of the batch would
        be uninitialised memory.
        """
        views = [list(clip.episode.frames.values()) for clip in clips]
        for clip, cameras in zip(clips, views, strict=True):
            short = any(
                pictures.shape[1:] != views[0][0].shape[1:] or clip.shown.max() >= len(pictures)
                for pictures in cameras
            )
            if short or len(cameras) != len(views[0]) or len(clip.shown) != len(clips[0].shown):
                raise EpisodeError(
                    f"episode {clip.episode.episode_id}: its file lacks frames of the clip; restore the file,"
                    " or record it again"
                )
        frames = np.empty(
            (len(clips), len(views[0]), len(clips[0].shown), *views[0][0].shape[1:]), views[0][0].dtype
        )
        for b, clip in enumerate(clips):
            for v, pictures in enumerate(views[b]):
                # directly into the batch, without another copy
                np.take(pictures, clip.shown, axis=0, out=frames[b, v], mode="clip")
        return cls(
            frames=frames,
            proprio=np.stack([clip.proprio for clip in clips]),
            actions=np.stack([clip.actions for clip in clips]),
            action_mask=np.stack([clip.action_mask for clip in clips]),
            frame_mask=np.stack([clip.frame_mask for clip in clips]),
            instructions=[clip.episode.instruction for clip in clips],
            seeds=[clip.seed for clip in clips],
        )

    def to(self, device: "torch.device", normalizer: "ClipNormalizer | None" = None) -> "Batch":
        """Return the batch on the device, proprioception and actions normalised.

        normalizer: None for a video model, which uses neither.
        """
        import torch

        from policy.batch import Batch

        def move(array: npt.NDArray[Any]) -> torch.Tensor:
            return torch.from_numpy(array).to(device)

        proprio, actions = move(self.proprio), move(self.actions)
        if normalizer:
            proprio = normalizer.proprio.normalize(proprio)
            actions = normalizer.actions.normalize(actions)
        return Batch(
            frames=move(self.frames),
            proprio=proprio,
            actions=actions,
            action_mask=move(self.action_mask),
            frame_mask=move(self.frame_mask),
            instructions=self.instructions,
            seeds=self.seeds,
        )
