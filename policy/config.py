"""What a policy is made of, as data: one frozen description per model, saved with its weights. The named ones: policy/presets.py."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator


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
    """The video U-Net: diffusers' `UNetSpatioTemporalConditionModel`, at any size (method 1.1)."""

    latents: Literal["pixels", "vae"]
    """`pixels`: every square of `patch` x `patch` pixels becomes one latent position; no download. `vae`: Stable Video Diffusion's autoencoder."""
    patch: PositiveInt = 8
    """Side in pixels of one latent position; the autoencoder's is 8."""
    block_out_channels: tuple[PositiveInt, ...]
    layers_per_block: PositiveInt
    num_attention_heads: tuple[PositiveInt, ...]
    cross_attention_dim: PositiveInt
    time_id_dim: PositiveInt
    """Size of the embedding of each micro-conditioning number."""
    attention_levels: int
    """How many of the finest levels carry attention."""
    features: tuple[str, ...]
    """Module names inside the U-Net whose outputs the adaptor reads, fine to coarse (method 1.2)."""
    pad_frames: int = 0
    """Copies of the first view's present frame before the views on the time axis (the paper: 1)."""
    condition_noise: NonNegativeFloat = 0.0
    """Standard deviation of the noise on the present pictures before they are encoded, in pixel units of [-1, 1]; seeded by the picture."""
    text: Literal["words", "openclip"]
    """`words`: fixed random vectors of words, no download. `openclip`: the text tower of OpenCLIP ViT-H-14."""


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


class ImageConfig(_Part):
    """The image encoder of the behaviour-cloning baseline: one residual network per camera."""

    channels: tuple[PositiveInt, ...]
    """Of each level; every level halves the picture."""
    out_dim: PositiveInt
    """Per camera."""


class DiffusionConfig(_Part):
    """Noise levels in training (method 1.5: EDM preconditioning of a v-prediction, sigma_data = 1)."""

    sigmas: Literal["shared", "decoupled"]
    """`shared`: one noise level for video and action, as in the paper. `decoupled`: each draws its own."""
    log_sigma_mean: float
    log_sigma_std: PositiveFloat
    video_log_sigma_mean: float | None = None
    """Only with `decoupled`: centre of the video's own noise level."""
    video_log_sigma_std: PositiveFloat | None = None
    """Only with `decoupled`: spread of the video's own noise level."""
    features_at: Literal["drawn", "start"] = "drawn"
    """At which video noise the action head reads features when the video model is frozen. `drawn`: at every level, as when the video is trained.
    `start`: from pure noise at the highest level, as one look of the policy does; its features depend on the clip alone and can be kept."""
    action_draws: PositiveInt = 1
    """Action noises denoised per video pass in training; the pass is the dear part."""
    condition_dropout: Annotated[float, Field(ge=0, le=1 / 3)] = 0.05
    """Share of clips that lose the sentence, of those that lose the present pictures, and of those that lose both, for guidance."""


class SamplerConfig(_Part):
    """How a look becomes actions: one rung of the ladder from faithful to cheap. Part of a score's fingerprint: it changes the actions."""

    video_passes: PositiveInt
    """Noise levels at which the video is denoised. As many as `action_steps`: both come down together, as in the paper. Fewer: the video first;
    the features of its last pass serve every action step. 1: one pass from pure noise."""
    action_steps: PositiveInt
    guidance: PositiveFloat = 1.0
    """Classifier-free guidance on both streams; 1: none, and half the video passes."""
    video_sigmas: tuple[PositiveFloat, PositiveFloat]
    """Lowest and highest noise of the video."""
    action_sigmas: tuple[PositiveFloat, PositiveFloat]
    """Lowest and highest noise of the actions."""
    rho: PositiveFloat = 7.0
    execute: PositiveInt
    """Actions carried out before the next look."""


class PolicyConfig(_Part):
    """The whole policy. Cameras and picture size come from the data's contract, everything else from a preset."""

    preset: str
    clip: ClipShape
    video: VideoConfig | None = None
    adaptor: AdaptorConfig | None = None
    images: ImageConfig | None = None
    """Instead of `video` and `adaptor`: the behaviour-cloning baseline, which imagines nothing (Chi et al. 2023, arXiv 2303.04137)."""
    action: ActionConfig
    diffusion: DiffusionConfig
    ladder: dict[str, SamplerConfig]
    """The rungs this policy can be asked on, by name."""
    rung: str
    """The one it acts on unless told otherwise."""
    action_normalization: Literal["minmax", "meanstd", "quantile"]

    @model_validator(mode="after")
    def _whole(self) -> "PolicyConfig":
        if (self.video is None) != (self.adaptor is None) or (self.video is None) == (self.images is None):
            raise ValueError("a policy has `video` and `adaptor`, or `images` instead of both")
        if self.rung not in self.ladder:
            raise ValueError(f"rung {self.rung} is not on the ladder: {', '.join(self.ladder)}")
        return self

    @property
    def sampler(self) -> SamplerConfig:
        return self.ladder[self.rung]
