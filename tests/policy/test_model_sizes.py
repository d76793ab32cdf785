"""`svd-256` is as large as the paper's model: parameters and operations of the networks of policy/, counted
on the meta device, without memory or weights.

The reference figures are counts of the paper's published code (arXiv 2508.00795). Its operations are those of
convolutions and linear layers; attention's own products (queries by keys, the result by values) are counted
separately. policy/README.md has the table.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from conftest import CHECKOUT
from diffusers import AutoencoderKLTemporalDecoder
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from orchestrator.testing.episodes import CONTRACT
from policy.action_unet import ActionUNet
from policy.adaptor import Adaptor
from policy.config import PolicyConfig
from policy.model import VideoActionModel
from policy.presets import PRESETS
from policy.video_unet import VideoModel

ACTION_DIM = 7
RELATIVE_ERROR = 0.0005


@dataclass(frozen=True)
class Size:
    """Size of one network."""

    millions: float
    """Parameters."""
    gflop: float
    """Operations of the convolutions and linear layers, in one forward pass with one clip."""
    attention_gflop: float
    """Operations of attention's own products."""


def sizes(config: PolicyConfig, views: int, side: int) -> dict[str, Size]:
    """Return the sizes of a preset's networks for `views` cameras of `side` x `side` pixels; as in the paper,
    without proprioception.
    """
    video, adaptor, clip = config.video, config.adaptor, config.clip
    assert video
    assert adaptor
    embed_dim, rows = 4 * video.block_out_channels[0], side // video.patch
    with torch.device("meta"), torch.no_grad():
        # diffusers creates some parameters on the CPU regardless
        unet = VideoModel(video, (side, side)).to("meta")
        frames = video.pad_frames + views * clip.frames_per_view
        latents = torch.empty(1, frames, video.latent_channels, rows, rows)
        text, embedding = torch.empty(1, 1, video.cross_attention_dim), torch.empty(1, embed_dim)
        unet_size, (_, features) = _counted(unet, lambda: unet(latents, torch.ones(1), latents, text))
        maps = [(feature.shape[2], *feature.shape[3:]) for feature in features]
        reader = Adaptor(adaptor, maps, views, clip.frames_per_view, embed_dim)
        reader_size, vector = _counted(reader, lambda: reader(features, embedding))
        action = ActionUNet(config.action, ACTION_DIM, reader.out_dim, embed_dim)
        chunk = torch.empty(1, clip.horizon, ACTION_DIM)
        action_size, _ = _counted(action, lambda: action(chunk, vector, embedding))
    return {"U-Net": unet_size, "adaptor": reader_size, "action U-Net": action_size}


def _counted(module: nn.Module, forward: Callable[[], Any]) -> tuple[Size, Any]:
    """Return the size of a module, from one forward pass, and the pass's result."""
    with FlopCounterMode(display=False) as counter:
        result = forward()
    by_kernel = counter.get_flop_counts()["Global"]
    attention = sum(
        flop for kernel, flop in by_kernel.items() if "bmm" in str(kernel) or "attention" in str(kernel)
    )
    return Size(_millions(module), (counter.get_total_flops() - attention) / 1e9, attention / 1e9), result


def _millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.fixture(scope="module")
def svd() -> dict[str, Size]:
    return sizes(PRESETS["svd-256"], views=3, side=256)


def test_svd_256_has_the_sizes_of_the_paper(svd: dict[str, Size]) -> None:
    assert svd["U-Net"].millions == pytest.approx(1524.6, rel=RELATIVE_ERROR)
    assert svd["U-Net"].gflop == pytest.approx(7160, rel=RELATIVE_ERROR)
    assert svd["adaptor"].millions == pytest.approx(205.8, rel=RELATIVE_ERROR)
    assert svd["action U-Net"].millions == pytest.approx(161.4, rel=RELATIVE_ERROR)


def test_svd_autoencoder_has_the_size_of_the_paper() -> None:
    """With diffusers' module at the published widths; its weights' own folder says how it is built."""
    with torch.device("meta"):
        autoencoder = AutoencoderKLTemporalDecoder(
            down_block_types=("DownEncoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
        )
    assert _millions(autoencoder) == pytest.approx(97.7, rel=RELATIVE_ERROR)


def test_readme_table_has_the_counted_sizes(svd: dict[str, Size]) -> None:
    readme = (CHECKOUT / "policy/README.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in readme.splitlines()]
    table = {row[0].removesuffix(", 25 frames"): row for row in rows if len(row) == 8}
    for name, size in svd.items():
        shown = [table[name][column] for column in (1, 4, 7)]
        assert shown == [f"{value:,.2f}" for value in (size.millions, size.gflop, size.attention_gflop)]


def test_lite_preset_is_of_a_middle_size_and_reads_the_same_maps() -> None:
    lite, full = PRESETS["svd-128-lite"], PRESETS["svd-256"]
    contract = replace(CONTRACT, cameras=("a", "b"), image_size=(128, 128))
    with torch.device("meta"):
        model = VideoActionModel(lite, contract)
    assert 30 < _millions(model) < 100
    assert round(_millions(model)) == 78
    assert lite.video
    assert full.video
    changed = lite.video.model_copy(
        update={
            "block_out_channels": full.video.block_out_channels,
            "num_attention_heads": full.video.num_attention_heads,
        }
    )
    assert changed == full.video


@pytest.mark.parametrize(("views", "adaptor"), [(1, 0.45), (2, 0.61)])
def test_tiny_has_the_documented_sizes(views: int, adaptor: float) -> None:
    tiny = sizes(PRESETS["tiny"], views, side=64)
    assert [round(size.millions, 2) for size in tiny.values()] == [1.28, adaptor, 1.40]


def test_tiny_with_proprioception_has_the_documented_sizes() -> None:
    """The head has 0.11 M parameters more for the 9 proprioceptive values."""
    with torch.device("meta"):
        model = VideoActionModel(PRESETS["tiny"], CONTRACT)
    parts = (model.video, model.adaptor, model.head)
    assert [round(_millions(part), 2) for part in parts] == [1.28, 0.45, 1.51]
