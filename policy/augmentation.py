"""Colour jitter, the only augmentation (arXiv 2508.00795): varies lighting and camera colours, equally in all
frames of a camera of a clip.

Shapes: B clips; V views; K frames per view; H W pixels.
"""

import math

import torch
from torch import Tensor

from policy.config import ColorJitter

PAPER = ColorJitter()
LUMA = (0.299, 0.587, 0.114)  # luma weights of red, green and blue (ITU-R BT.601)


def color_jitter(
    pictures_BVKHW3: Tensor, generator: torch.Generator, strength: ColorJitter = PAPER
) -> Tensor:
    """Jitter the colours of pictures (B, V, K, H, W, 3) uint8; shape and device stay. The generator is on the
    CPU.

    One affine map of colours per clip and camera: brightness, then contrast about the mean grey of the
    camera's frames, saturation, hue.
    """
    draws_BV4 = 2 * torch.rand(*pictures_BVKHW3.shape[:2], 4, generator=generator) - 1
    jittered = torch.empty_like(pictures_BVKHW3)
    # clip by clip, to limit the memory of float copies
    for clip, changed, draws_V4 in zip(pictures_BVKHW3, jittered, draws_BV4, strict=True):
        for view, out, draw in zip(clip, changed, draws_V4.tolist(), strict=True):
            colors = view.float()
            matrix, contrast = _color_matrix(draw, strength)
            grey = colors.mean((0, 1, 2)) @ colors.new_tensor(LUMA) * (1 + strength.brightness * draw[0])
            out.copy_((colors @ matrix.T.to(view.device) + (1 - contrast) * grey).round().clamp(0, 255))
    return jittered


def _color_matrix(draw: list[float], strength: ColorJitter) -> tuple[Tensor, float]:
    """Return the (3, 3) matrix on RGB columns without its offset, and the factor of contrast; draws in [-1,
    1].
    """
    strengths = (strength.brightness, strength.contrast, strength.saturation)
    brightness, contrast, saturation = (
        1 + most * share for most, share in zip(strengths, draw[:3], strict=True)
    )
    saturate = saturation * torch.eye(3) + (1 - saturation) * torch.tensor(LUMA).expand(3, 3)
    return brightness * contrast * _about_grey(2 * math.pi * strength.hue * draw[3]) @ saturate, contrast


def _about_grey(angle: float) -> Tensor:
    """Return the (3, 3) rotation of colours about the grey axis, which changes the hue and keeps greys."""
    axis = torch.ones(3, 3) / 3
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    return math.cos(angle) * torch.eye(3) + (1 - math.cos(angle)) * axis + math.sin(angle) * cross
