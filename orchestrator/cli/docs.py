"""Pages about the command line, made from what `--help` prints. `make docs` puts them on the site."""

import html
import inspect
from collections.abc import Iterator
from dataclasses import dataclass

import click

from orchestrator.cli.main import main

AS_WRITTEN = "\b\n"
"""First line of a paragraph of help that click prints without wrapping: examples."""


@dataclass(frozen=True)
class CommandPage:
    """One page in Markdown."""

    name: str
    """Of the command: `collect`. `index` for the overview."""
    markdown: str


def command_pages() -> list[CommandPage]:
    """Return the overview of all commands, then a page for each; a page of a group has its commands too."""
    root = _context(main, "demoscale")
    rows = "\n".join(
        f"| [`demoscale {name}`]({name}.md) | {_cell(command.get_short_help_str(200))} |"
        for name, command in sorted(main.commands.items())
    )
    overview = f"# Commands\n\n{_prose(main.help)}\n\n| command | what it does |\n| --- | --- |\n{rows}\n"
    pages = [CommandPage("index", overview)]
    for name, command in sorted(main.commands.items()):
        sections = _sections(command, _context(command, name, root), "#")
        pages.append(CommandPage(name, "\n\n".join(sections) + "\n"))
    return pages


def _context(command: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    """Return a context with the command's own settings: click keeps the help option of the first context."""
    return click.Context(command, parent, name, terminal_width=100, **command.context_settings)


def _sections(command: click.Command, context: click.Context, level: str) -> Iterator[str]:
    """Yield the sections of a command, and of the commands below it."""
    yield f"{level} {context.command_path}"
    yield f"```text\n{command.get_usage(context)}\n```"
    yield _prose(command.help)
    records = [
        record for option in command.get_params(context) if (record := option.get_help_record(context))
    ]
    rows = "\n".join(f"| `{_cell(name, code=True)}` | {_cell(text)} |" for name, text in records)
    yield f"| option | meaning |\n| --- | --- |\n{rows}"
    for name, below in sorted(command.commands.items()) if isinstance(command, click.Group) else ():
        yield from _sections(below, _context(below, name, context), f"{level}#")


def _prose(text: str | None) -> str:
    """Return a command's help as Markdown."""
    paragraphs = inspect.cleandoc(text or "").split("\n\n")
    return "\n\n".join(
        _as_written(inspect.cleandoc(paragraph.removeprefix(AS_WRITTEN)))
        if paragraph.startswith(AS_WRITTEN)
        else html.escape(paragraph, quote=False)
        for paragraph in paragraphs
    )


def _as_written(text: str) -> str:
    return f"```{'sh' if text.startswith('demoscale ') else 'text'}\n{text}\n```"


def _cell(text: str, code: bool = False) -> str:
    """Return a text as the cell of a table."""
    return " ".join((text if code else html.escape(text, quote=False)).split()).replace("|", r"\|")
