"""A checkpoint that acts: observations in, action chunks out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from policy.batch import blocks
from policy.checkpoint import load
from policy.interface import ActionChunk, Imagination, Observation, derived_seed
from policy.model import VideoActionModel
from policy.normalize import Normalizer


class TrainedPolicy:
    """The `Policy` of a checkpoint folder.

    Every observation brings its own noise seed and is denoised from its own noise, in blocks of a fixed size: an answer never depends on who
    else asks. On CPU to the last bit; a GPU library that picks its kernels by load may round differently from one process to the next.

    `rung`: where on the checkpoint's ladder to act; one it does not have, and none, mean its own.

    An answer that is not finite is given as it is: the episode that carries it out ends as an error, and the other answers
    of its batch are sound. CheckpointError, from `load`, for weights or statistics that are not finite.
    """

    def __init__(self, folder: Path, device: str = "cpu", rung: str = "") -> None:
        self._model, card = load(folder)
        self._model.to(device)
        self._device = device
        self.contract = card.contract
        self.sampler = card.config.sampler_on(rung)
        assert card.action_stats  # `load` refuses a video model
        assert card.proprio_stats
        self._actions = Normalizer(card.action_stats, card.config.action_normalization)
        self._proprio = Normalizer(card.proprio_stats, "minmax")

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        chunks: list[ActionChunk] = []
        for filled, asked in blocks(observations):
            chunks += self._act_block(filled)[:asked]
        return chunks

    @property
    def imagines(self) -> bool:
        """Whether there is a future to see: the baseline has no video model."""
        return isinstance(self._model, VideoActionModel) and self._model.config.clip.frames_per_view > 1

    def imagine(self, observations: Sequence[Observation]) -> list[Imagination]:
        """What the video model expects to see from each observation on; only of a policy that imagines.

        It is the very video that the rung's actions are read from: of one that acts after a single pass the mean of all futures it thinks
        possible, hence blurred; of one whose passes come down together one future among them.
        """
        assert isinstance(self._model, VideoActionModel)
        stride, imagined = self._model.config.clip.frame_stride, []
        for filled, asked in blocks(observations):
            video, _ = self._sample(filled)
            assert video is not None
            pictures = self._model.codec.pictures(self._model.views(video[:asked])).cpu().numpy()
            # The first frame of each view is the present one, which the caller has already.
            imagined += [Imagination(dict(zip(self.contract.cameras, views[:, 1:], strict=True)), stride) for views in pictures]
        return imagined

    def _act_block(self, observations: list[Observation]) -> list[ActionChunk]:
        _, actions = self._sample(observations)
        return [ActionChunk(chunk, self.sampler.execute) for chunk in self._actions.denormalize(actions).cpu().numpy()]

    def _sample(self, observations: list[Observation]) -> tuple[Tensor | None, Tensor]:
        """(B, F, C, h, w) latents, if the policy imagines, and (B, T, A) normalised actions."""
        pictures = np.stack([[o.images[camera] for camera in self.contract.cameras] for o in observations])
        proprio = torch.from_numpy(np.stack([o.proprio for o in observations])).to(self._device)
        return self._model.sample(
            torch.from_numpy(pictures).to(self._device),
            self._proprio.normalize(proprio),
            [o.instruction for o in observations],
            [(o.noise_seed, derived_seed(o.noise_seed, 1)) for o in observations],
            self.sampler,
        )
