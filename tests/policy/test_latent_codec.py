"""Latent codecs: encoding is deterministic and per picture; colour jitter changes the frames of a camera
together.
"""

import copy
from pathlib import Path

import pytest
import torch

from backbones import svd_config, svd_folder
from policy.augmentation import color_jitter
from policy.config import ColorJitter
from policy.latent_codec import BLOCK, PixelLatents, VaeLatents, latent_codec
from policy.weights import WeightsError


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> VaeLatents:
    codec = latent_codec(svd_config(), svd_folder(tmp_path_factory.mktemp("svd")))
    assert isinstance(codec, VaeLatents)
    return codec


def pictures(*leading: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, (*leading, 32, 32, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_pixel_latents_round_trip_exactly() -> None:
    codec, shown = PixelLatents(8), pictures(2, 3)
    encoded = codec.encode(shown)
    assert encoded.shape == (2, 3, codec.stored_channels, 4, 4)
    assert encoded.abs().max() <= 1
    assert torch.equal(codec.target(encoded, seeded()), codec.present(shown))
    assert torch.equal(codec.pictures(encoded), shown)


def test_vae_latents_of_a_picture_do_not_depend_on_the_batch(vae: VaeLatents) -> None:
    shown = pictures(2 * BLOCK + 1)
    together = vae.encode(shown)
    assert together.shape == (len(shown), 12, 4, 4)
    assert together.dtype == torch.float16
    order = torch.randperm(len(shown), generator=seeded(1))
    assert torch.equal(vae.encode(shown[order]), together[order])
    for i in range(len(shown)):
        assert torch.equal(vae.encode(shown[i]), together[i])


def test_vae_encoding_parts_equal_separate_encodings(vae: VaeLatents) -> None:
    shown = pictures(2, 2, 3)
    whole = vae.encode(shown)
    assert torch.equal(vae.present(shown), vae.condition(whole))
    without = vae.encode(shown, conditions=False)
    assert torch.equal(without, whole[..., :8, :, :])
    assert torch.equal(vae.target(without, seeded()), vae.target(whole, seeded()))


def test_vae_target_is_a_scaled_sample_of_the_posterior(vae: VaeLatents) -> None:
    encoded = vae.encode(pictures(1)).expand(4000, -1, -1, -1)
    target = vae.target(encoded, seeded())
    mean, log_variance = encoded[0, :4].float(), encoded[0, 4:8].float()
    assert torch.allclose(target.mean(0), 0.18215 * mean, atol=0.02)
    assert torch.allclose(target.std(0), 0.18215 * torch.exp(0.5 * log_variance), rtol=0.1)
    assert torch.equal(target, vae.target(encoded, seeded()))
    assert not torch.equal(target, vae.target(encoded, seeded(1)))


def test_vae_condition_is_the_unscaled_latent_of_a_noisy_picture(vae: VaeLatents) -> None:
    shown = pictures(3)
    encoded = vae.encode(shown)
    difference = vae.condition(encoded) - encoded[:, :4].float()
    assert 0 < difference.abs().max() < 0.2
    silent = VaeLatents(vae.vae, condition_noise=0.0)
    assert torch.equal(silent.condition(silent.encode(shown)), encoded[:, :4].float())


def test_vae_pictures_decode_each_view_separately(vae: VaeLatents) -> None:
    latents = vae.target(vae.encode(pictures(2, 3, 2)), seeded())
    shown = vae.pictures(latents)
    assert (shown.shape, shown.dtype) == ((2, 3, 2, 32, 32, 3), torch.uint8)
    assert torch.equal(vae.pictures(latents[1, 2]), shown[1, 2])


def test_codec_fingerprint_covers_weights_noise_and_size(vae: VaeLatents, tmp_path: Path) -> None:
    other = latent_codec(svd_config(), svd_folder(tmp_path, seed=1))
    prints = {
        codec.fingerprint(size)
        for codec in (vae, other, VaeLatents(vae.vae, 0.5), PixelLatents(8))
        for size in ((32, 32), (64, 64))
    }
    assert len(prints) == 8
    assert VaeLatents(copy.deepcopy(vae.vae), 0.02).fingerprint((32, 32)) == vae.fingerprint((32, 32))


def test_codec_copies_share_the_autoencoder_and_cached_latents_need_none(vae: VaeLatents) -> None:
    assert copy.deepcopy(vae) is vae
    without = latent_codec(svd_config())
    encoded = vae.encode(pictures(2))
    assert torch.equal(without.target(encoded, seeded()), vae.target(encoded, seeded()))
    assert torch.equal(without.condition(encoded), vae.condition(encoded))
    with pytest.raises(WeightsError, match="name them, or train on latents"):
        without.encode(pictures(1))


# -- jitter --------------------------------------------------------------------------------------------------


def test_color_jitter_of_zero_strength_changes_nothing() -> None:
    shown = pictures(2, 2, 3)
    assert torch.equal(color_jitter(shown, seeded(), ColorJitter(**NONE)), shown)


def test_color_jitter_is_common_to_frames_and_separate_per_camera() -> None:
    shown = pictures(1).expand(2, 2, 3, -1, -1, -1).contiguous()
    jittered = color_jitter(shown, seeded())
    assert jittered.dtype == torch.uint8
    assert torch.equal(jittered, jittered[:, :, :1].expand_as(jittered))
    cameras = jittered[:, :, 0].flatten(0, 1)
    assert len({bytes(camera.numpy().tobytes()) for camera in (*cameras, shown[0, 0, 0])}) == 5
    assert torch.equal(jittered, color_jitter(shown, seeded()))


def test_color_jitter_keeps_grey_grey() -> None:
    shown = (
        torch.randint(0, 256, (4, 1, 1, 16, 16, 1), generator=seeded(), dtype=torch.uint8)
        .expand(-1, -1, -1, -1, -1, 3)
        .contiguous()
    )
    jittered = color_jitter(shown, seeded()).int()
    assert (jittered.amax(-1) - jittered.amin(-1)).max() <= 1
    assert not torch.equal(jittered, shown.int())


NONE = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
LUMA = torch.tensor((0.299, 0.587, 0.114))


def before_and_after(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (N, 3) colours far from black and white, before and after jitter."""
    shown = pictures(1, 1, 1).clamp(80, 170)
    return shown.float().flatten(0, -2), color_jitter(
        shown, seeded(1), ColorJitter(**{**NONE, part: 0.3})
    ).float().flatten(0, -2)


def test_brightness_jitter_is_one_factor() -> None:
    before, after = before_and_after("brightness")
    factor = after.sum() / before.sum()
    assert abs(factor - 1) > 0.02
    assert (after - factor * before).abs().max() <= 1


def test_contrast_jitter_scales_about_the_mean_grey() -> None:
    before, after = before_and_after("contrast")
    assert abs((after - before).mean(0) @ LUMA) < 0.5
    factor = after.std() / before.std()
    assert abs(factor - 1) > 0.02
    assert (after - (factor * before + (1 - factor) * (before.mean(0) @ LUMA))).abs().max() <= 1.5


def test_saturation_jitter_keeps_luma() -> None:
    before, after = before_and_after("saturation")
    assert ((after - before) @ LUMA).abs().max() <= 1
    assert (after - before).abs().max() > 3


def test_hue_jitter_rotates_about_grey() -> None:
    before, after = before_and_after("hue")
    assert (after - before).sum(1).abs().max() <= 2
    distance = [(colors - colors.mean(1, keepdim=True)).norm(dim=1) for colors in (before, after)]
    assert (distance[0] - distance[1]).abs().max() < 2
    assert (after - before).abs().max() > 10
