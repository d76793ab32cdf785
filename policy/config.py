"""What a policy is made of, as data: one frozen description per model, saved with its weights, and the named presets."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClipShape(_Part):
    """What one training clip holds and what one look of the policy must imagine."""

    frames_per_view: PositiveInt
    """Frames of each camera, the first being the present one."""
    frame_stride: PositiveInt
    """Control steps between two frames."""
    horizon: PositiveInt
    """Actions in a chunk, one per control step."""
    padding: Literal["masked", "paper"] = "masked"
    """Past an episode's end: `masked` repeats the last frame and action and learns from neither; `paper` learns zero actions and still frames."""


class VideoConfig(_Part):
    """The video U-Net: diffusers' `UNetSpatioTemporalConditionModel`, at any size."""

    patch: PositiveInt
    """Side of the pixel square that becomes one latent position (pixel-unshuffle; no autoencoder)."""
    block_out_channels: tuple[PositiveInt, ...]
    layers_per_block: PositiveInt
    num_attention_heads: tuple[PositiveInt, ...]
    cross_attention_dim: PositiveInt
    attention_levels: int
    """How many of the finest levels carry attention."""
    features: tuple[str, ...]
    """Module names inside the U-Net whose outputs the adaptor reads, fine to coarse (paper section 3.2: five decoder maps)."""
    pad_frames: int = 0
    """Copies of the first view's present frame before the views on the time axis (the paper: 1)."""


class AdaptorConfig(_Part):
    """From the U-Net's feature maps to one vector per look."""

    channels: PositiveInt
    out_dim: PositiveInt
    groups: PositiveInt


class ActionConfig(_Part):
    """The 1-D U-Net that denoises an action chunk."""

    down_dims: tuple[PositiveInt, ...]
    kernel_size: PositiveInt
    groups: PositiveInt
    time_dim: PositiveInt


class DiffusionConfig(_Part):
    """Noise levels in training and in use (method: EDM preconditioning of a v-prediction, sigma_data = 1)."""

    sigmas: Literal["shared", "decoupled"]
    """`shared`: one noise level for video and action, as in the paper. `decoupled`: each draws its own."""
    log_sigma_mean: float
    log_sigma_std: PositiveFloat
    video_log_sigma_mean: float | None = None
    """Only with `decoupled`: centre of the video's own noise level."""
    action_draws: PositiveInt = 1
    """Action noises denoised per video pass in training; the pass is the dear part."""


class SamplerConfig(_Part):
    """How a look becomes actions. Part of a score's fingerprint: it changes the actions."""

    video_passes: PositiveInt
    """U-Net evaluations. As many as `action_steps`: denoised together, as in the paper. 1: one pass at the highest noise, its features kept."""
    action_steps: PositiveInt
    sigma_min: PositiveFloat
    sigma_max: PositiveFloat
    rho: PositiveFloat = 7.0
    execute: PositiveInt
    """Actions carried out before the next look."""


class PolicyConfig(_Part):
    """The whole policy. `cameras` and `image_size` come from the data's contract, everything else from a preset."""

    preset: str
    clip: ClipShape
    video: VideoConfig
    adaptor: AdaptorConfig
    action: ActionConfig
    diffusion: DiffusionConfig
    sampler: SamplerConfig
    action_normalization: Literal["minmax", "meanstd", "quantile"]


PRESETS = {
    "tiny": PolicyConfig(
        preset="tiny",
        clip=ClipShape(frames_per_view=2, frame_stride=8, horizon=8),
        video=VideoConfig(
            patch=8,
            block_out_channels=(32, 64),
            layers_per_block=1,
            num_attention_heads=(4, 4),
            cross_attention_dim=64,
            attention_levels=0,
            features=("up_blocks.1", "up_blocks.0", "mid_block"),
        ),
        adaptor=AdaptorConfig(channels=32, out_dim=256, groups=8),
        action=ActionConfig(down_dims=(64, 128), kernel_size=5, groups=8, time_dim=64),
        diffusion=DiffusionConfig(sigmas="decoupled", log_sigma_mean=0.0, log_sigma_std=1.4, video_log_sigma_mean=2.0, action_draws=4),
        sampler=SamplerConfig(video_passes=1, action_steps=5, sigma_min=0.02, sigma_max=10.0, execute=4),
        action_normalization="minmax",
    ),
}
