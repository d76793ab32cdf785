"""The action head: denoises a chunk of actions, conditioned on one vector. Shared by the video-action policy
and the baseline.

Shapes: B chunks; D condition size; E time-embedding size; P proprioceptive values; T steps; A action
dimensions; N noises per chunk.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from policy.action_unet import ActionUNet
from policy.config import ActionConfig, DiffusionConfig
from policy.edm import denoised, draw_sigma, euler_step, guided, scale_input
from policy.interface import Contract
from policy.losses import masked_mean, per_clip_error

PROPRIO_DIM = 64

Embed = Callable[[Tensor], Tensor]
"""Embedding of noise levels, (B,) -> (B, E)."""


class ActionHead(nn.Module):
    """Embedding of proprioception, and the action U-Net. In the paper, the contract has no proprioception."""

    def __init__(self, config: ActionConfig, contract: Contract, seen_dim: int, embed_dim: int) -> None:
        super().__init__()
        values = len(contract.proprio)
        self.proprio = (
            nn.Sequential(nn.Linear(values, PROPRIO_DIM), nn.SiLU(), nn.Linear(PROPRIO_DIM, PROPRIO_DIM))
            if values
            else None
        )
        self.unet = ActionUNet(
            config, len(contract.action), seen_dim + (PROPRIO_DIM if values else 0), embed_dim
        )

    def condition(self, seen_BD: Tensor, proprio_BP: Tensor) -> Tensor:
        """Return the conditioning of the action U-Net except the noise level."""
        return (
            seen_BD
            if self.proprio is None
            else torch.cat([seen_BD, self.proprio(proprio_BP).to(seen_BD.dtype)], dim=1)
        )

    def clean(self, noisy_BTA: Tensor, sigma_B: Tensor, cond_BD: Tensor, embed: Embed) -> Tensor:
        """Predict the clean actions."""
        v = self.unet(scale_input(noisy_BTA, sigma_B), cond_BD, embed(sigma_B))
        return denoised(noisy_BTA, v.float(), sigma_B)

    def loss(
        self,
        actions_BTA: Tensor,
        mask_BT: Tensor,
        cond_BD: Tensor,
        embed: Embed,
        diffusion: DiffusionConfig,
        generator: torch.Generator,
        shared_sigma_B: Tensor | None,
        world_total: Tensor,
    ) -> Tensor:
        """Return the mean weighted error over the masked steps, at `action_draws` noises per chunk.

        `shared_sigma_B`: the video's noise level, if both streams share it. `world_total`: masked steps per
        worker, see `losses.masked_mean`.
        """
        draws = diffusion.action_draws
        actions, mask, cond = (
            tensor.repeat_interleave(draws, 0) for tensor in (actions_BTA, mask_BT, cond_BD)
        )
        if shared_sigma_B is None:
            sigma = draw_sigma(len(actions), diffusion.log_sigma_mean, diffusion.log_sigma_std, generator).to(
                actions.device
            )
        else:
            sigma = shared_sigma_B.repeat_interleave(draws, 0)
        noisy = actions + sigma[:, None, None] * torch.randn(actions.shape, generator=generator).to(
            actions.device
        )
        return masked_mean(
            per_clip_error(self.clean(noisy, sigma, cond, embed), actions, sigma), mask, draws * world_total
        )

    def step(
        self,
        actions_BTA: Tensor,
        sigma: Tensor,
        sigma_next: Tensor,
        cond_BD: Tensor,
        embed: Embed,
        guidance: float,
    ) -> Tensor:
        """Take one Euler step to `sigma_next`; with guidance, `cond_BD` has twice the rows: conditional, then
        unconditional.
        """
        sigma_B = sigma.expand(len(cond_BD))
        if len(cond_BD) == len(actions_BTA):
            clean = self.clean(actions_BTA, sigma_B, cond_BD, embed)
        else:
            clean = guided(
                self.clean(torch.cat([actions_BTA, actions_BTA]), sigma_B, cond_BD, embed), guidance
            )
        return euler_step(actions_BTA, clean, sigma, sigma_next)
