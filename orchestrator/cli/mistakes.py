"""The errors a person can mend, answered by every command in the same way: their sentence and an exit code."""

import sys
import threading
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from orchestrator.redaction import redacted


def answers_mistakes(command: Callable[..., None]) -> Callable[..., None]:
    """Turn the errors a person can mend into their sentence and an exit code; anything else is a bug and keeps its traceback, without secrets."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        from orchestrator.config.sweep_config import SweepError
        from orchestrator.data.episode_format import EpisodeError
        from orchestrator.data.importers.base import SourceError
        from orchestrator.evaluation.scores import ProtocolError
        from orchestrator.infrastructure import EXIT_CODE, InfrastructureError
        from orchestrator.storage.base import StorageError
        from orchestrator.sweep.driver_lease import HeldError
        from orchestrator.tracking.mlflow_writer import TrackingError
        from sim_workers.checkout import CodeChangedError
        from sim_workers.envs.libero import LiberoMissingError
        from sim_workers.envs.robocasa import RobocasaError

        redact_tracebacks()
        try:
            command(*args, **kwargs)
        except click.ClickException as error:
            error.message = redacted(error.message)  # type: ignore[misc]  # what click prints
            raise
        except SweepError as error:
            click.echo(redacted(error), err=True)
            sys.exit(2)
        except (InfrastructureError, CodeChangedError) as error:
            click.echo(str(error), err=True)
            sys.exit(EXIT_CODE)
        except Exception as error:
            ours = EpisodeError, HeldError, LiberoMissingError, ProtocolError, RobocasaError, SourceError, StorageError, TrackingError
            if not isinstance(error, (*ours, *_of_heavy_modules())):
                raise
            click.echo(redacted(error), err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo("stopped; what was kept is kept, and the same command continues from it", err=True)
            sys.exit(130)

    return run


def redact_tracebacks() -> None:
    """Have this process print tracebacks of uncaught errors, in any thread, without secrets. Hooks that another module has set stay."""
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = lambda _kind, error, _trace: _print(error)
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = lambda failed: _print(failed.exc_value, failed.thread)


def _print(error: BaseException | None, thread: threading.Thread | None = None) -> None:
    if error is None or (thread and isinstance(error, SystemExit)):
        return
    where = f"Exception in thread {thread.name}:\n" if thread else ""
    sys.stderr.write(redacted(where + "".join(traceback.format_exception(error))))


def _of_heavy_modules() -> list[type[Exception]]:
    """Errors of modules that import torch or Ray, or that few commands need; nobody raised one who did not import them before."""
    known = (
        ("policy.weights", "WeightsError"),
        ("policy.checkpoint", "CheckpointError"),
        ("policy.finite", "NotFiniteError"),
        ("orchestrator.sweep.run", "UnfinishedError"),
        ("orchestrator.cluster.ray_jobs", "SubmitError"),
        ("orchestrator.cluster.code_bundle", "StagingError"),
    )
    return [getattr(sys.modules[module], name) for module, name in known if module in sys.modules]
