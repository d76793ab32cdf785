"""openpi's configuration of pi0.5 for a data set of this project, shared by training and serving."""

from pathlib import Path
from typing import Any

from openpi.models import pi0_config
from openpi.training import config as openpi_config
from openpi.training import optimizer, weight_loaders

REPO, NAME, RUN = "demoscale/arm", "pi05_demoscale", "run"
"""openpi's names of the data set, the configuration and the experiment."""


def views(cameras: list[str]) -> tuple[str, str]:
    """Return the camera of the scene and the one on the hand. Raises SystemExit unless there is one each."""
    hands = [camera for camera in cameras if "hand" in camera or "wrist" in camera]
    if len(cameras) != 2 or len(hands) != 1:
        raise SystemExit(
            f"pi0.5 takes one camera on the hand and one other, the data has {', '.join(cameras)}"
        )
    return next(camera for camera in cameras if camera not in hands), hands[0]


def train_config(options: dict[str, Any], work: Path, **fields: Any) -> openpi_config.TrainConfig:
    """Return openpi's configuration, its `pi05_libero` with the options.

    work: folder of its assets and checkpoints. fields: of openpi's TrainConfig.
    """
    return openpi_config.TrainConfig(
        name=NAME,
        exp_name=RUN,
        model=pi0_config.Pi0Config(
            pi05=True, action_horizon=options["action_horizon"], discrete_state_input=False
        ),
        data=openpi_config.LeRobotLiberoDataConfig(
            repo_id=REPO,
            base_config=openpi_config.DataConfig(prompt_from_task=True),
            extra_delta_transform=False,
        ),
        lr_schedule=optimizer.CosineDecaySchedule(
            warmup_steps=options["warmup_steps"],
            peak_lr=options["peak_lr"],
            decay_steps=1_000_000,
            decay_lr=options["peak_lr"],
        ),
        optimizer=optimizer.AdamW(clip_gradient_norm=1.0),
        ema_decay=options["ema_decay"],
        weight_loader=weight_loaders.CheckpointWeightLoader(options["weights"]),
        assets_base_dir=str(work / "assets"),
        checkpoint_base_dir=str(work / "runs"),
        wandb_enabled=False,
        **fields,
    )
