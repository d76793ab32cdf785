"""The policy's parts: diffusion identities, masks, normalisation, self-contained checkpoints."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, UNetSpatioTemporalConditionModel
from safetensors.torch import load_file, save_file

from orchestrator.testing.checkpoints import TINY, make_batch, make_card, make_observation
from orchestrator.testing.episodes import CONTRACT
from policy import edm as noise
from policy.batch import Batch, Counts, Losses
from policy.checkpoint import CheckpointError, fingerprint, load, new_model, save
from policy.config import PolicyConfig, PolicySettings, SamplerSettings
from policy.diffusion_policy import DiffusionPolicy
from policy.feature_stats import Stats
from policy.inference import TrainedPolicy
from policy.learner import Learner
from policy.losses import masked_mean, per_clip_error
from policy.model import FeatureCache, VideoActionModel
from policy.normalize import Normalizer
from policy.presets import policy_config

HEADS, UNET = "heads.safetensors", "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model() -> VideoActionModel:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return VideoActionModel(TINY, CONTRACT).eval()


def losses_of(net: Learner, clips: Batch, seed: int = 1) -> Losses:
    losses: Losses = net(clips, torch.Generator().manual_seed(seed), Counts.of(clips))
    return losses


# -- diffusion -----------------------------------------------------------------------------------------------


def test_karras_sampler_equals_the_euler_scheduler_of_diffusers() -> None:
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
    torch.testing.assert_close(
        noise.noise_label(sigmas[:-1]), scheduler.timesteps.float(), rtol=1e-5, atol=1e-5
    )
    x = theirs = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)) * sigmas[0]
    for sigma, sigma_next, timestep in zip(sigmas, sigmas[1:], scheduler.timesteps, strict=False):
        v = torch.sin(noise.scale_input(x, sigma.expand(2)))  # any network
        x = noise.euler_step(x, noise.denoised(x, v, sigma.expand(2)), sigma, sigma_next)
        theirs = scheduler.step(
            torch.sin(scheduler.scale_model_input(theirs, timestep)), timestep, theirs
        ).prev_sample
    torch.testing.assert_close(x, theirs, rtol=1e-5, atol=1e-5)


def test_loss_weight_turns_the_error_into_that_of_v() -> None:
    clean, v, sigma = torch.randn(4, 5), torch.randn(4, 5), torch.tensor([0.01, 0.5, 3.0, 80.0])
    eps = torch.randn(4, 5)
    noisy = clean + sigma[:, None] * eps
    true_v = (noisy / (sigma[:, None] ** 2 + 1) - clean) * (sigma[:, None] ** 2 + 1).sqrt() / sigma[:, None]
    weighted = (noise.denoised(noisy, v, sigma) - clean) ** 2 * noise.loss_weight(sigma)[:, None]
    torch.testing.assert_close(weighted, (v - true_v) ** 2, rtol=1e-3, atol=1e-4)


# -- losses and masks ----------------------------------------------------------------------------------------


def test_masked_mean_ignores_masked_entries_and_is_zero_for_an_empty_mask() -> None:
    error = torch.tensor([[1.0, 100.0], [3.0, 100.0]])
    mask = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert masked_mean(error, mask, mask.sum()) == 2.0
    assert masked_mean(error, mask * 0, torch.tensor(0.0)) == 0.0


def test_masked_mean_averaged_over_two_workers_equals_that_of_one() -> None:
    error, mask = torch.rand(8, 4), (torch.rand(8, 4) > 0.5).float()
    per_worker = mask.sum() / 2
    halves = [masked_mean(error[part], mask[part], per_worker) for part in (slice(0, 3), slice(3, 8))]
    torch.testing.assert_close(sum(halves) / 2, masked_mean(error, mask, mask.sum()))


def test_per_clip_error_averages_all_but_clip_and_time() -> None:
    sigma = torch.tensor([1.0, 1.0])
    assert per_clip_error(torch.ones(2, 3, 4), torch.zeros(2, 3, 4), sigma).tolist() == [[2.0] * 3] * 2


def test_losses_of_action_free_clips_train_the_video_only(model: VideoActionModel) -> None:
    labelled = make_batch()
    hidden = replace(labelled, action_mask=torch.zeros_like(labelled.action_mask))
    other = replace(hidden, actions=hidden.actions + 5)
    losses = [losses_of(model, b) for b in (labelled, hidden, other)]
    assert losses[0].action > 0
    assert losses[1].action == losses[2].action == 0
    assert losses[0].video == losses[1].video
    assert losses[1].total == losses[2].total


def test_losses_ignore_frames_past_the_end(model: VideoActionModel) -> None:
    whole = make_batch()
    mask = whole.frame_mask.clone()
    mask[:, -1] = 0
    cut = replace(whole, frame_mask=mask)
    assert losses_of(model, cut).video != losses_of(model, whole).video
    assert torch.isfinite(losses_of(model, cut).total)


@pytest.mark.parametrize(("objective", "flows"), [("joint", True), ("joint_detached", False)])
def test_action_loss_gradient_reaches_the_video_model_only_when_joint(objective: str, flows: bool) -> None:
    torch.manual_seed(0)
    fresh = VideoActionModel(TINY, CONTRACT)
    fresh.learn(objective)  # type: ignore[arg-type]
    whole = make_batch()
    losses_of(fresh, replace(whole, frame_mask=torch.zeros_like(whole.frame_mask))).total.backward()
    reached = {
        name for name, p in fresh.video.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert bool(reached) == flows


def test_objective_trains_its_own_weights_with_its_own_loss() -> None:
    net = VideoActionModel(TINY, CONTRACT)
    for objective, moved, losses in (
        ("video", {"video"}, "v"),
        ("action", {"adaptor", "head"}, "a"),
        ("joint", {"video", "adaptor", "head"}, "va"),
    ):
        net.learn(objective)  # type: ignore[arg-type]
        told = losses_of(net, make_batch())
        told.total.backward()
        assert {name.partition(".")[0] for name, p in net.named_parameters() if p.grad is not None} == moved
        assert (told.video > 0, told.action > 0) == ("v" in losses, "a" in losses)
        net.zero_grad()


def test_condition_dropout_has_three_equal_kinds(model: VideoActionModel) -> None:
    num, share = 20_000, TINY.diffusion.condition_dropout
    sentence, picture = model._dropped(num, torch.Generator().manual_seed(0))
    for kind in (((1 - sentence) * picture), (sentence * (1 - picture)), ((1 - sentence) * (1 - picture))):
        assert kind.mean().item() == pytest.approx(share, abs=0.006)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    grads = []
    for again in (False, True):
        torch.manual_seed(0)
        net = VideoActionModel(TINY, CONTRACT)
        if again:
            net.checkpoint_gradients()
            net.train()
        losses_of(net, make_batch()).total.backward()
        assert not net.video._seen
        grads.append([p.grad for p in net.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("sigmas", ["shared", "decoupled"])
@pytest.mark.parametrize("rung", ["faithful", "one_pass", "video first"])
@pytest.mark.parametrize(("cameras", "frames", "pad"), [(1, 2, 0), (2, 3, 1)])
def test_model_trains_and_samples_with_any_views_frames_and_noise_settings(
    sigmas: str, rung: str, cameras: int, frames: int, pad: int
) -> None:
    raw = TINY.model_dump()
    raw["clip"]["frames_per_view"], raw["video"]["pad_frames"], raw["diffusion"]["sigmas"] = (
        frames,
        pad,
        sigmas,
    )
    raw["ladder"]["faithful"] |= {"video_passes": 3, "action_steps": 3}
    raw["ladder"]["video first"] = raw["ladder"]["faithful"] | {"video_passes": 2}
    config = PolicyConfig.model_validate(raw)
    views = tuple(f"camera{i}" for i in range(cameras))
    net = VideoActionModel(config, replace(CONTRACT, cameras=views))
    clips = make_batch(2, cameras)
    clips = replace(
        clips,
        frames=clips.frames[:, :, :1].expand(-1, -1, frames, -1, -1, -1),
        frame_mask=torch.ones(2, frames),
    )
    assert torch.isfinite(losses_of(net, clips).total)
    video, actions = net.sample(
        clips.frames[:, :, 0], clips.proprio, clips.instructions, [(0, 1), (2, 3)], config.ladder[rung]
    )
    assert video.shape == (2, pad + cameras * frames, 192, 8, 8)
    assert actions.shape == (2, 8, 7)


def test_guidance_of_one_is_the_condition_and_more_extrapolates() -> None:
    told, unconditional = torch.randn(3, 4), torch.randn(3, 4)
    both = torch.cat([told, unconditional])
    torch.testing.assert_close(noise.guided(both, 1.0), told)
    torch.testing.assert_close(noise.guided(both, 2.0), told + (told - unconditional))


def at_start(cache: int = 0) -> VideoActionModel:
    """Return a policy whose head reads a frozen video model's first pass."""
    torch.manual_seed(0)
    diffusion = TINY.diffusion.model_copy(update={"features_at": "start"})
    net = VideoActionModel(TINY.model_copy(update={"diffusion": diffusion}), CONTRACT)
    net.learn("action")
    net.feature_cache = FeatureCache(cache)
    return net


