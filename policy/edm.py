"""The diffusion both streams share: EDM preconditioning of a v-prediction, its noise levels, and the Karras schedule.

Karras et al. 2022 (arXiv 2206.00364) with sigma_data = 1 and Stable Video Diffusion's constants. The same formulas serve video latents and actions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def _like(sigma_B: Tensor, x: Tensor) -> Tensor:
    return sigma_B.reshape(-1, *(1,) * (x.ndim - 1))


def scale_input(x: Tensor, sigma_B: Tensor) -> Tensor:
    """c_in * x: unit variance at every noise level."""
    return x / (_like(sigma_B, x) ** 2 + 1).sqrt()


def noise_label(sigma_B: Tensor) -> Tensor:
    """Return c_noise = ln(sigma) / 4, the noise level as input of the networks."""
    return 0.25 * sigma_B.log()


def denoised(x: Tensor, v: Tensor, sigma_B: Tensor) -> Tensor:
    """The clean sample a network's output `v` stands for: c_skip * x + c_out * v."""
    sigma = _like(sigma_B, x)
    return x / (sigma**2 + 1) - v * sigma / (sigma**2 + 1).sqrt()


def loss_weight(sigma_B: Tensor) -> Tensor:
    """(sigma^2 + 1) / sigma^2 on the squared error of the clean sample: unit weight on that of v."""
    return (sigma_B**2 + 1) / sigma_B**2


def draw_sigma(num: int, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """(num,) noise levels for training, ln(sigma) ~ N(mean, std^2)."""
    return (mean + std * torch.randn(num, generator=generator)).exp()


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """(steps + 1,) falling noise levels ending in 0 (Karras et al., eq. 5)."""
    ramp = torch.linspace(0, 1, steps)
    sigmas: Tensor = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def euler_step(x: Tensor, clean: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """One Euler step of the probability-flow equation from `sigma` to `sigma_next`."""
    return x + (x - clean) / sigma * (sigma_next - sigma)


def guided(both: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance: rows of the told, then of the untold prediction, (2B, ...) -> (B, ...) untold + guidance x (told - untold)."""
    told, untold = both.chunk(2)
    return untold + guidance * (told - untold)


def unit_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """(B, *shape) standard normal noise, each row from its own seed; drawn on the CPU, so that the device does not matter."""
    return torch.stack([torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds])
