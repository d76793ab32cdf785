"""Shared by benches and experiments: their command, an end that leaves no process behind, measuring by turns,
and a child process whose CPU time and memory are sampled.

Three processes run a bench: a guard that the caller started, a second guard, and the process that works. Each
guard adopts the orphans below it and kills every descendant when the process below it has ended. The guards
watch each other, so that any of the three may be killed with SIGKILL: the others end what is left.
"""

import ctypes
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any, TypeVar

import click
import psutil

GRACE_S = 5
"""Seconds between a request to end and SIGKILL: the worker removes its files and shuts Ray down."""
FOLDER = "DEMOSCALE_BENCH_FOLDER"
"""Environment variable with the folder of temporary files of a bench and of all processes that it starts."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h

T = TypeVar("T")


def command(name: str, digits: int = 3) -> Callable[[Callable[[bool], Mapping[str, object]]], click.Command]:
    """Make the command of a bench, with an option `--quick`, from the function that measures.

    The function takes whether the run is short, prints its tables and returns the values of the last line.
    That line is one JSON object with `bench` and `quick` as well; floats are rounded to `digits` digits.
    """

    def decorate(measure: Callable[[bool], Mapping[str, object]]) -> click.Command:
        @click.command(help="Print tables and, last, one line of JSON.")
        @click.option("--quick", is_flag=True, help="A short run.")
        def main(quick: bool) -> None:
            print_answer(name, measure(quick), quick, digits)

        return main

    return decorate


def print_answer(name: str, answer: Mapping[str, object], quick: bool, digits: int = 3) -> None:
    """Print the last line of a bench."""
    rounded = {
        key: round(value, digits) if isinstance(value, float) else value for key, value in answer.items()
    }
    print(json.dumps({"bench": name, **rounded, "quick": quick}))


# -- processes -----------------------------------------------------------------------------------------------


def run(main: click.Command) -> None:
    """Run the command of a bench such that it leaves neither processes nor temporary files, however
    it ends.
    """
    contain()
    main()


def contain() -> None:
    """Go on in a child process whose descendants all end with it. Only the child returns from this call."""
    folder = _own_folder()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # the child would write what is buffered a second time
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until each process has its handlers
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    caller = os.getpid()
    if guard := os.fork():
        os._exit(_guard(guard, 2 * GRACE_S, folder))
    os.setsid()  # Ctrl-C reaches the first guard alone, which forwards it
    _die_with(caller, signal.SIGTERM)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    second = os.getpid()
    if worker := os.fork():
        os._exit(_guard(worker, GRACE_S, folder))
    _die_with(second, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _exit)
    signal.signal(signal.SIGHUP, _exit)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _own_folder() -> Path | None:
    """Create the folder of temporary files, unless the process that started this one has done so; None in
    that case.
    """
    if FOLDER in os.environ:
        return None
    folder = tempfile.mkdtemp(prefix="bench-")
    os.environ |= {FOLDER: folder, "TMPDIR": folder}  # Ray keeps its sessions below TMPDIR
    tempfile.tempdir = folder
    return Path(folder)


def _guard(child: int, grace_s: int, folder: Path | None) -> int:
    """Wait for the child, forward signals to it, then kill every descendant. Returns the exit status for this
    process.
    """

    def forward(signum: int, _: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, signum)
        if not signal.getitimer(signal.ITIMER_REAL)[0]:
            signal.alarm(grace_s)

    def overdue(*_: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)

    for signum in _SIGNALS:
        signal.signal(signum, forward)
    signal.signal(signal.SIGALRM, overdue)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    reaped = 0
    while reaped != child:  # orphans that this process has adopted come by as well
        reaped, status = os.waitpid(-1, 0)
    signal.alarm(0)
    for signum in _SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    _end_descendants()
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _end_descendants(patience_s: float = 30.0) -> None:
    """Kill until there are none: a process may fork between the look at the process table and its end."""
    deadline = time.monotonic() + patience_s
    while (left := psutil.Process().children(recursive=True)) and time.monotonic() < deadline:
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.02)


def _die_with(parent: int, signum: int) -> None:
    """Have the kernel send `signum` to this process when its parent ends."""
    _prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:  # it ended before the kernel knew
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")


def _exit(signum: int, _: FrameType | None) -> None:
    raise SystemExit(128 + signum)


# -- measuring by turns --------------------------------------------------------------------------------------


def interleaved(arms: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Call every arm once per round, in every second round backwards, so that drift meets all alike. Returns
    the answers, round by round.
    """
    answers: dict[str, list[T]] = {name: [] for name in arms}
    for number in range(rounds):
        for name in list(arms)[:: -1 if number % 2 else 1]:
            answers[name].append(arms[name]())
    return answers


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median of the ratios of one round each, which a change of the machine's speed between rounds leaves as
    they are.
    """
    return median(above / below for above, below in zip(numerators, denominators, strict=True))


# -- loops by turns ------------------------------------------------------------------------------------------

Pause = Callable[[], None]
"""Called by a loop after its warm-up and after every block of steps; returns when it is the loop's turn
again.
"""

SETTLE_S = 0.2
"""Seconds before a turn is timed, in which the threads of a paused loop fill their queues and wait."""


@dataclass(frozen=True)
class Cost:
    """Cost of one block."""

    wall: float
    """Wall-clock seconds."""
    cpu: float
    """CPU seconds of the whole process, threads that work for the loop included."""


class _OverError(BaseException):
    """Ends a loop at its pause. Not an Exception, so that no loop handles it as a failure."""


class _Loop(threading.Thread):
    """Thread of one loop, which runs during its turns only."""

    def __init__(self, work: Callable[[Pause], None]) -> None:
        super().__init__(daemon=True)
        self._work, self._error = work, None
        self._go, self._rests = threading.Semaphore(0), threading.Semaphore(0)
        self._over, self._began = False, (0.0, 0.0)
        self._last = Cost(0.0, 0.0)

    _error: BaseException | None

    def run(self) -> None:
        import torch

        torch.set_num_threads(1)
        self._go.acquire()
        try:
            self._work(self._pause)
            raise RuntimeError("the loop ended before its measurement")
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
        """Run one block and return its cost."""
        self._go.release()
        self._rests.acquire()
        if self._error:
            raise self._error
        return self._last

    def end(self) -> None:
        """End the loop at its pause."""
        self._over = True
        if self.is_alive() and not self._error:
            self._go.release()
            self.join()


def by_turns(loops: dict[str, Callable[[Pause], None]], rounds: int) -> dict[str, list[Cost]]:
    """Run the loops of one process by turns, a block of steps each, so that drift affects all alike; return
    their costs, round by round, without the warm-up.
    """
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
    """Return how many times as fast the loop `of` is as the loop `to`: the median over rounds."""
    return median_ratio(
        [getattr(cost, what) for cost in costs[to]], [getattr(cost, what) for cost in costs[of]]
    )


# -- a watched process ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProcessUse:
    """What a living process has used so far."""

    identity: tuple[int, float]
    """Number and time of its start: numbers are used again."""
    title: str
    cpu_s: float
    """User and system."""
    private_bytes: int


def uses(root: psutil.Process) -> Iterator[ProcessUse]:
    """Yield the use of a process and of its living descendants; nothing if it has ended."""
    try:
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        with suppress(psutil.Error), process.oneshot():
            held = process.memory_info()
            yield ProcessUse(
                (process.pid, process.create_time()),
                " ".join(process.cmdline()),
                sum(process.cpu_times()[:2]),
                held.rss - held.shared,
            )


class Sampler:
    """CPU time and memory of a process and its descendants, by kind of process.

    Descendants that end count as far as they were sampled. The caller may clear `seconds` and `peak` to count
    from then on.
    """

    def __init__(self, pid: int, kind_of: Callable[[str], str]) -> None:
        self._root = psutil.Process(pid)
        self._kind_of = kind_of
        self._before: dict[tuple[int, float], float] = {}
        self.seconds: dict[str, float] = defaultdict(float)
        """CPU seconds, user and system."""
        self.peak: dict[str, int] = defaultdict(int)
        """Largest number of private bytes in any one sample."""

    def sample(self) -> None:
        """Add the CPU time of every process since the last call."""
        memory: dict[str, int] = defaultdict(int)
        for use in uses(self._root):
            kind = self._kind_of(use.title)
            self.seconds[kind] += use.cpu_s - self._before.get(use.identity, 0.0)
            self._before[use.identity] = use.cpu_s
            memory[kind] += use.private_bytes
        for kind, held_bytes in memory.items():
            self.peak[kind] = max(self.peak[kind], held_bytes)


FETCHING, CONSUMER, RAY = "fetching actor", "training side", "Ray's own processes"
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Mark:
    """Sample at the moment when the child called its first argument."""

    time: float
    seconds: dict[str, float]
    """CPU seconds so far, by kind of process."""
    peak: dict[str, int]
    """Largest number of private bytes since the previous mark, by kind of process."""

    def since(self, before: "Mark") -> dict[str, float]:
        """Return the CPU seconds between two marks, by kind of process."""
        return {kind: used - before.seconds.get(kind, 0.0) for kind, used in self.seconds.items()}


def _kind_of(title: str) -> str:
    if "MapWorker" in title or "_Fetch" in title:
        return FETCHING
    return CONSUMER if "spawn_main" in title else RAY


def _serve(parent: Connection) -> None:
    def mark() -> None:
        parent.send((False, None))
        parent.recv()

    while job := parent.recv():
        function, arguments = job
        parent.send((True, function(mark, *arguments)))


class Child:
    """Process that runs one function after another, sampled from outside.

    Each function is called with `mark`, a function that waits until the processes are sampled.
    """

    def __init__(self) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(theirs,))
        self._process.start()
        theirs.close()
        assert self._process.pid
        self._sampler = Sampler(self._process.pid, _kind_of)

    def run(self, function: Callable[..., Any], *arguments: Any) -> tuple[list[Mark], Any]:
        """Run the function; return the marks that it made, and its result."""
        self._pipe.send((function, arguments))
        marks: list[Mark] = []
        while True:
            while not self._pipe.poll(0.25):
                self._sampler.sample()
            done, answer = self._pipe.recv()
            if done:
                return marks, answer
            self._sampler.sample()
            marks.append(Mark(time.monotonic(), dict(self._sampler.seconds), dict(self._sampler.peak)))
            self._sampler.peak.clear()
            self._pipe.send(None)

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # it may have died
            self._pipe.send(None)
        self._process.join(30)
        self._process.kill()
