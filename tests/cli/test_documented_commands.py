"""Every `demoscale` command that is shown in documentation, in comments of files to copy from and in help
texts exists, with the options that it is shown with.
"""

import re
import shlex
import subprocess
from collections.abc import Iterator

import click
import pytest
from conftest import CHECKOUT

from orchestrator.cli.main import main

SHOWN_IN = ("*.md", "*.yaml", "*.sh", "examples/*.py", "jobs/*.py", "orchestrator/*.py", "Makefile")
COMMANDS = "|".join(main.commands)  # other lines that begin with `demoscale` are sentences
WHOLE_LINE = re.compile(
    rf"^[#\s]*(?:docker compose \S+ \S+ exec \S+ )?(demoscale (?:{COMMANDS})\b.*)$", re.MULTILINE
)
INLINE = re.compile(r"`(demoscale [a-z][^`]*)`")
OTHER_PROGRAMS = re.compile(r"\s(?:\||&&|>|;)\s|\s{2,}|\s#|;\s")


def shown(pattern: re.Pattern[str]) -> Iterator[str]:
    """Commands in the tracked files, without comments and what they are piped to."""
    files = subprocess.run(
        ["git", "ls-files", *SHOWN_IN], cwd=CHECKOUT, capture_output=True, text=True, check=True
    ).stdout.split()
    for name in files:
        if name == "CHANGELOG.md":  # `demoscale plan | run | status`
            continue
        text = re.sub(r"\\\n[#\s]*", "", (CHECKOUT / name).read_text())
        text = re.sub(r"\$\([^)]*\)", "VALUE", text)
        yield from (OTHER_PROGRAMS.split(found)[0] for found in pattern.findall(text))


def resolved(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the words name, and its arguments."""
    command: click.Command = main
    while isinstance(command, click.Group) and words:
        name, *words = words
        assert name in command.commands, f"there is no command {name}"
        command = command.commands[name]
    return command, words


@pytest.mark.parametrize("line", sorted({*shown(WHOLE_LINE)}))
def test_documented_command_on_its_own_line_is_complete(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265")
    command, arguments = resolved(shlex.split(line)[1:])
    if "--contract-of" not in arguments:  # acts while arguments are parsed
        command.make_context("demoscale", arguments)


@pytest.mark.parametrize("line", sorted({*shown(INLINE)}))
def test_documented_command_in_a_sentence_has_known_options(line: str) -> None:
    command, arguments = resolved(shlex.split(line)[1:])
    command.make_parser(click.Context(command, **command.context_settings)).parse_args([*arguments, "VALUE"])
