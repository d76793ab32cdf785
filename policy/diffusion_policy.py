"""The behaviour-cloning baseline: an image encoder per camera and the same action U-Net, no video (Chi et al.
2023, arXiv 2303.04137).

It trains on demos only; clips, normalisation, action head and sampler are those of the video-action policy.

Shapes: B clips; V views; H W pixels; T steps of a chunk; A action dimensions; P proprioceptive values; D size
of an encoder's output.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import Downsample2D, ResnetBlock2D
from torch import Tensor, nn

from policy.action_head import ActionHead
from policy.batch import Batch, Counts, Losses
from policy.config import ImageConfig, PolicyConfig, SamplerConfig
from policy.edm import karras_sigmas, noise_label, unit_noise
from policy.interface import Contract
from policy.learner import Learner
from policy.text_encoder import WordVectors


class ImageEncoder(nn.Module):
    """Encoder of one camera's pictures, (B, H, W, 3) uint8 -> (B, D): residual levels with group norm, each
    half the size of the one before.

    Pooling is a spatial softmax, the expected position of every channel, which preserves positions (Levine et
    al. 2016, 5.1).
    """

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        widths = config.channels
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 5, 2, 2)]
        for before, width in zip((widths[0], *widths), widths, strict=False):
            layers += [
                ResnetBlock2D(
                    in_channels=before, out_channels=width, temb_channels=None, groups=config.groups, eps=1e-5
                )
            ]
            layers += [Downsample2D(width, use_conv=True, name="op")] if width != widths[-1] else []
        self.levels = nn.ModuleList(layers)
        self.out = nn.Linear(2 * widths[-1], config.out_dim)

    def forward(self, pictures_BHW3: Tensor) -> Tensor:
        """Encode pictures, (..., H, W, 3) uint8, to one vector each."""
        x = pictures_BHW3.movedim(-1, -3).float() / 127.5 - 1
        for layer in self.levels:
            x = layer(x, None) if isinstance(layer, ResnetBlock2D) else layer(x)
        rows, columns = (torch.linspace(-1, 1, side, device=x.device) for side in x.shape[-2:])
        weight = x.flatten(2).softmax(2).unflatten(2, x.shape[-2:])
        places = torch.cat([(weight.sum(3) * rows).sum(2), (weight.sum(2) * columns).sum(2)], dim=1)
        seen: Tensor = self.out(places)
        return seen


class DiffusionPolicy(Learner):
    """Image encoders and action head of the baseline, for the conventions of one contract."""

    def __init__(self, config: PolicyConfig, contract: Contract) -> None:
        super().__init__()
        assert config.images is not None
        self.config, self.contract = config, contract
        self.images = nn.ModuleList(ImageEncoder(config.images) for _ in contract.cameras)
        self.sentences = WordVectors(config.images.text_dim)
        self.time_proj = Timesteps(config.images.time_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(config.images.time_dim, config.images.time_dim)
        seen_dim = len(contract.cameras) * config.images.out_dim + config.images.text_dim
        self.head = ActionHead(config.action, contract, seen_dim, config.images.time_dim)

    def _embed(self, sigma_B: Tensor) -> Tensor:
        embedding: Tensor = self.time_embedding(self.time_proj(noise_label(sigma_B)))
        return embedding

    def _seen(self, present_BVHW3: Tensor, instructions: Sequence[str]) -> Tensor:
        views = [encoder(present_BVHW3[:, view]) for view, encoder in enumerate(self.images)]
        return torch.cat(
            [*views, self.sentences.embed(list(instructions))[:, 0].to(present_BVHW3.device)], dim=1
        )

    def forward(self, batch: Batch, generator: torch.Generator, counts: Counts) -> Losses:
        """Return the action error; frames after the present one are ignored."""
        cond = self.head.condition(self._seen(batch.frames[:, :, 0], batch.instructions), batch.proprio)
        loss = self.head.loss(
            batch.actions,
            batch.action_mask,
            cond,
            self._embed,
            self.config.diffusion,
            generator,
            None,
            counts.actions,
        )
        return Losses(loss, torch.zeros_like(loss), loss.detach())

    @torch.no_grad()
    def sample(
        self,
        present_BVHW3: Tensor,
        proprio_BP: Tensor,
        instructions: list[str],
        noise_seeds: Sequence[tuple[int, int]],
        sampler: SamplerConfig,
    ) -> tuple[None, Tensor]:
        """Sample (B, T, A) normalised actions; there is no video. Only the second seed of each pair
        is used.
        """
        cond = self.head.condition(self._seen(present_BVHW3, instructions), proprio_BP)
        sigmas = karras_sigmas(sampler.action_steps, *sampler.action_sigmas, sampler.rho).to(cond.device)
        chunk = (self.config.clip.horizon, len(self.contract.action))
        actions = unit_noise([seed for _, seed in noise_seeds], chunk).to(cond.device) * sigmas[0]
        for sigma, sigma_next in pairwise(sigmas):
            actions = self.head.step(actions, sigma, sigma_next, cond, self._embed, 1.0)
        return None, actions
