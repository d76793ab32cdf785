"""Configuration of policies: one frozen description per model, saved with its weights. Presets:
policy/presets.py.
"""

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)

from policy.interface import MOST_OBSERVATION_STEPS, MOST_STEPS

VIDEO_ACTION = "video_action"
"""Name of the video-action policy."""
DIFFUSION_POLICY = "diffusion_policy"
"""Name of the behaviour-cloning baseline."""

Objective = Literal["video", "action", "joint", "joint_detached"]
"""Loss of a training run and the weights it trains (arXiv 2508.00795). `video`: the video error, stage 1.
`action`: the action error with the video model frozen, stage 2. `joint`: both, with the action gradient into
the video model. `joint_detached`: both, without that gradient.
"""

Mode = Literal["joint", "joint_detached", "two_stage", "action_only"]
"""How video model and action head are trained, one after the other or together."""
Normalization = Literal["minmax", "meanstd", "quantile"]
Padding = Literal["masked", "paper"]
Precision = Literal["fp32", "bf16", "fp16"]


# Bounds on network sizes: a configuration may come with an untrusted checkpoint. Each is far above the needs
# of any policy.
Width = Annotated[int, Field(gt=0, le=65_536)]
"""Number of channels, or size of a vector."""
Depth = Annotated[int, Field(gt=0, le=64)]
"""Number of layers of one stage."""
Frames = Annotated[int, Field(gt=0, le=1024)]
Steps = Annotated[int, Field(gt=0, le=MOST_STEPS)]
"""Number of control steps."""
Passes = Annotated[int, Field(gt=0, le=1000)]
"""Number of network passes per observation."""
Name = Annotated[str, Field(max_length=200)]
Widths = Annotated[tuple[Width, ...], Field(min_length=1, max_length=16)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def _rising(sigmas: tuple[float, float]) -> tuple[float, float]:
    if sigmas[0] > sigmas[1]:
        raise ValueError(f"the lowest noise, {sigmas[0]:g}, exceeds the highest, {sigmas[1]:g}")
    return sigmas


Sigmas = Annotated[
    tuple[Annotated[PositiveFloat, Field(le=1e6)], Annotated[PositiveFloat, Field(le=1e6)]],
    AfterValidator(_rising),
]
"""Lowest and highest noise level."""


class ClipShape(_Part):
    """Extent of a training clip, and of the prediction from one observation."""

    frames_per_view: Frames
    """Frames of each camera; the first is the present one."""
    frame_stride: Steps
    """Control steps from one frame to the next."""
    horizon: Steps
    """Actions in a chunk, one per control step."""
    padding: Padding = "masked"
    """Steps past an episode's end: `masked` repeats the last frame and action and excludes both from the
    loss; `paper` trains on zero actions and still frames."""
    history: Annotated[int, Field(ge=0, lt=MOST_OBSERVATION_STEPS)] = 0
    """Frames of each camera before the present one, at consecutive control steps, and as many more rows of
    proprioception: for a policy of another package that needs them. Before an episode's start the first one
    is repeated.
    """

    @model_serializer(mode="wrap")
    def _without_empty_history(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out `history` where there is none, as in versions without the field."""
        dumped: dict[str, Any] = handler(self)
        if not self.history:
            dumped.pop("history", None)
        return dumped


class VideoConfig(_Part):
    """The video U-Net: diffusers' `UNetSpatioTemporalConditionModel`, at any size (arXiv 2508.00795)."""

    latents: Literal["pixels", "vae"]
    """`pixels`: every square of `patch` x `patch` pixels becomes one latent position; no download. `vae`:
    Stable Video Diffusion's autoencoder.
    """
    patch: Annotated[int, Field(gt=0, le=64)] = 8
    """Side in pixels of one latent position; the autoencoder's is 8."""
    block_out_channels: Widths
    layers_per_block: Depth
    num_attention_heads: Widths
    cross_attention_dim: Width
    time_id_dim: Width
    """Size of the embedding of each micro-conditioning number."""
    attention_levels: Annotated[int, Field(ge=0, le=16)]
    """Number of levels with attention, counted from the finest."""
    features: Annotated[tuple[Name, ...], Field(min_length=1, max_length=64)]
    """Module names inside the U-Net whose outputs the adaptor reads, fine to coarse (arXiv 2508.00795)."""
    pad_frames: Annotated[int, Field(ge=0, le=1024)] = 0
    """Number of copies of the first view's present frame before the views on the time axis (the paper: 1)."""
    condition_noise: NonNegativeFloat = 0.0
    """Standard deviation of the noise on the present pictures before they are encoded, in pixel units of [-1,
    1]; seeded by the picture.
    """
    text: Literal["words", "openclip"]
    """`words`: fixed random vectors of words, no download. `openclip`: the text tower of OpenCLIP
    ViT-H-14.
    """

    @property
    def latent_channels(self) -> int:
        """Latent channels of one frame."""
        return 4 if self.latents == "vae" else 3 * self.patch**2


class StageConfig(_Part):
    """Residual bottleneck blocks of one width, each conditioned on the noise level."""

    channels: Width
    groups: Width
    """Groups of the norms inside the bottleneck; the norm after it has `expansion` times as many."""
    blocks: Depth = 2
    expansion: Width = 4
    """Ratio of a block's outer to its inner width."""

    @model_validator(mode="after")
    def _whole_groups(self) -> "StageConfig":
        if self.channels % (self.expansion * self.groups):
            raise ValueError(
                f"{self.channels} channels do not divide into {self.expansion} x {self.groups} groups"
            )
        return self


class BranchStage(StageConfig):
    """A stage with separate weights per view; it downsamples to the size of the map that joins at the next
    stage.
    """

    joins: Width | None = None
    """Channels of the next coarser feature map when it joins, after blocks like the stage's own; None: no map
    joins here.
    """

    @model_validator(mode="after")
    def _whole_joined_groups(self) -> "BranchStage":
        if self.joins and self.joins % (self.expansion * self.groups):
            raise ValueError(
                f"{self.joins} joining channels do not divide into {self.expansion} x {self.groups} groups"
            )
        return self


class TrunkStage(StageConfig):
    """A stage over all views together."""

    frame_stride: Frames = 1
    """Stride over the frames; 2 halves their number, rounded up."""


class AdaptorConfig(_Part):
    """The 3-D residual network from the U-Net's feature maps to one vector per observation (arXiv
    2508.00795).
    """

    branch: Annotated[tuple[BranchStage, ...], Field(min_length=1, max_length=64)]
    """Stages of every view, with separate weights. The first reads the finest feature map; each remaining map
    joins at one of the others.
    """
    trunk: Annotated[tuple[TrunkStage, ...], Field(min_length=1, max_length=64)]
    """Stages over all views, whose channels are concatenated."""
    out_dim: Width | None = None
    """Size of the vector, after a linear layer. None: the trunk's last map, flattened, as in the paper (420
    channels x 1 frame x 4 x 4).
    """

    @model_validator(mode="after")
    def _starts_with_the_finest_map(self) -> "AdaptorConfig":
        if self.branch[0].joins:
            raise ValueError(
                "the first stage of a branch reads the finest feature map; nothing can join it there"
            )
        return self


class ActionConfig(_Part):
    """The 1-D U-Net that denoises an action chunk."""

    down_dims: Widths
    kernel_size: Annotated[int, Field(gt=0, le=1024)]
    groups: Width
    time_dim: Width


class ImageConfig(_Part):
    """The image encoder of the behaviour-cloning baseline: one residual network per camera."""

    channels: Widths
    """Channels of each level; every level halves the picture."""
    out_dim: Width
    """Size of the vector of one camera."""
    groups: Width
    text_dim: Width
    """Size of the sentence's fixed word vectors."""
    time_dim: Width
    """Size of the embedding of the noise level."""


class DiffusionConfig(_Part):
    """Noise levels in training (arXiv 2508.00795: EDM preconditioning of a v-prediction, sigma_data = 1)."""

    sigmas: Literal["shared", "decoupled"]
    """Noise levels of a clip. `shared`: one for video and action, as in the paper. `decoupled`: one
    for each.
    """
    log_sigma_mean: float
    log_sigma_std: PositiveFloat
    video_log_sigma_mean: float | None = None
    """Mean of the logarithm of the video's noise level; only with `decoupled`. None: `log_sigma_mean`."""
    video_log_sigma_std: PositiveFloat | None = None
    """Standard deviation of the logarithm of the video's noise level; only with `decoupled`. None:
    `log_sigma_std`.
    """
    features_at: Literal["drawn", "start"] = "drawn"
    """Video noise level at which the action head reads features of a frozen video model. `drawn`: drawn as in
    video training. `start`: pure noise at the highest level, as in the first sampling pass; these features
    depend on the clip alone and can be cached.
    """
    action_draws: Passes = 1
    """Action noises denoised per video pass in training; the video pass dominates the cost."""
    condition_dropout: Annotated[float, Field(ge=0, le=1 / 3)] = 0.05
    """Share of clips that drop only the sentence, share that drop only the present pictures, and share that
    drop both; for guidance.
    """


class SamplerConfig(_Part):
    """Sampling settings: one rung of the ladder from faithful to cheap. Part of a score's fingerprint,
    because they change the actions.
    """

    video_passes: Passes
    """Noise levels at which the video is denoised. Equal to `action_steps`: both are denoised together, as in
    the paper. Otherwise: the video first; the features of its last pass serve every action step. 1: one pass
    from pure noise.
    """
    action_steps: Passes
    guidance: PositiveFloat = 1.0
    """Weight of classifier-free guidance on both streams; 1: none, at half the cost of a video pass."""
    video_sigmas: Sigmas
    """Lowest and highest noise level of the video."""
    action_sigmas: Sigmas
    """Lowest and highest noise level of the actions."""
    rho: PositiveFloat = 7.0
    execute: Steps
    """Actions executed before the next observation."""
    precision: Precision = "fp32"
    """Precision of the network passes on a GPU; autoencoder, noise and everything on a CPU stay in fp32."""

    @model_serializer(mode="wrap")
    def _without_plain_precision(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `precision` out at fp32: configurations and protocols are those of versions without it."""
        dumped: dict[str, Any] = handler(self)
        if self.precision == "fp32":
            dumped.pop("precision", None)
        return dumped


class PolicyConfig(_Part):
    """Configuration of a policy. Cameras and picture size come from the data's contract, everything else from
    a preset.
    """

    preset: Name
    clip: ClipShape
    video: VideoConfig | None = None
    adaptor: AdaptorConfig | None = None
    images: ImageConfig | None = None
    """Encoder of the behaviour-cloning baseline, which predicts no video; instead of `video` and `adaptor`
    (Chi et al. 2023, arXiv 2303.04137).
    """
    learner: Name = ""
    """Entry point of another package's policy (`policy.learner`), instead of `video` and `adaptor` or
    `images`; it may use `action` and `diffusion` or not.
    """
    options: dict[Name, Any] = Field(default_factory=dict)
    """Settings of that policy, JSON values."""
    action: ActionConfig
    diffusion: DiffusionConfig
    ladder: Annotated[dict[Name, SamplerConfig], Field(min_length=1, max_length=64)]
    """Rungs of this policy, by name."""
    rung: Name
    """Name of the default rung."""
    action_normalization: Normalization

    @model_validator(mode="after")
    def _whole(self) -> "PolicyConfig":
        bodies = [self.video is not None, self.images is not None, self.learner != ""]
        if (self.video is None) != (self.adaptor is None) or sum(bodies) != 1:
            raise ValueError("a policy has `video` and `adaptor`, or `images` or `learner` instead of both")
        if self.rung not in self.ladder:
            raise ValueError(f"rung {self.rung} is not on the ladder: {', '.join(self.ladder)}")
        for rung, sampler in self.ladder.items():
            if sampler.execute > self.clip.horizon:
                raise ValueError(
                    f"rung {rung} executes {sampler.execute} actions of a chunk that has {self.clip.horizon}"
                )
        return self

    @model_serializer(mode="wrap")
    def _without_empty_learner(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out `learner` and `options` where there are none: configurations of the project's own
        policies, and the fingerprints of checkpoints with them, are those of versions without these fields.
        """
        dumped: dict[str, Any] = handler(self)
        if not self.learner:
            dumped.pop("learner", None)
            dumped.pop("options", None)
        return dumped

    @property
    def sampler(self) -> SamplerConfig:
        """Sampler of the rung that the policy acts on."""
        return self.ladder[self.rung]

    def sampler_on(self, rung: str) -> SamplerConfig:
        """Return the sampler of a rung; the default rung's if the name is empty or unknown."""
        return self.ladder.get(rung, self.sampler)


class PolicySettings(_Part):
    """Values of a policy in place of its preset's. Every field that is empty is the preset's own."""

    frames: Frames | None = None
    """Frames per camera that the video model predicts, the first of them the present one; 1: it reconstructs
    the present frame alone.
    """
    stride: Steps | None = None
    """Control steps from one frame to the next."""
    horizon: Steps | None = None
    """Actions in a chunk. A `suite.rung` that executes more executes the whole chunk."""
    padding: Padding | None = None
    """Steps past an episode's end: `masked` excludes them from the loss; `paper` trains on zero actions and
    still frames.
    """
    normalization: Normalization | None = None
    """Scaling of actions: `minmax` (the demos' range to [-1, 1]), `meanstd`, `quantile` (1 % to 99 %)."""
    noise: Literal["shared", "decoupled"] | None = None
    """Noise levels in training: one for video and actions, as in the paper, or one for each."""
    log_sigma: tuple[float, PositiveFloat] | None = None
    """Mean and standard deviation of the logarithm of the noise level."""
    video_log_sigma: tuple[float, PositiveFloat] | None = None
    """The same of the video, where noise is decoupled."""
    features_at: Literal["drawn", "start"] | None = None
    """Video noise level at which the head reads a frozen video model: `drawn` as in video training; `start`,
    pure noise, with decoupled noise only; such features are cached.
    """
    action_draws: Passes | None = None
    """Action noises denoised per video pass in training."""
    condition_dropout: Annotated[float, Field(ge=0, le=1 / 3)] | None = None
    """Share of clips that drop only the sentence, share that drop only the present pictures, and share that
    drop both.
    """

    def over(self, below: "PolicySettings") -> "PolicySettings":
        """Return these settings, and those of `below` where these are empty."""
        return below.model_copy(update=self.chosen())

    def chosen(self) -> dict[str, Any]:
        """Return the values that are not empty, by name."""
        return self.model_dump(exclude_none=True)

    def applied(self, config: PolicyConfig) -> PolicyConfig:
        """Return a policy's configuration with these values. Raises ValueError for values that contradict
        each other.
        """
        if not (chosen := self.chosen()):
            return config
        mean, std = chosen.get("log_sigma", (None, None))
        video_mean, video_std = chosen.get("video_log_sigma", (None, None))
        named = {
            "clip": {
                "frames_per_view": self.frames,
                "frame_stride": self.stride,
                "horizon": self.horizon,
                "padding": self.padding,
            },
            "diffusion": {
                "sigmas": self.noise,
                "log_sigma_mean": mean,
                "log_sigma_std": std,
                "video_log_sigma_mean": video_mean,
                "video_log_sigma_std": video_std,
                "features_at": self.features_at,
                "action_draws": self.action_draws,
                "condition_dropout": self.condition_dropout,
            },
        }
        changed = config.model_dump()
        for section, values in named.items():
            changed[section] |= {name: value for name, value in values.items() if value is not None}
        if (changed["diffusion"]["features_at"], changed["diffusion"]["sigmas"]) == ("start", "shared"):
            raise ValueError(
                "features_at start reads the video at its highest noise level alone, so the actions need a"
                " level of their own: write noise: decoupled, or features_at: drawn"
            )
        changed["action_normalization"] = self.normalization or config.action_normalization
        for rung in changed["ladder"].values():
            rung["execute"] = min(rung["execute"], changed["clip"]["horizon"])
        return PolicyConfig.model_validate(changed)


class SamplerSettings(_Part):
    """Values of a rung in place of its own, for scoring alone: the same checkpoints, with other scores. Every
    field that is empty is the rung's own.
    """

    steps: Passes | None = None
    """Noise levels at which video and actions are denoised together, as in the paper (30)."""
    video_passes: Passes | None = None
    """Noise levels of the video; 1: one pass from pure noise."""
    action_steps: Passes | None = None
    """Noise levels of the actions. If there are as many of the video, both are denoised together."""
    guidance: PositiveFloat | None = None
    """Weight of classifier-free guidance on both streams; 1: none, at half the cost."""
    execute: Steps | None = None
    """Actions executed before the next observation."""
    precision: Precision | None = None
    """Precision of the network passes on a GPU; the autoencoder stays in fp32."""

    @model_validator(mode="after")
    def _one_number(self) -> "SamplerSettings":
        if self.steps and (self.video_passes or self.action_steps):
            raise ValueError("steps is the number of both streams; leave out video_passes and action_steps")
        return self

    def chosen(self) -> dict[str, Any]:
        """Return the values that are not empty, by the names of a sampler."""
        chosen = self.model_dump(exclude_none=True, exclude={"steps"})
        return chosen | (dict.fromkeys(("video_passes", "action_steps"), self.steps) if self.steps else {})

    def applied(self, sampler: SamplerConfig) -> SamplerConfig:
        """Return a rung's sampler with these values."""
        return sampler.model_copy(update=self.chosen())


AS_PRESET, AS_RUNG = PolicySettings(), SamplerSettings()
"""Settings without any value."""


class LossWeights(_Part):
    """Weights of the two losses where they are trained together."""

    video: PositiveFloat = 1.0
    """Weight of the video loss."""
    action: PositiveFloat = 1.0
    """Weight of the action loss."""


class ColorJitter(_Part):
    """Largest changes of colours: factors 1 ± x of brightness, contrast and saturation; hue in turns of the
    colour wheel. By default the paper's.
    """

    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.2
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.2
    saturation: Annotated[float, Field(ge=0, lt=1)] = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.05


def _plain_jitter(jitter: "bool | ColorJitter") -> "bool | ColorJitter":
    return True if jitter == ColorJitter() else jitter


Beta = Annotated[float, Field(ge=0, lt=1)]
ADDED = ("betas", "loss_weights")
"""Fields of a recipe that versions before 0.3 lack; they are left out of keys at the values of these
versions.
"""


class Recipe(_Part):
    """How a policy is optimised. The defaults are those of `tiny`; `policy.presets.RECIPES` has the presets'
    own.
    """

    mode: Mode = "joint"
    """`joint`: video and action losses together, the action's reaches the video model; `joint_detached`: it
    does not. `two_stage`: the video model first, on all of the arm's episodes, then the action head on the
    frozen one. `action_only`: the head on the video model as it starts.
    """

    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of the video model."""
    head_learning_rate: PositiveFloat | None = None
    """Peak learning rate of adaptor and action U-Net; empty: the same."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: half a cosine down to zero at the last step, or the peak throughout."""
    warmup_steps: NonNegativeInt = 50
    """Optimiser steps until the learning rate peaks."""
    weight_decay: NonNegativeFloat = 1e-4
    """Weight decay of AdamW; 0 is Adam."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Betas of Adam: decay per step of the running means of gradients and of their squares."""
    loss_weights: LossWeights = LossWeights()
    """Weights of the two losses where both are trained together, {video: 1, action: 2}."""
    clip_norm: NonNegativeFloat = 1.0
    """Gradients longer than this are shortened to it; 0: never."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay per step of the running average of the weights that acts; 0 acts with the last weights and keeps
    no average.
    """
    precision: Precision = "fp32"
    """Precision of the forward pass on a GPU; weights, autoencoder and everything on a CPU stay in fp32."""
    accumulate: PositiveInt = 1
    """Parts a worker's batch is cut into, one forward and backward pass each, to save memory."""
    gradient_checkpointing: bool = False
    """Compute the video model's activations a second time instead of keeping them."""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """How several workers share a model: each holds all of it, or each a part (FSDP2), where it does not fit
    one GPU. Checkpoints are whole either way. One worker has nothing to share.
    """
    color_jitter: Annotated[
        Annotated[bool, Tag("switch")] | Annotated[ColorJitter, Tag("strengths")],
        Discriminator(lambda value: "strengths" if isinstance(value, dict | ColorJitter) else "switch"),
        AfterValidator(_plain_jitter),
    ] = False
    """Jitter of colours per camera of a clip (arXiv 2508.00795), where pictures are encoded as they come:
    true for brightness, contrast and saturation 0.2 and hue 0.05, or strengths, {brightness: 0.3, hue: 0}.
    """
    feature_cache_mb: NonNegativeInt = 256
    """MiB per worker for the features of a frozen video model (`features_at: start`): they depend on the clip
    alone; 0 keeps none.
    """

    @property
    def jitter(self) -> ColorJitter | None:
        """Strengths of the colour jitter; None without it."""
        if isinstance(self.color_jitter, ColorJitter):
            return self.color_jitter
        return ColorJitter() if self.color_jitter else None

    def recorded(self, exclude: Collection[str] = ()) -> dict[str, Any]:
        """Return the fields for keys and cards, JSON-safe, without those of ADDED at their default: keys of
        earlier versions stay equal. exclude: names of fields to leave out.
        """
        fields = type(self).model_fields
        same = {name for name in ADDED if getattr(self, name) == fields[name].default}
        return self.model_dump(mode="json", exclude={*exclude, *same})
