"""Inference with a checkpoint: observations in, action chunks out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policy.batch import HALF, Batch, Counts, blocks
from policy.checkpoint import load
from policy.config import AS_RUNG, SamplerSettings
from policy.entry_points import PluginError
from policy.interface import PRESENT_ONLY, ActionChunk, Imagination, Observation, derived_seed
from policy.learner import ObservationBatch
from policy.model import VideoActionModel
from policy.normalize import ClipNormalizer, Normalizer
from policy.sessions import SessionStates


@dataclass
class _Session:
    """State of one session of a Learner; None without memory."""

    state: Any = None


class TrainedPolicy:
    """The `Policy` of a checkpoint folder.

    Each observation is denoised from noise of its own seed, in blocks of a fixed size, so an answer never
    depends on the rest of the batch: bit for bit on CPU; a GPU library that selects its kernels by load may
    round differently from one process to the next.

    `rung`: rung of the checkpoint's ladder; the default rung if empty or unknown. `sampler`: values in place
    of the rung's.

    A Learner of another package may have memory or frame history (`needs`); its sessions are kept here.

    An answer that is not finite is returned unchanged: the episode that executes it ends as an error, and the
    other answers of its batch are valid. Raises CheckpointError if the checkpoint is invalid, or if its
    weights or statistics are not finite.
    """

    def __init__(
        self,
        folder: Path,
        device: str = "cpu",
        rung: str = "",
        sampler: SamplerSettings = AS_RUNG,
    ) -> None:
        self._model, card = load(folder)
        self._model.to(device)
        self.device = torch.device(device)
        """Device of the policy, to which the batches of `loss` belong."""
        self._objective = card.provenance.get("objective", "action")
        self.contract = card.contract
        self.sampler = sampler.applied(card.config.sampler_on(rung))
        assert card.action_stats  # `load` refuses a video model
        assert card.proprio_stats
        self._actions = Normalizer(card.action_stats, card.config.action_normalization)
        self._proprio = Normalizer(card.proprio_stats, "minmax")
        self.normalizer = ClipNormalizer(self._proprio, self._actions)
        """Normalisation of the batches of `loss`."""
        self.memory, self.observation_steps = card.needs.memory, card.needs.observation_steps
        self.clip = card.config.clip
        """Shape of the clips of `loss`."""
        if card.config.learner:  # as it was trained
            as_trained = {"frames_per_view": 1, "history": self.observation_steps - 1}
            self.clip = self.clip.model_copy(update=as_trained)
        self._learner = card.config.learner
        self._has_needs = card.needs != PRESENT_ONLY
        self._sessions = SessionStates(lambda _: _Session(self._model.begin()))

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return one chunk per observation, computed in batches of fixed sizes. Raises LostSessionError for a
        later step of an unknown session, if the policy has memory.
        """
        if self._has_needs:
            return self._act_with_needs(observations)
        chunks: list[ActionChunk] = []
        for filled, asked in blocks(observations):
            chunks += self._act_block(filled)[:asked]
        return chunks

    @property
    def imagines(self) -> bool:
        """Whether `imagine` is available; the baseline has no video model."""
        return isinstance(self._model, VideoActionModel) and self._model.config.clip.frames_per_view > 1

    def imagine(self, observations: Sequence[Observation]) -> list[Imagination]:
        """Return the future that the video model predicts from each observation; only if `imagines`.

        It is the video from which the rung's actions are read: with a single pass the mean of all possible
        futures, hence blurred; with video and actions denoised together, one sample of them.
        """
        assert isinstance(self._model, VideoActionModel)
        stride, imagined = self._model.config.clip.frame_stride, []
        for filled, asked in blocks(observations):
            video, _ = self._sample(filled)
            assert video is not None
            pictures = self._model.codec.pictures(self._model.views(video[:asked])).cpu().numpy()
            # The first frame of each view is the present one, which the caller already has.
            imagined += [
                Imagination(dict(zip(self.contract.cameras, views[:, 1:], strict=True)), stride)
                for views in pictures
            ]
        return imagined

    @torch.no_grad()
    def loss(self, batch: Batch, seed: int) -> float:
        """Return the loss of the actions of clips, as in training: a function of clips and seed. The clips
        are on `device`, normalised by `normalizer`.
        """
        self._model.learn(self._objective)
        generator = torch.Generator().manual_seed(seed)
        return float(self._model(batch, generator, Counts.of(batch)).action)

    def _act_block(self, observations: list[Observation]) -> list[ActionChunk]:
        _, actions = self._sample(observations)
        return self._chunks(actions, len(observations))

    def _chunks(self, actions: Tensor, rows: int) -> list[ActionChunk]:
        """Return (B, T, A) normalised actions as chunks. Raises PluginError if a Learner gave others."""
        expected = (rows, len(self.contract.action))
        if actions.ndim != 3 or (actions.shape[0], actions.shape[2]) != expected:
            raise PluginError(
                f"the policy {self._learner} answered {rows} observations with actions of the shape"
                f" {(*actions.shape,)}; return ({rows}, steps, {expected[1]}): a chunk per observation, in"
                " their order"
            )
        return [
            ActionChunk(chunk, self.sampler.execute)
            for chunk in self._actions.denormalize(actions).cpu().numpy()
        ]

    @torch.no_grad()
    def _act_with_needs(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """Return one chunk per observation, and advance their sessions once all are computed."""
        sessions = [
            self._sessions.of(observation) if self.memory else _Session(self._model.begin())
            for observation in observations
        ]
        chunks: list[ActionChunk] = []
        states: list[Any] = []
        for filled, asked in blocks(range(len(observations))):
            actions, after = self._model.act(
                self._batch([observations[i] for i in filled]),
                [sessions[i].state for i in filled],
                self.sampler,
            )
            chunks += self._chunks(actions, len(filled))[:asked]
            states += after[:asked]
        for session, state in zip(sessions, states, strict=True):
            session.state = state
        return chunks

    def _batch(self, observations: list[Observation]) -> ObservationBatch:
        """Return the observations, each with the preceding ones that the policy takes."""
        rows = [[*observation.history, observation] for observation in observations]
        rows = [row[:1] * (self.observation_steps - len(row)) + row for row in rows]
        pictures = np.stack(
            [[[o.images[camera] for camera in self.contract.cameras] for o in row] for row in rows]
        )
        proprio = torch.from_numpy(np.stack([[o.proprio for o in row] for row in rows])).to(self.device)
        return ObservationBatch(
            torch.from_numpy(pictures).to(self.device),
            self._proprio.normalize(proprio),
            [o.instruction for o in observations],
            [_noise_seeds(o) for o in observations],
            [o.step for o in observations],
        )

    def _sample(self, observations: list[Observation]) -> tuple[Tensor | None, Tensor]:
        """Sample (B, F, C, h, w) latents, None for the baseline, and (B, T, A) normalised actions."""
        pictures = np.stack([[o.images[camera] for camera in self.contract.cameras] for o in observations])
        proprio = torch.from_numpy(np.stack([o.proprio for o in observations])).to(self.device)
        half = HALF.get(self.sampler.precision) if self.device.type == "cuda" else None
        with torch.autocast(self.device.type, half, enabled=half is not None):
            return self._model.sample(
                torch.from_numpy(pictures).to(self.device),
                self._proprio.normalize(proprio),
                [o.instruction for o in observations],
                [_noise_seeds(o) for o in observations],
                self.sampler,
            )


def _noise_seeds(observation: Observation) -> tuple[int, int]:
    """Return the seeds of the video and of the actions."""
    return observation.noise_seed, derived_seed(observation.noise_seed, 1)
