"""The named policies: `tiny` for one CPU core, `svd-128-lite` for one GPU, `svd-256` at the paper's size;
each with its behaviour-cloning baseline.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policy.config import (
    AS_PRESET,
    DIFFUSION_POLICY,
    VIDEO_ACTION,
    ActionConfig,
    AdaptorConfig,
    BranchStage,
    ClipShape,
    DiffusionConfig,
    ImageConfig,
    LossWeights,
    PolicyConfig,
    PolicySettings,
    Recipe,
    SamplerConfig,
    TrunkStage,
    VideoConfig,
)


def _rungs(
    video: tuple[float, float],
    action: tuple[float, float],
    truncated: tuple[float, float],
    execute: int,
    action_steps: int,
) -> dict[str, SamplerConfig]:
    """Return the ladder from faithful to cheap: 30 joint steps with guidance 2; without guidance; 5 steps
    that end early; 1 pass from pure noise.

    `video`, `action`: lowest and highest noise level of each stream; `truncated`: those of both streams on
    the rung that ends early.
    """
    faithful = SamplerConfig(
        video_passes=30,
        action_steps=30,
        guidance=2.0,
        video_sigmas=video,
        action_sigmas=action,
        execute=execute,
    )
    return {
        "faithful": faithful,
        "unguided": faithful.model_copy(update={"guidance": 1.0}),
        "truncated": SamplerConfig(
            video_passes=5, action_steps=5, video_sigmas=truncated, action_sigmas=truncated, execute=execute
        ),
        "one_pass": faithful.model_copy(
            update={"guidance": 1.0, "video_passes": 1, "action_steps": action_steps}
        ),
    }


PRESETS = {
    "tiny": PolicyConfig(
        preset="tiny",
        clip=ClipShape(frames_per_view=2, frame_stride=8, horizon=8),
        video=VideoConfig(
            latents="pixels",
            block_out_channels=(32, 64),
            layers_per_block=1,
            num_attention_heads=(4, 4),
            cross_attention_dim=64,
            time_id_dim=32,
            attention_levels=0,
            features=("up_blocks.1", "up_blocks.0", "mid_block"),
            text="words",
        ),
        adaptor=AdaptorConfig(
            branch=(
                BranchStage(channels=64, groups=8, blocks=1, expansion=2),
                BranchStage(channels=64, groups=8, blocks=1, expansion=2, joins=32),
                BranchStage(channels=64, groups=8, blocks=1, expansion=2, joins=32),
            ),
            trunk=(TrunkStage(channels=64, groups=8, blocks=1, expansion=2, frame_stride=2),),
            out_dim=256,
        ),
        action=ActionConfig(down_dims=(64, 128), kernel_size=5, groups=8, time_dim=64),
        diffusion=DiffusionConfig(
            sigmas="decoupled",
            log_sigma_mean=0.0,
            log_sigma_std=1.4,
            video_log_sigma_mean=2.0,
            features_at="start",
            action_draws=4,
        ),
        ladder=_rungs((0.02, 10.0), (0.02, 10.0), (0.1, 10.0), execute=4, action_steps=5),
        rung="one_pass",
        action_normalization="minmax",
    ),
    "svd-256": PolicyConfig(
        preset="svd-256",
        clip=ClipShape(frames_per_view=8, frame_stride=4, horizon=32, padding="paper"),
        video=VideoConfig(
            latents="vae",
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            num_attention_heads=(5, 10, 20, 20),
            cross_attention_dim=1024,
            time_id_dim=256,
            attention_levels=3,
            features=(
                "up_blocks.3.attentions.1",
                "up_blocks.2.attentions.1",
                "up_blocks.1.attentions.1",
                "up_blocks.0.resnets.1",
                "down_blocks.2.downsamplers.0",
            ),
            pad_frames=1,
            condition_noise=0.02,
            text="openclip",
        ),
        adaptor=AdaptorConfig(
            branch=(
                BranchStage(channels=320, groups=10),
                BranchStage(channels=640, groups=10, joins=320),
                BranchStage(channels=1280, groups=10, joins=640),
                BranchStage(channels=1280, groups=10, joins=640),
                BranchStage(channels=1280, groups=10, joins=640),
                BranchStage(channels=864, groups=8),
                BranchStage(channels=576, groups=6),
            ),
            trunk=(
                TrunkStage(channels=1280, groups=10),
                TrunkStage(channels=960, groups=8),
                TrunkStage(channels=720, groups=6),
                TrunkStage(channels=540, groups=5),
                TrunkStage(channels=420, groups=5),
                *[TrunkStage(channels=420, groups=7, expansion=2)] * 2,
                *[TrunkStage(channels=420, groups=7, expansion=2, blocks=4, frame_stride=2)] * 3,
            ),
        ),
        action=ActionConfig(down_dims=(256, 512, 1024), kernel_size=5, groups=8, time_dim=256),
        diffusion=DiffusionConfig(sigmas="shared", log_sigma_mean=1.0, log_sigma_std=1.6),
        ladder=_rungs((0.002, 700.0), (0.002, 700.0), (4.0, 80.0), execute=16, action_steps=10),
        rung="faithful",
        action_normalization="minmax",
    ),
}
_SVD = PRESETS["svd-256"]
assert _SVD.video
PRESETS["svd-128-lite"] = PolicyConfig(
    preset="svd-128-lite",
    clip=ClipShape(frames_per_view=4, frame_stride=4, horizon=16),
    # the levels, attention and feature maps of svd-256, with a fifth of its channels
    video=_SVD.video.model_copy(
        update={"block_out_channels": (64, 128, 192, 256), "num_attention_heads": (2, 4, 6, 8)}
    ),
    adaptor=AdaptorConfig(
        branch=(
            BranchStage(channels=64, groups=8, blocks=1),
            BranchStage(channels=128, groups=8, blocks=1, joins=64),
            BranchStage(channels=256, groups=8, blocks=1, joins=128),
            BranchStage(channels=256, groups=8, blocks=1, joins=128),
            BranchStage(channels=256, groups=8, blocks=1, joins=128),
        ),
        trunk=(
            TrunkStage(channels=256, groups=8),
            *[TrunkStage(channels=128, groups=8, frame_stride=2)] * 2,
        ),
        out_dim=512,
    ),
    action=ActionConfig(down_dims=(128, 256, 512), kernel_size=5, groups=8, time_dim=128),
    diffusion=DiffusionConfig(
        sigmas="decoupled",
        log_sigma_mean=0.0,
        log_sigma_std=1.4,
        video_log_sigma_mean=2.0,
        video_log_sigma_std=1.6,
        action_draws=4,
    ),
    ladder=_rungs((0.002, 700.0), (0.02, 80.0), (0.1, 80.0), execute=8, action_steps=10),
    rung="one_pass",
    action_normalization="minmax",
)
"""Video-action policies."""

RECIPES = {
    "tiny": Recipe(),
    # arXiv 2508.00795 and its published configurations; docs/paper.md compares them number by number. The
    # losses are the mean over 25 frames and 32 actions of a clip together.
    # Not the paper's: its U-Net starts from random weights, and stored latents (`demoscale encode`) have no
    # jitter.
    "svd-128-lite": Recipe(learning_rate=2e-4, warmup_steps=500, ema_decay=0.999, precision="bf16"),
    "svd-256": Recipe(
        mode="two_stage",
        learning_rate=1e-5,
        head_learning_rate=5e-5,
        schedule="constant",
        warmup_steps=0,
        weight_decay=0.0,
        betas=(0.9, 0.999),
        loss_weights=LossWeights(video=25 / 57, action=32 / 57),
        clip_norm=0.0,
        ema_decay=0.0,
        precision="fp16",
        gradient_checkpointing=True,
        color_jitter=True,
    ),
}
"""How a preset is trained, unless a sweep file says otherwise: the fields that are set here."""

WITHOUT_PROPRIOCEPTION = ("svd-256",)
"""Presets whose policies see pictures and the sentence alone, unless `suite.proprio` says otherwise."""

WEIGHTS = {
    "tiny": str(Path(__file__).parent / "pretrained/tiny"),
    "svd-128-lite": "stabilityai/stable-video-diffusion-img2vid-xt",
    "svd-256": "stabilityai/stable-video-diffusion-img2vid-xt",
}
"""Default pretrained weights of a preset's video model: a folder in this package, or a hub id."""

