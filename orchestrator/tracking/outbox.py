"""The outbox: records for MLflow, kept on disk until they are published, so that neither an outage nor a
killed process loses one.

<folder>/<time>-<process>.jsonl      journal of one process: a record per line, append-only; the first line
                                     has the sweep's MlflowWriter arguments
<folder>/<time>-<process>.told       number of bytes of the journal that are published
<folder>/<time>-<process>/000007     data of a record
<folder>/<time>-<process>.refused    records that are damaged or that MLflow refuses, with the reason
<folder>/<time>-<process>.damaged    journal whose first line is damaged, so that its sweep is unknown
<folder>/telling                     locked by the one process that publishes

A process holds a lock on its journal while it lives; a published journal without a process is removed. Writes
rely on the system's page cache: records lost in a power failure are in the sweep's storage, and `demoscale
status NAME --rebuild` publishes them again.
"""

import fcntl
import json
import os
import shutil
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from orchestrator.tracking.mlflow_writer import TrackingError


class DamagedOutboxError(Exception):
    """The first line of a journal is damaged, as a power failure may leave it."""


class OutboxWriter:
    """The journal of this process; any number of threads may write."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        """Create and lock the journal. about: its first line. Raises TrackingError if the disk cannot be
        written.
        """
        self._lock, self._notes = threading.Lock(), 0
        name = f"{_time_after(folder):020d}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.path, self._data, part = folder / f"{name}.jsonl", folder / name, folder / f"{name}.part"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = part.open("xb", buffering=0)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self.size = 0
            self._write(about)
            self.begin = self.size
            part.rename(self.path)  # found by others only once it is locked
        except OSError as error:
            raise _unwritable(folder, error) from None

    def append(self, note: dict[str, Any], data: bytes | None = None) -> None:
        """Append a record, with `data` in a file of its own. Raises TrackingError if the disk cannot be
        written.
        """
        with self._lock:
            try:
                if data is not None:
                    self._data.mkdir(exist_ok=True)
                    self._notes += 1
                    (self._data / f"{self._notes:06d}").write_bytes(data)
                    note = {**note, "data": f"{self._notes:06d}"}
                self._write(note)
            except OSError as error:
                raise _unwritable(self.path.parent, error) from None

    def close(self) -> None:
        """Release the lock: the publishing process may remove the journal."""
        self._file.close()

    def _write(self, note: dict[str, Any]) -> None:
        line = json.dumps(note).encode() + b"\n"
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(28, "No space left on device")
        except OSError:
            os.ftruncate(self._file.fileno(), self.size)  # no partial line before the next one
            self._file.seek(self.size)  # and no hole
            raise
        self.size += len(line)


def _time_after(folder: Path) -> int:
    """Return the present time in ns, or one after that of the folder's newest journal if the clock was set
    back since: journals are published in the order of their names.
    """
    newest = max((path.name.partition("-")[0] for path in journals(folder)), default="")
    return max(time.time_ns(), int(newest) + 1 if newest.isdigit() else 0)


def _unwritable(folder: Path, error: OSError) -> TrackingError:
    return TrackingError(
        f"{folder}: the records for MLflow cannot be written here ({error.strerror}); free disk space or fix"
        " the permissions"
    )


class OutboxReader:
    """A journal as read by the publishing process; the constructor raises DamagedOutboxError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._told, self._data, self._refused = (
            path.with_suffix(".told"),
            path.with_suffix(""),
            path.with_suffix(".refused"),
        )
        self._file = path.open("rb")
        header = self._file.readline()
        about = _object(header)
        if about is None:
            self._file.close()
            raise DamagedOutboxError(path)
        self.about = about
        told = _number(self._told)
        self.told = told if len(header) <= told <= path.stat().st_size else len(header)

    def next(self) -> tuple[dict[str, Any] | None, int] | None:
        """Return the first unpublished record, None for a damaged one, with its end in bytes; None if there
        is no complete record.

        A killed process may leave a partial last line, which is skipped.
        """
        self._file.seek(self.told)
        line = self._file.readline()
        if not line.endswith(b"\n"):
            return None
        note = _object(line)
        if note is None or "do" not in note:
            return None, self.told + len(line)
        if name := note.pop("data", ""):
            path = self._data / name
            note["data"], note["file"] = path.read_bytes() if path.exists() else None, name
        return note, self.told + len(line)

    def advance(self, end: int, file: str = "") -> None:
        """Mark everything up to byte `end` as published, and delete the record's data file."""
        part = self._told.with_suffix(".told-part")
        part.write_text(str(end))
        part.replace(self._told)
        self.told = end
        if file:
            (self._data / file).unlink(missing_ok=True)

    def refuse(self, note: dict[str, Any], why: str) -> None:
        """Write a record that cannot be published to the `.refused` file, with the reason."""
        with self._refused.open("a") as refused:
            refused.write(
                json.dumps(
                    {key: value for key, value in note.items() if not isinstance(value, bytes)} | {"why": why}
                )
                + "\n"
            )

    @property
    def left(self) -> int:
        """Number of unpublished records."""
        self._file.seek(self.told)
        return self._file.read().count(b"\n")

    @property
    def deserted(self) -> bool:
        """Whether no process holds the journal's lock."""
        with self.path.open("rb") as file, suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    @property
    def cut(self) -> bool:
        """Whether the journal ends in a partial line."""
        self._file.seek(self.told)
        return bool(self._file.read().rpartition(b"\n")[2])

    def remove(self) -> None:
        """Delete the journal with its data; the data stays if there are refused records."""
        self._file.close()
        self.path.unlink(missing_ok=True)
        self._told.unlink(missing_ok=True)
        if not self._refused.exists():
            shutil.rmtree(self._data, ignore_errors=True)


def _number(path: Path) -> int:
    """Return the number in a file; 0 if it is missing or damaged, since publishing a record twice changes
    nothing.
    """
    try:
        return int(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return 0


def _object(line: bytes) -> dict[str, Any] | None:
    """Return a line's JSON object; None if it is damaged."""
    try:
        told = json.loads(line)
    except ValueError:
        return None
    return told if isinstance(told, dict) else None


def set_aside(journal: Path) -> Path:
    """Rename a damaged journal so that it is not read again; return its new path."""
    aside = journal.with_suffix(".damaged")
    journal.rename(aside)
    return aside


def delivered_file(journal: Path) -> int:
    """Return the number of published bytes of a journal, for other processes."""
    return _number(journal.with_suffix(".told"))


def journals(folder: Path) -> list[Path]:
    """Return the paths of the folder's journals in the order of their creation."""
    return sorted(folder.glob("*.jsonl"))
