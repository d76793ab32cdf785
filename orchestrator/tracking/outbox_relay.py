"""Publishes the journals to MLflow in a thread of its own, in order, with retries: training and scoring never
wait for a server.

If several processes run or inspect one sweep, one of them at a time publishes for all.
"""

import fcntl
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from orchestrator.tracking.mlflow_writer import MlflowWriter, TrackingError
from orchestrator.tracking.outbox import (
    DamagedOutboxError,
    OutboxReader,
    OutboxWriter,
    delivered_file,
    journals,
    set_aside,
)
from orchestrator.tracking.outbox_records import OutboxRecord, from_note, to_note
from orchestrator.tracking.tracking_errors import is_rejected, reason, redacted

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
"""Seconds of pause after the first failed attempt, and at most; the pause doubles with every failure."""
TELL_AFTER = 3
"""Consecutive failed attempts after which an outage is reported."""
LOOK_S = 1.0
"""Seconds between two checks: of an idle publisher for other processes' records, of any other for the
publisher's lock.
"""

MEND = "`demoscale status NAME --rebuild` publishes it from the storage"


@dataclass(frozen=True, kw_only=True)
class OutboxSettings:
    """How long the end of a run waits until the outbox is empty."""

    patience_s: float = 30.0
    """Seconds without a delivered record after which the wait ends, if MLflow fails or another process
    delivers.
    """
    longest_wait_s: float = 300.0
    """Seconds after which the wait ends in any case, however slowly records are delivered."""


DEFAULT_OUTBOX = OutboxSettings()


