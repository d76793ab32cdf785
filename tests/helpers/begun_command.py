"""A command that a test interrupts, or kills, in its middle."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.provenance import CHECKOUT
from polling import until

READY_S = 300


@dataclass(frozen=True)
class BegunCommand:
    """A running command, in a process group of its own; its output goes to files in `folder`."""

    process: "subprocess.Popen[bytes]"
    folder: Path

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return (self.folder / "stdout").read_text()

    @property
    def stderr(self) -> str:
        """What it has printed on stderr so far."""
        return (self.folder / "stderr").read_text()

    def kill(self) -> None:
        """Kill it and the processes that it started with SIGKILL."""
        with suppress(ProcessLookupError):  # all of them have ended
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def begin(
    arguments: Sequence[str],
    folder: Path,
    ready: Callable[[], object],
    variables: Mapping[str, str] | None = None,
) -> BegunCommand:
    """Start Python with these arguments in the checkout; return once `ready` returns a true value, which must
    be within READY_S seconds and before the command ends. folder: a new one, for its output. variables:
    environment variables besides this process's own.
    """
    folder.mkdir()
    with (folder / "stdout").open("w") as out, (folder / "stderr").open("w") as err:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=CHECKOUT,
            env={**os.environ, **(variables or {})},
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    begun = BegunCommand(process, folder)
    try:
        until(lambda: ready() or process.poll() is not None, READY_S, pause_s=0.02)
        assert ready(), f"exit code {process.returncode} before it was ready"
    except BaseException:
        begun.kill()
        print(begun.stdout, begun.stderr)
        raise
    return begun
