"""A command of an external policy as a process group of its own: started, followed, and ended whatever
happens. Plain functions, without Ray.
"""

import json
import math
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from orchestrator.config.policy_manifest import Limits
from orchestrator.external import guard
from orchestrator.redaction import redact
from orchestrator.training.control_channel import StopRequest
from policy.errors import DemoscaleError
from policy.untrusted import printable, read_json

LINE_BYTES, REPORT_BYTES = 1 << 16, 256 << 20
"""Limits of a report: bytes of one line, and of the whole file."""
LOG_BYTES = 8 << 20
"""Bytes of a command's output that its log keeps, the first half and the last."""
TAIL_LINES, TAIL_LENGTH = 3, 170
"""Lines of a log that a sentence quotes, and their characters: sentences are cut to 300."""
POLL_S = 0.1
"""Seconds between looks at a report."""
ROUNDING_S = 1e-6
"""Seconds that may be lacking at the end of a budget of time."""
CLOCK_SLACK_S = 5.0
"""Seconds by which a command's own clock may be ahead."""
START_S = 30.0
"""Seconds in which the guard must have started a command."""


class CommandError(DemoscaleError):
    """A command of an external policy failed; one sentence with the last lines of its log. A retry may
    help.
    """


class CommandRefusedError(CommandError):
    """A command of an external policy failed in a way that a retry repeats."""


# -- a process -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Launch:
    """How a command is started."""

    words: tuple[str, ...]
    folder: Path
    """Working directory."""
    variables: Mapping[str, str]
    """The whole environment."""
    cleanup: tuple[str, ...] = ()
    """Command that is run once it has ended; empty: none."""


