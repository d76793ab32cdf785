"""The video model: predicts the next frames of every camera, and exposes the feature maps of the prediction.

Shapes: B clips; F frames on the time axis (pad + views x frames per view); V views; K frames per view; C H W
latent channels, rows, columns.
"""

from functools import partial
from typing import Any

import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import Tensor, nn

from policy.config import VideoConfig
from policy.edm import denoised, noise_label, scale_input

# Stable Video Diffusion's micro-conditioning (frames per second, motion bucket, condition noise), the paper's
# values.
ADDED_TIME_IDS = (6.0, 100.0, 0.02)


class VideoModel(nn.Module):
    """diffusers' spatio-temporal U-Net over all cameras at once, with the views end to end on the time axis.

    Each frame carries its camera's present picture as extra input channels; only these distinguish the views
    (arXiv 2508.00795).
    """

    def __init__(self, config: VideoConfig, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.config, self._image_size = config, image_size
        channels = config.latent_channels
        levels = range(len(config.block_out_channels))
        kinds = ["CrossAttn" if level < config.attention_levels else "" for level in levels]
        self.unet = UNetSpatioTemporalConditionModel(
            sample_size=image_size[0] // config.patch,
            in_channels=2 * channels,
            out_channels=channels,
            down_block_types=tuple(f"{kind}DownBlockSpatioTemporal" for kind in kinds),
            up_block_types=tuple(f"{kind}UpBlockSpatioTemporal" for kind in reversed(kinds)),
            block_out_channels=config.block_out_channels,
            addition_time_embed_dim=config.time_id_dim,
            projection_class_embeddings_input_dim=len(ADDED_TIME_IDS) * config.time_id_dim,
            layers_per_block=config.layers_per_block,
            cross_attention_dim=config.cross_attention_dim,
            transformer_layers_per_block=1,
            num_attention_heads=config.num_attention_heads,
        )
        self._seen: dict[str, Tensor] = {}
        self._looking = False
        for name in config.features:
            # A bound method, not a closure: a deep copy of the model (an average of its weights) then records
            # its own maps.
            self.unet.get_submodule(name).register_forward_hook(partial(self._remember, name))

    def _remember(self, name: str, _module: nn.Module, _args: Any, output: Any) -> None:
        # gradient checkpointing reruns modules during the backward pass: those maps are discarded
        if self._looking:
            self._seen[name] = output[0] if isinstance(output, tuple) else output

    def forward(
        self, noisy_BFCHW: Tensor, sigma_B: Tensor, cond_BFCHW: Tensor, text_B1D: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the predicted clean latents, and the feature maps, each (B, F, c, h, w), in the order of the
        config.
        """
        batch = noisy_BFCHW.shape[0]
        added = noisy_BFCHW.new_tensor(ADDED_TIME_IDS).expand(batch, -1)
        self._looking = True
        v = self.unet(
            torch.cat([scale_input(noisy_BFCHW, sigma_B), cond_BFCHW], dim=2),
            noise_label(sigma_B),
            encoder_hidden_states=text_B1D,
            added_time_ids=added,
            return_dict=False,
        )[0]
        features = [self._seen[name].unflatten(0, (batch, -1)) for name in self.config.features]
        self._seen.clear()
        self._looking = False
        return denoised(noisy_BFCHW, v.float(), sigma_B), features

    @torch.no_grad()
    def feature_shapes(self) -> list[tuple[int, int, int]]:
        """Return (channels, rows, columns) of each feature map, in the order of the config."""
        with torch.device("meta"):
            # its mixing factors are created on the CPU regardless
            twin = VideoModel(self.config, self._image_size).to("meta")
            channels, rows, columns = (
                self.config.latent_channels,
                *(side // self.config.patch for side in self._image_size),
            )
            empty, text = (
                torch.empty(1, 1, channels, rows, columns),
                torch.empty(1, 1, self.config.cross_attention_dim),
            )
            _, features = twin(empty, torch.ones(1), empty, text)
        return [tuple(feature.shape[2:]) for feature in features]

    def time_embedding(self, sigma_B: Tensor) -> Tensor:
        """Return the (B, 4 x first block) embedding of the noise level; adaptor and action U-Net share the
        video model's (arXiv 2508.00795).
        """
        embedding: Tensor = self.unet.time_embedding(self.unet.time_proj(noise_label(sigma_B)))
        return embedding
