"""Parameters and operations of a policy's networks, counted on the meta device: no memory, no weights.

An operation is a multiplication or an addition, so a product of matrices counts two per element; attention's
own products are included.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from policy.batch import BLOCK
from policy.checkpoint import new_model
from policy.config import Objective, PolicyConfig, Recipe, SamplerConfig
from policy.interface import Contract
from policy.model import VideoActionModel

ROWS_PER_BLOCK = BLOCK
"""Rows that an answer computes at least: a shorter batch is padded."""


@dataclass(frozen=True)
class ModelCost:
    """Sizes of a video-action policy for one contract. Operations are those of one clip or observation."""

    video_parameters: int
    head_parameters: int
    """Of the adaptor and the action network."""
    codec_parameters: int
    """Of the frozen autoencoder; 0 without one."""
    video_pass: int
    """Operations of one pass of the video network."""
    adaptor_pass: int
    action_pass: int
    picture: int
    """Operations of encoding one picture; 0 without an autoencoder."""
    views: int
    frames_per_view: int

    def clip(self, objective: Objective, recipe: Recipe, draws: int = 1, cached: bool = False) -> int:
        """Return the operations of training on one clip: a backward pass costs two forward passes.

        cached: latents of the pictures are stored; a policy with colour jitter encodes its pictures anyway.
        draws: action noises per clip.
        """
        again = 1 if recipe.gradient_checkpointing else 0
        video = self.video_pass * (1 if objective == "action" else 3 + again)
        head = 0 if objective == "video" else 3 * (self.adaptor_pass + draws * self.action_pass)
        pictures = self.views * (self.frames_per_view + 1)
        return video + head + self.picture * (pictures if recipe.jitter or not cached else 0)

    def answer(self, sampler: SamplerConfig) -> int:
        """Return the operations of one row of an answer."""
        streams = 1 if sampler.guidance == 1 else 2
        video = sampler.video_passes * (self.video_pass + self.adaptor_pass)
        return streams * (video + sampler.action_steps * self.action_pass) + self.views * self.picture

    def checkpoint_bytes(self, objective: Objective, recipe: Recipe) -> int:
        """Return the bytes of a checkpoint with the state to resume from it, all in fp32: weights, those that
        are trained once more, and Adam's two means of each.
        """
        acting = self.video_parameters + (0 if objective == "video" else self.head_parameters)
        return 4 * (acting + self.codec_parameters + 3 * self._trained(objective))

    def state_bytes(self, objective: Objective, recipe: Recipe, shards: int = 1) -> int:
        """Return the bytes of a training worker's memory before activations, all in fp32: weights, and of
        those that are trained the gradient, Adam's two means and the running average.

        shards: workers that hold a part of them each; the frozen autoencoder is whole in each.
        """
        kept = 3 + (recipe.ema_decay > 0)
        whole = self.video_parameters + self.head_parameters + kept * self._trained(objective)
        return 4 * (-(-whole // shards) + self.codec_parameters)

    def _trained(self, objective: Objective) -> int:
        """Return the number of parameters that an objective trains."""
        return {
            "video": self.video_parameters,
            "action": self.head_parameters,
        }.get(objective, self.video_parameters + self.head_parameters)

    def shared_bytes(self, objective: Objective) -> int:
        """Return the bytes of a checkpoint that its storage keeps once for all checkpoints of a run: weights
        that the run does not train.
        """
        return 4 * (self.codec_parameters + (self.video_parameters if objective == "action" else 0))


def model_cost(config: PolicyConfig, contract: Contract) -> ModelCost:
    """Count a video-action policy. The first time takes seconds for a large one, and no memory."""
    return _model_cost(config.model_dump_json(), json.dumps(contract.to_json()))


@lru_cache
def _model_cost(config_json: str, contract_json: str) -> ModelCost:
    """Count the policy of a configuration and a contract in JSON, which can be hashed."""
    config = PolicyConfig.model_validate_json(config_json)
    contract = Contract.from_json(json.loads(contract_json))
    assert config.video
    side = config.video.patch
    with torch.device("meta"), torch.no_grad():
        # diffusers creates some parameters on the CPU regardless
        model = new_model(config, contract).to("meta")
        assert isinstance(model, VideoActionModel)
        height, width = contract.image_size
        latents = torch.empty(
            1, model.num_frames, config.video.latent_channels, height // side, width // side
        )
        text, sigma = torch.empty(1, 1, config.video.cross_attention_dim), torch.ones(1)
        video_pass, (_, features) = _counted(lambda: model.video(latents, sigma, latents, text))
        embedding = model.video.time_embedding(sigma)
        adaptor_pass, seen = _counted(lambda: model.adaptor(features, embedding))
        cond = model.head.condition(seen, torch.empty(1, len(contract.proprio)))
        chunk = torch.empty(1, config.clip.horizon, len(contract.action))
        action_pass, _ = _counted(lambda: model.head.clean(chunk, sigma, cond, model.video.time_embedding))
        codec, picture = 0, 0
        if config.video.latents == "vae":
            autoencoder = _autoencoder()
            codec = _parameters(autoencoder)
            shown = torch.empty(1, 3, height, width)
            picture, _ = _counted(lambda: autoencoder.encode(shown))
    return ModelCost(
        _parameters(model.video),
        _parameters(model.adaptor) + _parameters(model.head),
        codec,
        video_pass,
        adaptor_pass,
        action_pass,
        picture,
        model.num_views,
        config.clip.frames_per_view,
    )


def _autoencoder() -> AutoencoderKLTemporalDecoder:
    """Return Stable Video Diffusion's autoencoder at its published widths."""
    return AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
    )


def _counted(forward: Callable[[], Any]) -> tuple[int, Any]:
    with FlopCounterMode(display=False) as counter:
        result: Tensor | tuple[Tensor, ...] = forward()
    return counter.get_total_flops(), result


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
