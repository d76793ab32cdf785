"""Lease that admits one driver per sweep and storage: a second one is refused, or takes over.

leases/<sweep>/000001.json    a driver; the highest number holds the sweep. Claimed with a conditional write,
                              so of two drivers one gets it
leases/<sweep>/000001.beat    rewritten by the holder every BEAT_S seconds, and once more when it ends; it
                              says whether the holder still waits for the driver before it

No clock is compared with another machine's: a new driver polls the beat, and a holder whose beat is unchanged
for LEASE_S counts as gone.
"""

import getpass
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.storage.base import NoObject, Storage, StorageError, check_conditional_writes, claim
from orchestrator.storage.notes import read_json_object
from policy.errors import DemoscaleError

BEAT_S = 5.0
"""Seconds between two writes of the beat."""
LEASE_S = 30.0
"""Seconds without a new beat after which a holder counts as gone."""
OVER = "over"
"""Beat of a driver that has ended."""
WAITS = "waits"
"""Beginning of the beats of a driver that waits for the end of the one before it."""
LEFT = f"{WAITS} no more"
"""Beat of a driver that ended while it waited, so that the one before it may still run."""


class HeldError(DemoscaleError):
    """Error if another driver holds the sweep: one sentence that names it and the fix."""


@dataclass(frozen=True)
class Holder:
    """Identity of a driver process."""

    run: str
    host: str
    pid: int
    place: str
    """Boot id of the machine and its pid namespace: equal for processes that can see each other."""
    started: str
    """Start time of the process in ticks since boot, empty if unknown; distinguishes it from a later process
    with the same pid.
    """
    user: str

    @classmethod
    def here(cls) -> "Holder":
        """Describe the calling process."""
        return cls(
            uuid.uuid4().hex[:12], socket.gethostname(), os.getpid(), _place(), _started(os.getpid()), _user()
        )

    @property
    def dead(self) -> bool:
        """Whether the process has certainly ended; False also where this machine cannot know."""
        return self.place == _place() and bool(self.started) and _started(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, of {self.user}"


class Lease:
    """Lease of a driver on a sweep, renewed while the context is open."""

    def __init__(
        self,
        storage: Storage,
        sweep: str,
        on_lost: Callable[[str], None],
        beat_s: float = BEAT_S,
        lease_s: float = LEASE_S,
    ) -> None:
        """Prepare a lease. on_lost(why): called in a thread once another driver takes over. beat_s, lease_s:
        seconds, as BEAT_S and LEASE_S.
        """
        self._storage, self._sweep, self._on_lost, self._beat_s, self._lease_s = (
            storage,
            sweep,
            on_lost,
            beat_s,
            lease_s,
        )
        self._holder, self._number, self._beats = Holder.here(), 0, 0
        self._waiting = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def claim(self, say: Callable[[str], None] = lambda line: None, take_over: bool = False) -> "Lease":
        """Become the sweep's driver. Raises HeldError if another driver holds it; take_over: have that driver
        end and wait for it instead.
        """
        check_conditional_writes(self._storage)
        while True:
            number = self._latest()
            running = self._running(number, say)
            if running and not take_over:
                raise HeldError(
                    f"{self._sweep}: {running} runs it; wait for its end, stop it there with Ctrl-C, or"
                    " end it from here with --take-over"
                )
            if claim(self._storage, self._key(number + 1), json.dumps(asdict(self._holder)).encode()):
                self._number = number + 1
                if running:
                    say(f"takes over from {running}, which saves its state and ends")
                    self._wait_for(number)
                return self

    def held(self, say: Callable[[str], None] = lambda line: None) -> bool:
        """Return whether a driver runs the sweep; claims nothing."""
        return self._running(self._latest(), say) is not None

    def __enter__(self) -> "Lease":
        if not self._thread.is_alive():
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._end(OVER)

    def _end(self, beat: str) -> None:
        self._closing.set()
        self._thread.join(self._beat_s)
        try:
            self._storage.put(self._key(self._number, "beat"), beat.encode())
        except StorageError:  # the next driver waits until the lease expires
            return

    def _key(self, number: int, kind: str = "json") -> str:
        return f"leases/{self._sweep}/{number:06d}.{kind}"

    def _latest(self) -> int:
        """Return the highest claimed number; 0 if none is claimed."""
        keys = [key for key in self._storage.list(f"leases/{self._sweep}/") if key.endswith(".json")]
        return int(Path(keys[-1]).stem) if keys else 0

    def _holder_of(self, number: int) -> Holder:
        data = read_json_object(self._storage, self._key(number))
        # a later version may say more
        return Holder(**{field.name: data[field.name] for field in fields(Holder)})

    def _running(self, number: int, say: Callable[[str], None]) -> Holder | None:
        """Return the driver that runs the sweep, that of the highest number or one that it waited for; None
        if none does.
        """
        while number:
            if not self._gone(number, holder := self._holder_of(number), say):
                return holder
            number = self._before(number)
        return None

    def _before(self, number: int) -> int:
        """Return the number of the driver that the one of this number waited for; 0 if it had the sweep."""
        beat = self._beat_of(number).decode()
        return number - 1 if not beat or beat.startswith(WAITS) else 0

    def _beat_of(self, number: int) -> bytes:
        try:
            return self._storage.get(self._key(number, "beat"))
        except NoObject:
            return b""

    def _gone(self, number: int, holder: Holder, say: Callable[[str], None]) -> bool:
        """Return whether a holder has ended; polls its beat for up to LEASE_S where that is needed to
        know.
        """
        seen = self._beat_of(number)
        if _is_end(seen) or holder.dead:
            return True
        if holder.place == _place():
            return False
        say(f"{holder} ran this sweep last; looks for {self._lease_s:.0f} s whether it still does")
        return self._stands_still(number, seen)

    def _wait_for(self, number: int) -> None:
        """Return once the driver of this number, and one that it waited for, has ended, or its beat is
        unchanged for LEASE_S. Beats meanwhile, so that no other driver takes this one for gone.
        """
        self._waiting = True
        self._thread.start()
        try:
            while number:
                while not _is_end(seen := self._beat_of(number)) and not self._stands_still(number, seen):
                    continue
                number = self._before(number)
        except BaseException:
            self._end(LEFT)
            raise
        self._waiting = False

    def _stands_still(self, number: int, seen: bytes) -> bool:
        """Return True if the beat stays `seen` for LEASE_S or reports the end, False as soon as it changes
        otherwise.
        """
        until = time.monotonic() + self._lease_s
        while time.monotonic() < until:
            time.sleep(min(self._beat_s, self._lease_s) / 5)
            if (now := self._beat_of(number)) != seen:
                return _is_end(now)
        return True

    def _keep(self) -> None:
        lost = False
        while True:
            try:
                number = self._latest()
                if number > self._number and not lost:
                    holder, lost = self._holder_of(number), True
                    self._on_lost(f"{holder} takes the sweep over")
                self._beats += 1  # also while this driver ends: the other one waits for that
                beat = f"{WAITS} {self._beats}" if self._waiting else str(self._beats)
                self._storage.put(self._key(self._number, "beat"), beat.encode())
            except StorageError:  # code that needs the storage reports the error
                pass
            if self._closing.wait(self._beat_s):
                return


def _is_end(beat: bytes) -> bool:
    return beat in (OVER.encode(), LEFT.encode())


@cache
def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # another system than Linux
        return socket.gethostname()


def _started(pid: int) -> str:
    """Return the ticks from the machine's boot to the start of a process; empty if there is no such
    process.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]  # a killed process stays listed until its parent reaps it


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
