"""Pretraining of a video model on all videos of an episode store, from which a sweep's policies start.

The policies of Video Generators are Robot Policies (arXiv 2508.00795) start from Stable Video Diffusion
instead.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.checkpoints.reader import open_checkpoint
from orchestrator.code_fingerprint import TRAINING_CODE, code_fingerprint
from orchestrator.config.arms import Arm
from orchestrator.config.schema import Train
from orchestrator.data.episode_store import latest_version, load_manifest
from orchestrator.data.subset import Subset
from orchestrator.provenance import TRAINING_PACKAGES, digest, package_versions
from orchestrator.storage.base import open_storage
from orchestrator.training.control_channel import open_control_channel, receiving
from orchestrator.training.loop import TrainJob
from orchestrator.training.ray_train import fit
from orchestrator.training.train_events import Reported, TrainEvent
from policy.config import PolicyConfig
from sim_workers.checkout import file_hashes


def pretrain(
    store: str,
    config: PolicyConfig,
    train: Train,
    seed: int,
    storage: str,
    resources: dict[str, float],
    on_step: Callable[[int, float], None],
) -> tuple[str, dict[str, Any]]:
    """Train or resume on every episode without its actions; return the URI of the last checkpoint and its
    recipe: the inputs that shaped it, and its loss.

    Each camera becomes a separate clip, so that the model fits any number of views. `on_step` receives
    (optimiser step, video loss) at every report.
    """
    data = open_storage(store)
    version = latest_version(data)
    manifest = load_manifest(data, version)
    by = code_fingerprint(TRAINING_CODE), package_versions(TRAINING_PACKAGES)
    named = digest([manifest.fingerprint, config.model_dump(mode="json"), seed, train.recorded(), *by])
    job = TrainJob(
        arm=Arm(0, 0.0, seed),
        arm_id=f"pretrain-{named}",
        episodes=data.uri,
        version=version,
        subset=Subset((), tuple(sorted(manifest.episode_ids))),
        config=config,
        train=train,
        objective="video",
        weights="none",
        views_apart=True,
        code=file_hashes(),
    )
    folder = f"{open_storage(storage).uri}/arms"

    def on_event(event: TrainEvent) -> None:
        if isinstance(event, Reported):  # else the run is retried, or was repaired before it resumed
            on_step(event.step, event.loss)

    with open_control_channel() as channel, receiving(channel, on_event):
        last = fit(job, folder, resources, channel)[-1]
    recipe = {
        "preset": config.preset,
        "data_fingerprint": manifest.fingerprint,
        "episodes": {task: len(places) for task, places in manifest.tasks.items()},
        "cameras": list(manifest.contract.cameras),
        "image_size": list(manifest.contract.image_size),
        "simulator": manifest.contract.simulator,
        "train": train.recorded(),
        "seed": seed,
        "loss_video": round(last.loss_video, 5),
    }
    return f"{folder}/{job.arm_id}/step_{train.steps:06d}", recipe


def export_weights(checkpoint: str, recipe: dict[str, Any], out: Path) -> None:
    """Write a checkpoint's video model to `out`/unet in diffusers format and half precision, and its recipe
    to `out`/recipe.json.
    """
    from diffusers import UNetSpatioTemporalConditionModel

    from policy.weights import load_unet

    with open_checkpoint(checkpoint) as folder:
        unet = UNetSpatioTemporalConditionModel.from_config(
            UNetSpatioTemporalConditionModel.load_config(folder, subfolder="unet")
        )
        load_unet(folder, unet)
    unet.half().save_pretrained(out / "unet")
    (out / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n")
