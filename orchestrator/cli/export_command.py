"""`demoscale export`: an episode store as a LeRobot dataset, version 3.0, with the stored videos as they are,
or as one robomimic HDF5 file.
"""

import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from orchestrator.cli.mistakes import report_user_errors
from orchestrator.cli.options import HELP
from orchestrator.cli.parameters import OutputPath, StorePath

HDF5_SUFFIXES = (".hdf5", ".h5")


@report_user_errors
def _print_contract(context: click.Context, _parameter: Any, export: str | None) -> None:
    from orchestrator.data.exporters.lerobot_v3 import contract_of_export

    if export:
        click.echo(json.dumps(contract_of_export(export).to_json(), indent=1))
        context.exit()


@click.command(context_settings=HELP)
@click.argument("store", type=StorePath())
@click.argument("dst", type=OutputPath())
@click.option(
    "--format",
    "layout",
    type=click.Choice(["lerobot", "robomimic"]),
    default="lerobot",
    show_default=True,
    help="lerobot: DST is a folder. robomimic: DST is a file that ends in .hdf5, its pictures decoded.",
)
@click.option(
    "--labelled-only",
    is_flag=True,
    help="Leave out episodes without actions, which neither format can express.",
)
@click.option(
    "--train-mask",
    is_flag=True,
    help="robomimic: list all demonstrations in mask/train, for its setting hdf5_filter_key.",
)
@click.option("--version", type=click.IntRange(1), help="Version of the store; the newest by default.")
@click.option(
    "--contract-of",
    metavar="EXPORT",
    is_eager=True,
    expose_value=False,
    callback=_print_contract,
    help=(
        "Only print the conventions that an export carries, as JSON: what a policy trained on it answers to"
        " GET /contract."
    ),
)
@report_user_errors
def export(
    store: str, dst: str, layout: str, labelled_only: bool, train_mask: bool, version: int | None
) -> None:
    """Write the episodes of STORE, a folder or s3:// URI, to DST: a new folder, or a new file for robomimic.

    Both carry the store's conventions (cameras, rates, names of values, simulator), which an import into a
    store reads back.

    \b
    demoscale export data/lift lift-lerobot
    demoscale export s3://robot-data/lift lift-lerobot --labelled-only --version 3
    demoscale export data/lift lift.hdf5 --format robomimic
    demoscale export --contract-of lift.hdf5
    """
    from orchestrator.cli.terminal import progress_bar
    from orchestrator.data.episode_store import load_manifest
    from orchestrator.data.exporters.lerobot_v3 import LEROBOT, ROBOMIMIC, exportable, named
    from orchestrator.data.exporters.lerobot_v3 import export as export_lerobot
    from orchestrator.storage.base import open_storage

    _check(dst, layout, train_mask)
    began = time.monotonic()
    storage = open_storage(store)
    manifest = load_manifest(storage, version)
    entries = exportable(storage, manifest, labelled_only, LEROBOT if layout == "lerobot" else ROBOMIMIC)
    if layout == "lerobot":
        written = export_lerobot(storage, manifest.contract, entries, Path(dst))
    else:
        from orchestrator.data.exporters.robomimic import export_robomimic

        written = export_robomimic(storage, manifest.contract, entries, Path(dst), train_mask)
    # closing: what is unfinished is removed however this ends
    with closing(written), progress_bar("exporting") as progress:
        steps = sum(entry.length for entry in progress.track(written, total=len(entries)))
    left_out = [
        name for name, labelled in zip(manifest.episode_ids, manifest.labelled, strict=True) if not labelled
    ]
    click.echo(
        f"exported {len(entries)} episodes, {steps} steps, in {time.monotonic() - began:.0f} s, to {dst}"
        + (f"; {len(left_out)} episodes without actions left out: {named(left_out)}" if left_out else "")
    )


def _check(dst: str, layout: str, train_mask: bool) -> None:
    """click.BadParameter for a destination that is not of the format's kind, and for an option that the
    format does not know.
    """
    if "://" in dst:
        raise click.BadParameter(
            f"{dst} is no path of this machine; export to a local one, then copy it.", param_hint="DST"
        )
    if layout == "robomimic" and Path(dst).is_dir():
        raise click.BadParameter(f"{dst} is a folder; name a new file that ends in .hdf5.", param_hint="DST")
    if layout == "lerobot" and Path(dst).is_file():
        raise click.BadParameter(f"{dst} is a file; name a new folder.", param_hint="DST")
    if layout == "lerobot" and dst.lower().endswith(HDF5_SUFFIXES):
        raise click.BadParameter(
            f"a LeRobot dataset is a folder, and {dst} is named like a file; add --format robomimic.",
            param_hint="DST",
        )
    if layout == "lerobot" and train_mask:
        raise click.BadParameter(
            "LeRobot has no masks; leave it out, or add --format robomimic.", param_hint="--train-mask"
        )
