"""What several commands share: options of one name and meaning, how a table is printed, and what Ctrl-C means."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

STORAGE = click.option("--storage", default="runs", show_default=True, help="Folder or s3:// URI the sweep keeps its results in.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_wide(drawn: Any) -> None:
    """At its own width: a narrow terminal folds the lines, nothing is cut off."""
    from rich.console import Console

    Console(width=1000, highlight=False).print(drawn)


@contextmanager
def ctrl_c(work: Any) -> Iterator[None]:
    """Ctrl-C once: `work.interrupted` asks it to end in good order; twice: KeyboardInterrupt, now."""

    def interrupt(*_: Any) -> None:
        if work.interrupted:
            raise KeyboardInterrupt
        work.interrupted = True

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
