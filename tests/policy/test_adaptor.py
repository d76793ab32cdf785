"""The adaptor and the action U-Net: any views, frames and feature maps; the sizes of the paper."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from policy.action_unet import ActionUNet
from policy.adaptor import Adaptor
from policy.config import AdaptorConfig, BranchStage, TrunkStage
from policy.presets import PRESETS

EMBED = 12


def small(maps: int, out_dim: int | None = None, blocks: int = 1) -> AdaptorConfig:
    """Return a small configuration with every feature of the paper's adaptor: joining maps, a stage without
    one, frame strides.
    """
    return AdaptorConfig(
        branch=(
            BranchStage(channels=8, groups=2, blocks=blocks, expansion=2),
            *[BranchStage(channels=12, groups=3, expansion=2, blocks=blocks, joins=6)] * (maps - 1),
            BranchStage(channels=8, groups=2, blocks=blocks),
        ),
        trunk=(
            TrunkStage(channels=16, groups=2, expansion=2),
            *[TrunkStage(channels=8, groups=2, expansion=2, frame_stride=2)] * 2,
        ),
        out_dim=out_dim,
    )


def random_inputs(
    shapes: list[tuple[int, ...]], frames: int, batch: int = 2, seed: int = 0
) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    maps = [
        torch.randn(batch, frames, shape[0], shape[1], shape[-1], generator=generator) for shape in shapes
    ]
    return maps, torch.randn(batch, EMBED, generator=generator)


def build(config: AdaptorConfig, shapes: list[tuple[int, ...]], views: int, frames: int) -> Adaptor:
    torch.manual_seed(0)
    return Adaptor(config, shapes, views, frames, EMBED)


@pytest.mark.parametrize(("views", "frames"), [(1, 1), (1, 3), (2, 2), (3, 8), (5, 5)])
@pytest.mark.parametrize(
    "shapes",
    [
        [(5, 4)],
        [(3, 8), (5, 8), (7, 4)],
        [(3, 16), (5, 8), (7, 4), (7, 2), (9, 2)],
        [(3, 9), (5, 5), (7, 3), (4, 2)],  # the U-Net rounds odd sizes upwards
        [(3, 12), (7, 3)],  # two levels at once
        [(3, 6, 9), (5, 3, 5), (4, 2, 3)],
    ],
)
def test_adaptor_output_shape_for_any_views_frames_and_maps(
    views: int, frames: int, shapes: list[tuple[int, ...]]
) -> None:
    adaptor = build(small(len(shapes)), shapes, views, frames)
    vector = adaptor(*random_inputs(shapes, views * frames))
    assert vector.shape == (2, adaptor.out_dim)
    assert adaptor.out_dim == 8 * -(-frames // 4) * shapes[-1][1] * shapes[-1][-1]
    assert torch.isfinite(vector).all()


SHAPES: list[tuple[int, ...]] = [(3, 8), (5, 4), (7, 2)]


@pytest.mark.parametrize("out_dim", [None, 10])
def test_adaptor_gradient_reaches_every_parameter_and_input(out_dim: int | None) -> None:
    adaptor = build(small(3, out_dim, blocks=2), SHAPES, 2, 3)
    maps, embedding = random_inputs(SHAPES, 6)
    inputs = [tensor.requires_grad_() for tensor in (*maps, embedding)]
    vector = adaptor(maps, embedding)
    assert vector.shape == (2, out_dim or 8 * 1 * 2 * 2)
    vector.square().sum().backward()
    named = [
        *adaptor.named_parameters(),
        *((f"input {place}", tensor) for place, tensor in enumerate(inputs)),
    ]
    assert [name for name, tensor in named if tensor.grad is None or not tensor.grad.abs().sum() > 0] == []


def test_adaptor_has_separate_weights_per_view() -> None:
    adaptor = build(small(3), SHAPES, 2, 3)
    maps, embedding = random_inputs(SHAPES, 6)
    swapped = [torch.cat([feature[:, 3:], feature[:, :3]], dim=1) for feature in maps]
    assert not torch.allclose(adaptor(maps, embedding), adaptor(swapped, embedding), atol=1e-3)
    first, second = (set(branch.parameters()) for branch in adaptor.branches)
    assert not first & second


def test_adaptor_output_depends_on_every_view_and_the_noise_level() -> None:
    adaptor = build(small(3), SHAPES, 3, 2)
    maps, embedding = random_inputs(SHAPES, 6)
    before = adaptor(maps, embedding)
    for view in range(3):
        changed = [feature.clone() for feature in maps]
        for feature in changed:
            feature[:, 2 * view : 2 * view + 2] += 1
        assert not torch.allclose(adaptor(changed, embedding), before, atol=1e-3)
    assert not torch.allclose(adaptor(maps, embedding + 1), before, atol=1e-3)


@pytest.mark.parametrize("pad", [1, 2])
def test_adaptor_ignores_pad_frames(pad: int) -> None:
    adaptor = build(small(3), SHAPES, 2, 3)
    maps, embedding = random_inputs(SHAPES, 6)
    padded = [torch.cat([torch.full_like(feature[:, :pad], 1e6), feature], dim=1) for feature in maps]
    assert torch.equal(adaptor(padded, embedding), adaptor(maps, embedding))


def test_adaptor_clips_are_independent() -> None:
    adaptor = build(small(3), SHAPES, 2, 3)
    maps, embedding = random_inputs(SHAPES, 6, batch=3)
    alone = adaptor([feature[1:2] for feature in maps], embedding[1:2])
    torch.testing.assert_close(adaptor(maps, embedding)[1:2], alone, rtol=1e-3, atol=1e-4)


# -- sizes ---------------------------------------------------------------------------------------------------


def millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def test_adaptor_and_action_unet_of_svd_256_have_the_sizes_of_the_paper() -> None:
    config = PRESETS["svd-256"]
    assert config.adaptor
    shapes = [(320, 32), (640, 16), (1280, 8), (1280, 4), (1280, 4)]
    with torch.device("meta"):
        adaptor = Adaptor(config.adaptor, shapes, 3, 8, 1280)
        action = ActionUNet(config.action, 7, adaptor.out_dim, 1280)
        vector = adaptor(
            [torch.empty(2, 25, channels, rows, rows) for channels, rows in shapes], torch.empty(2, 1280)
        )
        assert vector.shape == (2, adaptor.out_dim) == (2, 420 * 4 * 4)
        assert action(torch.empty(2, 32, 7), vector, torch.empty(2, 1280)).shape == (2, 32, 7)
    assert millions(adaptor) == pytest.approx(205.8, rel=0.01)
    assert millions(action) == pytest.approx(161.4, rel=0.01)


def test_adaptor_of_tiny_has_less_than_half_a_million_parameters() -> None:
    config = PRESETS["tiny"].adaptor
    assert config
    adaptor = Adaptor(config, [(32, 8), (64, 8), (64, 4)], 1, 2, 128)
    assert adaptor.out_dim == 256
    assert millions(adaptor) < 0.5


# -- refusals ------------------------------------------------------------------------------------------------


def test_adaptor_refuses_a_wrong_number_or_order_of_maps() -> None:
    with pytest.raises(
        ValueError, match="4 feature maps for a branch that reads 3: the finest, and one per stage with joins"
    ):
        build(small(3), [*SHAPES, (7, 1)], 1, 2)
    with pytest.raises(ValueError, match=r"fine to coarse; \(4, 4\) is followed by \(8, 8\)"):
        build(small(3), [(3, 4), (5, 8), (7, 2)], 1, 2)


def test_adaptor_config_that_cannot_be_built_is_refused() -> None:
    with pytest.raises(ValidationError, match="30 channels do not divide into 4 x 4 groups"):
        TrunkStage(channels=30, groups=4)
    with pytest.raises(ValidationError, match="12 joining channels do not divide"):
        BranchStage(channels=32, groups=4, joins=12)
    with pytest.raises(ValidationError, match="nothing can join it there"):
        AdaptorConfig(
            branch=(BranchStage(channels=8, groups=2, joins=8),), trunk=(TrunkStage(channels=8, groups=2),)
        )
