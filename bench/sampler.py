"""CPU time and memory of a tree of processes, those that end on the way included as far as they were seen."""

from collections import defaultdict
from collections.abc import Callable

import psutil


class Sampler:
    """A process and everything below it, by kind of process. Whoever holds it may clear `seconds` and `peak`
    to count from then on.
    """

    def __init__(self, pid: int, kind_of: Callable[[str], str]) -> None:
        self._root = psutil.Process(pid)
        self._kind_of = kind_of
        self._before: dict[tuple[int, float], float] = {}
        self.seconds: dict[str, float] = defaultdict(float)
        """CPU time, user and system."""
        self.peak: dict[str, int] = defaultdict(int)
        """Most bytes of memory that nobody else shares, at any one sample."""

    def sample(self) -> None:
        """Add what every process used since the last call."""
        try:
            processes = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        memory: dict[str, int] = defaultdict(int)
        for process in processes:
            try:
                with process.oneshot():
                    identity, kind = (
                        (process.pid, process.create_time()),
                        self._kind_of(" ".join(process.cmdline())),
                    )
                    used, held = sum(process.cpu_times()[:2]), process.memory_info()
            except psutil.Error:
                continue
            self.seconds[kind] += used - self._before.get(identity, 0.0)
            self._before[identity] = used
            memory[kind] += held.rss - held.shared
        for kind, held_bytes in memory.items():
            self.peak[kind] = max(self.peak[kind], held_bytes)
