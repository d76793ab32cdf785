"""A checkpoint that acts: observations in, action chunks out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from policy.checkpoint import load
from policy.interface import ActionChunk, Observation, derived_seed
from policy.normalize import Normalizer

# Kernels round differently at different batch sizes. So the network always sees blocks of exactly this many rows, filled up if need be;
# in a block of this size no row's answer depends on its place or its neighbours (measured bit for bit; blocks of 2 and 3 fail it).
BLOCK = 4


class TrainedPolicy:
    """The `Policy` of a checkpoint folder.

    Every observation brings its own noise seed and is denoised from its own noise: an answer never depends on who else asks.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self._model, card = load(folder)
        self._model.to(device)
        self._device = device
        self.contract = card.contract
        self._execute = card.config.sampler.execute
        self._actions = Normalizer(card.action_stats, card.config.action_normalization)
        self._proprio = Normalizer(card.proprio_stats, "minmax")

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        chunks: list[ActionChunk] = []
        for first in range(0, len(observations), BLOCK):
            asked = list(observations[first : first + BLOCK])
            filled = asked + asked[-1:] * (BLOCK - len(asked))
            chunks += self._act_block(filled)[: len(asked)]
        return chunks

    def _act_block(self, observations: list[Observation]) -> list[ActionChunk]:
        model = self._model
        pictures = np.stack([[o.images[camera] for camera in self.contract.cameras] for o in observations])
        proprio = torch.from_numpy(np.stack([o.proprio for o in observations])).to(self._device)
        seeds = [o.noise_seed for o in observations]
        video_noise = self._noise(seeds, (model.num_frames, *model.latent_shape))
        action_noise = self._noise([derived_seed(seed, 1) for seed in seeds], (model.config.clip.horizon, model.action_dim))
        _, actions = model.sample(
            torch.from_numpy(pictures).to(self._device),
            self._proprio.normalize(proprio),
            [o.instruction for o in observations],
            (video_noise, action_noise),
        )
        return [ActionChunk(chunk, self._execute) for chunk in self._actions.denormalize(actions).cpu().numpy()]

    def _noise(self, seeds: list[int], shape: tuple[int, ...]) -> torch.Tensor:
        """(B, *shape) unit noise, each row from its own seed, drawn on the CPU so that the device does not matter."""
        return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]).to(self._device)
