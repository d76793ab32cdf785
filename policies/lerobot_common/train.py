"""Trains a policy of LeRobot on a LeRobot data set, with LeRobot's own policy, data set, sampler, pipelines,
optimiser and files of a checkpoint.

The loop is this project's, since `lerobot-train` neither stops at a signal nor reports a checkpoint. It does
in every step what `lerobot-train` does on one device without mixed precision.
"""

import os
import random
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault(
    "HF_HOME", str(Path.cwd() / "huggingface")
)  # its cache of the data, which no other run needs

import numpy as np
import torch
from common.train_job import TrainJob, take_steps
from lerobot.common.train_utils import load_training_state, save_training_state
from lerobot.configs import PreTrainedConfig
from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.sampler import EpisodeAwareSampler, compute_sampler_state
from lerobot.policies import get_policy_class, make_policy, make_pre_post_processors
from lerobot.utils.constants import IMAGENET_STATS, PRETRAINED_MODEL_DIR
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.ops import FrozenBatchNorm2d

MEASURED_FRAMES = 64
"""Frames, spread evenly over the data, that the statistics of a frozen normalisation are measured on."""
REPO = "demoscale/arm"
"""A name that LeRobot wants for every data set; nothing is looked up under it."""
SCHEDULE_STEPS = 10_000
"""Steps of a schedule of the learning rate over a budget of time; its warm-up counts in these."""
OWN_OPTIONS = {
    "start": None,
    "use_imagenet_stats": True,
    "measure_frozen_norm": True,
    "cache_mb": 2000,
    "workers": 0,
}
"""Options that are no fields of LeRobot's configuration of the policy, with their defaults.

start: pretrained policy in LeRobot's format, a folder or a name on the hub; None: random weights, or those
that the configuration names. use_imagenet_stats: normalise pictures with ImageNet's statistics, as
`lerobot-train` does. measure_frozen_norm: give the frozen batch normalisation of a backbone that starts from
random weights the statistics of the training pictures (`_measure_frozen_norm`). cache_mb: decoded samples
kept in memory, in MB. workers: processes that read samples, without that memory; 0: this one.
"""


def config_of(kind: str, options: dict[str, Any], device: str) -> PreTrainedConfig:
    """Return LeRobot's configuration of a policy with the options for its fields: a new one, or that of the
    pretrained policy `start`.

    Raises SystemExit with a sentence if an option is no field.
    """
    config_class = PreTrainedConfig.get_choice_class(kind)
    known = {field.name for field in fields(config_class) if field.init}
    given = {name: value for name, value in options.items() if name not in OWN_OPTIONS}
    if unknown := sorted(set(given) - known):
        raise SystemExit(
            f"options: {', '.join(unknown)} is no setting of LeRobot's {kind}; its settings are"
            f" {', '.join(sorted(known))}, and {', '.join(OWN_OPTIONS)}"
        )
    pairs = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    pairs |= {"device": device, "push_to_hub": False}
    if not (start := options.get("start")):
        return config_class(**pairs)
    config = PreTrainedConfig.from_pretrained(start)
    for name, value in pairs.items():
        setattr(config, name, value)
    config.pretrained_path = Path(start)
    return config


