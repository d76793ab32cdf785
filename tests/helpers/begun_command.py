"""A command that a test interrupts, or kills, in its middle."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.provenance import CHECKOUT


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
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def begin(
    arguments: Sequence[str],
    ready: Callable[[], object],
    variables: Mapping[str, str] | None = None,
    seconds: float = 300,
) -> BegunCommand:
    """Start Python with these arguments in the checkout; return once `ready` returns a true value.

    variables: environment variables besides this process's own. seconds: the time within which it must be
    ready. It must not end before.
    """
    folder = Path(tempfile.mkdtemp(prefix="command-"))
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
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, f"it ended too early: {begun.stdout}{begun.stderr}"
        assert time.monotonic() < deadline, f"not ready in time: {begun.stdout}{begun.stderr}"
        time.sleep(0.02)
    return begun
