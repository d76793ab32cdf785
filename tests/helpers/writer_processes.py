"""Processes that write to one storage, all started at the same moment."""

import os
import subprocess
import sys

from conftest import CHECKOUT

from orchestrator.storage.base import Storage


def writer(code: str, storage: Storage, first: int, last: int) -> subprocess.Popen[str]:
    """Start a process that runs `code` with the arguments URI, first, last; it prints "ready", and writes
    once it reads a line.
    """
    return subprocess.Popen(
        [sys.executable, "-c", code, storage.uri, str(first), str(last)],
        cwd=CHECKOUT,
        env=os.environ | {"PYTHONPATH": "tests/helpers"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def line(process: subprocess.Popen[str]) -> str:
    """Return the next printed line."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def start(*processes: subprocess.Popen[str]) -> None:
    """Release all processes as soon as all are ready."""
    for process in processes:
        assert line(process) == "ready"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
