"""The two losses, and their sums if only some clips have actions (arXiv 2508.00795)."""

import torch
from torch import Tensor

from policy.edm import loss_weight


def per_clip_error(clean: Tensor, target: Tensor, sigma_B: Tensor) -> Tensor:
    """Return the weighted squared error of the clean sample, (B, F, ...) -> (B, F): the mean over all
    dimensions but clip and time step.
    """
    error = (clean - target) ** 2
    return error.flatten(2).mean(2) * loss_weight(sigma_B)[:, None]


def masked_mean(error_BT: Tensor, mask_BT: Tensor, world_total: Tensor) -> Tensor:
    """Return the sum over the masked entries divided by their number over *all* workers, times the number of
    workers.

    DDP averages gradients over workers; division by each worker's own count would give more weight to the
    clips of workers with few labelled clips. `world_total` is the mean count per worker (the global count
    over the number of workers); without any entry the loss is 0.
    """
    return (error_BT * mask_BT).sum() / world_total.clamp(min=1e-9)


def mean_over_workers(count: Tensor) -> Tensor:
    """Average a count over all training processes; a collective call. Without a process group, return the
    count itself.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    return count
