"""What several commands share: options of one name and meaning, how a table is printed, and what Ctrl-C
means.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

HELP = {"help_option_names": ["-h", "--help"]}
"""Settings of commands that are also programs of their own, `python -m jobs.*`; others have the group's."""
STORAGE = click.option(
    "--storage", default="runs", show_default=True, help="Folder or s3:// URI the sweep keeps its results in."
)
SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Override a field, e.g. --set train.steps=200. Repeatable.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


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