class Command:
    """A running command: a guard process, and below it the command with all its descendants.

    They are killed when this object is closed, when the process that holds it ends, and when the command
    itself ends. Raises CommandRefusedError if the command does not exist.
    """

    def __init__(self, launch: Launch, what: str, log: Path) -> None:
        """Start the command.

        what: what messages call it, such as "act_lift: its training". log: file for its output.
        """
        self.what, self._exit = what, None
        ours, theirs = socket.socketpair()
        asked = {"command": launch.words, "cleanup": launch.cleanup}
        with theirs:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, str(theirs.fileno()), json.dumps(asked)],
                cwd=launch.folder,
                env=dict(launch.variables),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        assert self._guard.stdout
        self._control, self._said = ours, b""
        self.log = CommandLog(self._guard.stdout, log)
        try:
            began = self._next_line(START_S)
            if began is None or "started" not in began:
                reason = began["refused"] if began else "its guard process ended"
                raise CommandRefusedError(f"{what} cannot be started: {reason}; correct the manifest")
        except BaseException:
            self.close()
            raise

    _exit: int | None

    def _next_line(self, timeout_s: float) -> dict[str, Any] | None:
        """Return the guard's next line; None if there is none in time, or if it is gone."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._said:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._control], [], [], left)[0]:
                return None
            more = self._control.recv(4096)
            if not more:
                return None
            self._said += more
        line, _, self._said = self._said.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        return said

    def poll(self, wait_s: float = 0.0) -> int | None:
        """Return the exit code, negative for a signal, once the command and all its descendants have ended;
        None before. wait_s: seconds to wait for that.
        """
        if self._exit is None and (ended := self._next_line(wait_s)):
            self._exit = int(ended["exit"])
        if self._exit is None and self._guard.poll() is not None:
            self._exit = -signal.SIGKILL  # the guard was killed, and the command with it
        return self._exit

    def terminate(self) -> None:
        """Send SIGTERM to the process group."""
        self._send(b"T")

    def kill(self) -> None:
        """Kill every process of the command and wait for their end."""
        self._send(b"K")
        self.poll(guard.END_S)

    def end(self, grace_s: float) -> int:
        """Send SIGTERM, wait for `grace_s` seconds, then kill; return the exit code."""
        self.terminate()
        if self.poll(grace_s) is None:
            self.kill()
        return -signal.SIGKILL if self._exit is None else self._exit

    def cpu_s(self) -> float:
        """Return the CPU seconds of all its processes so far."""
        return sum(guard.descendants(self._guard.pid).values()) + self._of_ended()

    def _of_ended(self) -> float:
        try:
            fields = Path(f"/proc/{self._guard.pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return 0.0
        return sum(map(int, fields[13:15])) / os.sysconf("SC_CLK_TCK")

    def _send(self, request: bytes) -> None:
        try:
            self._control.sendall(request)
        except OSError:  # it has ended
            return

    def close(self) -> None:
        """End everything and close the log."""
        self._control.close()  # the guard kills everything at the end of the stream
        try:
            self._guard.wait(2 * guard.END_S)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
        self.log.close()

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def failure(self, said: str, permanent: bool = False) -> CommandError:
        """Return the error of the command in one sentence, with the last lines of its log."""
        kind = CommandRefusedError if permanent else CommandError
        return kind(f"{self.what} {said}{self.log.quoted()}")


class CommandLog:
    """Output of a command, redacted and bounded: the first and the last half of LOG_BYTES are kept."""

    def __init__(self, output: IO[bytes], path: Path) -> None:
        self._output, self._path = output, path
        self._file = path.open("ab")
        self._left = LOG_BYTES // 2
        self._last: deque[bytes] = deque()
        self._last_bytes = self._dropped = 0
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.active = time.monotonic()
        """When the command last wrote something, on the clock of `time.monotonic`."""
        self._thread = threading.Thread(target=self._read, name="command-log", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        rest = b""
        while some := os.read(self._output.fileno(), 1 << 16):
            self.active = time.monotonic()
            *lines, rest = re.split(rb"[\r\n]+", rest + some)
            if len(rest) > LINE_BYTES:
                lines, rest = [*lines, rest[:LINE_BYTES]], b""
            self._keep(lines)
        self._keep([rest])

    def _keep(self, lines: Sequence[bytes]) -> None:
        if not (text := "\n".join(line.decode(errors="replace") for line in lines if line.strip())):
            return
        clean = redact(text)
        self._tail.extend(clean.splitlines())
        data = clean.encode(errors="replace") + b"\n"
        if self._left > 0:
            try:
                self._file.write(data[: self._left])
                self._file.flush()
            except OSError as error:  # a full disk; a command whose output is not read would block
                self._left = 0
                self._tail.append(f"the log cannot be written: {error.strerror}")
            else:
                data, self._left = data[self._left :], self._left - len(data)
        self._last.extend(data.splitlines(keepends=True))
        self._last_bytes += len(data)
        while self._last_bytes > LOG_BYTES // 2:
            dropped = self._last.popleft()
            self._last_bytes -= len(dropped)
            self._dropped += len(dropped)

    def quoted(self) -> str:
        """Return the last lines for the end of a sentence; empty if the command wrote none."""
        self._thread.join(0.5)  # what it wrote before it ended may not be read yet
        said = printable(" | ".join(line.strip() for line in self._tail), 10 * TAIL_LENGTH)
        return f"; its log ends: {said[-TAIL_LENGTH:]}" if said else "; its log is empty"

    def close(self) -> None:
        """Write what is left; to be called when the command has ended."""
        self._thread.join(5.0)
        with suppress(OSError), self._file as file:  # of a full disk, which the tail names
            if self._dropped:
                file.write(b"... %d bytes left out ...\n" % self._dropped)
            file.writelines(self._last)
        self._output.close()


# -- training ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One line of a training command's report."""

    step: int
    loss: float
    checkpoint: str = ""
    """Folder below the one for checkpoints; empty if the line names none."""
    seconds: float = 0.0
    """Seconds of training so far, where it ends by time; else 0."""


@dataclass(frozen=True)
class TrainingRun:
    """What a training command is to do, and where it says what it did."""

    report: Path
    """File of JSON lines that the command appends to."""
    checkpoints: Path
    """Folder that it writes checkpoints into."""
    first_step: int
    steps: int
    """0 if training ends by time."""
    limits: Limits
    seconds: float = 0.0
    """Seconds after which training ends; 0: it ends at a step."""
    first_second: float = 0.0
    """Seconds of training before the checkpoint from which it resumes."""

    def reached(self, line: Line) -> bool:
        """Return whether a line was written at the end of training."""
        if not self.seconds:
            return line.step == self.steps
        return line.seconds >= self.seconds - ROUNDING_S

    def after(self, line: Line) -> str:
        """Return where a line was written, in words."""
        if not self.seconds:
            return f"after step {line.step} of {self.steps}"
        return f"after step {line.step}, {line.seconds:.1f} s of {self.seconds:g} s"


