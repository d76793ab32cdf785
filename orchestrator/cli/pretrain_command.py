"""`demoscale pretrain`: a small video model on an episode store's videos, from which fine-tuning starts as
the paper's starts from SVD.

How the one in policy/pretrained/tiny was made: policy/pretrained/README.md.
"""

import time
from pathlib import Path

import click

from orchestrator.cli.mistakes import argument_error, report_user_errors
from orchestrator.cli.options import HELP
from orchestrator.cli.parameters import OutputPath, StorePath


@click.command(context_settings=HELP)
@click.argument("store", type=StorePath())
@click.option(
    "--out",
    required=True,
    type=OutputPath(file_okay=False),
    help="Folder for the weights, in diffusers' format; must not hold any yet.",
)
@click.option(
    "--preset",
    default="tiny",
    show_default=True,
    type=click.Choice(["tiny"]),
    help="Whose video model: one that needs no autoencoder.",
)
@click.option("--steps", type=click.IntRange(1), default=8000, show_default=True, help="Optimiser steps.")
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Clips per step, each of all cameras.",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    default=1e-3,
    show_default=True,
    help="Peak; then a cosine down to 0.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seed of the first weights, the order of clips and all noise.",
)
@click.option(
    "--storage",
    type=StorePath(),
    default="runs",
    show_default=True,
    help="Folder or s3:// URI for checkpoints; a second run resumes from them.",
)
@report_user_errors
def pretrain(
    store: str,
    out: str,
    preset: str,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    storage: str,
) -> None:
    """Pretrain the video model of PRESET on all videos of STORE: no actions, no proprioception, every camera
    a film of its own.

    \b
    demoscale pretrain data/pretrain --out policy/pretrained/tiny
    demoscale pretrain s3://robot-data/kitchen --out weights/kitchen --steps 50000
    """
    from orchestrator.cli.terminal import progress_bar
    from orchestrator.cluster.placement import ResourcePlan
    from orchestrator.cluster.ray_runtime import connect, quiet, resources
    from orchestrator.config.schema import Train
    from orchestrator.training.pretraining import export_weights
    from orchestrator.training.pretraining import pretrain as pretrained
    from policy.presets import policy_config

    if (Path(out) / "unet").exists():
        raise argument_error(f"--out: {out} already holds weights; name another folder, or remove it")
    train = Train(
        steps=steps,
        batch_size=batch_size,
        checkpoint_every=max(1, steps // 8),
        learning_rate=learning_rate,
        warmup_steps=min(200, steps),
        ema_decay=0.999,
    )
    quiet()
    click.echo("starting Ray")
    connect()
    began = time.monotonic()
    share = ResourcePlan.fit(resources(), 1, 1, 1).trainer
    with progress_bar("pretraining") as progress:
        task = progress.add_task("pretraining", total=steps)
        checkpoint, recipe = pretrained(
            store,
            policy_config(preset),
            train,
            seed,
            storage,
            share,
            lambda step, loss: progress.update(task, completed=step),
        )
    export_weights(checkpoint, recipe, Path(out))
    click.echo(
        f"video loss {recipe['loss_video']:.4f} after {steps} steps of {batch_size} clips,"
        f" {time.monotonic() - began:.0f} s; weights in {out}"
    )
