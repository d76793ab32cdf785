"""Loops that run in one process by turns, a block of steps each, so that what else the machine does meets
them all alike.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.harness import interleaved, median_ratio

Pause = Callable[[], None]
"""A loop calls it when it has warmed up and after every block of steps; it returns when it is the loop's turn
again.
"""

# before a turn is timed: a paused loop's own threads have then filled their queues and wait, too
SETTLE_S = 0.2


@dataclass(frozen=True)
class Cost:
    """Of one block."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds of the whole process: threads that work for the loop included."""


class _OverError(BaseException):
    """Ends a loop at its pause. Not an Exception, so that no loop takes it for a failure of its own."""


class _Loop(threading.Thread):
    def __init__(self, work: Callable[[Pause], None]) -> None:
        super().__init__(daemon=True)
        self._work, self._error = work, None
        self._go, self._rests = threading.Semaphore(0), threading.Semaphore(0)
        self._over, self._began = False, (0.0, 0.0)
        self._last = Cost(0.0, 0.0)

    _error: BaseException | None

    def run(self) -> None:
        torch.set_num_threads(1)
        self._go.acquire()
        try:
            self._work(self._pause)
            raise RuntimeError("the loop came to its end before the measurement did")
        except _OverError:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._rests.release()

    def _pause(self) -> None:
        now = time.perf_counter(), time.process_time()
        self._last = Cost(now[0] - self._began[0], now[1] - self._began[1])
        self._rests.release()
        self._go.acquire()
        if self._over:
            raise _OverError
        time.sleep(SETTLE_S)
        self._began = time.perf_counter(), time.process_time()

    def turn(self) -> Cost:
        """One block."""
        self._go.release()
        self._rests.acquire()
        if self._error:
            raise self._error
        return self._last

    def end(self) -> None:
        """Where it stands."""
        self._over = True
        if self.is_alive() and not self._error:
            self._go.release()
            self.join()


def by_turns(loops: dict[str, Callable[[Pause], None]], rounds: int) -> dict[str, list[Cost]]:
    """Every loop's costs, round by round; the warm-up is not among them."""
    running = {name: _Loop(work) for name, work in loops.items()}
    try:
        for loop in running.values():
            loop.start()
            loop.turn()
        return interleaved({name: loop.turn for name, loop in running.items()}, rounds)
    finally:
        for loop in running.values():
            loop.end()


def ratio(costs: dict[str, list[Cost]], of: str, to: str, what: str = "wall") -> float:
    """How many times as fast one loop is as the other: the median over rounds."""
    return median_ratio(
        [getattr(cost, what) for cost in costs[to]], [getattr(cost, what) for cost in costs[of]]
    )
