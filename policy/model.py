"""The video-action model: one U-Net imagines the future of every camera, an action head reads its features and denoises the actions.

Shapes: B clips; V views; K frames per view; F = pad + V*K frames on the time axis; C H W latents; T steps of a chunk;
A action dimensions; P proprioceptive dimensions.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from policy.action import ActionUNet
from policy.adaptor import Adaptor
from policy.config import PolicyConfig
from policy.interface import Contract
from policy.loss import masked_mean, mean_over_workers, per_clip_error
from policy.noise import denoised, draw_sigma, euler_step, karras_sigmas, scale_input
from policy.text import embed_sentences
from policy.video import VideoModel, to_latents


@dataclass(frozen=True)
class Batch:
    """Training clips on the model's device."""

    frames: Tensor
    """(B, V, K, H*p, W*p, 3) uint8."""
    proprio: Tensor
    """(B, P) normalised, at the first frame."""
    actions: Tensor
    """(B, T, A) normalised; anything where the mask is 0."""
    action_mask: Tensor
    """(B, T) 1 where an action may be learned from: the clip has actions and the step lies inside its episode."""
    frame_mask: Tensor
    """(B, K) 1 where the frame lies inside the episode."""
    instructions: list[str]


@dataclass(frozen=True)
class Losses:
    """total: what to descend. video, action: its two terms, detached."""

    total: Tensor
    video: Tensor
    action: Tensor


