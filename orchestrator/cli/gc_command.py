"""`demoscale gc`: removal of checkpoints that nothing needs any more."""

import json

import click

from orchestrator.cli.mistakes import report_user_errors
from orchestrator.cli.options import JSON, STORAGE


@click.command()
@click.argument("name")
@STORAGE
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and remove nothing.")
@click.option(
    "--keep",
    metavar="last|best|every N",
    default="",
    help="Which checkpoints of an arm stay, in place of train.keep of the sweep file; last if it has none.",
)
@JSON
@report_user_errors
def gc(name: str, storage: str, dry_run: bool, keep: str, as_json: bool) -> None:
    """Remove the checkpoints that the sweep NAME no longer needs, with their bytes and a total.

    Those stay from which training may resume, that are not scored yet, the last of every arm, those of
    registered models of MLflow, and those that another sweep of the storage needs. Scores and curves stay.

    \b
    demoscale gc lift --dry-run
    demoscale gc lift --storage s3://results/lift
    demoscale gc lift --keep best
    """
    from orchestrator.cluster.ray_runtime import quiet
    from orchestrator.config.schema import known_keep
    from orchestrator.sweep.retention import collect_garbage, plan_removal

    try:
        keep = keep and known_keep(keep)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--keep") from None
    quiet()
    if dry_run:
        plan = plan_removal(name, storage, keep)
    else:
        plan = collect_garbage(name, storage, keep, lambda line: click.echo(line, err=True))
    if as_json:
        click.echo(json.dumps(plan.to_json(), indent=1))
        return
    click.echo(str(plan))
    if not plan.removable:
        click.echo("there is nothing to remove")
    else:
        click.echo("nothing was removed; leave out --dry-run to remove it" if dry_run else "removed")
