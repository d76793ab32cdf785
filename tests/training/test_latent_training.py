"""Latent video models in miniature: an autoencoder, a text tower, five feature maps, three views, two
stages.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from safetensors.torch import load_file

from backbones import SENTENCE_DIM, svd_config, svd_folder, svd_policy
from checkpoint_folder import CheckpointFolder
from orchestrator.config.arms import Arm
from orchestrator.config.schema import Train
from orchestrator.data.episode_store import load_manifest
from orchestrator.data.latent_cache import publish_index, write_latents, write_sentences
from orchestrator.storage.base import open_storage
from orchestrator.testing.episodes import CONTRACT
from orchestrator.training.loop import TrainJob, _first_model, card_of, train
from policy.batch import Batch, Counts
from policy.checkpoint import CheckpointError, load, load_weights, new_model
from policy.inference import TrainedPolicy
from policy.interface import Observation
from policy.latent_codec import VaeLatents, latent_codec
from policy.model import VideoActionModel
from policy.presets import PRESETS, WEIGHTS
from policy.text_encoder import sentence_encoder
from selected_episodes import selected
from sim_workers.arithmetic import Arithmetic

pytestmark = pytest.mark.sim


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return svd_folder(tmp_path / "svd")


def job(store: Path, weights: Path, **changes: Any) -> TrainJob:
    settings = Train(
        steps=2,
        batch_size=2,
        checkpoint_every=1,
        warmup_steps=0,
        ema_decay=0.5,
        mode="two_stage",
        video_steps=2,
    )
    arm = Arm(2, 1.0, 0)
    subset = selected(store, arm)
    made = TrainJob(arm, "arm", str(store), 1, subset, svd_policy(), settings, "joint", str(weights))
    return replace(made, **changes)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def trained(job: TrainJob, folder: Path) -> Path:
    """Train and return the last checkpoint."""
    folder.mkdir()
    train(job, 0, 1, None, CheckpointFolder(folder))
    return folder / "step_000002"


def look(seed: int = 0) -> Observation:
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (64, 64, 3), np.uint8)
    return Observation(
        {"robot0_eye_in_hand": picture}, rng.normal(size=9).astype(np.float32), "lift the red cube", seed
    )


@pytest.mark.full
def test_checkpoint_acts_without_the_dataset_and_the_pretrained_weights(
    lift_store: Path, weights: Path, tmp_path: Path
) -> None:
    store, begun_with = tmp_path / "store", tmp_path / "weights"
    shutil.copytree(lift_store, store)
    shutil.copytree(weights, begun_with)
    checkpoint = trained(job(store, begun_with), tmp_path / "run")
    for rung in ("faithful", "one_pass"):
        before = TrainedPolicy(checkpoint, rung=rung).act([look()])[0].actions
        assert np.isfinite(before).all()
    shutil.rmtree(store)
    shutil.rmtree(begun_with)
    assert np.array_equal(TrainedPolicy(checkpoint, rung="one_pass").act([look()])[0].actions, before)
    UNetSpatioTemporalConditionModel.from_pretrained(checkpoint, subfolder="unet")
    AutoencoderKLTemporalDecoder.from_pretrained(checkpoint, subfolder="vae")


@pytest.mark.full
def test_training_on_cached_latents_equals_training_on_pictures(
    lift_store: Path, weights: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(lift_store, store)
    online = load_weights(trained(job(store, weights), tmp_path / "online"))
    storage = open_storage(str(store))
    manifest = load_manifest(storage)
    codec = latent_codec(svd_config(), weights)
    fingerprint = codec.fingerprint(manifest.contract.image_size)
    publish_index(
        storage,
        manifest,
        fingerprint,
        list(write_latents(storage, manifest, codec, fingerprint, torch.device("cpu"))),
    )  # type: ignore[arg-type]
    write_sentences(storage, manifest, sentence_encoder(svd_config(), weights), "tower")
    for entry in manifest.select(manifest.episode_ids):
        (store / entry.key).unlink()  # without its videos the store still trains
    shutil.rmtree(weights / "text_encoder")
    kept = load_weights(trained(job(store, weights), tmp_path / "kept"))
    assert online.keys() == kept.keys()
    assert all(torch.equal(online[name], kept[name]) for name in online)


@pytest.mark.full
def test_stage_two_trains_the_head_alone_from_the_stage_one_video_model(
    lift_store: Path, weights: Path, tmp_path: Path
) -> None:
    arm = job(lift_store, weights, objective="action")
    first = arm.stage_one(load_manifest(open_storage(str(lift_store))), arm.subset)
    video = trained(first, tmp_path / "arms")
    with pytest.raises(CheckpointError, match="a video model without an action head"):
        load(video)
    second = trained(replace(arm, video_model=str(video)), tmp_path / "second")
    one, two = load_weights(video), load_weights(second)
    assert all(torch.equal(one[name], two[name]) for name in one)
    started = UNetSpatioTemporalConditionModel.from_pretrained(weights, subfolder="unet").state_dict()
    assert any(not torch.equal(one[f"video.unet.{name}"], tensor) for name, tensor in started.items())


def test_stage_one_id_is_shared_by_arms_that_differ_in_the_head_alone(
    lift_store: Path, weights: Path
) -> None:
    manifest = load_manifest(open_storage(str(lift_store)))
    arm = job(lift_store, weights, objective="action")

    def video(**train: Any) -> str:
        return replace(arm, train=arm.train.model_copy(update=train)).stage_one(manifest, arm.subset).arm_id

    def video_of(other: Arm) -> str:
        return replace(arm, arm=other).stage_one(manifest, selected(lift_store, other)).arm_id

    same = arm.stage_one(manifest, arm.subset).arm_id
    assert video(steps=9, head_learning_rate=1e-4, checkpoint_every=7) == same
    assert len({same, video(video_steps=3), video(learning_rate=1e-5), video(batch_size=4)}) == 4
    assert len({same, video_of(Arm(2, 0.5, 0)), video_of(Arm(2, 1.0, 1))}) == 3
    # Three demos and three action-free episodes are all six, and so are six demos: the same films, different
    # only for the head.
    assert video_of(Arm(3, 1.0, 0)) == video_of(Arm(6, 0.0, 0))


def test_preset_without_a_unet_starts_from_random_weights_or_named_ones(
    lift_store: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WEIGHTS, "svd-128-lite", str(weights))
    named = tmp_path / "named"
    shutil.copytree(weights, named)
    config = svd_policy().model_copy(update={"preset": "svd-128-lite"})
    manifest = load_manifest(open_storage(str(lift_store)))

    def first(source: str) -> dict[str, torch.Tensor]:
        own = replace(job(lift_store, weights), config=config, weights=source)
        model = _first_model(own, card_of(own, manifest, Arithmetic.here()), None, {}, tmp_path / "fetched")
        assert isinstance(model, VideoActionModel)
        assert isinstance(model.codec, VaeLatents)
        assert model.codec.vae is not None, "the autoencoder is that of the weights"
        return model.video.unet.state_dict()

    kept = load_file(weights / "unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in first(str(named)).items())
    fresh = first("")
    assert not torch.equal(fresh["conv_in.weight"], kept["conv_in.weight"])


@pytest.mark.full
def test_lite_preset_trains_and_acts(weights: Path) -> None:
    lite = PRESETS["svd-128-lite"]
    assert lite.video
    config = lite.model_copy(
        update={"video": lite.video.model_copy(update={"cross_attention_dim": SENTENCE_DIM})}
    )
    contract = replace(CONTRACT, image_size=(128, 128))
    model = new_model(config, contract, weights)
    model.learn("joint")
    rng = np.random.default_rng(0)
    frames = torch.from_numpy(rng.integers(0, 256, (2, 1, 4, 128, 128, 3), np.uint8))
    batch = Batch(
        frames,
        torch.zeros(2, 9),
        torch.zeros(2, 16, 7),
        torch.ones(2, 16),
        torch.ones(2, 4),
        ["lift the red cube"] * 2,
        [0, 1],
    )
    losses = model(batch, torch.Generator().manual_seed(0), Counts.of(batch))
    losses.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    sampler = config.sampler
    _, actions = model.eval().sample(
        frames[:, :, 0], batch.proprio, batch.instructions, [(0, 1), (2, 3)], sampler
    )
    assert (tuple(actions.shape), sampler.execute) == ((2, 16, 7), 8)
    assert torch.isfinite(actions).all()
