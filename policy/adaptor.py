"""The adaptor: maps the video model's features of all views to one vector that conditions the action U-Net
(arXiv 2508.00795).

Shapes: B clips; V views; K frames per view; F frames on the time axis, pad + V*K; c h w of a feature map; C
channels; D embedding size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from policy.config import AdaptorConfig, BranchStage, StageConfig


class _Block(nn.Module):
    """3-D residual bottleneck conditioned on the noise level."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        stage: StageConfig,
        stride: tuple[int, int, int],
        embed_dim: int,
    ) -> None:
        super().__init__()
        inner, outer_groups = channels // stage.expansion, stage.groups * stage.expansion
        self.conv1 = nn.Conv3d(channels_in, inner, 1, bias=False)
        self.norm1 = nn.GroupNorm(stage.groups, inner)
        self.embed = nn.Linear(embed_dim, inner)
        self.conv2 = nn.Conv3d(inner, inner, 3, stride, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(stage.groups, inner)
        self.conv3 = nn.Conv3d(inner, channels, 1, bias=False)
        self.norm3 = nn.GroupNorm(outer_groups, channels)
        self.skip: nn.Module = nn.Identity()
        if channels_in != channels or stride != (1, 1, 1):
            self.skip = nn.Sequential(
                nn.Conv3d(channels_in, channels, 1, stride, bias=False), nn.GroupNorm(outer_groups, channels)
            )
        self.act = nn.SiLU()

    def forward(self, x_BCKhw: Tensor, embedding_BD: Tensor) -> Tensor:
        # Added after the norm, which would otherwise remove part of it.
        h = self.norm1(self.conv1(x_BCKhw)) + self.embed(self.act(embedding_BD))[:, :, None, None, None]
        h = self.norm2(self.conv2(self.act(h)))
        out: Tensor = self.act(self.norm3(self.conv3(self.act(h))) + self.skip(x_BCKhw))
        return out


class _Stage(nn.Module):
    """Blocks of one width; the first applies the stride."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        config: StageConfig,
        stride: tuple[int, int, int],
        embed_dim: int,
    ) -> None:
        super().__init__()
        first = _Block(channels_in, channels, config, stride, embed_dim)
        self.blocks = nn.ModuleList(
            [
                first,
                *(_Block(channels, channels, config, (1, 1, 1), embed_dim) for _ in range(config.blocks - 1)),
            ]
        )

    def forward(self, x_BCKhw: Tensor, embedding_BD: Tensor) -> Tensor:
        for block in self.blocks:
            x_BCKhw = block(x_BCKhw, embedding_BD)
        return x_BCKhw


class _Branch(nn.Module):
    """Downsampling network of one view; the coarser feature maps join at later stages."""

    def __init__(
        self, stages: Sequence[BranchStage], shapes: Sequence[tuple[int, ...]], embed_dim: int
    ) -> None:
        super().__init__()
        self.joins = [bool(stage.joins) for stage in stages]
        if sum(self.joins) != len(shapes) - 1:
            raise ValueError(
                f"{len(shapes)} feature maps for a branch that reads {1 + sum(self.joins)}: the finest, and"
                " one per stage with joins"
            )
        self.stages, self.joining = nn.ModuleList(), nn.ModuleList()
        (channels, *size), coarser = shapes[0], list(shapes[1:])
        for stage, next_joins in zip(stages, [*self.joins[1:], False], strict=True):
            if stage.joins:
                self.joining.append(_Stage(coarser.pop(0)[0], stage.joins, stage, (1, 1, 1), embed_dim))
                channels += stage.joins
            next_size = coarser[0][1:] if next_joins else size
            self.stages.append(_Stage(channels, stage.channels, stage, _stride(size, next_size), embed_dim))
            channels, size = stage.channels, list(next_size)

    def forward(self, maps: list[Tensor], embedding_BD: Tensor) -> Tensor:
        """Reduce the maps of one view, each (B, c, K, h, w), fine to coarse, to (B, C, K, h, w) of the size
        of the coarsest.
        """
        x, coarser = maps[0], zip(self.joining, maps[1:], strict=True)
        for stage, joins in zip(self.stages, self.joins, strict=True):
            if joins:
                joining, own = next(coarser)
                x = torch.cat([x, joining(own, embedding_BD)], dim=1)
            x = stage(x, embedding_BD)
        return x


class Adaptor(nn.Module):
    """One branch per view with separate weights, then a trunk over all views that reduces the number of
    frames.

    feature_shapes: (c, h, w) of each map, fine to coarse; (c, h) of square ones. Raises ValueError if they do
    not fit the configuration.
    """

    out_dim: int
    """Size of the vector."""

    def __init__(
        self,
        config: AdaptorConfig,
        feature_shapes: Sequence[tuple[int, ...]],
        num_views: int,
        frames_per_view: int,
        embed_dim: int,
    ) -> None:
        super().__init__()
        self.num_views, self.frames_per_view = num_views, frames_per_view
        shapes = [(shape[0], shape[1], shape[-1]) for shape in feature_shapes]
        self.branches = nn.ModuleList(_Branch(config.branch, shapes, embed_dim) for _ in range(num_views))
        self.trunk = nn.ModuleList()
        channels, frames = num_views * config.branch[-1].channels, frames_per_view
        for stage in config.trunk:
            self.trunk.append(_Stage(channels, stage.channels, stage, (stage.frame_stride, 1, 1), embed_dim))
            channels, frames = stage.channels, -(-frames // stage.frame_stride)
        self.norm = nn.GroupNorm(config.trunk[-1].groups * config.trunk[-1].expansion, channels)
        flat = channels * frames * shapes[-1][1] * shapes[-1][2]
        self.out = nn.Linear(flat, config.out_dim) if config.out_dim else nn.Identity()
        self.out_dim = config.out_dim or flat

    def forward(self, features: list[Tensor], embedding_BD: Tensor) -> Tensor:
        """Map features, each (B, F, c, h, w), fine to coarse, to (B, out_dim)."""
        per_view = [self._split(feature) for feature in features]
        views = [
            branch([maps[:, view] for maps in per_view], embedding_BD)
            for view, branch in enumerate(self.branches)
        ]
        x = torch.cat(views, dim=1)
        for stage in self.trunk:
            x = stage(x, embedding_BD)
        vector: Tensor = self.out(self.norm(x).flatten(1))
        return vector

    def _split(self, feature_BFchw: Tensor) -> Tensor:
        """Split (B, F, c, h, w) into views, (B, V, c, K, h, w), without the leading pad frames."""
        frames = feature_BFchw[:, -self.num_views * self.frames_per_view :]
        views: Tensor = frames.unflatten(1, (self.num_views, self.frames_per_view))
        return views.movedim(3, 2)


def _stride(size: Sequence[int], next_size: Sequence[int]) -> tuple[int, int, int]:
    """Return the stride (frames, rows, columns) from one map to a coarser one of the same U-Net, which rounds
    sizes up at every level.
    """
    rows, columns = (-(-long // short) for long, short in zip(size, next_size, strict=True))
    if [-(-size[0] // rows), -(-size[1] // columns)] != list(next_size):
        raise ValueError(
            f"feature maps must go from fine to coarse; {tuple(size)} is followed by {tuple(next_size)}"
        )
    return 1, rows, columns
