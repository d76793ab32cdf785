"""What every command does with the terminal: progress bars, tables, Ctrl-C."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


def progress_bar(doing: str, console: "Console | None" = None, disable: bool = False) -> "Progress":
    """Return a progress bar: description, count, elapsed and remaining time."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(doing),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=disable)


def print_wide(drawn: Any) -> None:
    """At its own width: a narrow terminal folds the lines, nothing is cut off."""
    from rich.console import Console

    Console(width=1000, highlight=False).print(drawn)


@contextmanager
def graceful_interrupt(work: Any) -> Iterator[None]:
    """Ctrl-C once, or SIGTERM, which is how clusters ask: `work.interrupted` asks it to end in good order;
    twice: KeyboardInterrupt, now.
    """

    def interrupt(*_: Any) -> None:
        if work.interrupted:
            raise KeyboardInterrupt
        work.interrupted = True

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