def test_feature_cache_of_any_size_gives_the_same_losses() -> None:
    some = 3 * sum(feature.nbytes for feature in at_start()._features_at_start(make_batch(1))[0])
    losses = []
    for budget in (0, some, 2**30):
        net = at_start(budget)
        clips = make_batch(7)
        told = [
            losses_of(net, clips),
            losses_of(net, replace(clips, seeds=clips.seeds)),
            losses_of(net, clips),
        ]
        kept = sum(seed in net.feature_cache for seed in clips.seeds)
        assert kept == {0: 0, some: 3, 2**30: 7}[budget]
        losses.append([loss.action for loss in told])
    assert losses[0] == losses[1] == losses[2]


def test_features_at_start_equal_those_of_sampling() -> None:
    net = at_start().eval()
    clips = make_batch(4)
    seen: list[torch.Tensor] = []
    net.adaptor.register_forward_hook(lambda _module, arguments, _output: seen.append(arguments[0][0]))
    losses_of(net, clips)
    net.sample(
        clips.frames[:, :, 0],
        clips.proprio,
        clips.instructions,
        [(seed, 99) for seed in clips.seeds],
        TINY.ladder["one_pass"],
    )
    assert torch.equal(*seen)


def test_diffusion_policy_reads_the_present_only_and_trains_on_actions_only() -> None:
    net = DiffusionPolicy(policy_config("tiny", "diffusion_policy"), CONTRACT)
    net.learn("action")
    clips = make_batch()
    future = clips.frames.clone()
    future[:, :, 1:] = 0
    assert losses_of(net, clips).action == losses_of(net, replace(clips, frames=future)).action
    assert losses_of(net, replace(clips, action_mask=clips.action_mask * 0)).total == 0
    present = clips.frames.clone()
    present[:, :, 0] = 0
    assert losses_of(net, clips).action != losses_of(net, replace(clips, frames=present)).action
    with pytest.raises(ValueError, match="no video model"):
        net.learn("joint")


