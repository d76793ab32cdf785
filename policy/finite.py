"""Checks that losses and weights are finite. Otherwise the policy acts at random or not at all, and its
episodes would count as failures.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from policy.errors import DemoscaleError


class NotFiniteError(DemoscaleError):
    """Divergence; the message is one sentence with the loss, gradient or weight, the training step and the
    fix. A retry would diverge again.
    """


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """Return a phrase that names the tensors with NaN or an infinity; empty if there are none.

    Reads each tensor once on its device, without a copy, and waits once for each device.
    """
    floats = {
        name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()
    }
    on_devices: dict[torch.device, dict[str, Tensor]] = {}
    for name, tensor in floats.items():
        # Minimum and maximum of a tensor that holds NaN are NaN.
        extremes = torch.stack(tensor.detach().aminmax())
        on_devices.setdefault(tensor.device, {})[name] = extremes.isfinite().all()
    sound: dict[str, bool] = {}
    for flags in on_devices.values():
        sound |= zip(flags, torch.stack(list(flags.values())).tolist(), strict=True)
    bad = [name for name in floats if not sound[name]]
    return bad[0] + (f" and {len(bad) - 1} more of {len(floats)}" if len(bad) > 1 else "") if bad else ""
