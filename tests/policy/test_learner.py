"""A policy that another package offers: found by its entry point, trained, saved, loaded and acted with as the
project's own.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from installed_package import forget, on_path
from learner_package import MODULE, install_linear
from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.config.arms import Arm
from orchestrator.config.schema import Train
from orchestrator.data.clips import ClipBatch, cut_clip
from orchestrator.evaluation.ray_actors import needs_of_checkpoint
from orchestrator.testing.checkpoints import make_batch, make_card, make_checkpoint, make_observation
from orchestrator.testing.episodes import CONTRACT, make_episode, make_episode_store
from orchestrator.training.loop import TrainJob, train
from policy.check_policy import check_policy
from policy.checkpoint import CheckpointError, fingerprint, load, load_card, new_model, save
from policy.config import PolicyConfig, Recipe
from policy.diffusion_policy import DiffusionPolicy
from policy.entry_points import POLICIES, PluginError, names
from policy.inference import TrainedPolicy
from policy.interface import PolicyNeeds
from policy.learner import Learner
from policy.model import VideoActionModel
from policy.presets import PRESETS, learner_config, policy_config
from policy.trainer import Trainer
from selected_episodes import selected

BROKEN = """
def broken(config, contract):
    raise RuntimeError("no such backbone")


def other(config, contract):
    return torch.nn.Linear(1, 1)
"""


@pytest.fixture
def package(tmp_path: Path) -> Iterator[Path]:
    """Install a package with four entry points into a folder on the path."""
    with on_path(tmp_path / "site") as site:
        others = {name: f"linear_policy:{name}" for name in ("broken", "other", "absent")}
        install_linear(site, MODULE + BROKEN, **others)
        yield site


def linear(**options: object) -> PolicyConfig:
    return learner_config("tiny", "linear", options)


def test_entry_point_of_an_installed_package_is_found(package: Path) -> None:
    assert {"linear", "broken"} <= {*names(POLICIES)}
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
        ("absent", "the policy absent .* cannot be loaded: AttributeError"),
        ("other", "is a Linear; it must be a policy.learner.Learner"),
    ],
)
def test_learner_that_cannot_be_built_raises_one_sentence(package: Path, name: str, sentence: str) -> None:
    with pytest.raises(PluginError, match=sentence):
        new_model(learner_config("tiny", name, {}), CONTRACT)


def test_checkpoint_of_a_learner_that_is_not_installed_names_it(package: Path, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "a", config=linear())
    (package / "linear-policy.dist-info" / "entry_points.txt").unlink()
    forget()
    with pytest.raises(CheckpointError, match="no installed package offers a policy linear"):
        load(tmp_path / "a")


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


def remembering(folder: Path) -> Path:
    return make_checkpoint(folder, config=learner_config("tiny", "remembering", {}))


def test_learner_with_memory_keeps_the_contract_of_policies(package: Path, tmp_path: Path) -> None:
    policy = TrainedPolicy(remembering(tmp_path / "a"))
    checks = {check.name: check for check in check_policy(policy, CONTRACT)}
    assert not [str(check) for check in checks.values() if not check.passed]
    assert {"sessions", "sessions in a batch", "restart", "lost session"} <= checks.keys()
    assert "memory, 3 observation steps" in checks["contract"].finding


def test_failed_batch_of_a_learner_advances_no_session(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, undisturbed = (TrainedPolicy(remembering(tmp_path / name)) for name in "ab")
    first, second = (
        [replace(make_observation(seed), episode=f"e{seed}", step=step) for seed in range(5)]
        for step in (0, 8)
    )
    policy.act(first)
    undisturbed.act(first)
    with monkeypatch.context() as patch:
        acts, calls = policy._model.act, iter(range(9))
        patch.setattr(policy._model, "act", lambda *told: acts(*told) if next(calls) == 0 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            policy.act(second)
    for one, wanted in zip(policy.act(second), undisturbed.act(second), strict=True):
        assert (one.actions == wanted.actions).all()


@pytest.mark.parametrize("name", ["linear", "remembering"])
@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda actions: actions[:-1], id="an observation without a chunk"),
        pytest.param(lambda actions: actions[..., :1], id="one dimension for all"),
        pytest.param(lambda actions: actions[:, 0], id="no steps"),
    ],
)
def test_actions_of_a_learner_in_another_shape_are_refused(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, wrong: Callable[[Any], Any]
) -> None:
    policy = TrainedPolicy(make_checkpoint(tmp_path / "a", config=learner_config("tiny", name, {})))
    sample, act = policy._model.sample, policy._model.act

    def wrong_sample(*told: Any) -> Any:
        video, actions = sample(*told)
        return video, wrong(actions)

    def wrong_act(*told: Any) -> Any:
        actions, after = act(*told)
        return wrong(actions), after

    monkeypatch.setattr(policy._model, "sample", wrong_sample)
    monkeypatch.setattr(policy._model, "act", wrong_act)
    with pytest.raises(PluginError, match=f"the policy {name} answered [0-9]+ observations with actions of"):
        policy.act([replace(make_observation(seed), episode=f"e{seed}") for seed in range(2)])


def test_learner_with_history_trains_and_is_measured_on_clips_of_its_length(
    package: Path, tmp_path: Path
) -> None:
    """`Remembering.forward` refuses other clips."""
    store, arm = make_episode_store(tmp_path / "store", 4), Arm(2, 0.0, 0)
    settings = Train(steps=2, batch_size=2, checkpoint_every=2, warmup_steps=0)
    config = learner_config("tiny", "remembering", {})
    job = TrainJob(
        arm, "a", store, 1, selected(store, arm), config, settings, "action", "none", proprio=(0, 3, 4)
    )
    place = tmp_path / "checkpoint"
    train(job, 0, 1, None, lambda _, folder: folder and shutil.copytree(folder, place))  # type: ignore[arg-type, func-returns-value]
    policy = TrainedPolicy(place)
    assert (policy.memory, policy.observation_steps) == (True, 3)
    assert len(policy.contract.proprio) == 3
    shape = policy.clip
    episode = replace(make_episode(), proprio=np.ones((12, 3), np.float32))
    clips = ClipBatch.stack([cut_clip(episode, start, shape, policy.contract) for start in (0, 5)])
    loss = policy.loss(clips.to(policy.device, policy.normalizer), 0)
    assert 0 < loss < 100


def test_checkpoint_states_the_needs_of_its_learner_and_of_no_other_policy(
    package: Path, tmp_path: Path
) -> None:
    needs = PolicyNeeds(memory=True, observation_steps=3)
    place = remembering(tmp_path / "a")
    assert load_card(place).needs == needs_of_checkpoint(CheckpointRef(str(place))) == needs
    plain = make_checkpoint(tmp_path / "b", config=linear())
    assert "needs" not in json.loads((plain / "checkpoint.json").read_text())
    install_linear(package, MODULE.replace("observation_steps=3", "observation_steps=2"))
    sys.modules.pop("linear_policy")
    with pytest.raises(CheckpointError, match="states memory and 3 observation steps, and the policy remem"):
        load(place)


def test_config_with_two_bodies_is_refused() -> None:
    with pytest.raises(ValueError, match="`images` or `learner` instead of both"):
        PolicyConfig.model_validate(dict(policy_config("tiny", "diffusion_policy")) | {"learner": "linear"})
