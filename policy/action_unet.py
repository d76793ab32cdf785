"""The action U-Net: denoises a chunk of actions, conditioned on one vector of the video model's features
(arXiv 2508.00795).

A 1-D convolutional U-Net over the chunk with FiLM conditioning, after Diffusion Policy (Chi et al. 2023,
arXiv 2303.04137).

Shapes: B chunks; T steps; A action dimensions; C channels; D condition size.
"""

from typing import Any

import torch
from torch import Tensor, nn

from policy.config import ActionConfig


class _ResBlock(nn.Module):
    def __init__(self, channels_in: int, channels: int, cond_dim: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv1d(channels_in, channels, kernel, padding=kernel // 2),
            nn.GroupNorm(groups, channels),
            nn.SiLU(),
        )
        self.film = nn.Sequential(nn.SiLU(), nn.Linear(cond_dim, 2 * channels))
        self.conv2 = nn.Sequential(
            nn.Conv1d(channels, channels, kernel, padding=kernel // 2),
            nn.GroupNorm(groups, channels),
            nn.SiLU(),
        )
        self.skip = nn.Conv1d(channels_in, channels, 1) if channels_in != channels else nn.Identity()

    def forward(self, x_BCT: Tensor, cond_BD: Tensor) -> Tensor:
        scale, bias = self.film(cond_BD)[:, :, None].chunk(2, dim=1)
        out: Tensor = self.conv2((1 + scale) * self.conv1(x_BCT) + bias) + self.skip(x_BCT)
        return out


class ActionUNet(nn.Module):
    """1-D U-Net with the video model's preconditioning; its output is a v-prediction of the normalised
    actions.

    The horizon must be divisible by 2 for each level but the last.
    """

    def __init__(self, config: ActionConfig, action_dim: int, cond_dim: int, embed_dim: int) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(embed_dim, config.time_dim))
        dim, kernel, groups, dims = (
            cond_dim + config.time_dim,
            config.kernel_size,
            config.groups,
            config.down_dims,
        )

        def block(channels_in: int, channels: int) -> _ResBlock:
            return _ResBlock(channels_in, channels, dim, kernel, groups)

        self.down: Any = nn.ModuleList()
        self.up: Any = nn.ModuleList()
        for level, (channels_in, channels) in enumerate(zip((action_dim, *dims), dims, strict=False)):
            shrink = nn.Conv1d(channels, channels, 3, 2, 1) if level < len(dims) - 1 else nn.Identity()
            self.down.append(nn.ModuleList([block(channels_in, channels), block(channels, channels), shrink]))
        self.mid = nn.ModuleList([block(dims[-1], dims[-1]), block(dims[-1], dims[-1])])
        for channels, channels_out in zip(dims[:0:-1], dims[-2::-1], strict=True):
            grow = nn.ConvTranspose1d(channels_out, channels_out, 4, 2, 1)
            self.up.append(
                nn.ModuleList([block(2 * channels, channels_out), block(channels_out, channels_out), grow])
            )
        self.out = nn.Sequential(
            nn.Conv1d(dims[0], dims[0], kernel, padding=kernel // 2),
            nn.GroupNorm(groups, dims[0]),
            nn.SiLU(),
            nn.Conv1d(dims[0], action_dim, 1),
        )

    def forward(self, x_BTA: Tensor, cond_BD: Tensor, embedding_BD: Tensor) -> Tensor:
        """Return a v-prediction, (B, T, A), of noisy actions x_BTA. embedding_BD: embedded noise level."""
        cond = torch.cat([self.time(embedding_BD), cond_BD], dim=1)
        x, skips = x_BTA.transpose(1, 2), []
        for first, second, change in self.down:
            x = second(first(x, cond), cond)
            skips.append(x)
            x = change(x)
        for block in self.mid:
            x = block(x, cond)
        for first, second, change in self.up:
            x = change(second(first(torch.cat([x, skips.pop()], dim=1), cond), cond))
        out: Tensor = self.out(x).transpose(1, 2)
        return out
