"""The optimiser step: averaging, accumulation, restoring."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.testing.checkpoints import make_batch
from orchestrator.testing.episodes import CONTRACT
from orchestrator.training.ray_train import sharded
from policy.batch import Counts
from policy.checkpoint import new_model
from policy.config import LossWeights, Recipe
from policy.presets import policy_config
from policy.trainer import Average, Trainer

STEPS = 6


def trainer(**recipe: Any) -> Trainer:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = new_model(policy_config("tiny"), CONTRACT)
    model.learn(recipe.pop("objective", "joint"))
    model.to(recipe.pop("device", "cpu"))
    wrap = recipe.pop("wrap", None)
    return Trainer(model, Recipe(warmup_steps=2, **recipe), STEPS, wrap)


def run(of: Trainer, first: int, last: int) -> list[float]:
    clips = make_batch(4)
    clips = type(clips)(
        *(value.to(of.device) if isinstance(value, torch.Tensor) else value for value in vars(clips).values())
    )
    return [
        of.step(clips, step, torch.Generator().manual_seed(step)).total.item() for step in range(first, last)
    ]


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        pytest.param({"ema_decay": 0.0}, marks=pytest.mark.full),
        pytest.param({"objective": "action"}, marks=pytest.mark.full),
        pytest.param({"objective": "video"}, marks=pytest.mark.full),
        {"accumulate": 2, "head_learning_rate": 2e-4},
    ],
    ids=str,
)
def test_trainer_restored_continues_bit_for_bit(recipe: dict[str, Any]) -> None:
    whole, begun = trainer(**recipe), trainer(**recipe)
    losses = run(whole, 0, STEPS)
    assert run(begun, 0, 3) == losses[:3]
    acting, state = begun.acting_weights(), begun.state()
    resumed = trainer(**recipe)
    resumed.restore(
        {name: tensor.clone() for name, tensor in acting.items()},
        {name: tensor.clone() for name, tensor in state.items()},
    )
    assert run(resumed, 3, STEPS) == losses[3:]
    for ours, theirs in (
        (whole.acting_weights(), resumed.acting_weights()),
        (whole.state(), resumed.state()),
    ):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_average_is_applied_only_within_its_context() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    average = Average([parameter], 0.9)
    with torch.no_grad():
        parameter += 1
    average.update()
    with average.applied():
        torch.testing.assert_close(parameter.detach(), torch.full((3,), 0.1))
    torch.testing.assert_close(parameter.detach(), torch.ones(3))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_trainer_in_half_precision_on_a_gpu_lowers_the_loss(precision: str) -> None:
    of = trainer(precision=precision, device="cuda")
    losses = run(of, 0, STEPS)
    assert losses[-1] < losses[0]
    assert all(parameter.dtype == torch.float32 for parameter in of.model.parameters())


def test_trainer_keeps_frozen_weights() -> None:
    of = trainer(objective="action")
    before = copy.deepcopy(of.model.video.state_dict())
    run(of, 0, 2)
    assert all(torch.equal(before[name], tensor) for name, tensor in of.model.video.state_dict().items())


def gradients(of: Trainer, change: Callable[[Any], Any], parts: int) -> list[torch.Tensor]:
    """Return the gradients of one step on a batch of equal clips with equal draws, so that `change` is the
    only difference.
    """
    drawn = of.model.forward

    def same_draws(part: Any, generator: torch.Generator, counts: Any) -> Any:
        return drawn(part, torch.Generator().manual_seed(7), counts)

    of.model.forward = same_draws
    clips = make_batch(1)
    twice = (
        value.repeat(2, *[1] * (value.ndim - 1)) if isinstance(value, torch.Tensor) else value * 2
        for value in vars(clips).values()
    )
    many = type(clips)(*twice)
    of.step(change(many), 0, torch.Generator())
    return [parameter.grad.clone() for parameter in of.model.parameters()]


def test_trainer_accumulated_parts_give_the_gradient_of_the_batch() -> None:
    """Two parts of one clip each, with the same noise: the sum is the gradient of the one clip alone."""
    one = trainer(clip_norm=0.0, accumulate=1)
    two = trainer(clip_norm=0.0, accumulate=2)
    halved = gradients(two, lambda clips: clips, 2)
    whole = gradients(one, lambda clips: clips.split(2)[0], 1)
    for a, b in zip(halved, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_trainer_has_separate_learning_rates_for_head_and_video_model() -> None:
    of = trainer(learning_rate=1e-5, head_learning_rate=5e-5, schedule="constant", weight_decay=0.0)
    run(of, 0, 3)
    assert {group["peak"] for group in of._optimizer.param_groups} == {1e-5, 5e-5}
    assert {group["lr"] for group in of._optimizer.param_groups} == {1e-5, 5e-5}


def _one_of_two(rank: int, folder: str) -> None:
    """Train on two processes with DDP and then FSDP2: three steps, then two more, both directly and from the
    saved state.
    """
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for sharding, wrap in (
        ("ddp", torch.nn.parallel.DistributedDataParallel),
        ("fsdp", sharded(torch.device("cpu"))),
    ):
        whole, resumed = (trainer(wrap=wrap) for _ in range(2))
        for step in range(3):
            whole.step(make_batch(2 + rank), step, torch.Generator().manual_seed(10 * step + rank))
        weights, state = whole.acting_weights(), whole.state()
        if rank == 0:
            torch.save((weights, state), f"{folder}/{sharding}")
        torch.distributed.barrier()
        resumed.restore(*torch.load(f"{folder}/{sharding}"))
        losses = [
            [
                of.step(make_batch(2), step, torch.Generator().manual_seed(rank)).total.item()
                for step in (3, 4)
            ]
            for of in (whole, resumed)
        ]
        assert losses[0] == losses[1], sharding
    torch.distributed.destroy_process_group()


@pytest.mark.full
def test_trainer_under_fsdp_equals_ddp_and_saves_whole_weights(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_one_of_two, (str(tmp_path),), nprocs=2)
    (whole, whole_state), (parts, parts_state) = (
        torch.load(tmp_path / sharding) for sharding in ("ddp", "fsdp")
    )
    alone = trainer()
    assert whole.keys() == parts.keys() == alone.acting_weights().keys()
    assert whole_state.keys() == parts_state.keys()
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-3, atol=1e-5)


def test_trainer_uses_the_betas_and_loss_weights_of_the_recipe() -> None:
    own = trainer(betas=(0.5, 0.75))
    assert own._optimizer.param_groups[0]["betas"] == (0.5, 0.75)
    clips, counts = make_batch(4), Counts.of(make_batch(4))
    losses = own.model(clips, torch.Generator().manual_seed(0), counts)
    torch.testing.assert_close(losses.total, losses.video + losses.action)
    own.model.loss_weights = LossWeights(video=0.25, action=2.0)
    weighted = own.model(clips, torch.Generator().manual_seed(0), counts)
    torch.testing.assert_close(weighted.total, 0.25 * losses.video + 2 * losses.action)
    assert torch.equal(weighted.video, losses.video), "as they are, for comparisons"
    own.model.learn("action")
    alone = own.model(clips, torch.Generator().manual_seed(0), counts)
    torch.testing.assert_close(alone.total, alone.action)
