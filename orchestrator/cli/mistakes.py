"""User errors, reported by every command in the same way: the message and an exit code."""

import sys
import threading
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from orchestrator.redaction import redact
from policy.errors import DemoscaleError


def report_user_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Print the message of a DemoscaleError and exit with its code. Other errors are bugs: they keep their
    traceback, without secrets.
    """

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        redact_tracebacks()
        try:
            command(*args, **kwargs)
        except click.ClickException as error:
            error.message = redact(error.message)  # type: ignore[misc]  # what click prints
            raise
        except DemoscaleError as error:
            click.echo(redact(error), err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("stopped; progress is saved: run the same command to resume", err=True)
            sys.exit(130)

    return run


def argument_error(*problems: str) -> DemoscaleError:
    """Return the error of wrong arguments of the command that runs, one sentence each; its exit code is 2."""
    from orchestrator.config.sweep_config import SweepError

    return SweepError(click.get_current_context().command_path, list(problems))


def redact_tracebacks() -> None:
    """Have this process print tracebacks of uncaught errors, in any thread, without secrets. Hooks that
    another module has set stay.
    """
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = lambda _kind, error, _trace: _print(error)
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = lambda failed: _print(failed.exc_value, failed.thread)


def _print(error: BaseException | None, thread: threading.Thread | None = None) -> None:
    if error is None or (thread and isinstance(error, SystemExit)):
        return
    where = f"Exception in thread {thread.name}:\n" if thread else ""
    sys.stderr.write(redact(where + "".join(traceback.format_exception(error))))
