"""The command `demoscale score` in the process of the test."""

from pathlib import Path

from click.testing import CliRunner, Result

from orchestrator.cli.main import main


def score(*arguments: str | Path) -> Result:
    """Run `demoscale score`; it needs no Ray where nothing has to be played."""
    return CliRunner().invoke(main, ["score", *map(str, arguments)])
