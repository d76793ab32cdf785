"""Is `svd-256` as large as the paper's model? Parameters and operations of its networks, counted without
memory or weights.

    python -m bench.sizes                under a minute; `--quick` is the same

The modules of policy/ themselves, on the meta device; the paper's figures are counts of its published code
(arXiv 2508.00795). Its operations are those of convolutions and linear layers; what attention multiplies
besides (queries by keys, the result by values) has a column of its own.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench import harness
from policy.action_unet import ActionUNet
from policy.adaptor import Adaptor
from policy.config import PolicyConfig
from policy.presets import PRESETS
from policy.video_unet import VideoModel

ACTION_DIM = 7


@dataclass(frozen=True)
class Size:
    """Of one network."""

    millions: float
    """Parameters."""
    tflop: float | None = None
    """Of the convolutions and linear layers, in one forward pass with one clip."""
    attention_tflop: float | None = None
    """Of attention's own products, besides."""


PAPER = {
    "U-Net": Size(1524.6, 7.16),
    "adaptor": Size(205.8),
    "action U-Net": Size(161.4),
    "autoencoder": Size(97.7),
}


def sizes(config: PolicyConfig, views: int, side: int) -> dict[str, Size]:
    """Of a preset's networks for so many cameras of `side` x `side` pixels. As in the paper, no
    proprioception joins what the adaptor says.
    """
    video, adaptor, clip = config.video, config.adaptor, config.clip
    assert video
    assert adaptor
    embed_dim, rows = 4 * video.block_out_channels[0], side // video.patch
    with torch.device("meta"), torch.no_grad():
        # some of diffusers' parameters are born on the CPU all the same
        unet = VideoModel(video, (side, side)).to("meta")
        latents = torch.empty(
            1, video.pad_frames + views * clip.frames_per_view, video.latent_channels, rows, rows
        )
        text, embedding = torch.empty(1, 1, video.cross_attention_dim), torch.empty(1, embed_dim)
        unet_tflop, (_, features) = _count(lambda: unet(latents, torch.ones(1), latents, text))
        reader = Adaptor(
            adaptor,
            [(maps.shape[2], *maps.shape[3:]) for maps in features],
            views,
            clip.frames_per_view,
            embed_dim,
        )
        reader_tflop, vector = _count(lambda: reader(features, embedding))
        action = ActionUNet(config.action, ACTION_DIM, reader.out_dim, embed_dim)
        action_tflop, _ = _count(lambda: action(torch.empty(1, clip.horizon, ACTION_DIM), vector, embedding))
    return {
        "U-Net": Size(_millions(unet), *unet_tflop),
        "adaptor": Size(_millions(reader), *reader_tflop),
        "action U-Net": Size(_millions(action), *action_tflop),
    }


def _autoencoder() -> Size:
    """Of Stable Video Diffusion; its folder of weights says how it is built, here it is diffusers' own at the
    published widths.
    """
    with torch.device("meta"):
        vae = AutoencoderKLTemporalDecoder(
            down_block_types=("DownEncoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
        )
    return Size(_millions(vae))


def _count(forward: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    """TFLOP without and of attention's products, and the answer."""
    with FlopCounterMode(display=False) as counter:
        answer = forward()
    by_kernel = counter.get_flop_counts()["Global"]
    attention = sum(
        flop for kernel, flop in by_kernel.items() if "bmm" in str(kernel) or "attention" in str(kernel)
    )
    return ((counter.get_total_flops() - attention) / 1e12, attention / 1e12), answer


def _millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def _table(title: str, measured: dict[str, Size], paper: dict[str, Size]) -> list[float]:
    """Prints; every relative error."""
    errors = []
    print(f"\n{title:<36} M parameters   paper    off by      GFLOP   paper    off by   attention's")
    for name, size in measured.items():
        line = f"{name:<36}"
        reference = paper.get(name, Size(0))
        for ours, theirs, scale, width in (
            (size.millions, reference.millions, 1, 13),
            (size.tflop, reference.tflop, 1000, 11),
        ):
            line += f"{_number(ours, scale):>{width}}"
            if ours is not None and theirs:
                errors.append(abs(ours / theirs - 1))
                line += f"{theirs * scale:8g}{ours / theirs - 1:+10.2%}"
            else:
                line += 18 * " "
        print((line + f"{_number(size.attention_tflop, 1000):>14}").rstrip())
    return errors


def _number(value: float | None, scale: float) -> str:
    return "" if value is None else f"{value * scale:.2f}"


@click.command()
@click.option("--quick", is_flag=True, help="The same: it is quick.")
def main(quick: bool) -> None:
    """Print a table for each preset and, last, one line of JSON."""
    full = sizes(PRESETS["svd-256"], views=3, side=256)
    errors = _table("svd-256, 3 cameras of 256 x 256", full | {"autoencoder": _autoencoder()}, PAPER)
    for views in (1, 2):
        _table(
            f"tiny, {views} camera{'s'[: views - 1]} of 64 x 64", sizes(PRESETS["tiny"], views, side=64), {}
        )
    unet, adaptor, action = full.values()
    counts = {
        "unet_m": unet.millions,
        "adaptor_m": adaptor.millions,
        "action_m": action.millions,
        "unet_tflop": unet.tflop or 0.0,
    }
    rounded = {name: round(number, 3) for name, number in counts.items()}
    print("\n" + json.dumps({"bench": "sizes", **rounded, "max_relative_error": round(max(errors), 5)}))


if __name__ == "__main__":
    harness.run(main)
