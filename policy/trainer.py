"""The optimiser step: precision, accumulation, clipping and the running average, with save and restore of the
whole state.

Works with one process, with DDP and with FSDP2: the saved state is always the whole model under its plain
names.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from policy.batch import HALF, Batch, Counts, Losses
from policy.config import Recipe
from policy.finite import NotFiniteError

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def learning_rate_factor(step: int, recipe: Recipe, steps: int, share: float | None = None) -> float:
    """Return the learning rate as a share of its peak, at a step counted from 0; a function of the step
    alone, so a resumed run continues exactly.

    share: part of the training that is done, where it ends by time; None: that of the `steps`.
    """
    warm = min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
    turn = math.pi * step / steps if share is None else math.pi * share
    return warm * (0.5 * (1 + math.cos(turn)) if recipe.schedule == "cosine" else 1.0)


class Average:
    """Running average of the trainable weights, stored per shard where the weights are sharded."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self.values = [_local(parameter).clone() for parameter in parameters]

    def update(self) -> None:
        """Move the average towards the current weights by a share of 1 - decay."""
        torch._foreach_lerp_(
            self.values, [_local(parameter) for parameter in self._parameters], 1 - self._decay
        )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights for the duration of the block."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    @torch.no_grad()
    def exchange(self) -> None:
        """Swap the average and the weights."""
        for i, parameter in enumerate(self._parameters):
            current = _local(parameter).clone()
            _local(parameter).copy_(self.values[i])
            self.values[i] = current


def _local(parameter: Tensor) -> Tensor:
    """Return the shard of a weight that this process holds."""
    return parameter.to_local().detach() if isinstance(parameter, DTensor) else parameter.detach()


class _Watched(NamedTuple):
    """Values of a step that must be finite, during their copy to the CPU."""

    step: int
    """Number of the step, counted from 1, as for checkpoints."""
    values: Tensor
    """(5,) values named by WATCHED; complete once the event `there` is."""
    there: torch.cuda.Event | None
    """Event after the copy; None on a CPU."""


WATCHED = ("loss", "loss_video", "loss_action", "gradient norm", "loss scale")


