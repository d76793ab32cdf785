"""The command `demoscale score`, run in the process of the test."""

from pathlib import Path

from click.testing import CliRunner, Result

from orchestrator.cli.main import main


def score(*arguments: str | Path) -> Result:
    """Run `demoscale score`; where nothing has to be played it needs no Ray."""
    return CliRunner().invoke(main, ["score", *map(str, arguments)])
