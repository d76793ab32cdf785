"""The shipped policies of other libraries, in their own environments: each trains on a small data set, is
killed and stopped, continues as if nothing had happened, and is served and answers by seed.

Making the environments takes 3 GB of downloads and 6 GB of disk once per node (`make policies`); the tests of
a policy whose environment is not there are skipped.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from external_policies import make_job
from orchestrator.checkpoints.external_card import WEIGHTS
from orchestrator.config.policy_manifest import load
from orchestrator.data.episode_store import load_manifest
from orchestrator.external.environment import is_ready
from orchestrator.external.fit import run_training
from orchestrator.external.job import ExternalJob
from orchestrator.external.serving import ServedCheckpoint
from orchestrator.external.subset_export import Export, exported
from orchestrator.storage.base import open_storage
from orchestrator.testing.episodes import make_episode_store
from orchestrator.training.control_channel import StopRequest
from orchestrator.training.train_events import Reported
from policy.interface import ActionChunk, LostSessionError, Observation

POLICIES = Path(__file__).parents[2] / "policies"
STEPS, EVERY = 8, 3

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]


@dataclass
class Trained:
    """A policy that was trained twice on the same episodes: without a break, and with three."""

    job: ExternalJob
    whole: Path
    """Folder of the run without a break."""
    broken: Path
    """Folder of the run that was killed and stopped."""
    steps: list[int]
    """Steps of the checkpoints that the broken run reported."""


@pytest.fixture(scope="module", params=["lerobot_act", "lerobot_diffusion", "robomimic_bc_rnn"])
def trained(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp(request.param)
    policy = load(POLICIES / request.param)
    if not is_ready(policy):
        pytest.skip("its environment is not there; `make policies` makes it")
    store = make_episode_store(folder / "store", 6, length=24)
    job = make_job(POLICIES / request.param, store, folder / "keeps", STEPS)
    job = replace(job, train=job.train.model_copy(update={"checkpoint_every": EVERY}))
    yield Trained(job, _train(job, folder / "whole"), folder / "broken", _train_with_breaks(job, folder))
    shutil.rmtree(folder)


def _train(job: ExternalJob, folder: Path) -> Path:
    folder.mkdir()
    run_training(job, open_storage(str(folder)), {"CPU": 1.0}, lambda _: None)
    return folder


class _KilledError(Exception):
    pass


def _train_with_breaks(job: ExternalJob, root: Path) -> list[int]:
    """Train: killed at the first checkpoint, stopped after one more step, then to the end."""
    (root / "broken").mkdir()
    storage, reports = open_storage(str(root / "broken")), list[Reported]()

    def kill(report: Reported) -> None:
        reports.append(report)
        if report.checkpoint:
            raise _KilledError  # the command and its descendants get SIGKILL

    with pytest.raises(_KilledError):
        run_training(job, storage, {"CPU": 1.0}, kill)
    assert [report.step for report in reports] == [EVERY]
    stops = iter([None] * 20 + [StopRequest.PAUSE] * 10_000)
    run_training(job, storage, {"CPU": 1.0}, reports.append, lambda: next(stops))
    if reports[-1].step < STEPS:
        run_training(job, storage, {"CPU": 1.0}, reports.append)
    return [report.step for report in reports if report.checkpoint]


def _weights(run: Path, job: ExternalJob) -> dict[str, torch.Tensor]:
    folder = run / job.arm_id / f"step_{STEPS:06d}" / WEIGHTS
    if (file := folder / "pretrained_model/model.safetensors").exists():
        return load_file(file)
    nets: dict[str, torch.Tensor] = torch.load(folder / "model.pth", weights_only=True)["model"]["nets"]
    return nets


def _export(job: ExternalJob) -> Export:
    """Return the data set that the job learned from."""
    episodes = open_storage(job.episodes)
    manifest = load_manifest(episodes, job.version)
    wants, keeps = job.policy.manifest, open_storage(job.storage)
    return exported(episodes, manifest, job.subset, wants.data, wants.action_free, keeps, proprio=job.proprio)


def test_a_broken_training_ends_with_the_weights_of_an_unbroken_one(trained: Trained) -> None:
    assert trained.steps[0] == EVERY
    assert trained.steps[-1] == STEPS
    assert len(set(trained.steps)) == len(trained.steps)
    whole, broken = (_weights(run, trained.job) for run in (trained.whole, trained.broken))
    assert whole.keys() == broken.keys()
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_checkpoint_holds_the_statistics_of_its_data(trained: Trained) -> None:
    weights = _weights(trained.whole, trained.job)
    if trained.job.policy.name == "lerobot_act":
        measured = [value for name, value in weights.items() if name.endswith("running_var")]
        assert len(measured) == 20, "the batch normalisations of a ResNet18, which LeRobot freezes"
        assert all((value > 0).all() and not torch.allclose(value, torch.ones(())) for value in measured)
    elif trained.job.policy.name == "robomimic_bc_rnn":
        model = trained.whole / trained.job.arm_id / f"step_{STEPS:06d}" / WEIGHTS / "model.pth"
        stated = torch.load(model, weights_only=True)["obs_normalization_stats"]
        with h5py.File(_export(trained.job).data, "r") as file:
            for key in json.loads(file["data"].attrs["demoscale.proprio_keys"]):
                values = np.concatenate([demo["obs"][key][()] for demo in file["data"].values()])
                assert np.allclose(stated[key]["offset"], values.mean(0), atol=1e-6)
                assert np.allclose(stated[key]["scale"], values.std(0) + 1e-3, atol=1e-6)
        pictures = [stats for key, stats in stated.items() if key.endswith("_image")]
        assert pictures
        assert all(not np.any(one["offset"]) and np.all(np.equal(one["scale"], 1)) for one in pictures)
    else:
        pytest.skip("it measures nothing that LeRobot's own pipelines do not hold")


@pytest.fixture(scope="module")
def served(trained: Trained) -> Iterator[ServedCheckpoint]:
    policy = ServedCheckpoint(trained.whole / trained.job.arm_id / f"step_{STEPS:06d}", "cpu")
    yield policy
    policy.close()


def _observation(policy: ServedCheckpoint, episode: str, step: int, seed: int = 5) -> Observation:
    """Return an observation whose pictures depend on the step alone, with as many before it as are taken."""
    present, *before = (
        _present(policy, episode, max(0, step - back), seed) for back in range(policy.observation_steps)
    )
    return replace(present, history=tuple(reversed(before)))


def _present(policy: ServedCheckpoint, episode: str, step: int, seed: int) -> Observation:
    random, contract = np.random.default_rng(step), policy.contract
    return Observation(
        images={
            name: random.integers(0, 256, (*contract.image_size, 3), np.uint8) for name in contract.cameras
        },
        proprio=random.random(len(contract.proprio), np.float32),
        instruction="lift the cube",
        noise_seed=seed,
        episode=episode,
        step=step,
    )


def _play(policy: ServedCheckpoint, episode: str, steps: Sequence[int], seed: int = 5) -> list[ActionChunk]:
    return [policy.act([_observation(policy, episode, step, seed)])[0] for step in steps]


def _same(one: list[ActionChunk], other: list[ActionChunk]) -> bool:
    return all(np.array_equal(a.actions, b.actions) for a, b in zip(one, other, strict=True))


def test_answers_are_a_function_of_observations_and_seed(trained: Trained, served: ServedCheckpoint) -> None:
    first = _play(served, "first", [0, 1, 2])
    assert _same(first, _play(served, "second", [0, 1, 2]))
    draws = trained.job.policy.name == "lerobot_diffusion"  # the others answer with a mean
    assert _same(first, _play(served, "third", [0, 1, 2], seed=6)) != draws
    chunk = first[0]
    assert chunk.execute == (1 if served.memory else trained.job.options["n_action_steps"])
    assert chunk.actions.shape[1] == len(served.contract.action)
    assert np.isfinite(chunk.actions).all()


def test_answers_do_not_depend_on_the_batch(served: ServedCheckpoint) -> None:
    alone = [_play(served, name, [step]) for name, step in (("a", 0), ("b", 0))]
    together = served.act([_observation(served, name, 0) for name in ("c", "d")])
    assert _same([one[0] for one in alone], together)


def test_a_policy_with_memory_keeps_its_sessions_apart(served: ServedCheckpoint) -> None:
    if not served.memory:
        pytest.skip("it has no memory")
    alone = _play(served, "alone", range(12))  # past the horizon after which the LSTM starts again
    mixed = []
    for step in range(12):
        _play(served, "other", [step], seed=9)
        mixed += _play(served, "mixed", [step])
    assert _same(alone, mixed)
    assert not np.array_equal(alone[3].actions, _play(served, "short", [0, 3])[1].actions)
    with pytest.raises(LostSessionError):
        _play(served, "unknown", [3])
