"""Codecs between pictures and the latents of a video model: folded pixels, or Stable Video Diffusion's
autoencoder.

Shapes: ... any leading dimensions; K frames of a view; H W pixels; C latent channels; S channels as stored
next to the data; h w latent rows and columns (H / patch, W / patch).
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor
from torch.nn import functional as nnf

from policy.batch import BLOCK
from policy.config import VideoConfig
from policy.weights import WeightsError, load_vae

VAE_CHANNELS = 4
VAE_SCALE = 0.18215  # scales the latents to unit variance


class Latents(Protocol):
    """Codec from pictures to latents and back, computed on the pictures' device. It has no trainable
    weights.
    """

    channels: int
    """Channels of a latent, C."""
    stored_channels: int
    """Channels of a stored latent, S."""
    patch: int
    """Side in pixels of one latent position."""

    def encode(self, pictures: Tensor, conditions: bool = True) -> Tensor:
        """Encode (..., H, W, 3) uint8 to (..., S, h, w): all that training needs of each picture, and may be
        stored next to a data set.

        A function of each picture alone, not of its batch: bit for bit on one kind of machine. Without
        `conditions`, the result may contain only the channels that `target` reads: for pictures that are no
        camera's present one.
        """
        ...

    def present(self, pictures: Tensor) -> Tensor:
        """Encode (..., H, W, 3) uint8 to (..., C, h, w): `condition(encode(pictures))` without the other
        channels, for policies that only act.
        """
        ...

    def target(self, encoded: Tensor, generator: torch.Generator) -> Tensor:
        """Return the denoising target of the video model, (..., S, h, w) -> (..., C, h, w) float. The
        generator is on the CPU.
        """
        ...

    def condition(self, encoded: Tensor) -> Tensor:
        """Return the condition of frames on their camera's present picture, (..., S, h, w) -> (..., C, h, w)
        float.
        """
        ...

    def pictures(self, latents: Tensor) -> Tensor:
        """Decode latents, (..., K, C, h, w) as returned by `target`, to (..., K, H, W, 3) uint8 for
        display.
        """
        ...

    def fingerprint(self, image_size: tuple[int, int]) -> str:
        """Return a hash that is equal for codecs that encode pictures of this size equally."""
        ...


def to_latents(pictures: Tensor, patch: int) -> Tensor:
    """Fold uint8 pictures (..., H, W, 3) to (..., 3*p*p, h, w) in [-1, 1]: every p x p square becomes one
    position.
    """
    pixels = pictures.movedim(-1, -3).float() / 127.5 - 1
    latents: Tensor = nnf.pixel_unshuffle(pixels, patch)
    return latents


def to_frames(latents: Tensor, patch: int) -> Tensor:
    """Invert `to_latents`; values are clipped to the range of uint8."""
    pixels: Tensor = nnf.pixel_shuffle(latents, patch)
    return _to_pictures(pixels.movedim(-3, -1))


def _to_pictures(pixels: Tensor) -> Tensor:
    return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


class PixelLatents:
    """Pixels folded into channels: lossless, without a download."""

    def __init__(self, patch: int) -> None:
        self.patch = patch
        self.channels = self.stored_channels = 3 * patch**2

    def encode(self, pictures: Tensor, conditions: bool = True) -> Tensor:
        """Fold (..., H, W, 3) uint8 to (..., C, h, w); the same with and without `conditions`."""
        return to_latents(pictures, self.patch)

    def present(self, pictures: Tensor) -> Tensor:
        """Fold (..., H, W, 3) uint8 to (..., C, h, w)."""
        return to_latents(pictures, self.patch)

    def target(self, encoded: Tensor, generator: torch.Generator) -> Tensor:
        """Return `encoded`: folded pixels have no noise to sample."""
        return encoded

    def condition(self, encoded: Tensor) -> Tensor:
        """Return `encoded`: the condition is the picture itself."""
        return encoded

    def pictures(self, latents: Tensor) -> Tensor:
        """Unfold (..., K, C, h, w) to (..., K, H, W, 3) uint8."""
        return to_frames(latents, self.patch)

    def fingerprint(self, image_size: tuple[int, int]) -> str:
        """Return a hash of the patch and the image size."""
        return _hashed({"latents": "pixels", "patch": self.patch, "image_size": image_size})


class VaeLatents:
    """The autoencoder of Stable Video Diffusion, frozen and always in fp32 (arXiv 2508.00795).

    Stored per picture, in float16: the posterior's mean (4), its log-variance clamped as in diffusers (4),
    and the mean of the same picture with condition noise (4). The target is a sample of the posterior times
    the autoencoder's scale; the condition is unscaled. The noise is seeded by the picture's bytes, so that
    stored and fresh latents agree and a policy's answer is a function of its observation.

    Not an nn.Module, so that weight averages, optimisers and state dicts of the model exclude it.
    """

    patch = 8
    channels = VAE_CHANNELS
    stored_channels = 3 * VAE_CHANNELS

    def __init__(self, vae: AutoencoderKLTemporalDecoder | None, condition_noise: float) -> None:
        self.vae = None if vae is None else vae.requires_grad_(False).eval().float()
        self.condition_noise = condition_noise

    def __deepcopy__(self, memo: object) -> "VaeLatents":
        return self  # frozen: copies of a model share it

    def _vae_on(self, device: torch.device | None = None) -> AutoencoderKLTemporalDecoder:
        """Return the autoencoder on a device; raise WeightsError if none was loaded (training on stored
        latents needs none).
        """
        if self.vae is None:
            raise WeightsError(
                "encoding pictures needs the weights of Stable Video Diffusion's autoencoder; name them, or"
                " train on latents that were encoded before (demoscale encode)"
            )
        return self.vae if device in (None, self.vae.device) else self.vae.to(device)

    def encode(self, pictures: Tensor, conditions: bool = True) -> Tensor:
        """Encode (..., H, W, 3) uint8 to (..., S, h, w) float16: 12 channels, or 8 without `conditions`."""
        moments = self._moments(pictures, _pixels)
        if not conditions:
            return moments
        return torch.cat([moments, self._moments(pictures, self._noisy)[..., : self.channels, :, :]], dim=-3)

    def present(self, pictures: Tensor) -> Tensor:
        """Encode (..., H, W, 3) uint8 with condition noise to (..., 4, h, w) float."""
        return self._moments(pictures, self._noisy)[..., : self.channels, :, :].float()

    def target(self, encoded: Tensor, generator: torch.Generator) -> Tensor:
        """Return a scaled sample of the posterior, (..., 4, h, w) float."""
        mean, log_variance = encoded.float().split(self.channels, dim=-3)[:2]
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        scaled: Tensor = (mean + torch.exp(0.5 * log_variance) * noise) * VAE_SCALE
        return scaled

    def condition(self, encoded: Tensor) -> Tensor:
        """Return the mean of the noisy picture, the last 4 channels, as float."""
        return encoded[..., -self.channels :, :, :].float()

    @torch.no_grad()
    def pictures(self, latents: Tensor) -> Tensor:
        """Decode (..., K, 4, h, w) to (..., K, H, W, 3) uint8, one view at a time."""
        vae = self._vae_on(latents.device)
        views = latents.reshape(-1, *latents.shape[-4:])
        with torch.autocast(latents.device.type, enabled=False):
            unscaled = views.float() / VAE_SCALE
            # One view at a time: decoding costs 2.6 passes of the video model, and as much memory.
            shown = torch.stack(
                [
                    _to_pictures(vae.decode(view, num_frames=len(view)).sample.movedim(-3, -1))
                    for view in unscaled
                ]
            )
        return shown.reshape(*latents.shape[:-3], *shown.shape[-3:])

    def fingerprint(self, image_size: tuple[int, int]) -> str:
        """Return a hash of the autoencoder's weights, the condition noise and the image size."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._vae_on().state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return _hashed(
            {
                "latents": "vae",
                "vae": digest.hexdigest(),
                "condition_noise": self.condition_noise,
                "image_size": image_size,
            }
        )

    @torch.no_grad()
    def _moments(self, pictures: Tensor, as_pixels: Callable[[Tensor], Tensor]) -> Tensor:
        """Return mean and log-variance of each picture's posterior, (..., 2C, h, w) float16."""
        vae, blocks = self._vae_on(pictures.device), []
        with torch.autocast(pictures.device.type, enabled=False):
            # Always in blocks of one size: kernels round differently at different batch sizes, and latents
            # must not depend on the batch.
            for block in pictures.reshape(-1, *pictures.shape[-3:]).split(BLOCK):
                filled = nnf.pad(as_pixels(block), (0, 0, 0, 0, 0, 0, 0, BLOCK - len(block)))
                posterior = vae.encode(filled).latent_dist
                blocks.append(torch.cat([posterior.mean, posterior.logvar], dim=1)[: len(block)].half())
        moments = torch.cat(blocks)
        return moments.reshape(*pictures.shape[:-3], *moments.shape[1:])

    def _noisy(self, pictures_NHW3: Tensor) -> Tensor:
        noise = torch.stack([_noise_of(picture) for picture in pictures_NHW3.cpu()])
        return _pixels(pictures_NHW3) + self.condition_noise * noise.to(pictures_NHW3.device)


def _pixels(pictures: Tensor) -> Tensor:
    """Scale (N, H, W, 3) uint8 to (N, 3, H, W) in [-1, 1]."""
    return pictures.movedim(-1, -3).float() / 127.5 - 1


def _noise_of(picture_HW3: Tensor) -> Tensor:
    """Return (3, H, W) unit Gaussian noise, seeded by the picture's bytes."""
    seed = (
        int.from_bytes(hashlib.sha256(picture_HW3.contiguous().numpy().tobytes()).digest()[:8], "little") >> 1
    )
    height, width, _ = picture_HW3.shape
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))


def _hashed(fields: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def latent_codec(config: VideoConfig, weights: str | Path | None = None) -> PixelLatents | VaeLatents:
    """Return the codec of a video model.

    weights: folder or hub id in diffusers' layout with the autoencoder, if the codec needs one; None: it can
    train on stored latents only. Raises WeightsError if the autoencoder is missing or damaged.
    """
    if config.latents == "pixels":
        return PixelLatents(config.patch)
    return VaeLatents(None if weights is None else load_vae(weights), config.condition_noise)
