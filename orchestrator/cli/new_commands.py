"""`demoscale new`: working skeletons of packages that plug into a sweep."""

from pathlib import Path

import click

from orchestrator.cli.mistakes import argument_error, report_user_errors
from orchestrator.cli.options import HELP


@click.group(context_settings=HELP)
def new() -> None:
    """Write a working skeleton of a package, with a test."""


@new.command(context_settings=HELP)
@click.argument("name")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Where to write it; a new folder NAME here by default.",
)
@report_user_errors
def task(name: str, folder: Path | None) -> None:
    """Write a package NAME with a task: environment, scripted expert, pictures, test, entry point.

    NAME is a Python package's: lower case, digits and `_`.
    """
    from orchestrator.cli.new_task import files

    if not (name.isidentifier() and name.islower() and name.isascii()):
        raise argument_error(f"NAME: {name} is no name of a Python package: use a to z, 0 to 9 and _")
    place = folder or Path(name)
    if place.exists():
        raise argument_error(f"--folder: {place} exists already; name another folder")
    for file, text in files(name).items():
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_text(text)
        click.echo(f"wrote {place / file}")
    click.echo(
        f"next: pip install --no-deps --editable {place}; demoscale task check {name}/Reach; pytest {place}"
    )
