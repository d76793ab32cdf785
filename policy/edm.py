"""Diffusion of both streams: EDM preconditioning of a v-prediction, its noise levels, and the Karras
schedule.

Karras et al. 2022 (arXiv 2206.00364) with sigma_data = 1 and Stable Video Diffusion's constants. The same
formulas serve video latents and actions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def _like(sigma_B: Tensor, x: Tensor) -> Tensor:
    return sigma_B.reshape(-1, *(1,) * (x.ndim - 1))


def scale_input(x: Tensor, sigma_B: Tensor) -> Tensor:
    """Return c_in * x, which has unit variance at every noise level."""
    return x / (_like(sigma_B, x) ** 2 + 1).sqrt()


def noise_label(sigma_B: Tensor) -> Tensor:
    """Return c_noise = ln(sigma) / 4, the networks' input for the noise level."""
    return 0.25 * sigma_B.log()


def denoised(x: Tensor, v: Tensor, sigma_B: Tensor) -> Tensor:
    """Return the clean sample for a network's output `v`: c_skip * x + c_out * v."""
    sigma = _like(sigma_B, x)
    return x / (sigma**2 + 1) - v * sigma / (sigma**2 + 1).sqrt()


def loss_weight(sigma_B: Tensor) -> Tensor:
    """Return (sigma^2 + 1) / sigma^2, the weight of the clean sample's squared error that gives unit weight
    to the error of v.
    """
    return (sigma_B**2 + 1) / sigma_B**2


def draw_sigma(num: int, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """Draw (num,) noise levels for training, ln(sigma) ~ N(mean, std^2)."""
    return (mean + std * torch.randn(num, generator=generator)).exp()


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """Return (steps + 1,) falling noise levels that end in 0 (Karras et al., eq. 5)."""
    ramp = torch.linspace(0, 1, steps)
    sigmas: Tensor = (
        sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))
    ) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def euler_step(x: Tensor, clean: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Take one Euler step of the probability-flow equation from `sigma` to `sigma_next`."""
    return x + (x - clean) / sigma * (sigma_next - sigma)


def guided(both: Tensor, guidance: float) -> Tensor:
    """Apply classifier-free guidance: (2B, ...) conditional, then unconditional rows -> (B, ...) uncond +
    guidance * (cond - uncond).
    """
    told, untold = both.chunk(2)
    return untold + guidance * (told - untold)


def unit_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Draw (B, *shape) standard normal noise, each row from its own seed; on the CPU, so that it does not
    depend on the device.
    """
    return torch.stack(
        [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )
