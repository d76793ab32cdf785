"""Pretrained weights in miniature: Stable Video Diffusion and OpenCLIP's text tower in their folders' layout,
of the same topology, random.
"""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel

from policy.config import BranchStage, PolicyConfig, TrunkStage, VideoConfig
from policy.presets import PRESETS

SENTENCE_DIM = 32


def svd_config() -> VideoConfig:
    """Return the video model of `svd-256` with few channels: the same levels, attention and feature names."""
    full = PRESETS["svd-256"].video
    assert full is not None
    small = {
        "block_out_channels": (32, 32, 64, 64),
        "num_attention_heads": (2, 2, 4, 4),
        "cross_attention_dim": SENTENCE_DIM,
        "time_id_dim": 8,
    }
    return full.model_copy(update=small)


def svd_unet(config: VideoConfig, image_size: tuple[int, int] = (64, 64)) -> UNetSpatioTemporalConditionModel:
    kinds = [
        "CrossAttn" if level < config.attention_levels else ""
        for level in range(len(config.block_out_channels))
    ]
    return UNetSpatioTemporalConditionModel(
        sample_size=image_size[0] // 8,
        down_block_types=tuple(f"{kind}DownBlockSpatioTemporal" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlockSpatioTemporal" for kind in reversed(kinds)),
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        num_attention_heads=config.num_attention_heads,
        cross_attention_dim=config.cross_attention_dim,
        addition_time_embed_dim=config.time_id_dim,
        projection_class_embeddings_input_dim=3 * config.time_id_dim,
    )


def svd_vae() -> AutoencoderKLTemporalDecoder:
    return AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 4,
        block_out_channels=(32,) * 4,
        layers_per_block=1,
        latent_channels=4,
    )


def text_folder(path: Path, seed: int = 0) -> Path:
    """Write `text_encoder/` and `tokenizer/` with a vocabulary of single letters; return the folder."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = {
        token: i
        for i, token in enumerate(
            [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
        )
    }
    (path / "tokenizer").mkdir(parents=True, exist_ok=True)
    (path / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    (path / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    (path / "tokenizer" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77})
    )
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=SENTENCE_DIM,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
        pad_token_id=vocabulary["<|endoftext|>"],
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        CLIPTextModelWithProjection(config).save_pretrained(path / "text_encoder")
    return path


def svd_folder(path: Path, seed: int = 0, variant: str | None = None) -> Path:
    """Write `unet/`, `vae/`, `text_encoder/`, `tokenizer/`, a few MB; `variant="fp16"`: in half precision,
    under the names that diffusers gives such files.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        for part, model in (("unet", svd_unet(svd_config())), ("vae", svd_vae())):
            (model.half() if variant == "fp16" else model).save_pretrained(path / part, variant=variant)
    return text_folder(path, seed)


def svd_policy() -> PolicyConfig:
    """Return the configuration `svd-256` with few channels and three frames per view."""
    full = PRESETS["svd-256"]
    assert full.adaptor is not None
    stages = [
        stage.model_copy(update={"channels": 16, "groups": 4, "blocks": 1, "expansion": 2})
        for stage in full.adaptor.branch
    ]
    branch = tuple(
        BranchStage(**stage.model_dump() | ({"joins": 16} if stage.joins else {})) for stage in stages
    )
    trunk = (TrunkStage(channels=16, groups=4, blocks=1, expansion=2, frame_stride=2),)
    raw = full.model_dump() | {
        "video": svd_config().model_dump(),
        "adaptor": full.adaptor.model_copy(update={"branch": branch, "trunk": trunk}).model_dump(),
        "action": full.action.model_copy(update={"down_dims": (16, 32), "time_dim": 16}).model_dump(),
        "clip": full.clip.model_copy(update={"frames_per_view": 3, "horizon": 8}).model_dump(),
    }
    raw["ladder"] = {rung: sampler | {"execute": 8} for rung, sampler in raw["ladder"].items()}
    raw["ladder"]["faithful"] |= {"video_passes": 2, "action_steps": 2}
    return PolicyConfig.model_validate(raw)
