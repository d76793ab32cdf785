"""Policy servers that come and go with the queue of episodes, on clusters with GPUs."""

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from orchestrator.checkpoints.ref import CheckpointRef
from sim_workers.rollout.autoscaler import ServerUsage

Work = dict[CheckpointRef | None, ServerUsage]
"""Work of a server by checkpoint; None: their sum."""


class ServerHost(Protocol):
    """What starts and ends the processes of a fleet."""

    def start(self, gpus: float) -> Any:
        """Start a server that claims this number of GPUs; return its handle at once."""

    def ready(self, servers: Collection[Any]) -> list[Any]:
        """Return those of the servers that answer, without waiting longer than a moment."""

    def work(self, server: Any) -> Work:
        """Return the work of a server; empty if it does not answer."""

    def end(self, server: Any) -> None:
        """End a server."""


@dataclass
class _Kind:
    """Servers with the same claim."""

    gpus: float
    servers: list[Any] = field(default_factory=list)


class ServerFleet:
    """The policy servers of a sweep. A server is used once it answers, and ends once nothing uses it.

    Thread-safe: the heartbeat resizes, the scorer's thread reports what its simulators use, others lease.
    """

    def __init__(self, host: ServerHost, shared_gpus: float) -> None:
        """Create a fleet without servers. shared_gpus: claim of a server that shares a training worker's
        GPU.
        """
        self._host = host
        self._whole, self._shared = _Kind(1.0), _Kind(shared_gpus)
        self._claims: dict[Any, float] = {}
        self._started: set[Any] = set()
        """Servers that have answered once: a pool finds out itself which of them are away."""
        self._answering: set[Any] = set()
        """Servers that answered when the fleet was last resized."""
        self._retiring: list[Any] = []
        self._leased: list[tuple[Any, ...]] = []
        self._gone: Work = {}
        """Work of servers that ended, as `_work_of` returns it."""
        self._lock = threading.RLock()
        self._there = threading.Condition(self._lock)
        self.leases = 0
        """Users that hold servers, or wait for one."""

    @property
    def current(self) -> tuple[Any, ...]:
        """Servers that have started and may be given work."""
        with self._lock:
            own = [*self._whole.servers, *self._shared.servers]
            return tuple(server for server in own if server in self._started)

    def resize(self, whole: int, shared: int) -> None:
        """Start or retire servers until `whole` have a GPU of their own and `shared` are on GPUs of training.
        Those that do not answer retire first.
        """
        with self._lock:
            self._answering = set(self._host.ready([*self._claims]))
            self._started |= self._answering
            for kind, wanted in ((self._whole, whole), (self._shared, shared)):
                kind.servers.sort(key=lambda server: server not in self._answering)
                self._retiring += kind.servers[wanted:]
                del kind.servers[wanted:]
                while len(kind.servers) < wanted:
                    server = self._host.start(kind.gpus)
                    self._claims[server] = kind.gpus
                    kind.servers.append(server)
            if self.current:
                self._there.notify_all()

    def retire(self, used: Collection[Any]) -> None:
        """End the retiring servers that are neither among `used` nor leased, and those that do not answer,
        whose users would wait for long.
        """
        with self._lock:
            held = {*used, *(server for lease in self._leased for server in lease)} & self._answering
            for server in [server for server in self._retiring if server not in held]:
                for checkpoint, work in self._work_of(server).items():
                    before = self._gone.get(checkpoint, ServerUsage())
                    self._gone[checkpoint] = before + work
                self._retiring.remove(server)
                del self._claims[server]
                self._started.discard(server)
                self._host.end(server)

    @contextmanager
    def leased(self, timeout_s: float) -> Iterator[tuple[Any, ...]]:
        """Wait for a server and keep the current ones from ending while the context is open. Raises
        TimeoutError if there is none in time.
        """
        with self._lock:
            self.leases += 1
            try:
                if not self._there.wait_for(lambda: self.current, timeout_s):
                    raise TimeoutError(f"no policy server has started within {timeout_s / 60:.0f} minutes")
            except BaseException:
                self.leases -= 1
                raise
            held = self.current
            self._leased.append(held)
        try:
            yield held
        finally:
            with self._lock:
                self._leased.remove(held)
                self.leases -= 1

    def work(self, checkpoint: CheckpointRef) -> ServerUsage:
        """Return the work on a checkpoint, of servers that ended too. Seconds on a GPU that trains count as
        training's, and not here.
        """
        with self._lock:
            total = self._gone.get(checkpoint, ServerUsage())
            for server in self._claims:
                total += self._work_of(server).get(checkpoint, ServerUsage())
            return total

    def _work_of(self, server: Any) -> Work:
        """Return a server's work, without the seconds of one that shares a GPU of training."""
        own = float(self._claims[server] >= 1)
        done = self._host.work(server) if server in self._started else {}
        return {
            checkpoint: ServerUsage(work.batches, work.rows, own * work.busy_s, own * work.imagined_s)
            for checkpoint, work in done.items()
        }
