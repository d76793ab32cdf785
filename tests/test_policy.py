"""The policy's parts: diffusion identities, masks, normalisation, and checkpoints that need nothing else."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from conftest import CAMERA
from policy import noise
from policy.checkpoint import Card, CheckpointError, fingerprint, load, save
from policy.config import PRESETS, PolicyConfig
from policy.interface import Observation
from policy.loss import masked_mean, per_clip_error
from policy.model import Batch, VideoActionModel
from policy.normalize import Normalizer
from policy.serve import TrainedPolicy
from policy.stats import Stats
from policy.text import embed_sentences
from policy.video import to_frames, to_latents
from sim_workers.env import contract

TINY = PRESETS["tiny"]
CONTRACT = contract((CAMERA,), (64, 64), "fast")


@pytest.fixture(scope="module")
def model() -> VideoActionModel:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return VideoActionModel(TINY, CONTRACT).eval()


def batch(size: int = 3, views: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(size)
    k, t = TINY.clip.frames_per_view, TINY.clip.horizon
    return Batch(
        frames=torch.randint(0, 256, (size, views, k, 64, 64, 3), generator=generator, dtype=torch.uint8),
        proprio=torch.randn(size, 9, generator=generator),
        actions=torch.randn(size, t, 7, generator=generator),
        action_mask=torch.ones(size, t),
        frame_mask=torch.ones(size, k),
        instructions=["lift the red cube"] * size,
    )


# -- diffusion ----------------------------------------------------------------------------------------------------------------------


def test_sampler_equals_the_euler_scheduler_of_diffusers() -> None:
    steps, low, high = 30, 0.002, 700.0
    scheduler = EulerDiscreteScheduler(
        prediction_type="v_prediction",
        use_karras_sigmas=True,
        sigma_min=low,
        sigma_max=high,
        timestep_type="continuous",
        timestep_spacing="leading",
        steps_offset=1,
    )
    scheduler.set_timesteps(steps)
    sigmas = noise.karras_sigmas(steps, low, high, rho=7.0)
    torch.testing.assert_close(sigmas, scheduler.sigmas.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(noise.noise_label(sigmas[:-1]), scheduler.timesteps.float(), rtol=1e-5, atol=1e-5)
    x = theirs = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)) * sigmas[0]
    for sigma, sigma_next, timestep in zip(sigmas, sigmas[1:], scheduler.timesteps, strict=False):
        v = torch.sin(noise.scale_input(x, sigma.expand(2)))  # any network
        x = noise.euler_step(x, noise.denoised(x, v, sigma.expand(2)), sigma, sigma_next)
        theirs = scheduler.step(torch.sin(scheduler.scale_model_input(theirs, timestep)), timestep, theirs).prev_sample
    torch.testing.assert_close(x, theirs, rtol=1e-4, atol=1e-4)


def test_the_loss_weight_makes_every_noise_level_count_the_error_of_v_once() -> None:
    clean, v, sigma = torch.randn(4, 5), torch.randn(4, 5), torch.tensor([0.01, 0.5, 3.0, 80.0])
    eps = torch.randn(4, 5)
    noisy = clean + sigma[:, None] * eps
    true_v = (noisy / (sigma[:, None] ** 2 + 1) - clean) * (sigma[:, None] ** 2 + 1).sqrt() / sigma[:, None]
    weighted = (noise.denoised(noisy, v, sigma) - clean) ** 2 * noise.loss_weight(sigma)[:, None]
    torch.testing.assert_close(weighted, (v - true_v) ** 2, rtol=1e-3, atol=1e-4)


# -- losses and masks ---------------------------------------------------------------------------------------------------------------


def test_masked_entries_weigh_nothing_and_an_empty_mask_is_no_loss() -> None:
    error = torch.tensor([[1.0, 100.0], [3.0, 100.0]])
    mask = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert masked_mean(error, mask, mask.sum()) == 2.0
    assert masked_mean(error, mask * 0, torch.tensor(0.0)) == 0.0


def test_two_workers_with_uneven_labels_average_to_the_loss_of_one() -> None:
    error, mask = torch.rand(8, 4), (torch.rand(8, 4) > 0.5).float()
    per_worker = mask.sum() / 2
    halves = [masked_mean(error[part], mask[part], per_worker) for part in (slice(0, 3), slice(3, 8))]
    torch.testing.assert_close(sum(halves) / 2, masked_mean(error, mask, mask.sum()))


def test_error_is_a_mean_over_everything_but_clip_and_time() -> None:
    sigma = torch.tensor([1.0, 1.0])
    assert per_clip_error(torch.ones(2, 3, 4), torch.zeros(2, 3, 4), sigma).tolist() == [[2.0] * 3] * 2


def test_action_free_clips_teach_the_video_and_not_the_actions(model: VideoActionModel) -> None:
    labelled = batch()
    hidden = replace(labelled, action_mask=torch.zeros_like(labelled.action_mask))
    other = replace(hidden, actions=hidden.actions + 5)
    losses = [model(b, torch.Generator().manual_seed(1)) for b in (labelled, hidden, other)]
    assert losses[0].action > 0
    assert losses[1].action == losses[2].action == 0
    assert losses[0].video == losses[1].video
    assert losses[1].total == losses[2].total


def test_frames_past_the_end_teach_nothing(model: VideoActionModel) -> None:
    whole = batch()
    mask = whole.frame_mask.clone()
    mask[:, -1] = 0
    cut = replace(whole, frame_mask=mask)
    assert model(cut, torch.Generator().manual_seed(1)).video != model(whole, torch.Generator().manual_seed(1)).video
    assert torch.isfinite(model(cut, torch.Generator().manual_seed(1)).total)


def test_the_action_loss_reaches_the_video_model() -> None:
    torch.manual_seed(0)
    fresh = VideoActionModel(TINY, CONTRACT)
    whole = batch()
    fresh(replace(whole, frame_mask=torch.zeros_like(whole.frame_mask)), torch.Generator().manual_seed(0)).total.backward()
    weight = fresh.video.unet.conv_in.weight.grad
    assert weight is not None
    assert weight.abs().sum() > 0


@pytest.mark.parametrize("sigmas", ["shared", "decoupled"])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(("cameras", "frames", "pad"), [(1, 2, 0), (2, 3, 1)])
def test_any_number_of_views_frames_and_noise_settings_trains_and_acts(sigmas: str, together: bool, cameras: int, frames: int, pad: int) -> None:
    raw = TINY.model_dump()
    raw["clip"]["frames_per_view"], raw["video"]["pad_frames"], raw["diffusion"]["sigmas"] = frames, pad, sigmas
    raw["sampler"]["video_passes"] = raw["sampler"]["action_steps"] if together else 1
    config = PolicyConfig.model_validate(raw)
    views = tuple(f"camera{i}" for i in range(cameras))
    net = VideoActionModel(config, replace(CONTRACT, cameras=views))
    clips = batch(2, cameras)
    clips = replace(clips, frames=clips.frames[:, :, :1].expand(-1, -1, frames, -1, -1, -1), frame_mask=torch.ones(2, frames))
    assert torch.isfinite(net(clips, torch.Generator().manual_seed(0)).total)
    unit = torch.randn(2, net.num_frames, *net.latent_shape), torch.randn(2, 8, 7)
    video, actions = net.sample(clips.frames[:, :, 0], clips.proprio, clips.instructions, unit)
    assert video.shape == (2, pad + cameras * frames, 192, 8, 8)
    assert actions.shape == (2, 8, 7)


# -- parts --------------------------------------------------------------------------------------------------------------------------


def test_latents_are_pictures_and_back() -> None:
    frames = torch.randint(0, 256, (2, 3, 64, 64, 3), dtype=torch.uint8)
    latents = to_latents(frames, 8)
    assert latents.shape == (2, 3, 192, 8, 8)
    assert latents.abs().max() <= 1
    assert torch.equal(to_frames(latents, 8), frames)


def test_sentences_differ_by_their_words_and_are_the_same_everywhere() -> None:
    a, b = embed_sentences(["lift the cube", "open the door"], 64)
    assert torch.equal(a, embed_sentences(["Lift the cube"], 64)[0])
    assert torch.cosine_similarity(a, b).item() < 0.9


def test_statistics_of_parts_merge_to_those_of_the_whole() -> None:
    data = np.random.default_rng(0).normal(3, 2, (100, 4))
    merged, whole = Stats.merge([Stats.of(data[:7]), Stats.of(data[7:60]), Stats.of(data[60:])]), Stats.of(data)
    assert (merged.count, merged.low, merged.high) == (whole.count, whole.low, whole.high)
    np.testing.assert_allclose(merged.mean, whole.mean)
    np.testing.assert_allclose(merged.m2, whole.m2)
    assert Stats.from_json(json.loads(json.dumps(whole.to_json()))) == whole


@pytest.mark.parametrize("kind", ["minmax", "meanstd"])
def test_normalising_is_undone_and_a_constant_dimension_stays_constant(kind: str) -> None:
    data = np.random.default_rng(0).normal(3, 2, (50, 3)).astype(np.float32)
    data[:, 1] = 0.25
    normalizer = Normalizer(Stats.of(data), kind)  # type: ignore[arg-type]
    normal = normalizer.normalize(torch.from_numpy(data))
    if kind == "minmax":
        assert normal.abs().max() <= 1 + 1e-5
    torch.testing.assert_close(normalizer.denormalize(normal), torch.from_numpy(data))
    noisy = normalizer.denormalize(torch.randn(4, 3))
    assert torch.allclose(noisy[:, 1], torch.tensor(0.25))


def test_a_copy_of_the_model_reads_its_own_features(model: VideoActionModel) -> None:
    copied = copy.deepcopy(model)
    a, b = (m(batch(), torch.Generator().manual_seed(0)).total for m in (model, copied))
    assert a == b


# -- checkpoints --------------------------------------------------------------------------------------------------------------------


def card() -> Card:
    stats = Stats.of(np.random.default_rng(0).normal(size=(20, 7)))
    return Card(TINY, CONTRACT, stats, Stats.of(np.random.default_rng(1).normal(size=(20, 9))), {"step": 3, "demos": ["a"]})


@pytest.fixture
def checkpoint(tmp_path: Path, model: VideoActionModel) -> Path:
    save(tmp_path, card(), model.state_dict(), {"x": torch.zeros(1)})
    return tmp_path


def look(seed: int) -> Observation:
    rng = np.random.default_rng(seed)
    return Observation({CAMERA: rng.integers(0, 256, (64, 64, 3), np.uint8)}, rng.normal(size=9).astype(np.float32), "lift the red cube", seed)


def test_a_checkpoint_comes_back_whole(checkpoint: Path, model: VideoActionModel) -> None:
    loaded, read = load(checkpoint)
    assert read == card()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_an_answer_does_not_depend_on_the_batch_it_came_in(checkpoint: Path) -> None:
    torch.set_num_threads(1)
    policy = TrainedPolicy(checkpoint)
    looks = [look(seed) for seed in range(5)]
    alone = [policy.act([one])[0].actions for one in looks]
    together = [chunk.actions for chunk in policy.act(looks)]
    backwards = [chunk.actions for chunk in policy.act(looks[::-1])][::-1]
    for a, b, c in zip(alone, together, backwards, strict=True):
        assert np.array_equal(a, b)
        assert np.array_equal(a, c)


def test_another_noise_seed_gives_another_action(checkpoint: Path) -> None:
    policy = TrainedPolicy(checkpoint)
    one = look(0)
    assert not np.array_equal(policy.act([one])[0].actions, policy.act([replace(one, noise_seed=99)])[0].actions)


def test_the_fingerprint_follows_what_the_policy_does(checkpoint: Path) -> None:
    before = fingerprint(checkpoint)
    save_file({"x": torch.ones(1)}, checkpoint / "trainer.safetensors")
    assert fingerprint(checkpoint) == before
    weights = load_file(checkpoint / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, checkpoint / "model.safetensors")
    assert fingerprint(checkpoint) != before


def _truncate(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def _other_weights(folder: Path) -> None:
    save_file({"something": torch.zeros(3)}, folder / "model.safetensors")


def _other_format(folder: Path) -> None:
    text = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps(text | {"format": 99}))


def _no_field(folder: Path) -> None:
    text = json.loads((folder / "checkpoint.json").read_text())
    del text["contract"]
    (folder / "checkpoint.json").write_text(json.dumps(text))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_truncate, "model.safetensors is damaged or cut short"),
        (_other_weights, "do not fit the model"),
        (_other_format, "checkpoint format 99, this version reads"),
        (_no_field, "lacks or misstates a field"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: (folder / "checkpoint.json").unlink(), "not a checkpoint of ours"),
        (lambda folder: (folder / "checkpoint.json").write_text("{"), "checkpoint.json is damaged"),
    ],
)
def test_damage_is_one_sentence(checkpoint: Path, damage, sentence: str) -> None:  # type: ignore[no-untyped-def]
    damage(checkpoint)
    with pytest.raises(CheckpointError, match=sentence):
        load(checkpoint)


def test_mismatched_conventions_are_told_in_words() -> None:
    flipped = replace(CONTRACT, action=(*CONTRACT.action[:-1], "gripper_plus1_open_minus1_close"))
    (sentence,) = CONTRACT.mismatches(flipped)
    assert "action layout" in sentence
    assert "gripper_minus1_open_plus1_close" in sentence
    assert CONTRACT.mismatches(CONTRACT) == []
