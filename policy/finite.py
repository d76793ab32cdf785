"""Whether losses and weights are finite numbers. A policy with others acts at random or not at all, and its episodes would count as failures."""

from collections.abc import Mapping

import torch
from torch import Tensor

from policy.errors import DemoscaleError


class NotFiniteError(DemoscaleError):
    """One sentence: which loss, gradient or weight is not finite, at which step of training, and the fix. Training again gives the same."""


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """Name the tensors that hold NaN or an infinity, for a sentence; empty if none does.

    Reads each tensor once where it lies, without a copy, and waits for the device once.
    """
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()}
    if not floats:
        return ""
    # The extremes of a tensor that holds NaN are NaN.
    sound = torch.stack([torch.stack(tensor.detach().aminmax()).isfinite().all().cpu() for tensor in floats.values()])
    bad = [name for name, is_sound in zip(floats, sound.tolist(), strict=True) if not is_sound]
    return bad[0] + (f" and {len(bad) - 1} more of {len(floats)}" if len(bad) > 1 else "") if bad else ""
