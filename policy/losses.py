"""The two losses and how they add up when only some clips carry actions (arXiv 2508.00795)."""

import torch
from torch import Tensor

from policy.edm import loss_weight


def per_clip_error(clean: Tensor, target: Tensor, sigma_B: Tensor) -> Tensor:
    """Weighted squared error of the clean sample, (B, F, ...) -> (B, F): mean over everything but clip and time step."""
    error = (clean - target) ** 2
    return error.flatten(2).mean(2) * loss_weight(sigma_B)[:, None]


def masked_mean(error_BT: Tensor, mask_BT: Tensor, world_total: Tensor) -> Tensor:
    """Sum over the masked entries divided by their number over *all* workers, times the number of workers.

    DDP averages gradients over workers; dividing by each worker's own count would weigh the clips of a worker with few labelled ones more.
    `world_total` is the mean count per worker (the global count over the number of workers); without any entry the loss is 0.
    """
    return (error_BT * mask_BT).sum() / world_total.clamp(min=1e-9)


def mean_over_workers(count: Tensor) -> Tensor:
    """The average of a count over all training processes; the count itself when there is one process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    return count