class OutboxRelay:
    """A process's publisher to MLflow. `enqueue` returns at once and may be called by any thread; must
    be closed.
    """

    def __init__(
        self,
        uri: str,
        folder: Path,
        about: dict[str, Any],
        say: Callable[[str], None] = lambda _: None,
        open_tracker: Callable[..., Any] = MlflowWriter,
        settings: OutboxSettings = DEFAULT_OUTBOX,
    ) -> None:
        """about: arguments of a MlflowWriter, without the URI. say: receives a line on each outage, recovery,
        and refused or damaged record.
        """
        self._uri, self._folder, self._say, self._open, self._settings = (
            uri,
            folder,
            say,
            open_tracker,
            settings,
        )
        self._journal = OutboxWriter(folder, about)
        # Journals of versions without a store lie in the same folder and belong to the same storage.
        self._defaults = {"store": about["store"]} if "store" in about else {}
        self._readings: dict[Path, OutboxReader] = {}
        self._tracker: tuple[str, Any] = "", None
        self._news = threading.Condition()
        self._over = self._urged = self._doubts = False
        self._moved = self._failures = 0
        self.refused = 0
        """Number of records that are damaged or that MLflow refuses."""
        self.problem = ""
        """Cause of the last attempt's failure; empty if it succeeded."""
        self.telling = False
        """Whether this process holds the publisher's lock."""
        self.failure: BaseException | None = None
        """Exception that ended the thread; None while there is none."""
        self._thread = threading.Thread(target=self._guarded, name="outbox-relay", daemon=True)
        self._thread.start()

    def enqueue(self, record: OutboxRecord) -> None:
        """Enqueue a record. Raises TrackingError if the journal cannot be written."""
        self._journal.append(*to_note(record))
        with self._news:
            self._news.notify_all()

    @property
    def left(self) -> int:
        """Number of unpublished records in all journals."""
        number = 0
        for path in journals(self._folder):
            try:
                number += OutboxReader(path).left
            except (FileNotFoundError, DamagedOutboxError):
                continue  # published and removed just now, or about to be set aside
        return number

    def wait(self, patience_s: float | None = None) -> bool:
        """Wait until all earlier records are delivered; return False if a limit of the settings is reached.

        patience_s: overrides the setting.
        """
        patience_s = self._settings.patience_s if patience_s is None else patience_s
        goal, began = self._journal.size, time.monotonic()
        moved_at, before = began, (-1, -1)
        with self._news:
            self._urged = True
            self._news.notify_all()
        while max(delivered_file(self._journal.path), self._journal.begin) < goal:
            now, moved = time.monotonic(), (self._moved, delivered_file(self._journal.path))
            if moved != before:
                moved_at, before = now, moved
            stuck = bool(self.problem) or not self.telling
            if (
                not self._thread.is_alive()
                or (stuck and now - moved_at > patience_s)
                or now - began > self._settings.longest_wait_s
            ):
                return False
            time.sleep(0.02)
        return True

    def close(self) -> None:
        """Stop publishing; unpublished records stay on disk. Waits for 1 s at most, so the current record may
        be published again later.
        """
        with self._news:
            self._over = True
            self._news.notify_all()
        self._journal.close()
        self._thread.join(1.0)

    def _guarded(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.failure = error

    def _run(self) -> None:
        with (self._folder / "telling").open("a") as lock:
            pause = FIRST_PAUSE_S
            while not self._over:
                seen = self._journal.size
                if not self._alone(lock):
                    self._rest(LOOK_S, seen)
                    continue
                try:
                    told = self._tell_next()
                    if not told and self._doubts and self._tracker[1]:
                        self._tracker[1].remove_duplicates()
                        self._doubts = False
                except Exception as error:
                    self._failed(error)
                    self._rest(pause)
                    pause = min(2 * pause, LONGEST_PAUSE_S)
                    continue
                pause = FIRST_PAUSE_S
                if not told:
                    self._rest(LOOK_S, seen)
            if self.telling:
                self._tidy()

    def _alone(self, lock: IO[str]) -> bool:
        if not self.telling:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self.telling = True
        return True

    def _rest(self, seconds: float, seen: int | None = None) -> None:
        """Sleep for `seconds`; return early on `close`, on `wait`, or once the own journal is larger than
        `seen`.
        """
        with self._news:
            self._news.wait_for(
                lambda: self._over or self._urged or (seen is not None and self._journal.size > seen), seconds
            )
            self._urged = False

    def _tell_next(self) -> bool:
        """Publish the oldest unpublished record; return whether there was one."""
        for path in journals(self._folder):
            if path not in self._readings:
                try:
                    self._readings[path] = OutboxReader(path)
                except DamagedOutboxError:
                    self._say(
                        f"{set_aside(path)}: its first line is damaged, so its records are not published;"
                        f" {MEND}"
                    )
                    continue
            reading = self._readings[path]
            if found := reading.next():
                note, end = found
                if note is None:
                    self._set_aside(reading, end)
                else:
                    self._tell(reading, note, end)
                return True
            if path != self._journal.path and reading.deserted and not reading.next():
                if reading.cut:
                    self._say(f"{path}: its last record was cut off and is lost; {MEND}")
                self._readings.pop(path).remove()
        return False

    def _set_aside(self, reading: OutboxReader, end: int) -> None:
        """Note a damaged record in the `.refused` file and continue after it."""
        reading.refuse({"begin": reading.told, "end": end}, "damaged")
        self.refused += 1
        self._say(f"{reading.path}: the record at byte {reading.told} is damaged and not published; {MEND}")
        reading.advance(end)
        self._moved += 1

    def _tell(self, reading: OutboxReader, note: dict[str, Any], end: int) -> None:
        kept = ""
        try:
            self._apply(reading, note)
        except Exception as error:
            if not is_rejected(error):
                raise
            kept = redacted(str(error))
            reading.refuse(note, kept)
            self.refused += 1
            self._say(f"MLflow refuses a {note['do']} record, which is kept in {reading.path.parent}: {kept}")
        reading.advance(end, "" if kept else note.get("file", ""))
        self._moved += 1
        if self._failures >= TELL_AFTER:
            self._say(f"MLflow answers again; {self.left} records are still to be published")
        self.problem, self._failures = "", 0

    def _apply(self, reading: OutboxReader, note: dict[str, Any]) -> None:
        """Deliver a record. Raises ValueError if this version has no such record, and what MLflow raises if
        it refuses the record or fails.
        """
        record = from_note(note)
        tracker = self._tracker_of(reading.about)
        try:
            record.apply(tracker)
        except Exception as error:
            if not is_rejected(error):
                raise
            # The tracker's state may be outdated, for example if a user deleted a run: retry with a new one.
            self._tracker = "", None
            record.apply(self._tracker_of(reading.about))

    def _tracker_of(self, about: dict[str, Any]) -> Any:
        about = self._defaults | about
        key = json.dumps(about, sort_keys=True)
        try:
            if self._tracker[0] != key:
                self._tracker = key, self._open(self._uri, **about)
            self._tracker[1].open()
        except TrackingError as error:
            raise _NotOpenError(str(error)) from None
        except Exception as error:
            raise _NotOpenError(reason(error)) from None
        return self._tracker[1]

    def _failed(self, error: Exception) -> None:
        self.problem = str(error) if isinstance(error, _NotOpenError) else reason(error)
        self._doubts, self._failures = True, self._failures + 1
        if self._failures == TELL_AFTER:
            self._say(f"MLflow {self.problem}; records wait in {self._folder} until it answers")

    def _tidy(self) -> None:
        """Remove the own journal if it is published."""
        reading = self._readings.get(self._journal.path) or OutboxReader(self._journal.path)
        if not reading.next() and reading.told >= self._journal.size:
            reading.remove()


class _NotOpenError(OSError):
    """No tracker can be opened now; the record is not at fault."""