def train(kind: str) -> None:
    """Train a policy of that kind as the job of this process says."""
    job = TrainJob.read()
    own = {name: job.options.get(name, value) for name, value in OWN_OPTIONS.items()}
    torch.set_num_threads(job.threads)
    random.seed(job.seed)
    np.random.seed(job.seed % 2**32)
    torch.manual_seed(job.seed)

    config = config_of(kind, job.options, job.device)
    meta = LeRobotDatasetMetadata(REPO, root=job.data)
    dataset = LeRobotDataset(
        REPO,
        root=job.data,
        delta_timestamps=resolve_delta_timestamps(config, meta),
        video_backend="pyav",
        return_uint8=True,
    )
    if own["use_imagenet_stats"]:
        for camera in dataset.meta.camera_keys:
            for name, values in IMAGENET_STATS.items():
                dataset.meta.stats[camera][name] = np.asarray(values, np.float32)

    if job.resume is None:
        policy, before, after = _new(config, dataset.meta)
        if own["measure_frozen_norm"] and _starts_from_random_weights(config):
            _measure_frozen_norm(policy, before, dataset)
    else:
        weights = job.resume / PRETRAINED_MODEL_DIR
        config = PreTrainedConfig.from_pretrained(weights)
        config.device = job.device
        policy = get_policy_class(kind).from_pretrained(weights, config=config).to(job.device)
        before, after = make_pre_post_processors(config, pretrained_path=str(weights))
    policy.train()
    optimizer_config, scheduler_config = config.get_optimizer_preset(), config.get_scheduler_preset()
    optimizer = optimizer_config.build(policy.get_optim_params())
    scheduler = scheduler_config.build(optimizer, job.steps or SCHEDULE_STEPS) if scheduler_config else None

    sampler = EpisodeAwareSampler(
        dataset.meta.episodes["dataset_from_index"],
        dataset.meta.episodes["dataset_to_index"],
        drop_n_last_frames=getattr(config, "drop_n_last_frames", 0),
        shuffle=True,
        seed=job.seed,
    )
    sampler.load_state_dict(compute_sampler_state(job.first_step, len(sampler), job.batch_size, 1))
    batches = _batches(dataset, sampler, job.batch_size, int(own["workers"]), int(own["cache_mb"]) << 20)
    if job.resume is not None:
        # last, because it sets the state of every random generator
        load_training_state(job.resume, optimizer, scheduler)

    def step() -> float:
        loss, _ = policy.forward(before(_with_float_pictures(next(batches), dataset)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), optimizer_config.grad_clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if scheduler is not None and not job.seconds:
            scheduler.step()
        return float(loss.item())

    def save(folder: Path, number: int) -> None:
        for part in (policy, before, after):
            part.save_pretrained(folder / PRETRAINED_MODEL_DIR)
        save_training_state(folder, number, optimizer, scheduler, num_processes=1, batch_size=job.batch_size)

    def on_share(share: float) -> None:
        if scheduler is not None:  # its next step sets the learning rate of this part of the time
            scheduler.last_epoch = int(share * SCHEDULE_STEPS) - 1
            scheduler.step()

    take_steps(job, step, save, on_share)


def _new(config: PreTrainedConfig, meta: LeRobotDatasetMetadata) -> tuple[Any, Any, Any]:
    """Return a policy at the start of its training, and its two pipelines with the data's statistics.

    A pretrained policy has names of its own for its cameras: the data's take them over in order.
    """
    if config.pretrained_path is None:
        return (
            make_policy(config, ds_meta=meta),
            *make_pre_post_processors(config, dataset_stats=meta.stats, dataset_meta=meta),
        )
    cameras = list(config.image_features)
    if len(meta.camera_keys) > len(cameras):
        raise SystemExit(
            f"start: {config.pretrained_path} takes {len(cameras)} cameras, too few for the data"
        )
    names = dict(zip(meta.camera_keys, cameras, strict=False))
    policy = make_policy(config, ds_meta=meta, rename_map=names)
    shared = {"stats": meta.stats, "norm_map": config.normalization_mapping}
    inputs = {**config.input_features, **config.output_features}
    before, after = make_pre_post_processors(
        config,
        pretrained_path=str(config.pretrained_path),
        preprocessor_overrides={
            "device_processor": {"device": config.device},
            "normalizer_processor": {**shared, "features": inputs},
            "rename_observations_processor": {"rename_map": names},
        },
        postprocessor_overrides={"unnormalizer_processor": {**shared, "features": config.output_features}},
    )
    return policy, before, after


def _with_float_pictures(batch: dict[str, Any], dataset: LeRobotDataset) -> dict[str, Any]:
    """Return the batch with its uint8 pictures in 0 to 1, as LeRobot's pipelines take them."""
    return {
        name: value.to(torch.float32) / 255 if name in dataset.meta.camera_keys else value
        for name, value in batch.items()
    }


def _starts_from_random_weights(config: PreTrainedConfig) -> bool:
    return config.pretrained_path is None and getattr(config, "pretrained_backbone_weights", None) is None


def _measure_frozen_norm(policy: Any, before: Any, dataset: LeRobotDataset) -> None:
    """Set mean and variance of every frozen batch normalisation to those of its inputs, layer by layer, on
    frames of the data; policies without one stay as they are.

    LeRobot's ACT freezes them because pretrained weights bring their statistics. Random weights bring mean 0
    and variance 1, with which activations grow from block to block. The values are buffers of LeRobot's own
    module, so a checkpoint holds them and LeRobot's commands open it.
    """
    norms = [module for module in policy.modules() if isinstance(module, FrozenBatchNorm2d)]
    if not norms:
        return

    def measure(norm: FrozenBatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)

    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    chosen = np.linspace(0, len(dataset) - 1, min(MEASURED_FRAMES, len(dataset))).astype(int)
    frames = default_collate([dataset[int(index)] for index in chosen])
    with torch.no_grad():
        policy.forward(before(_with_float_pictures(frames, dataset)))
    for hook in hooks:
        hook.remove()


class _Kept(Dataset[dict[str, Any]]):
    """A data set whose samples are decoded once and kept, up to a limit in bytes."""

    def __init__(self, dataset: LeRobotDataset, most_bytes: int) -> None:
        self._dataset, self._left = dataset, most_bytes
        self._kept: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if (sample := self._kept.get(index)) is None:
            sample = self._dataset[index]
            size = sum(value.nbytes for value in sample.values() if isinstance(value, torch.Tensor))
            if size <= self._left:
                self._left -= size
                self._kept[index] = sample
        return sample


def _batches(
    dataset: LeRobotDataset, sampler: EpisodeAwareSampler, batch_size: int, workers: int, cache_bytes: int
) -> Iterator[dict[str, Any]]:
    """Yield batches for ever, from where the sampler stands."""
    loader = DataLoader(
        dataset if workers else _Kept(dataset, cache_bytes),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        # each pass over the loader draws a number: from a generator of its own, so that a resumed run, which
        # begins another pass, trains with the same random numbers as one that was not interrupted
        generator=torch.Generator(),
    )
    while True:
        yield from loader
