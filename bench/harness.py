"""What every bench shares: its end, which leaves no process behind, and measuring by turns.

Three processes run a bench: a guard that the caller started, a second guard, and the process that works. Each
guard adopts the orphans below it and kills every descendant when the process below it has ended. The guards
watch each other, so that any of the three may be killed with SIGKILL: the others end what is left.
"""

import ctypes
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from types import FrameType
from typing import TypeVar

import click
import psutil

GRACE_S = 5
"""Seconds between a request to end and SIGKILL: the worker removes its files and shuts Ray down."""
FOLDER = "DEMOSCALE_BENCH_FOLDER"
"""Environment variable with the folder of temporary files of a bench and of all processes that it starts."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h

T = TypeVar("T")


# -- processes -----------------------------------------------------------------------------------------------


def run(main: click.Command) -> None:
    """Run the command of a bench such that it leaves neither processes nor temporary files, however
    it ends.
    """
    contain()
    main()


def contain() -> None:
    """Go on in a child process whose descendants all end with it. Only the child returns from this call."""
    folder = _own_folder()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # the child would write what is buffered a second time
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until each process has its handlers
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    caller = os.getpid()
    if guard := os.fork():
        os._exit(_guard(guard, 2 * GRACE_S, folder))
    os.setsid()  # Ctrl-C reaches the first guard alone, which forwards it
    _die_with(caller, signal.SIGTERM)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    second = os.getpid()
    if worker := os.fork():
        os._exit(_guard(worker, GRACE_S, folder))
    _die_with(second, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _exit)
    signal.signal(signal.SIGHUP, _exit)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _own_folder() -> Path | None:
    """Create the folder of temporary files, unless the process that started this one has done so; None in
    that case.
    """
    if FOLDER in os.environ:
        return None
    folder = tempfile.mkdtemp(prefix="bench-")
    os.environ |= {FOLDER: folder, "TMPDIR": folder}  # Ray keeps its sessions below TMPDIR
    tempfile.tempdir = folder
    return Path(folder)


def _guard(child: int, grace_s: int, folder: Path | None) -> int:
    """Wait for the child, forward signals to it, then kill every descendant. Returns the exit status for this
    process.
    """

    def forward(signum: int, _: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, signum)
        if not signal.getitimer(signal.ITIMER_REAL)[0]:
            signal.alarm(grace_s)

    def overdue(*_: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)

    for signum in _SIGNALS:
        signal.signal(signum, forward)
    signal.signal(signal.SIGALRM, overdue)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    reaped = 0
    while reaped != child:  # orphans that this process has adopted come by as well
        reaped, status = os.waitpid(-1, 0)
    signal.alarm(0)
    for signum in _SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    _end_descendants()
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _end_descendants(patience_s: float = 30.0) -> None:
    """Kill until there are none: a process may fork between the look at the process table and its end."""
    deadline = time.monotonic() + patience_s
    while (left := psutil.Process().children(recursive=True)) and time.monotonic() < deadline:
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.02)


def _die_with(parent: int, signum: int) -> None:
    """Have the kernel send `signum` to this process when its parent ends."""
    _prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:  # it ended before the kernel knew
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")


def _exit(signum: int, _: FrameType | None) -> None:
    raise SystemExit(128 + signum)


# -- measuring by turns --------------------------------------------------------------------------------------


def interleaved(arms: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Call every arm once per round, in every second round backwards, so that drift meets all alike. Returns
    the answers, round by round.
    """
    answers: dict[str, list[T]] = {name: [] for name in arms}
    for number in range(rounds):
        for name in list(arms)[:: -1 if number % 2 else 1]:
            answers[name].append(arms[name]())
    return answers


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median of the ratios of one round each, which a change of the machine's speed between rounds leaves as
    they are.
    """
    return median(above / below for above, below in zip(numerators, denominators, strict=True))
