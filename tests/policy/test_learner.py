"""A policy that another package offers: found by its entry point, trained, saved, loaded and acted with as the
project's own.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from orchestrator.testing.checkpoints import make_batch, make_card, make_checkpoint, make_observation
from orchestrator.testing.episodes import CONTRACT
from policy.checkpoint import CheckpointError, fingerprint, load, new_model, save
from policy.config import PolicyConfig, Recipe
from policy.diffusion_policy import DiffusionPolicy
from policy.inference import TrainedPolicy
from policy.learner import Learner, LearnerError, learner_names
from policy.model import VideoActionModel
from policy.presets import PRESETS, learner_config, policy_config
from policy.trainer import Trainer

MODULE = '''
import torch
from policy.batch import Losses
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


def broken(config, contract):
    raise RuntimeError("no such backbone")


def other(config, contract):
    return torch.nn.Linear(1, 1)
'''


@pytest.fixture
def package(tmp_path: Path) -> Iterator[Path]:
    """Install a package with three entry points into a folder on the path."""
    site = tmp_path / "site"
    (site / "linear_policy-1.0.dist-info").mkdir(parents=True)
    (site / "linear_policy.py").write_text(MODULE)
    (site / "linear_policy-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: linear-policy\nVersion: 1.0\n"
    )
    (site / "linear_policy-1.0.dist-info" / "entry_points.txt").write_text(
        "[demoscale.policies]\nlinear = linear_policy:Linear\nbroken = linear_policy:broken\n"
        "other = linear_policy:other\nabsent = linear_policy:absent\n"
    )
    sys.path.insert(0, str(site))
    yield site
    sys.path.remove(str(site))
    sys.modules.pop("linear_policy", None)


def linear(**options: object) -> PolicyConfig:
    return learner_config("tiny", "linear", options)


def test_entry_point_of_an_installed_package_is_found(package: Path) -> None:
    assert {"linear", "broken"} <= {*learner_names()}
    model = new_model(linear(scale=2.0), CONTRACT)
    assert type(model).__name__ == "Linear"
    assert model.contract == CONTRACT


def test_learner_of_another_package_trains_saves_loads_and_acts(package: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = new_model(linear(), CONTRACT)
    model.learn("action")
    trainer = Trainer(model, Recipe(learning_rate=0.01, warmup_steps=0, ema_decay=0.0), 40)
    generator = torch.Generator()
    losses = []
    for step in range(40):
        generator.manual_seed(step)
        losses.append(trainer.step(make_batch(8), step, generator).total.item())
    assert losses[-1] < 0.5 * losses[0]
    card = replace(make_card("diffusion_policy"), config=linear())
    (tmp_path / "a").mkdir()
    save(tmp_path / "a", card, model, trainer.acting_weights(), trainer.state())
    loaded, read = load(tmp_path / "a")
    assert read == card
    assert all(
        torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in trainer.acting_weights().items()
    )
    policy = TrainedPolicy(tmp_path / "a")
    assert not policy.imagines
    together = policy.act([make_observation(seed) for seed in range(5)])
    alone = policy.act([make_observation(3)])[0]
    assert (together[3].actions == alone.actions).all()
    assert alone.actions.shape == (8, 7)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere", "no installed package offers a policy nowhere"),
        ("broken", "the policy broken .* cannot be built: RuntimeError: no such backbone"),
        ("absent", "the policy absent .* cannot be built: AttributeError"),
        ("other", "is a Linear; it must be a policy.learner.Learner"),
    ],
)
def test_learner_that_cannot_be_built_raises_one_sentence(package: Path, name: str, sentence: str) -> None:
    with pytest.raises(LearnerError, match=sentence):
        new_model(learner_config("tiny", name, {}), CONTRACT)


def test_checkpoint_of_a_learner_that_is_not_installed_names_it(package: Path, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "a", config=linear())
    sys.path.remove(str(package))
    try:
        with pytest.raises(CheckpointError, match="no installed package offers a policy linear"):
            load(tmp_path / "a")
    finally:
        sys.path.insert(0, str(package))


def test_own_policies_are_learners_and_their_cards_hold_no_new_field() -> None:
    assert issubclass(VideoActionModel, Learner)
    assert issubclass(DiffusionPolicy, Learner)
    for config in (PRESETS["tiny"], policy_config("tiny", "diffusion_policy")):
        assert not {"learner", "options"} & config.model_dump().keys()
        assert PolicyConfig.model_validate(config.model_dump()) == config
        assert list(config.model_dump(mode="json", include={"clip"})) == ["clip"]


def test_fingerprint_of_a_learner_checkpoint_depends_on_its_options(package: Path, tmp_path: Path) -> None:
    plain = make_checkpoint(tmp_path / "a", config=linear())
    scaled = make_checkpoint(tmp_path / "b", config=linear(scale=2.0))
    assert fingerprint(plain) != fingerprint(scaled)


def test_config_with_two_bodies_is_refused() -> None:
    with pytest.raises(ValueError, match="`images` or `learner` instead of both"):
        PolicyConfig.model_validate(dict(policy_config("tiny", "diffusion_policy")) | {"learner": "linear"})