# -- parts ---------------------------------------------------------------------------------------------------


def test_merged_stats_of_parts_equal_stats_of_the_whole() -> None:
    data = np.random.default_rng(0).normal(3, 2, (100, 4))
    merged, whole = (
        Stats.merge([Stats.of(data[:7]), Stats.of(data[7:60]), Stats.of(data[60:])]),
        Stats.of(data),
    )
    assert (merged.count, merged.low, merged.high) == (whole.count, whole.low, whole.high)
    np.testing.assert_allclose(merged.mean, whole.mean)
    np.testing.assert_allclose(merged.m2, whole.m2)
    assert Stats.from_json(json.loads(json.dumps(whole.to_json()))) == whole


@pytest.mark.parametrize("kind", ["minmax", "meanstd"])
def test_normalizer_round_trips_and_keeps_constant_dimensions(kind: str) -> None:
    data = np.random.default_rng(0).normal(3, 2, (50, 3)).astype(np.float32)
    data[:, 1] = 0.25
    normalizer = Normalizer(Stats.of(data), kind)  # type: ignore[arg-type]
    normal = normalizer.normalize(torch.from_numpy(data))
    if kind == "minmax":
        assert normal.abs().max() <= 1 + 1e-5
    torch.testing.assert_close(normalizer.denormalize(normal), torch.from_numpy(data))
    noisy = normalizer.denormalize(torch.randn(4, 3))
    assert torch.allclose(noisy[:, 1], torch.tensor(0.25))


def test_copied_model_reads_its_own_features(model: VideoActionModel) -> None:
    copied = copy.deepcopy(model)
    a, b = (losses_of(m, make_batch()).total for m in (model, copied))
    assert a == b


# -- checkpoints ---------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path, model: VideoActionModel) -> Path:
    save(tmp_path, make_card(), model, model.state_dict(), {"x": torch.zeros(1)})
    return tmp_path


@pytest.fixture(params=["video_action", "diffusion_policy"])
def any_checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a checkpoint of each kind of policy."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    told = make_card(request.param)
    net = new_model(told.config, CONTRACT)
    save(tmp_path, told, net, net.state_dict(), {"x": torch.zeros(1)})
    return tmp_path


def test_checkpoint_round_trips(checkpoint: Path, model: VideoActionModel) -> None:
    loaded, read = load(checkpoint)
    assert read == make_card()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_checkpoint_video_model_opens_in_diffusers(checkpoint: Path, model: VideoActionModel) -> None:
    opened = UNetSpatioTemporalConditionModel.from_pretrained(checkpoint, subfolder="unet")
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(model.video.unet.parameters(), opened.parameters(), strict=True)
    )


