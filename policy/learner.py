"""Policies that are trained in process: torch modules with two methods, of this package or of another one.

A package offers a policy as an entry point, which the `policy` of a line in a sweep file names:

    [project.entry-points."demoscale.policies"]
    my_policy = "my_package.policy:MyPolicy"

The entry point is called with the configuration and the contract and returns a `Learner`. Training, running
average, checkpoints, resume, scoring and cost are those of the project's own policies.

Shapes: B clips, or rows of a batch of observations; N observations of a row; V views; H W pixels; T steps of
a chunk; A action dimensions; P proprioceptive values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from policy.batch import Batch, Counts, Losses
from policy.config import Objective, PolicyConfig, SamplerConfig
from policy.entry_points import POLICIES, PluginError, find, one_line
from policy.interface import PRESENT_ONLY, Contract, PolicyNeeds


@dataclass(frozen=True)
class ObservationBatch:
    """Observations of different sessions, for a Learner with needs."""

    pictures: Tensor
    """(B, N, V, H, W, 3) uint8. N is `PolicyNeeds.observation_steps`: consecutive control steps, the present
    one last. Before the reset the first one is repeated.
    """
    proprio: Tensor
    """(B, N, P), normalised."""
    instructions: list[str]
    noise_seeds: list[tuple[int, int]]
    """As for `Learner.sample`."""
    steps: list[int]
    """Control steps since the reset of each row's episode."""


class Learner(nn.Module):
    """A policy that learns from batches of clips and denoises, regresses or otherwise computes action chunks.

    Saved and loaded through `state_dict`, which must hold everything that acting needs. Built on the meta
    device too, where a checkpoint's weights are compared with the module's before memory is allocated.
    """

    config: PolicyConfig
    contract: Contract
    needs: PolicyNeeds = PRESENT_ONLY
    """What acting needs besides the present observation; a function of configuration and contract. Any other
    than the default: `act` and, with memory, `begin` are called instead of `sample`. With N observation steps
    the batches of `forward` have N frames of each view, (B, V, N, H, W, 3), and proprioception (B, N, P), the
    present one last. Clips of a batch are of any episodes and steps: no state goes from one to the next.
    """

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

    def begin(self) -> Any:
        """Return the state of a new session: of one playing of an episode, before its first observation."""

    def act(
        self, seen: ObservationBatch, states: Sequence[Any], sampler: SamplerConfig
    ) -> tuple[Tensor, Sequence[Any]]:
        """Act with history or memory: return (B, T, A) normalised actions and the state of each row's session
        after it.

        states: of each row's session, as `begin` or the last call returned it; not to be changed in place.
        Without memory they are what `begin` returns, and those returned are dropped.
        """
        raise NotImplementedError


Build = Callable[[PolicyConfig, Contract], Learner]


def build_learner(config: PolicyConfig, contract: Contract) -> Learner:
    """Return the untrained policy that `config.learner` names. Raises PluginError if there is none, or its
    package fails.
    """
    plugin = find(POLICIES, config.learner)
    make: Build = plugin.load()
    try:
        learner = make(config, contract)
    except Exception as error:
        raise PluginError(f"{plugin} cannot be built: {one_line(error)}") from error
    if not isinstance(learner, Learner):
        raise PluginError(f"{plugin} is a {type(learner).__name__}; it must be a policy.learner.Learner")
    if not isinstance(learner.needs, PolicyNeeds):
        raise PluginError(f"{plugin}: needs is no policy.interface.PolicyNeeds")
    learner.config, learner.contract = config, contract
    return learner
