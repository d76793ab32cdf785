"""What a training step takes and gives, whichever policy learns.

Shapes: B clips; V views; K frames per view; H W pixels; S stored latent channels; h w latent rows, columns; T steps of a chunk;
A action dimensions; P proprioceptive values.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TypeVar

from torch import Tensor

from policy.losses import mean_over_workers

T = TypeVar("T")

# Kernels round differently at different batch sizes. So where a row must not depend on its neighbours, the networks see blocks of exactly this
# many rows, filled up if need be: measured bit for bit on CPU for a block of 4; blocks of 2 and 3 fail it.
BLOCK = 4


def blocks(rows: Sequence[T]) -> Iterator[tuple[list[T], int]]:
    """Rows in blocks of BLOCK, the last one filled up with its own last row, and how many of each block were asked for."""
    for first in range(0, len(rows), BLOCK):
        asked = list(rows[first : first + BLOCK])
        yield asked + asked[-1:] * (BLOCK - len(asked)), len(asked)


@dataclass(frozen=True)
class Batch:
    """Training clips on the model's device."""

    frames: Tensor
    """(B, V, K, H, W, 3) uint8 pictures, or (B, V, K, S, h, w) float16 latents as `policy.latent_codec` keeps them."""
    proprio: Tensor
    """(B, P) normalised, at the first frame."""
    actions: Tensor
    """(B, T, A) normalised; anything where the mask is 0."""
    action_mask: Tensor
    """(B, T) 1 where an action may be learned from: the clip has actions and the step lies inside its episode."""
    frame_mask: Tensor
    """(B, K) 1 where the frame lies inside the episode."""
    instructions: list[str]
    seeds: list[int]
    """Of the clips themselves: what is drawn from them is the same whenever the clip is met."""

    def split(self, parts: int) -> "list[Batch]":
        """The same clips as so many batches, as equal as can be."""
        bounds = [len(self.seeds) * i // parts for i in range(parts + 1)]
        return [Batch(*(getattr(self, f.name)[a:b] for f in fields(self))) for a, b in pairwise(bounds) if a < b]

    def views_apart(self) -> "Batch":
        """Every view of every clip as a clip of its own."""
        views = self.frames.shape[1]
        tensors = (getattr(self, name).repeat_interleave(views, 0) for name in ("proprio", "actions", "action_mask", "frame_mask"))
        instructions, seeds = [text for text in self.instructions for _ in range(views)], [seed for seed in self.seeds for _ in range(views)]
        proprio, actions, action_mask, frame_mask = tensors
        return Batch(self.frames.flatten(0, 1).unsqueeze(1), proprio, actions, action_mask, frame_mask, instructions, seeds)


@dataclass(frozen=True)
class Losses:
    """total: what to descend. video, action: its two terms, detached."""

    total: Tensor
    video: Tensor
    action: Tensor


@dataclass(frozen=True)
class Counts:
    """What the errors are divided by, per training process: the global count over the number of processes (`loss.masked_mean`)."""

    clips: Tensor
    frames: Tensor
    actions: Tensor

    @classmethod
    def of(cls, batch: Batch) -> "Counts":
        """Of a step's whole batch on this worker, and of all other workers' beside it."""
        clips = batch.frame_mask.new_tensor(float(len(batch.seeds)))
        return cls(*(mean_over_workers(count) for count in (clips, batch.frame_mask.sum(), batch.action_mask.sum())))