@pytest.mark.parametrize("rung", ["one_pass", "truncated", "faithful"])
def test_trained_policy_answer_does_not_depend_on_the_batch(any_checkpoint: Path, rung: str) -> None:
    policy = TrainedPolicy(any_checkpoint, rung=rung)
    if policy.sampler.video_passes > 5:
        policy.sampler = policy.sampler.model_copy(update={"video_passes": 3, "action_steps": 3})
    looks = [make_observation(seed) for seed in range(5)]
    alone = [policy.act([one])[0].actions for one in looks]
    together = [chunk.actions for chunk in policy.act(looks)]
    backwards = [chunk.actions for chunk in policy.act(looks[::-1])][::-1]
    for a, b, c in zip(alone, together, backwards, strict=True):
        assert np.array_equal(a, b)
        assert np.array_equal(a, c)


def test_trained_policy_takes_sampler_values_in_place_of_its_rungs(checkpoint: Path) -> None:
    rung, own = TrainedPolicy(checkpoint, rung="one_pass"), SamplerSettings(steps=2, execute=3)
    policy = TrainedPolicy(checkpoint, rung="one_pass", sampler=own)
    assert (policy.sampler.video_passes, policy.sampler.action_steps) == (2, 2)
    (chunk,), (before,) = policy.act([make_observation(0)]), rung.act([make_observation(0)])
    assert (chunk.execute, before.execute) == (3, 4)
    assert not np.array_equal(chunk.actions, before.actions)


def test_policy_of_present_frames_alone_trains_and_acts() -> None:
    """The paper's video horizon of 0: the video model reconstructs what it is shown."""
    model = new_model(PolicySettings(frames=1, horizon=6).applied(TINY), CONTRACT)
    assert model.config.sampler.execute == 4
    clips = make_batch(2)
    short = replace(
        clips,
        frames=clips.frames[:, :, :1],
        frame_mask=clips.frame_mask[:, :1],
        actions=clips.actions[:, :6],
        action_mask=clips.action_mask[:, :6],
    )
    losses = model(short, torch.Generator().manual_seed(0), Counts.of(short))
    assert torch.isfinite(losses.total)
    video, actions = model.sample(
        short.frames[:, :, 0], short.proprio, short.instructions, [(0, 1), (2, 3)], model.config.sampler
    )
    assert video is not None
    assert (video.shape[1], actions.shape[1]) == (1, 6)


def test_trained_policy_answer_depends_on_the_noise_seed(checkpoint: Path) -> None:
    policy = TrainedPolicy(checkpoint)
    one = make_observation(0)
    assert not np.array_equal(
        policy.act([one])[0].actions, policy.act([replace(one, noise_seed=99)])[0].actions
    )


def test_checkpoint_fingerprint_depends_on_acting_weights_only(checkpoint: Path) -> None:
    before = fingerprint(checkpoint)
    save_file({"x": torch.ones(1)}, checkpoint / "trainer.safetensors")
    assert fingerprint(checkpoint) == before
    weights = load_file(checkpoint / HEADS)
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, checkpoint / HEADS)
    assert fingerprint(checkpoint) != before


def _truncate(folder: Path) -> None:
    data = (folder / UNET).read_bytes()
    (folder / UNET).write_bytes(data[: len(data) // 2])


def _other_weights(folder: Path) -> None:
    save_file({"something": torch.zeros(3)}, folder / HEADS)


def _video_alone(folder: Path) -> None:
    text = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps(text | {"provenance": {"objective": "video"}}))


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
        (_truncate, "diffusion_pytorch_model.safetensors is damaged or cut short"),
        (_video_alone, "a video model without an action head, which cannot act"),
        (_other_weights, "do not fit the model"),
        (_other_format, "checkpoint format 99, this version reads"),
        (_no_field, "lacks or misstates a field"),
        (lambda folder: (folder / HEADS).unlink(), "heads.safetensors is missing"),
        (lambda folder: (folder / UNET).unlink(), "diffusion_pytorch_model.safetensors is missing"),
        (lambda folder: (folder / "checkpoint.json").unlink(), "not a demoscale checkpoint"),
        (lambda folder: (folder / "checkpoint.json").write_text("{"), "checkpoint.json is damaged"),
    ],
)
def test_load_of_a_damaged_checkpoint_raises_one_sentence(checkpoint: Path, damage, sentence: str) -> None:  # type: ignore[no-untyped-def]
    damage(checkpoint)
    with pytest.raises(CheckpointError, match=sentence):
        load(checkpoint)


def test_contract_mismatches_are_sentences() -> None:
    flipped = replace(CONTRACT, action=(*CONTRACT.action[:-1], "gripper_plus1_open_minus1_close"))
    (sentence,) = CONTRACT.mismatches(flipped)
    assert "action layout" in sentence
    assert "gripper_minus1_open_plus1_close" in sentence
    assert CONTRACT.mismatches(CONTRACT) == []