WITHOUT_UNET = ("svd-128-lite",)
"""Presets whose default weights hold their autoencoder and sentences, and no U-Net of their size: it starts
from random weights. Other weights that a sweep names hold one.
"""

BASELINES = {
    "svd-128-lite": {
        "images": ImageConfig(channels=(32, 64, 128, 256), out_dim=256, groups=8, text_dim=64, time_dim=256),
        "action": PRESETS["svd-128-lite"].action,
    },
    "tiny": {
        "images": ImageConfig(channels=(32, 64, 128), out_dim=256, groups=8, text_dim=64, time_dim=128),
        "action": PRESETS["tiny"].action,
    },
    "svd-256": {
        "images": ImageConfig(channels=(64, 128, 256, 512), out_dim=512, groups=8, text_dim=64, time_dim=256),
        "action": PRESETS["svd-256"].action,
    },
}


def policy_config(
    preset: str, policy: str = VIDEO_ACTION, settings: PolicySettings = AS_PRESET
) -> PolicyConfig:
    """Return the preset of the video-action policy, or that of the baseline (DIFFUSION_POLICY), which takes
    the same pictures and denoises its actions with the same network.

    settings: values in place of the preset's. Raises ValueError if they contradict each other.
    """
    ours = settings.applied(PRESETS[preset])
    if policy == VIDEO_ACTION:
        return ours
    one = ours.ladder["one_pass"]
    instead = {
        "video": None,
        "adaptor": None,
        **BASELINES[preset],
        "ladder": {"one_pass": one},
        "rung": "one_pass",
    }
    return PolicyConfig.model_validate(dict(ours) | instead)


def learner_config(
    preset: str, learner: str, options: Mapping[str, Any], settings: PolicySettings = AS_PRESET
) -> PolicyConfig:
    """Return the configuration of another package's policy (`policy.learner`): clips, chunk, action network,
    noise and sampler of the preset's baseline.

    learner: name of its entry point. options: its settings, JSON values. settings: as for `policy_config`.
    """
    baseline = policy_config(preset, DIFFUSION_POLICY, settings)
    return PolicyConfig.model_validate(
        dict(baseline) | {"images": None, "learner": learner, "options": dict(options)}
    )


def has_unet(preset: str, weights: str) -> bool:
    """Return whether the weights hold a U-Net of the preset's size. weights: as a sweep names them, or with
    the commit that they were found at.
    """
    return preset not in WITHOUT_UNET or weights.partition("@")[0] not in ("", WEIGHTS[preset])


def weights_source(preset: str, weights: str) -> str:
    """Return the initial weights of a video model: a folder, hub id or URI; empty for random weights.

    weights: the requested source; empty: the preset's default; `none`: random weights.
    """
    return "" if weights == "none" else weights or WEIGHTS[preset]
