"""Training one arm. The only file with ray.train: a plain loop over batches, and a thin skin that gives it workers and keeps its checkpoints."""

import math
import re
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.arms import Arm
from orchestrator.data import stream
from orchestrator.data.episodes import EpisodeError
from orchestrator.data.manifest import Manifest
from orchestrator.data.order import Order
from orchestrator.data.store import load_manifest
from orchestrator.data.subset import Subset, choose
from orchestrator.provenance import TRAINING_CODE, code_fingerprint, package_versions
from orchestrator.spec import Train
from orchestrator.storage import open_storage
from policy.config import PRESETS
from policy.interface import derived_seed

if TYPE_CHECKING:
    import torch

    from policy.checkpoint import Card
    from policy.model import Batch, VideoActionModel


@dataclass(frozen=True)
class ArmJob:
    """All that training one arm needs to know; small enough to send to every worker."""

    arm: Arm
    arm_id: str
    episodes: str
    version: int
    """Of the episode store: a sweep keeps to the one it started with."""
    quarantined: frozenset[str]
    """Damaged episodes that others take the places of."""
    preset: str
    train: Train

    def subset(self, manifest: Manifest) -> Subset:
        return choose(manifest, self.arm.demo_count, self.arm.action_free_ratio, self.arm.seed, self.quarantined)

    def order(self, manifest: Manifest, rank: int, world: int) -> Order:
        subset = self.subset(manifest)
        demos, action_free = (tuple(manifest.select(ids, with_stats=False)) for ids in (subset.demos, subset.action_free))
        return Order(demos, action_free, manifest.fingerprint, self.arm.seed, rank, world, self.train.batch_size // world)


ATTEMPTS = 3  # at training an arm, should its workers fail; each goes on from the last checkpoint
PROGRESS_REPORTS = 20  # per run, besides those at checkpoints
CONSUMED = ("clips_with_actions", "clips_action_free", "action_free_ratio_consumed")
"""Metrics: the clips the first worker has trained on since step 0, counted as they came, and their ratio, to hold against the one asked for."""

Report = Callable[[int, dict[str, Any], Path | None], None]
"""Called now and then with (step, mean losses since the last call, None), and at a checkpoint with its folder (on the first worker)."""


def learning_rate_factor(step: int, warmup_steps: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to zero: a function of the step alone, so a resumed run continues it exactly."""
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    return warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def card_of(job: ArmJob, manifest: Manifest) -> "Card":
    """The card of the arm before its first step. Statistics come from the arm's own demos, nothing else."""
    from policy.checkpoint import Card
    from policy.stats import Stats

    subset = job.subset(manifest)
    demos = manifest.select(subset.demos)
    return Card(
        config=PRESETS[job.preset],
        contract=manifest.contract,
        action_stats=Stats.merge(entry.action_stats for entry in demos if entry.action_stats),
        proprio_stats=Stats.merge(entry.proprio_stats for entry in demos if entry.proprio_stats),
        provenance={
            "arm": vars(job.arm),
            "arm_id": job.arm_id,
            "step": 0,
            **dict.fromkeys(CONSUMED, 0),
            "train": job.train.model_dump(mode="json"),
            "data_fingerprint": manifest.fingerprint,
            "data_version": job.version,
            "subset_digest": subset.digest,
            "demos": list(subset.demos),
            "action_free": list(subset.action_free),
            "code": code_fingerprint(TRAINING_CODE),
            "packages": package_versions(),
        },
    )


def train(
    job: ArmJob, rank: int, world: int, resume: Path | None, report: Report, prepare: Callable[["VideoActionModel"], Any] | None = None
) -> None:
    """Train the arm from its last checkpoint (or the start) to its last step.

    Every random draw is a function of (seed, step, rank), so stopping and resuming changes nothing. `prepare` wraps the model for
    several workers.
    """
    import torch

    from policy.checkpoint import fingerprint, load_card, load_trainer, load_weights, save
    from policy.model import VideoActionModel
    from policy.normalize import Normalizer

    manifest = load_manifest(open_storage(job.episodes), job.version)
    card = card_of(job, manifest)
    before = load_card(resume).provenance if resume else card.provenance
    first_step = before["step"]
    if first_step == job.train.steps:
        return
    consumed = {name: before[name] for name in CONSUMED}
    torch.manual_seed(job.arm.seed)
    model = VideoActionModel(card.config, card.contract)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(job.train.ema_decay))
    wrapped: Any = prepare(model) if prepare else model
    device = next(model.parameters()).device
    average.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=job.train.learning_rate, betas=(0.9, 0.95), weight_decay=1e-4, fused=True)
    if resume:
        average.module.load_state_dict(load_weights(resume))
        average.n_averaged.fill_(first_step)
        _restore(load_trainer(resume), model, optimizer)
    normalizers = (Normalizer(card.proprio_stats, "minmax"), Normalizer(card.action_stats, card.config.action_normalization))
    generator = torch.Generator()
    sums = dict.fromkeys(("loss", "loss_video", "loss_action"), torch.zeros((), device=device))
    since = first_step
    batches = stream.batches(
        job.episodes, manifest.contract, job.order(manifest, rank, world), card.config.clip, first_step=first_step, num_steps=job.train.steps
    )
    for step, arrays in enumerate(batches, first_step + 1):
        for group in optimizer.param_groups:
            group["lr"] = job.train.learning_rate * learning_rate_factor(step - 1, job.train.warmup_steps, job.train.steps)
        generator.manual_seed(derived_seed(job.arm.seed, step, rank))
        losses = wrapped(_to_batch(arrays, *normalizers, device), generator)
        optimizer.zero_grad()
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        for name, value in (("loss", losses.total.detach()), ("loss_video", losses.video), ("loss_action", losses.action)):
            sums[name] = sums[name] + value  # stays on the device: reading it at every step would make the device wait
        consumed = _count(consumed, arrays)
        checkpoint = step % job.train.checkpoint_every == 0 or step == job.train.steps
        if not checkpoint and step % max(1, job.train.steps // PROGRESS_REPORTS):
            continue
        metrics: dict[str, Any] = {name: total.item() / (step - since) for name, total in sums.items()} | consumed
        sums, since = dict.fromkeys(sums, torch.zeros((), device=device)), step
        if not checkpoint or rank > 0:
            report(step, metrics, None)
            continue
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            now = replace(card, provenance=card.provenance | {"step": step} | consumed)
            save(folder, now, average.module.state_dict(), _trainer_state(model, optimizer))
            report(step, metrics | {"checkpoint": fingerprint(folder)}, folder)


def _count(consumed: dict[str, float], arrays: dict[str, Any]) -> dict[str, float]:
    """CONSUMED after one more batch."""
    labelled = int(arrays["action_mask"].any(1).sum())
    with_actions, without = consumed["clips_with_actions"] + labelled, consumed["clips_action_free"] + len(arrays["action_mask"]) - labelled
    return dict(zip(CONSUMED, (with_actions, without, without / max(1, with_actions)), strict=True))


def _to_batch(arrays: dict[str, Any], proprio: Any, action: Any, device: "torch.device") -> "Batch":
    import torch

    from policy.model import Batch

    tensors = {name: torch.from_numpy(value).to(device) for name, value in arrays.items() if name != "instructions"}
    tensors["proprio"] = proprio.normalize(tensors["proprio"])
    tensors["actions"] = action.normalize(tensors["actions"])
    return Batch(**tensors, instructions=arrays["instructions"])


def _trainer_state(model: "VideoActionModel", optimizer: "torch.optim.Optimizer") -> dict[str, "torch.Tensor"]:
    """The trained weights and the optimiser's moments, flat, so that they need no pickle."""
    names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
    state = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for parameter, moments in optimizer.state.items():
        state |= {f"optimizer/{key}/{names[parameter]}": value for key, value in moments.items()}
    return state


def _restore(state: dict[str, "torch.Tensor"], model: "VideoActionModel", optimizer: "torch.optim.Optimizer") -> None:
    model.load_state_dict({name.removeprefix("model/"): tensor for name, tensor in state.items() if name.startswith("model/")})
    for name, parameter in model.named_parameters():
        moments = {key: state[f"optimizer/{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in moments.items()}


# -- the Ray Train skin ---------------------------------------------------------------------------------------------------------


def _worker_loop(config: dict[str, Any]) -> None:
    """What every Ray Train worker runs."""
    import ray.train
    import ray.train.torch
    import torch

    job: ArmJob = config["job"]
    context = ray.train.get_context()
    world = context.get_world_size()
    if not torch.cuda.is_available():
        torch.set_num_threads(config["threads"])

    def report(step: int, metrics: dict[str, Any], folder: Path | None) -> None:
        keep = ray.train.Checkpoint.from_directory(folder) if folder else None
        ray.train.report(metrics | {"step": step}, checkpoint=keep, checkpoint_dir_name=f"step_{step:06d}")

    last = ray.train.get_checkpoint()
    with last.as_directory() if last else nullcontext() as folder:
        train(job, context.get_world_rank(), world, Path(folder) if folder else None, report, ray.train.torch.prepare_model)


def fit(job: ArmJob, folder: str, resources: dict[str, float], callbacks: list[Any]) -> list[dict[str, Any]]:
    """Train the arm with Ray Train into `folder`/<arm id>; continues there if it was interrupted. Raises if training fails for good.

    Returns what was reported with each of its checkpoints, those of earlier runs too.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        _worker_loop,
        train_loop_config={"job": job, "threads": max(1, int(resources["CPU"]))},
        scaling_config=ray.train.ScalingConfig(
            num_workers=job.train.workers, use_gpu=resources.get("GPU", 0) > 0, resources_per_worker=resources, placement_strategy="PACK"
        ),
        # The name has nothing of the moment in it: that is what lets a second run find the first one's checkpoints.
        run_config=ray.train.RunConfig(name=job.arm_id, storage_path=folder, callbacks=callbacks),
    )
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return [metrics for _, metrics in trainer.fit().best_checkpoints or ()]
        except ray.train.WorkerGroupError as error:
            if damaged := re.search(rf"^[\w.]*{EpisodeError.__name__}: (.*)$", str(error), re.MULTILINE):
                raise EpisodeError(damaged[1]) from None  # trying again would not mend it
            if attempt == ATTEMPTS:
                raise
    raise AssertionError("unreachable")
