"""A checkpoint that acts: observations in, action chunks out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from policy.checkpoint import load
from policy.interface import ActionChunk, Observation
from policy.normalize import Normalizer


class TrainedPolicy:
    """The `Policy` of a checkpoint folder.

    Every observation brings its own noise seed and is denoised from its own noise, so an answer does not depend on its neighbours in the
    batch. On one CPU thread it is the same to the last bit; elsewhere to the rounding of the batched kernels.
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
        model = self._model
        pictures = np.stack([[o.images[camera] for camera in self.contract.cameras] for o in observations])
        proprio = torch.from_numpy(np.stack([o.proprio for o in observations])).to(self._device)
        seeds = [o.noise_seed for o in observations]
        _, actions = model.sample(
            torch.from_numpy(pictures).to(self._device),
            self._proprio.normalize(proprio),
            [o.instruction for o in observations],
            (
                self._noise(seeds, (model.num_frames, *model.latent_shape)),
                self._noise([seed + 1 for seed in seeds], (model.config.clip.horizon, model.action_dim)),
            ),
        )
        return [ActionChunk(chunk, self._execute) for chunk in self._actions.denormalize(actions).cpu().numpy()]

    def _noise(self, seeds: list[int], shape: tuple[int, ...]) -> torch.Tensor:
        """(B, *shape) unit noise, each row from its own seed, drawn on the CPU so that the device does not matter."""
        return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]).to(self._device)
