"""The video model: imagines the next frames of every camera, and shows the feature maps it imagines them with.

Shapes: B clips; F frames on the time axis (pad + views x frames per view); V views; K frames per view; C H W latent channels, rows, columns.
"""

from functools import partial
from typing import Any

import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import Tensor, nn
from torch.nn import functional as nnf

from policy.config import VideoConfig
from policy.noise import denoised, noise_label, scale_input

# Stable Video Diffusion's micro-conditioning (frames per second, motion bucket, condition noise), the paper's values.
ADDED_TIME_IDS = (6.0, 100.0, 0.02)


def to_latents(frames: Tensor, patch: int) -> Tensor:
    """uint8 pictures (..., H*p, W*p, 3) -> latents (..., 3*p*p, H, W) in [-1, 1]: every p x p square becomes one position."""
    pixels = frames.movedim(-1, -3).float() / 127.5 - 1
    latents: Tensor = nnf.pixel_unshuffle(pixels.flatten(0, -4), patch).unflatten(0, pixels.shape[:-3])
    return latents


def to_frames(latents: Tensor, patch: int) -> Tensor:
    """The inverse of `to_latents`, clipped to what a picture can show."""
    pixels: Tensor = nnf.pixel_shuffle(latents.flatten(0, -4), patch).unflatten(0, latents.shape[:-3])
    return ((pixels.movedim(-3, -1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


class VideoModel(nn.Module):
    """diffusers' spatio-temporal U-Net over all cameras at once, views laid end to end on the time axis.

    Each frame carries its own camera's present picture as extra input channels; that is all that tells the views apart (method 1.1).
    """

    def __init__(self, config: VideoConfig, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.config = config
        channels = 3 * config.patch**2
        levels = range(len(config.block_out_channels))
        kinds = ["CrossAttn" if level < config.attention_levels else "" for level in levels]
        self.unet = UNetSpatioTemporalConditionModel(
            sample_size=image_size[0] // config.patch,
            in_channels=2 * channels,
            out_channels=channels,
            down_block_types=tuple(f"{kind}DownBlockSpatioTemporal" for kind in kinds),
            up_block_types=tuple(f"{kind}UpBlockSpatioTemporal" for kind in reversed(kinds)),
            block_out_channels=config.block_out_channels,
            addition_time_embed_dim=32,
            projection_class_embeddings_input_dim=96,
            layers_per_block=config.layers_per_block,
            cross_attention_dim=config.cross_attention_dim,
            transformer_layers_per_block=1,
            num_attention_heads=config.num_attention_heads,
        )
        self._seen: dict[str, Tensor] = {}
        for name in config.features:
            # A bound method, not a closure: a deep copy of the model (an average of its weights) then fills its own maps.
            self.unet.get_submodule(name).register_forward_hook(partial(self._remember, name))

    def _remember(self, name: str, _module: nn.Module, _args: Any, output: Any) -> None:
        self._seen[name] = output[0] if isinstance(output, tuple) else output

    def forward(self, noisy_BFCHW: Tensor, sigma_B: Tensor, cond_BFCHW: Tensor, text_B1D: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The clean latents it believes in, and the feature maps, each (B, F, c, h, w), in the order of the config."""
        batch = noisy_BFCHW.shape[0]
        added = noisy_BFCHW.new_tensor(ADDED_TIME_IDS).expand(batch, -1)
        self._seen.clear()
        v = self.unet(
            torch.cat([scale_input(noisy_BFCHW, sigma_B), cond_BFCHW], dim=2),
            noise_label(sigma_B),
            encoder_hidden_states=text_B1D,
            added_time_ids=added,
            return_dict=False,
        )[0]
        features = [self._seen[name].unflatten(0, (batch, -1)) for name in self.config.features]
        self._seen.clear()
        return denoised(noisy_BFCHW, v, sigma_B), features

    def time_embedding(self, sigma_B: Tensor) -> Tensor:
        """(B, 4 x first block) embedding of the noise level; adaptor and action U-Net read the video model's own (method 1.3)."""
        embedding: Tensor = self.unet.time_embedding(self.unet.time_proj(noise_label(sigma_B)))
        return embedding
