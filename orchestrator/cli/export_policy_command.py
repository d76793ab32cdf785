"""`demoscale export-policy`: a checkpoint as a folder of its own, with every file that acting needs."""

from pathlib import Path

import click

from orchestrator.cli.mistakes import report_user_errors
from orchestrator.cli.options import STORAGE
from orchestrator.cli.parameters import OutputPath, StorePath


@click.command("export-policy")
@click.argument("checkpoint", type=StorePath())
@click.argument("dst", type=OutputPath(path_type=Path))
@click.option(
    "--sweep", help="CHECKPOINT is an arm of this sweep, by name or id; its last checkpoint is taken."
)
@STORAGE
@click.option(
    "--mlflow", default="", help="Where models:/... are logged; if empty, the database in --storage."
)
@report_user_errors
def export_policy(checkpoint: str, dst: Path, sweep: str | None, storage: str, mlflow: str) -> None:
    """Write a whole, self-contained policy to the new folder DST: weights that the sweep's storage keeps once
    for all checkpoints included.

    CHECKPOINT is a folder, an s3:// URI, models:/NAME/VERSION, or with --sweep the name of an arm. The
    trainer's state is left out.

    \b
    demoscale export-policy runs/arms/demos-50_ratio-1_seed-0_1a2b3c4d/step_020000 policies/lift
    demoscale export-policy demos-50_ratio-1_seed-0 policies/lift --sweep lift
    demoscale export-policy models:/lift/3 policies/lift --mlflow https://mlflow.example.org
    """
    from orchestrator.checkpoints.reader import export_checkpoint
    from orchestrator.evaluation.policy_ref import LOGGED_MODEL
    from orchestrator.storage.base import open_storage
    from orchestrator.sweep.state import last_checkpoint
    from orchestrator.tracking.mlflow_writer import tracking_uri

    expected = ""
    if sweep:
        checkpoint, _ = last_checkpoint(sweep, checkpoint, storage)
    elif LOGGED_MODEL.fullmatch(checkpoint) and not Path(checkpoint).is_dir():
        from orchestrator.tracking.mlflow_reader import logged_checkpoint

        checkpoint, expected = logged_checkpoint(tracking_uri(mlflow, open_storage(storage).uri), checkpoint)
    found = export_checkpoint(checkpoint, dst, expected)
    click.echo(f"{dst}: the policy {found}, with every file that acting needs")
