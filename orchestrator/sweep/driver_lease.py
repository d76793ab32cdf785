"""One driver per sweep and storage: a second one is refused, or takes over.

leases/<sweep>/000001.json    who holds the sweep; the highest number does. Claimed with a conditional write, so of two drivers one gets it
leases/<sweep>/000001.beat    rewritten by the holder every few seconds, and once more when it ends

No clock is compared with another machine's: a newcomer watches the beat, and a holder whose beat stands still for LEASE_S is gone.
"""

import getpass
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.storage.base import NoObject, Storage, StorageError, check_conditional_writes, claim
from policy.errors import DemoscaleError

BEAT_S = 5.0
"""Seconds between two beats."""
LEASE_S = 30.0
"""Seconds without a beat after which a holder counts as gone."""
OVER = "over"


class HeldError(DemoscaleError):
    """One sentence: who runs the sweep, and what to do."""


@dataclass(frozen=True)
class Holder:
    """A driver."""

    run: str
    host: str
    pid: int
    place: str
    """The machine's boot and the namespace of its process ids: equal for processes that can see each other."""
    started: str
    """When the process began, as its machine counts: another process that got its number has begun at another time."""
    user: str

    @classmethod
    def here(cls) -> "Holder":
        """Describe the process that asks."""
        return cls(uuid.uuid4().hex[:12], socket.gethostname(), os.getpid(), _place(), _started(os.getpid()), _user())

    @property
    def dead(self) -> bool:
        """Whether it surely is; False also where that cannot be seen from here."""
        return self.place == _place() and bool(self.started) and _started(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, of {self.user}"


class Lease:
    """A driver's hold on a sweep, while the context is open."""

    def __init__(self, storage: Storage, sweep: str, on_lost: Callable[[str], None], beat_s: float = BEAT_S, lease_s: float = LEASE_S) -> None:
        """on_lost(why): called in a thread once another driver has taken over. beat_s, lease_s: seconds, as BEAT_S and LEASE_S."""
        self._storage, self._sweep, self._on_lost, self._beat_s, self._lease_s = storage, sweep, on_lost, beat_s, lease_s
        self._holder, self._number, self._beats = Holder.here(), 0, 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def claim(self, say: Callable[[str], None] = lambda line: None, take_over: bool = False) -> "Lease":
        """Become the sweep's driver. HeldError if another one is; take_over: it is asked to end instead, and waited for."""
        check_conditional_writes(self._storage)
        while True:
            number, holder = self._latest()
            gone = holder is None or self._gone(number, holder, say)
            if not gone and not take_over:
                raise HeldError(f"{self._sweep}: {holder} runs it; wait for its end, stop it there with Ctrl-C, or end it from here with --take-over")
            if claim(self._storage, self._key(number + 1), json.dumps(asdict(self._holder)).encode()):
                self._number = number + 1
                if holder and not gone:
                    say(f"takes over from {holder}, which saves its state and ends")
                    self._wait_for(number)
                return self

    def __enter__(self) -> "Lease":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._closing.set()
        self._thread.join(self._beat_s)
        try:
            self._storage.put(self._key(self._number, "beat"), OVER.encode())
        except StorageError:  # the next driver waits for the lease to run out
            return

    def _key(self, number: int, kind: str = "json") -> str:
        return f"leases/{self._sweep}/{number:06d}.{kind}"

    def _latest(self) -> tuple[int, Holder | None]:
        """The highest number that is claimed, and by which driver; (0, None) if none is."""
        keys = [key for key in self._storage.list(f"leases/{self._sweep}/") if key.endswith(".json")]
        if not keys:
            return 0, None
        return int(Path(keys[-1]).stem), Holder(**json.loads(self._storage.get(keys[-1])))

    def _beat_of(self, number: int) -> bytes:
        try:
            return self._storage.get(self._key(number, "beat"))
        except NoObject:
            return b""

    def _gone(self, number: int, holder: Holder, say: Callable[[str], None]) -> bool:
        """Whether a holder has ended; watches its beat for as long as it takes to know."""
        seen = self._beat_of(number)
        if seen == OVER.encode() or holder.dead:
            return True
        if holder.place == _place():
            return False
        say(f"{holder} ran this sweep last; looks for {self._lease_s:.0f} s whether it still does")
        return self._stands_still(number, seen)

    def _wait_for(self, number: int) -> None:
        """Return once the driver of this number has ended, or its beat stands still."""
        while (seen := self._beat_of(number)) != OVER.encode() and not self._stands_still(number, seen):
            continue

    def _stands_still(self, number: int, seen: bytes) -> bool:
        """Whether the beat stays what was seen for LEASE_S, or says that all is over."""
        until = time.monotonic() + self._lease_s
        while time.monotonic() < until:
            time.sleep(min(self._beat_s, self._lease_s) / 5)
            if (now := self._beat_of(number)) != seen:
                return now == OVER.encode()
        return True

    def _keep(self) -> None:
        lost = False
        while True:
            try:
                number, holder = self._latest()
                if number > self._number and not lost:
                    lost = True
                    self._on_lost(f"{holder} takes the sweep over")
                self._beats += 1  # also while it ends: the other one waits for that
                self._storage.put(self._key(self._number, "beat"), str(self._beats).encode())
            except StorageError:  # those who need the storage say so
                pass
            if self._closing.wait(self._beat_s):
                return


@cache
def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # another system than Linux
        return socket.gethostname()


def _started(pid: int) -> str:
    """Ticks from the machine's boot to the start of a process; empty if there is no such process."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]  # one that was killed stays listed until its parent asks how it ended


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
