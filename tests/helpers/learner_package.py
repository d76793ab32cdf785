"""The package `linear-policy`, whose policies train and act in milliseconds: `linear`, and `remembering`, which
has memory and frame history.
"""

from pathlib import Path

from installed_package import install
from policy.entry_points import POLICIES

MODULE = '''
from dataclasses import replace
import torch
from policy.batch import Losses
from policy.interface import PolicyNeeds
from policy.learner import Learner
from policy.losses import masked_mean


class Linear(Learner):
    """Regresses the chunk from proprioception."""

    def __init__(self, config, contract):
        super().__init__()
        self.shape = (config.clip.horizon, len(contract.action))
        self.body = torch.nn.Linear(len(contract.proprio), self.shape[0] * self.shape[1])
        self.scale = float(config.options.get("scale", 1.0))

    def chunk(self, proprio):
        return self.scale * self.body(proprio).unflatten(1, self.shape)

    def forward(self, batch, generator, counts):
        error = (self.chunk(batch.proprio) - batch.actions).square().mean(2)
        loss = masked_mean(error, batch.action_mask, counts.actions)
        return Losses(loss, torch.zeros_like(loss), loss.detach())

    @torch.no_grad()
    def sample(self, present, proprio, instructions, seeds, sampler):
        return None, self.chunk(proprio)


class Remembering(Linear):
    """Adds to the chunk what it has seen of its session so far: pictures, proprioception and steps."""

    needs = PolicyNeeds(memory=True, observation_steps=3)

    def forward(self, batch, generator, counts):
        assert batch.frames.shape[2] == batch.proprio.shape[1] == 3
        return super().forward(replace(batch, proprio=batch.proprio[:, -1]), generator, counts)

    def begin(self):
        return torch.zeros(())

    def act(self, seen, states, sampler):
        looks = seen.pictures.float().mean((1, 2, 3, 4, 5)) / 255 + seen.proprio.mean((1, 2))
        steps = torch.tensor(seen.steps, dtype=looks.dtype)
        after = torch.stack(list(states)) * 0.9 + looks + 0.01 * steps
        return self.chunk(seen.proprio[:, -1]) + after.sin()[:, None, None], list(after)
'''
LINEAR = {"linear": "linear_policy:Linear", "remembering": "linear_policy:Remembering"}


def install_linear(site: Path, module: str = MODULE, version: str = "1.0", **others: str) -> None:
    """Install the package, or another version of it, into a folder. others: further entry points by name."""
    install(site, "linear-policy", {"linear_policy.py": module}, {POLICIES.name: LINEAR | others}, version)
