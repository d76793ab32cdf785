"""The command `demoscale`, one of whose threads fails on SIGUSR1.

    python -m stress.faulty_driver run sweep.yaml

The signal raises an error in the thread that watches for Ctrl-C, the budget and failed threads, wherever that
thread is, as a fault in its own code would.
"""

import ctypes
import signal
import threading
from typing import Any

from orchestrator.cli.main import main

WATCHER = "watch"
"""Part of the thread's name."""


class InjectedError(Exception):
    """The fault."""


def fail_watcher(*_: Any) -> None:
    """Raise InjectedError in the watching thread; does nothing while there is none."""
    for thread in threading.enumerate():
        if WATCHER in thread.name and thread.ident:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident), ctypes.py_object(InjectedError)
            )


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, fail_watcher)
    main()
