"""Policies that are trained in process: torch modules with two methods, of this package or of another one.

A package offers a policy as an entry point, which the `policy` of a line in a sweep file names:

    [project.entry-points."demoscale.policies"]
    my_policy = "my_package.policy:MyPolicy"

The entry point is called with the configuration and the contract and returns a `Learner`. Training, running
average, checkpoints, resume, scoring and cost are those of the project's own policies.

Shapes: B clips; V views; H W pixels; T steps of a chunk; A action dimensions; P proprioceptive values.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points

import torch
from torch import Tensor, nn

from policy.batch import Batch, Counts, Losses
from policy.config import ENTRY_POINTS, Objective, PolicyConfig, SamplerConfig
from policy.errors import DemoscaleError
from policy.interface import Contract
from policy.untrusted import printable

GROUP = ENTRY_POINTS
"""Group of the entry points."""


class LearnerError(DemoscaleError):
    """Error of one sentence: why the policy of another package cannot be used."""


class Learner(nn.Module):
    """A policy that learns from batches of clips and denoises, regresses or otherwise computes action chunks.

    Saved and loaded through `state_dict`, which must hold everything that acting needs. Built on the meta
    device too, where a checkpoint's weights are compared with the module's before memory is allocated.
    """

    config: PolicyConfig
    contract: Contract

    def learn(self, objective: Objective) -> None:
        """Set the objective of the next steps, and freeze the parts that it does not train. Raises ValueError
        for an objective that the policy does not have; without a video model there is only `action`.
        """
        if objective != "action":
            raise ValueError(f"a {type(self).__name__} has no video model: objective action, not {objective}")

    def checkpoint_gradients(self) -> None:
        """Recompute activations in the backward pass instead of storing them; by default they are stored."""

    def forward(self, batch: Batch, generator: torch.Generator, counts: Counts) -> Losses:
        """Return the losses of a batch. The generator (on the CPU) draws every random number, so that a step
        is a function of its seed; `counts` are the denominators (`policy.losses.masked_mean`).
        """
        raise NotImplementedError

    def sample(
        self,
        present_BVHW3: Tensor,
        proprio_BP: Tensor,
        instructions: list[str],
        noise_seeds: Sequence[tuple[int, int]],
        sampler: SamplerConfig,
    ) -> tuple[Tensor | None, Tensor]:
        """Act: return the latents of an imagined video, None without one, and (B, T, A) normalised actions.

        present_BVHW3: pictures, uint8. proprio_BP: normalised. noise_seeds: (video, actions) seeds of each
        row, from which every random number of the row is drawn, so that it does not depend on the others.
        """
        raise NotImplementedError


Build = Callable[[PolicyConfig, Contract], Learner]


def learner_names() -> list[str]:
    """Return the names of the policies that installed packages offer, sorted; none is imported."""
    return sorted(entry_points(group=GROUP).names)


def learner_entry(name: str) -> EntryPoint:
    """Return the entry point of a policy without importing it. Raises LearnerError if there is none, or more
    than one package offers the name.
    """
    found = {
        (entry.value, entry.dist and entry.dist.name): entry for entry in entry_points(group=GROUP, name=name)
    }
    if len(found) > 1:
        packages = ", ".join(sorted(str(package) for _, package in found))
        raise LearnerError(
            f"several installed packages offer a policy {name}: {packages}; uninstall all but one"
        )
    if not found:
        offered = ", ".join(learner_names()) or "none"
        raise LearnerError(
            f"no installed package offers a policy {printable(name, 100)} (entry points {GROUP}: {offered});"
            " install its package on every node"
        )
    return next(iter(found.values()))


def build_learner(config: PolicyConfig, contract: Contract) -> Learner:
    """Return the untrained policy that `config.learner` names. Raises LearnerError if there is none, or its
    package fails.
    """
    entry = learner_entry(config.learner)
    try:
        learner = entry.load()(config, contract)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise LearnerError(
            f"the policy {config.learner} ({entry.value}) cannot be built: {type(error).__name__}:"
            f" {printable(lines[-1], 300)}"
        ) from error
    if not isinstance(learner, Learner):
        raise LearnerError(
            f"the policy {config.learner} ({entry.value}) is a {type(learner).__name__}; it must be a"
            " policy.learner.Learner"
        )
    learner.config, learner.contract = config, contract
    return learner
