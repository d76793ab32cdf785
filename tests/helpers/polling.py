"""Polling for a condition."""

import time
from collections.abc import Callable
from typing import Any


def until(what: Callable[[], Any], seconds: float = 240.0, pause_s: float = 0.05) -> Any:
    """Call `what` until it returns a true value, and return that."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(pause_s)
    return found