OnLine = Callable[[Line, Path | None], None]
"""Called with a report's line and the folder of its checkpoint, None if it names none."""


def follow(
    command: Command,
    run: TrainingRun,
    on_line: OnLine,
    stop_request: Callable[[], StopRequest | None] = lambda: None,
    on_wait: Callable[[], None] = lambda: None,
) -> int:
    """Follow a training command to its end; return the last step that it reported.

    stop_request: polled; at a request the command gets SIGTERM and `limits.stop_s` seconds. At PAUSE a
    checkpoint that it reports then is still passed on. on_wait: called several times a second.

    Raises CommandError if the command ends before its last step, reports something that is not valid, or is
    silent for `limits.silent_s`; CommandRefusedError where a retry would end likewise.
    """
    report, last = _Report(run.report), Line(run.first_step, math.nan, seconds=run.first_second)
    began = active = time.monotonic()
    saved, asked = False, None
    deadline = math.inf
    while True:
        code = command.poll(POLL_S)  # before the report is read: what it wrote last counts
        try:
            for text in report.lines(whole=code == 0):
                active = time.monotonic()
                line = _parsed(text, last, run, active - began)
                last = line
                folder = checkpoint_folder(run.checkpoints, line.checkpoint) if line.checkpoint else None
                if asked is not StopRequest.STOP:
                    on_line(line, folder)
                saved = run.reached(line) if folder else saved
        except _InvalidError as error:
            command.kill()
            raise command.failure(f"{error} (after step {last.step})", error.permanent) from None
        if saved and deadline == math.inf:
            deadline = time.monotonic() + run.limits.stop_s  # it has nothing left to do
        if code is not None:
            break
        on_wait()
        now = time.monotonic()
        if asked is None and (asked := stop_request()):
            command.terminate()
            deadline = now + run.limits.stop_s
        if now > deadline:
            command.kill()
        elif asked is None and now - max(active, command.log.active) > run.limits.silent_s:
            command.kill()
            raise command.failure(f"wrote nothing for {run.limits.silent_s:g} s {run.after(last)}")
    if asked is None and not saved:
        where = run.after(last)
        if code > 0:
            raise command.failure(f"ended with exit code {code} {where}")
        if code < 0:
            memory = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
            raise command.failure(f"was ended by {signal.Signals(-code).name} {where}{memory}")
        if run.reached(last):
            raise command.failure(f"ended without a checkpoint of its last step, {last.step}", True)
        what = "until its time is used up" if run.seconds else "to the last step"
        raise command.failure(f"ended {where}, with exit code 0; it must go on {what}", True)
    return last.step


class _InvalidError(Exception):
    """A line of a report, or a checkpoint, that is not valid: a clause after the command's name."""

    def __init__(self, clause: str, permanent: bool = True) -> None:
        super().__init__(clause)
        self.permanent = permanent


class _Report:
    """The report file, read as it grows."""

    def __init__(self, path: Path) -> None:
        self._path, self._read, self._rest = path, 0, b""

    def lines(self, whole: bool) -> Iterator[bytes]:
        """Yield the lines that are complete since the last call; `whole`: the rest without an end of line is
        one too.
        """
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                while some := file.read(1 << 20):
                    self._read += len(some)
                    *lines, self._rest = (self._rest + some).split(b"\n")
                    if self._read > REPORT_BYTES:
                        raise _InvalidError(f"wrote a report of more than {REPORT_BYTES >> 20} MiB")
                    if len(self._rest) > LINE_BYTES:
                        raise _InvalidError(f"wrote a line of more than {LINE_BYTES} bytes into its report")
                    yield from (line for line in lines if line.strip())
        except FileNotFoundError:
            return
        if whole and self._rest.strip():
            rest, self._rest = self._rest, b""
            yield rest


