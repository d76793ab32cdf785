"""`demoscale new`: working skeletons of what plugs into a sweep: tasks, and external policies."""

import shutil
from pathlib import Path

import click

from orchestrator.cli.mistakes import argument_error, report_user_errors
from orchestrator.cli.options import HELP

SKELETON = "policies/skeleton"
"""Folder of the checkout that a new policy is a copy of."""
COMMON = "policies/common"
"""Folder of the checkout with what its programs use."""


@click.group(context_settings=HELP)
def new() -> None:
    """Write a working skeleton of a task or of a policy, with a test.

    \b
    demoscale new task my_task           a package with a task of your own
    demoscale new policy my_policy       a policy that a sweep trains and scores
    """


@new.command(context_settings=HELP, short_help="Write a package with a task of your own.")
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


@new.command(context_settings=HELP, short_help="Write a policy that a sweep trains and scores.")
@click.argument("name")
@click.option(
    "--folder",
    default="policies",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the policy's folder is made.",
)
@report_user_errors
def policy(name: str, folder: Path) -> None:
    """Write an external policy that a sweep file can name at once: a folder NAME with its manifest, its
    training and serving programs, and a test.

    \b
    demoscale new policy mine
    python -m pytest policies/mine
    """
    from orchestrator.config.lines import LINE_NAME, OWN_LINES, RESERVED
    from sim_workers.checkout import CHECKOUT

    place = folder / name
    if not LINE_NAME.fullmatch(name) or name.startswith(RESERVED) or name in OWN_LINES:
        raise argument_error(f"{name} cannot name a policy; write letters, digits, '.', '_' and '-'")
    if place.exists():
        raise argument_error(f"{place} is there already; choose another name")
    for source, target in ((CHECKOUT / SKELETON, place), (CHECKOUT / COMMON, place / "common")):
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    manifest = (place / "policy.yaml").read_text()
    # self-contained, so that it may lie anywhere
    manifest = manifest.replace("name: skeleton", f"name: {name}").replace("include: [../common]\n", "")
    (place / "policy.yaml").write_text(manifest)
    click.echo(f"{place}: policy.yaml, train.py, serve.py, test_policy.py, and common/, which those use")
    click.echo(f"try it           python -m pytest {place}")
    click.echo(f"in a sweep file  policy: {{lines: [video_action, {place}]}}")
