"""Inputs and outputs of a training step, common to all policies.

Shapes: B clips; V views; K frames per view; H W pixels; S stored latent channels; h w latent rows, columns; T
steps of a chunk; A action dimensions; P proprioceptive values.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from policy.losses import mean_over_workers

T = TypeVar("T")

# Kernels round differently at different batch sizes. Where a row must not depend on its neighbours, the
# networks process blocks of exactly this many rows, padded if necessary: measured bit for bit on CPU for
# blocks of 4; blocks of 2 and 3 fail.
BLOCK = 4

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Half precisions by name."""


def blocks(rows: Sequence[T]) -> Iterator[tuple[list[T], int]]:
    """Yield blocks of BLOCK rows, the last padded with its own last row, and the number of rows of each block
    that are no padding.
    """
    for first in range(0, len(rows), BLOCK):
        asked = list(rows[first : first + BLOCK])
        yield asked + asked[-1:] * (BLOCK - len(asked)), len(asked)


@dataclass(frozen=True)
class Batch:
    """Training clips on the model's device."""

    frames: Tensor
    """Pictures (B, V, K, H, W, 3) uint8, or latents (B, V, K, S, h, w) float16 as encoded by
    `policy.latent_codec`.
    """
    proprio: Tensor
    """Normalised proprioception (B, P) at the present frame, the first one; for a Learner with frame history
    (B, N, P), and its frames are preceded by as many, so that the present one is at N - 1.
    """
    actions: Tensor
    """Normalised actions (B, T, A); arbitrary where the mask is 0."""
    action_mask: Tensor
    """Mask (B, T), 1 where the action counts in the loss: the clip has actions and the step lies inside its
    episode.
    """
    frame_mask: Tensor
    """Mask (B, K), 1 where the frame lies inside the episode."""
    instructions: list[str]
    seeds: list[int]
    """Seed of each clip; draws from it are the same each time that the clip is used."""

    def split(self, parts: int) -> "list[Batch]":
        """Split the clips into at most `parts` batches of nearly equal size; empty ones are left out."""
        bounds = [len(self.seeds) * i // parts for i in range(parts + 1)]
        return [
            Batch(*(getattr(self, f.name)[a:b] for f in fields(self))) for a, b in pairwise(bounds) if a < b
        ]

    def views_apart(self) -> "Batch":
        """Return a batch in which every view of every clip is a separate clip."""
        views = self.frames.shape[1]
        tensors = (
            getattr(self, name).repeat_interleave(views, 0)
            for name in ("proprio", "actions", "action_mask", "frame_mask")
        )
        instructions, seeds = (
            [text for text in self.instructions for _ in range(views)],
            [seed for seed in self.seeds for _ in range(views)],
        )
        proprio, actions, action_mask, frame_mask = tensors
        return Batch(
            self.frames.flatten(0, 1).unsqueeze(1),
            proprio,
            actions,
            action_mask,
            frame_mask,
            instructions,
            seeds,
        )


@dataclass(frozen=True)
class Losses:
    """Losses of a step. total: the loss to minimise. video, action: its two terms, detached."""

    total: Tensor
    video: Tensor
    action: Tensor


@dataclass(frozen=True)
class Counts:
    """Denominators of the losses, per training process: the global count over the number of processes
    (`losses.masked_mean`).
    """

    clips: Tensor
    frames: Tensor
    actions: Tensor

    @classmethod
    def of(cls, batch: Batch) -> "Counts":
        """Count the whole batch of a step, averaged over all workers; a collective call."""
        clips = batch.frame_mask.new_tensor(float(len(batch.seeds)))
        return cls(
            *(mean_over_workers(count) for count in (clips, batch.frame_mask.sum(), batch.action_mask.sum()))
        )
