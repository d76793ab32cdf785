"""Types of the commands' parameters. They say which values are places, so that `demoscale submit --job` can
refuse arguments that lead nowhere on other machines.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import click
from click.core import ParameterSource
from click.types import StringParamType


class StorePath(StringParamType):
    """A folder or an s3:// URI that keeps an episode store or results."""

    name = "folder|uri"

    def refusal(self, value: str) -> str:
        """Return why a job on other machines cannot use `value`, with the fix; empty if it can."""
        from orchestrator.cluster.preflight import locality

        if locality(value) != "relative":
            return ""
        return (
            f"{value} is a place on this machine; name s3://bucket/prefix, or an absolute path that all nodes"
            " share"
        )


class InputPath(StringParamType):
    """Something to read: a file or folder, or a name that is neither, such as a URL or a hub id."""

    name = "path|name"

    def refusal(self, value: str) -> str:
        """Return why a job on other machines cannot read `value`, with the fix; empty if it can."""
        from orchestrator.cluster.preflight import locality, stays_here

        if locality(value) != "relative" or not stays_here(value):
            return ""
        return (
            f"{value} is a place on this machine; name an absolute path that all nodes share, or"
            " s3://bucket/prefix where the command reads from there"
        )


class OutputPath(click.Path):
    """A file or folder that a command writes on the machine on which it runs."""

    def refusal(self, value: Any) -> str:
        """Return why what a job writes to `value` cannot be found afterwards, with the fix; empty if it
        can.
        """
        from orchestrator.cluster.preflight import locality

        if locality(str(value)) == "absolute":
            return ""
        return f"{value} would be lost with the job; name an absolute path that all nodes share"


class HorizonOption(click.ParamType[Any]):
    """A number of control steps, or `auto`."""

    name = "steps|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, or `auto`. Fails for anything else."""
        if value == "auto" or isinstance(value, int):
            return value
        if not str(value).isdigit() or int(value) < 1:
            self.fail(f"{value!r} is neither a number of control steps of at least 1 nor auto", param, ctx)
        return int(value)


class SuiteOption(click.Option):
    """An option with the default of the field of its name in a sweep file's `suite`; the file's schema is
    imported when the default is needed.
    """

    def get_default(self, ctx: click.Context, call: bool = True) -> Any:
        """Return the field's default."""
        from orchestrator.config.schema import SuiteConfig

        return SuiteConfig.model_fields[self.name or ""].default


def check_arguments(command: click.Command, name: str, arguments: Sequence[str]) -> list[str]:
    """Return why the arguments of `command` could not work on other machines, one sentence each.

    `name` is how messages call the command. Raises click.UsageError for arguments that it refuses anywhere.
    """
    from orchestrator.cluster.preflight import credentials_problem
    from orchestrator.redaction import credentials_in

    context = command.make_context(name, list(arguments))
    problems = []
    for parameter in command.params:
        key = parameter.name or ""
        value = context.params.get(key)
        field = parameter.opts[0] if isinstance(parameter, click.Option) else parameter.human_readable_name
        if any(map(credentials_in, _texts(value))):
            problems.append(credentials_problem(field))
            continue
        kind = parameter.type
        if value is None or not isinstance(kind, StorePath | InputPath | OutputPath):
            continue
        refusal = kind.refusal(value)
        given = context.get_parameter_source(key) is not ParameterSource.DEFAULT
        if refusal and given:
            problems.append(f"{field}: {refusal}")
        elif refusal and isinstance(kind, StorePath):
            problems.append(
                f"{field}: missing, and by default a folder beside the job, which the cluster throws away;"
                " name s3://bucket/prefix"
            )
    if not problems and any(map(credentials_in, arguments)):  # a callback has split what holds them
        problems.append(credentials_problem("the arguments"))
    return problems


def _texts(value: Any) -> list[str]:
    """Return the texts of a parsed value."""
    if isinstance(value, Mapping):
        return [str(part) for pair in value.items() for part in pair]
    return [str(part) for part in value] if isinstance(value, tuple) else [str(value)]
