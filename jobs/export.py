"""Export an episode store as a LeRobot dataset, version 3.0. The stored videos are copied as they are.

python -m jobs.export data/lift lift-lerobot
"""

import time
from pathlib import Path

import click

from orchestrator.cli import answers_mistakes


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("store")
@click.argument("dst", type=click.Path(file_okay=False))
@click.option("--labelled-only", is_flag=True, help="Leave out episodes without actions, which LeRobot cannot express.")
@click.option("--version", type=click.IntRange(1), help="Version of the store; the newest by default.")
@answers_mistakes
def main(store: str, dst: str, labelled_only: bool, version: int | None) -> None:
    """Write the episodes of STORE, a folder or s3:// URI, to the new folder DST.

    \b
    python -m jobs.export data/lift lift-lerobot
    python -m jobs.export s3://robot-data/lift lift-lerobot --labelled-only --version 3
    """
    from orchestrator.data.export import export, exportable
    from orchestrator.data.store import load_manifest
    from orchestrator.progress import progress_bar
    from orchestrator.storage import open_storage

    began = time.monotonic()
    storage = open_storage(store)
    manifest = load_manifest(storage, version)
    entries = exportable(storage, manifest, labelled_only)
    with progress_bar("exporting") as progress:
        steps = sum(entry.length for entry in progress.track(export(storage, manifest.contract, entries, Path(dst)), total=len(entries)))
    left_out = len(manifest) - len(entries)
    click.echo(
        f"exported {len(entries)} episodes, {steps} steps, in {time.monotonic() - began:.0f} s, to {dst}"
        + (f"; {left_out} episodes without actions left out" if left_out else "")
    )


if __name__ == "__main__":
    main()
