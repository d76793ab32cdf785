"""Commands of `demoscale` one after another in one process, so that packages are imported, and Ray is started, once for
all of them.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.provenance import CHECKOUT

SESSION = """
import json, sys
from click.testing import CliRunner
from orchestrator.cli.main import main
for arguments in json.load(sys.stdin):
    done = CliRunner().invoke(main, arguments)
    print("answer", json.dumps([" ".join(arguments), done.exit_code, done.stdout, done.stderr]), flush=True)
"""


@dataclass(frozen=True)
class Answer:
    """What a command printed, and its exit code."""

    command: str
    exit_code: int
    stdout: str
    stderr: str


def answers(
    commands: Iterable[Sequence[str]], folder: Path = CHECKOUT, variables: Mapping[str, str] | None = None
) -> list[Answer]:
    """Run commands in `folder`, with these environment variables as well; return their answers."""
    commands = [[*command] for command in commands]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SESSION],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), **(variables or {})},
        input=json.dumps(commands),
        capture_output=True,
        text=True,
    )
    lines = [line.removeprefix("answer ") for line in done.stdout.splitlines() if line.startswith("answer ")]
    assert len(lines) == len(commands), done.stdout + done.stderr
    return [Answer(*json.loads(line)) for line in lines]


def outputs(
    commands: Iterable[Sequence[str]], folder: Path = CHECKOUT, variables: Mapping[str, str] | None = None
) -> list[str]:
    """Run commands as `answers` does; return what they printed on stdout. Every one must succeed."""
    told = answers(commands, folder, variables)
    for answer in told:
        assert answer.exit_code == 0, answer
    return [answer.stdout for answer in told]
