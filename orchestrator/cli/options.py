"""Options that several commands share, of one name and meaning."""

from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from orchestrator.cli.parameters import InputPath

HELP = {"help_option_names": ["-h", "--help"]}
"""Settings of commands that are also programs of their own, `python -m jobs.*`; others have the group's."""


def take_short_help(command: click.Command) -> None:
    """Give a command and all commands below it `-h`: click keeps a command's help option from its first use,
    whichever group it was used in.
    """
    command.context_settings = {**HELP, **command.context_settings}
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        take_short_help(below)


def given_options(context: click.Context) -> set[str]:
    """Return the names of the options and arguments that the command line states."""
    return {
        name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }


STORAGE = click.option(
    "--storage", default="runs", show_default=True, help="Folder or s3:// URI the sweep keeps its results in."
)
MLFLOW = click.option("--mlflow", help="MLflow tracking URI; the database in the storage by default.")
RATE = click.option(
    "--rate",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.9,
    show_default=True,
    help="Success rate whose demonstrations are forecast.",
)
SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Override a field, e.g. --set train.steps=200. Repeatable.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def foreign_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of policy servers of other projects."""
    added = (
        click.option(
            "--execute",
            type=click.IntRange(0),
            default=0,
            help="For openpi://, vla-eval:// and groot://: actions of a chunk that are executed before the"
            " next observation; all by default.",
        ),
        click.option(
            "--layout",
            default="",
            type=InputPath(),
            help="For the same: names of pictures and state, libero or droid, or a .json file; the protocol's"
            " usual ones by default.",
        ),
        click.option(
            "--contract",
            default="",
            type=InputPath(),
            help="For the same: JSON file with the policy's contract, which these servers do not state.",
        ),
    )
    for option in reversed(added):  # the last one that is added is shown first
        command = option(command)
    return command