class VideoActionModel(nn.Module):
    """Everything that learns, for the conventions of one contract."""

    def __init__(self, config: PolicyConfig, contract: Contract) -> None:
        super().__init__()
        self.config = config
        self.num_views = len(contract.cameras)
        self.action_dim = len(contract.action)
        self.latent_shape = (3 * config.video.patch**2, *(side // config.video.patch for side in contract.image_size))
        self.num_frames = config.video.pad_frames + self.num_views * config.clip.frames_per_view
        self.video = VideoModel(config.video, contract.image_size)
        embed_dim = 4 * config.video.block_out_channels[0]
        self.adaptor = Adaptor(config.adaptor, self._feature_shapes(), self.num_views, config.clip.frames_per_view, embed_dim)
        self.proprio = nn.Sequential(nn.Linear(len(contract.proprio), 64), nn.SiLU(), nn.Linear(64, 64))
        self.action = ActionUNet(config.action, self.action_dim, config.adaptor.out_dim + 64, embed_dim)

    @torch.no_grad()
    def _feature_shapes(self) -> list[tuple[int, int]]:
        empty = torch.zeros(1, self.num_frames, *self.latent_shape)
        text = torch.zeros(1, 1, self.config.video.cross_attention_dim)
        _, features = self.video(empty, torch.ones(1), empty, text)
        return [(feature.shape[2], feature.shape[3]) for feature in features]

    def _on_time_axis(self, per_view_BVKCHW: Tensor) -> Tensor:
        """Views end to end, (B, F, C, H, W), behind `pad_frames` copies of the first view's present frame (method 1.1)."""
        pad = per_view_BVKCHW[:, 0, :1].expand(-1, self.config.video.pad_frames, -1, -1, -1)
        return torch.cat([pad, per_view_BVKCHW.flatten(1, 2)], dim=1)

    def _condition(self, present_BVCHW: Tensor) -> Tensor:
        """Every frame is shown its own camera's present picture."""
        return self._on_time_axis(present_BVCHW[:, :, None].expand(-1, -1, self.config.clip.frames_per_view, -1, -1, -1))

    def _text(self, instructions: list[str], device: torch.device) -> Tensor:
        return embed_sentences(instructions, self.config.video.cross_attention_dim).to(device)

    def _read(self, features: list[Tensor], sigma_B: Tensor, proprio_BP: Tensor) -> Tensor:
        """(B, D) what the action U-Net is conditioned on."""
        vector = self.adaptor(features, self.video.time_embedding(sigma_B))
        return torch.cat([vector, self.proprio(proprio_BP)], dim=1)

    def _clean_actions(self, noisy_BTA: Tensor, sigma_B: Tensor, cond_BD: Tensor) -> Tensor:
        v = self.action(scale_input(noisy_BTA, sigma_B), cond_BD, self.video.time_embedding(sigma_B))
        return denoised(noisy_BTA, v, sigma_B)

    def forward(self, batch: Batch, generator: torch.Generator) -> Losses:
        """The `joint` loss: both streams noised, the video's error on every clip, the actions' on clips that have them.

        The generator (on the CPU) draws every random number, so a step is a function of its seed.
        """
        diffusion, device = self.config.diffusion, batch.frames.device
        latents = to_latents(batch.frames, self.config.video.patch)
        video = self._on_time_axis(latents)
        num = video.shape[0]
        shared = diffusion.sigmas == "shared"
        mean = diffusion.log_sigma_mean if shared or diffusion.video_log_sigma_mean is None else diffusion.video_log_sigma_mean
        sigma = draw_sigma(num, mean, diffusion.log_sigma_std, generator).to(device)
        noise = torch.randn(video.shape, generator=generator).to(device)
        clean, features = self.video(
            video + sigma[:, None, None, None, None] * noise, sigma, self._condition(latents[:, :, 0]), self._text(batch.instructions, device)
        )
        frame_mask = torch.cat([batch.frame_mask[:, :1].expand(-1, self.config.video.pad_frames), batch.frame_mask.repeat(1, self.num_views)], dim=1)
        video_loss = masked_mean(per_clip_error(clean, video, sigma), frame_mask, mean_over_workers(frame_mask.sum()))

        draws = diffusion.action_draws
        cond = self._read(features, sigma, batch.proprio).repeat_interleave(draws, 0)
        actions, mask = batch.actions.repeat_interleave(draws, 0), batch.action_mask.repeat_interleave(draws, 0)
        if shared:
            action_sigma = sigma.repeat_interleave(draws, 0)
        else:
            action_sigma = draw_sigma(num * draws, diffusion.log_sigma_mean, diffusion.log_sigma_std, generator).to(device)
        noisy = actions + action_sigma[:, None, None] * torch.randn(actions.shape, generator=generator).to(device)
        clean_actions = self._clean_actions(noisy, action_sigma, cond)
        action_loss = masked_mean(per_clip_error(clean_actions, actions, action_sigma), mask, mean_over_workers(mask.sum()))
        return Losses(video_loss + action_loss, video_loss.detach(), action_loss.detach())

    @torch.no_grad()
    def sample(self, present_BVHW3: Tensor, proprio_BP: Tensor, instructions: list[str], noise: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Imagine and act: (B, F, C, H, W) latents and (B, T, A) normalised actions, from unit noise of those shapes.

        With one video pass the video is looked at once, at the highest noise, and its features serve every action step;
        otherwise video and actions come down the same noise levels together (method 1.5).
        """
        sampler = self.config.sampler
        sigmas = karras_sigmas(sampler.action_steps, sampler.sigma_min, sampler.sigma_max, sampler.rho).to(present_BVHW3.device)
        together = sampler.video_passes == sampler.action_steps
        latents = to_latents(present_BVHW3, self.config.video.patch)
        condition, text = self._condition(latents), self._text(instructions, latents.device)
        video, actions = noise[0] * sigmas[0], noise[1] * sigmas[0]
        clean_video, cond = video, torch.empty(0)
        for step, (sigma, sigma_next) in enumerate(itertools.pairwise(sigmas)):
            sigma_B = sigma.expand(len(video))
            if together or step == 0:
                clean_video, features = self.video(video, sigma_B, condition, text)
                cond = self._read(features, sigma_B, proprio_BP)
                video = euler_step(video, clean_video, sigma, sigma_next)
            actions = euler_step(actions, self._clean_actions(actions, sigma_B, cond), sigma, sigma_next)
        return clean_video, actions