class Trainer:
    """Trains the weights that the model's `learn` left trainable. `wrap` makes the model distributed (DDP or
    FSDP2).
    """

    def __init__(
        self, model: Any, recipe: Recipe, steps: int, wrap: Callable[[Any], Any] | None = None
    ) -> None:
        if recipe.gradient_checkpointing:
            model.checkpoint_gradients()
        self.model, self._recipe, self._steps = model, recipe, steps
        self._wrapped = wrap(model) if wrap else model
        free = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        peaks = {"video": recipe.learning_rate, "head": recipe.head_learning_rate or recipe.learning_rate}
        members = {
            group: [p for name, p in free.items() if name.startswith("video.") == (group == "video")]
            for group in peaks
        }
        groups: list[dict[str, Any]] = [
            {"params": members[group], "peak": peaks[group]} for group in peaks if members[group]
        ]
        self._parameters: list[nn.Parameter] = [
            parameter for group in groups for parameter in group["params"]
        ]
        self.device = self._parameters[0].device
        sharded = any(isinstance(parameter, DTensor) for parameter in self._parameters)
        self._optimizer = torch.optim.AdamW(
            groups,
            lr=recipe.learning_rate,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            fused=not sharded,
            foreach=sharded or None,
        )
        self._average = Average(self._parameters, recipe.ema_decay) if recipe.ema_decay else None
        # In bf16, torch 2.13's 3-D convolutions on a CPU give NaN weight gradients.
        self._precision = HALF.get(recipe.precision) if self.device.type == "cuda" else None
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self._precision == torch.float16)
        self._watched: _Watched | None = None

    def step(self, batch: Batch, step: int, generator: torch.Generator, share: float | None = None) -> Losses:
        """Run optimiser step `step`, counted from 0, on this worker's clips; the mean of the losses over
        workers is that of the global batch. share: as for `learning_rate_factor`.

        Raises NotFiniteError if a loss or the gradient is not finite: on a CPU in this step, on a GPU in the
        step before, which has ended by then, so that the check never stalls the GPU; `check` covers the last
        step.
        """
        recipe = self._recipe
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate_factor(step, recipe, self._steps, share)
        counts = Counts.of(batch)
        parts = batch.split(recipe.accumulate)
        losses = []
        self._optimizer.zero_grad()
        for i, part in enumerate(parts):
            # Workers exchange gradients once per step, with the last part.
            waits = i < len(parts) - 1 and hasattr(self._wrapped, "no_sync")
            with self._wrapped.no_sync() if waits else nullcontext():
                with torch.autocast(self.device.type, self._precision, enabled=self._precision is not None):
                    losses.append(self._wrapped(part, generator, counts))
                self._scaler.scale(losses[-1].total).backward()
        self._scaler.unscale_(self._optimizer)
        if recipe.clip_norm:
            norm = torch.nn.utils.clip_grad_norm_(self._parameters, recipe.clip_norm)
        else:
            norm = torch.nn.utils.get_total_norm(
                [parameter.grad for parameter in self._parameters if parameter.grad is not None]
            )
        scale = self._scaler.scale(torch.ones((), device=self.device))
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._average:
            self._average.update()
        summed = Losses(
            *(
                torch.stack([getattr(loss, name).detach() for loss in losses]).sum()
                for name in ("total", "video", "action")
            )
        )
        before, self._watched = self._watched, self._watch(step + 1, summed, norm, scale)
        _refuse(before)
        if self.device.type == "cpu":
            self.check()
        return summed

    def check(self) -> None:
        """Wait for the last step to end; raise NotFiniteError if its losses or its gradient are not
        finite.
        """
        last, self._watched = self._watched, None
        _refuse(last)

    def _watch(self, step: int, losses: Losses, norm: Tensor, scale: Tensor) -> _Watched:
        """Start an asynchronous copy of the values that must be finite to the CPU."""
        whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
        values = torch.stack(
            [value.float() for value in (losses.total, losses.video, losses.action, whole, scale)]
        )
        if self.device.type != "cuda":
            return _Watched(step, values, None)
        pinned = torch.empty(len(WATCHED), pin_memory=True)
        pinned.copy_(values, non_blocking=True)
        there = torch.cuda.Event()
        there.record()
        return _Watched(step, pinned, there)

    # -- save and restore ------------------------------------------------------------------------------------

    def acting_weights(self) -> dict[str, Tensor]:
        """Return the weights to act with, by name. A collective call: every worker must make it; sharded
        weights are gathered on rank 0.
        """
        with self._average.applied() if self._average else nullcontext():
            return {name: tensor.clone() for name, tensor in self._whole_model().items()}

    def state(self) -> dict[str, Tensor]:
        """Return the state to resume training besides the acting weights: trainable weights, optimiser,
        scaler; flat, so that it needs no pickle.
        """
        free = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        state = {f"model/{name}": tensor for name, tensor in self._whole_model().items() if name in free}
        moments: Any = get_optimizer_state_dict(self.model, self._optimizer, options=WHOLE).get("state", {})
        for name, values in moments.items():
            state |= {f"optimizer/{key}/{name}": torch.as_tensor(value) for key, value in values.items()}
        return state | {
            f"scaler/{key}": torch.tensor(float(value)) for key, value in self._scaler.state_dict().items()
        }

    def _whole_model(self) -> dict[str, Tensor]:
        whole: Any = get_model_state_dict(self.model, options=WHOLE)
        return dict(whole)

    def restore(self, acting: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        """Resume from the results of `acting_weights` and `state`."""
        options = StateDictOptions(full_state_dict=True, strict=False)

        def fill(weights: dict[str, Any]) -> None:
            set_model_state_dict(self.model, weights, options=options)

        if self._average:
            fill(acting)
            self._average.values = [_local(parameter).clone() for parameter in self._parameters]
        fill(
            acting
            | {
                name.removeprefix("model/"): tensor
                for name, tensor in state.items()
                if name.startswith("model/")
            }
        )
        moments: dict[str, Any] = {}
        for place, tensor in state.items():
            if place.startswith("optimizer/"):
                _, key, name = place.split("/", 2)
                moments.setdefault(name, {})[key] = tensor
        # Parameter groups and their settings are those of the new optimiser; only the moments are restored.
        groups = get_optimizer_state_dict(
            self.model, self._optimizer, options=StateDictOptions(full_state_dict=True)
        )["param_groups"]
        set_optimizer_state_dict(
            self.model, self._optimizer, {"state": moments, "param_groups": groups}, options=options
        )
        if scaler := {
            name.removeprefix("scaler/"): value.item()
            for name, value in state.items()
            if name.startswith("scaler/")
        }:
            self._scaler.load_state_dict(
                {
                    name: int(value) if "growth_" in name and "factor" not in name else value
                    for name, value in scaler.items()
                }
            )


def _refuse(watched: _Watched | None) -> None:
    """Raise NotFiniteError if a watched value is not finite.

    Under fp16 a gradient overflow is no error while the loss scale is above 1: the scaler skips the step and
    lowers the scale.
    """
    if watched is None:
        return
    if watched.there is not None:
        watched.there.synchronize()
    values = dict(zip(WATCHED, watched.values.tolist(), strict=True))
    scale = values.pop("loss scale")
    bad = [
        name
        for name, value in values.items()
        if not math.isfinite(value) and not (name == "gradient norm" and scale > 1)
    ]
    if bad:
        told, names = (
            ", ".join(f"{name} {value:g}" for name, value in values.items()),
            ", ".join(bad[:-1]) + " and " * (len(bad) > 1) + bad[-1],
        )
        raise NotFiniteError(
            f"{names} {'is' if len(bad) == 1 else 'are'} not finite at step {watched.step} ({told}); lower"
            " train.learning_rate or set train.clip_norm, and look for extreme values with `demoscale data"
            " check`"
        )