def _parsed(text: bytes, last: Line, run: TrainingRun, elapsed_s: float = 0.0) -> Line:
    """Return a line of the report; _InvalidError for one that is not valid. elapsed_s: seconds since the
    command started.
    """
    shown = printable(text.decode(errors="replace"), 60)
    try:
        fields = json.loads(text) if b"NaN" in text or b"Infinity" in text else read_json(text, LINE_BYTES)
    except ValueError as error:
        raise _InvalidError(f"wrote a line into its report that is no JSON ({error}): {shown}") from None
    step, loss = (fields.get("step"), fields.get("loss")) if isinstance(fields, dict) else (None, None)
    checkpoint = fields.get("checkpoint", "") if isinstance(fields, dict) else ""
    if loss is None and checkpoint and math.isfinite(last.loss):
        loss = last.loss
    if isinstance(step, bool) or not isinstance(step, int) or not isinstance(checkpoint, str):
        raise _InvalidError(f"wrote a line into its report without step and loss: {shown}")
    if isinstance(loss, bool) or not isinstance(loss, int | float):
        raise _InvalidError(f"wrote a line into its report without step and loss: {shown}")
    if not math.isfinite(loss):
        raise _InvalidError(f"diverged: the loss at step {step} is {loss}; lower its learning rate")
    most = math.inf if run.seconds else run.steps
    if not max(last.step, run.first_step) <= step <= most or step == 0:
        up = "" if run.seconds else f" up to {run.steps}"
        raise _InvalidError(f"reported step {step}, and has to count from {last.step}{up}")
    seconds = _seconds(fields, last, run, elapsed_s) if run.seconds else 0.0
    return Line(step, float(loss), checkpoint, seconds)


def _seconds(fields: dict[str, Any], last: Line, run: TrainingRun, elapsed_s: float) -> float:
    """Return the seconds of training that a line states; _InvalidError if they cannot be true."""
    stated = fields.get("seconds")
    if isinstance(stated, bool) or not isinstance(stated, int | float) or not math.isfinite(stated):
        raise _InvalidError("wrote a line into its report without seconds, though it ends by time")
    most = run.first_second + elapsed_s + CLOCK_SLACK_S
    if not last.seconds <= stated <= most:
        raise _InvalidError(
            f"reported {stated:g} s of training, and has to count from {last.seconds:g} s up; it has run for"
            f" {elapsed_s:.0f} s"
        )
    if run.reached(last) and stated > last.seconds and not last.checkpoint:
        raise _InvalidError(f"goes on training {run.after(last)}; it must write its last checkpoint then")
    return float(stated)


def checkpoint_folder(root: Path, name: str) -> Path:
    """Return the folder of a reported checkpoint. Raises _InvalidError unless it lies in `root`, with files
    that are whole as far as their format tells.
    """
    shown, folder = printable(name, 60), root / name
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        raise _InvalidError(f"reported a checkpoint {shown} that is not the name of a folder in {root.name}/")
    if folder.is_symlink() or not folder.resolve().is_relative_to(root.resolve()):
        raise _InvalidError(f"reported a checkpoint {shown} that leads out of {root.name}/")
    if not folder.is_dir():
        raise _InvalidError(f"reported a checkpoint {shown} that is not there", permanent=False)
    files = [path for path in sorted(folder.rglob("*")) if not path.is_dir()]
    if not files:
        raise _InvalidError(f"reported a checkpoint {shown} that is empty", permanent=False)
    for file in files:
        if not file.resolve().is_relative_to(root.resolve()):
            raise _InvalidError(f"wrote a checkpoint {shown} with a link out of it, {file.name}")
        if damage := _damage(file):
            raise _InvalidError(
                f"reported a checkpoint {shown} whose {file.relative_to(folder)} {damage}", permanent=False
            )
    return folder


def _damage(file: Path) -> str:
    """Return what is wrong with a file, as far as its format tells; empty if nothing."""
    if not file.exists():
        return "is a link to nothing"
    with file.open("rb") as opened:
        head = opened.read(8)
        if file.suffix == ".json":
            try:
                json.loads(head + opened.read())
            except ValueError:
                return "is no whole JSON"
        if file.suffix == ".safetensors":
            size = int.from_bytes(head, "little")
            try:
                tensors = json.loads(opened.read(size)) if size < file.stat().st_size else {}
                ends = [part["data_offsets"][1] for name, part in tensors.items() if name != "__metadata__"]
            except (ValueError, TypeError, KeyError, IndexError, AttributeError):
                return "is no whole safetensors file"
            if len(head) < 8 or file.stat().st_size != 8 + size + max(ends, default=0):
                return "is cut short"
    if head.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(file):
        return "is cut short"
    return ""
