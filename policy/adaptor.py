"""The adaptor: the video model's feature maps of all views become one vector that the action U-Net is conditioned on (method 1.3).

Shapes: B clips; V views; K frames per view; c h w of a feature map; D time-embedding size.
"""

from typing import Any

import torch
from torch import Tensor, nn

from policy.config import AdaptorConfig


class _Block(nn.Module):
    """3-D residual block that is told the noise level."""

    def __init__(self, channels_in: int, channels: int, embed_dim: int, groups: int, stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels_in, channels, 3, stride, padding=1)
        self.norm1 = nn.GroupNorm(groups, channels)
        self.embed = nn.Linear(embed_dim, channels)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.skip = nn.Conv3d(channels_in, channels, 1, stride)
        self.act = nn.SiLU()

    def forward(self, x: Tensor, embedding_BD: Tensor) -> Tensor:
        h = self.norm1(self.conv1(x)) + self.embed(self.act(embedding_BD))[:, :, None, None, None]
        out: Tensor = self.act(self.norm2(self.conv2(self.act(h))) + self.skip(x))
        return out


class Adaptor(nn.Module):
    """One branch per view with weights of its own: coarser maps join on the way down; the views meet at the end.

    feature_shapes: (c, h) of each map, fine to coarse. The last block also halves the frames until one remains.
    """

    def __init__(self, config: AdaptorConfig, feature_shapes: list[tuple[int, int]], num_views: int, frames_per_view: int, embed_dim: int) -> None:
        super().__init__()
        self.num_views, self.frames_per_view = num_views, frames_per_view
        width = config.channels
        self.branches = nn.ModuleList(self._branch(config, feature_shapes, embed_dim) for _ in range(num_views))
        self.fuse = _Block(num_views * width, width, embed_dim, config.groups, (2, 1, 1))
        rows, frames = feature_shapes[-1][1], -(-frames_per_view // 2)
        self.out = nn.Linear(width * frames * rows * rows, config.out_dim)

    @staticmethod
    def _branch(config: AdaptorConfig, shapes: list[tuple[int, int]], embed_dim: int) -> nn.ModuleList:
        blocks, incoming = nn.ModuleList(), 0
        for (channels, rows), (_, next_rows) in zip(shapes, [*shapes[1:], shapes[-1]], strict=True):
            stride = rows // next_rows
            blocks.append(_Block(channels + incoming, config.channels, embed_dim, config.groups, (1, stride, stride)))
            incoming = config.channels
        return blocks

    def forward(self, features: list[Tensor], embedding_BD: Tensor) -> Tensor:
        """Maps (B, F, c, h, w), fine to coarse -> (B, out_dim)."""
        per_view = [self._split(feature) for feature in features]
        views = [self._look(branch, [maps[:, view] for maps in per_view], embedding_BD) for view, branch in enumerate(self.branches)]
        fused: Tensor = self.fuse(torch.cat(views, dim=1), embedding_BD)
        vector: Tensor = self.out(fused.flatten(1))
        return vector

    @staticmethod
    def _look(branch: Any, maps: list[Tensor], embedding_BD: Tensor) -> Tensor:
        """One view's maps, fine to coarse, each joining what came of the finer ones."""
        x = maps[0][:, :0]
        for own, block in zip(maps, branch, strict=True):
            x = block(torch.cat([x, own], dim=1), embedding_BD)
        return x

    def _split(self, feature_BFchw: Tensor) -> Tensor:
        """(B, F, c, h, w) -> (B, V, c, K, h, w), without the pad frames in front."""
        frames = feature_BFchw[:, -self.num_views * self.frames_per_view :]
        views: Tensor = frames.unflatten(1, (self.num_views, self.frames_per_view))
        return views.movedim(3, 2)
