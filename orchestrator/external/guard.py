"""The process between this project and a command of an external policy: it ends every process of the command,
whatever happens to the process that started it. Standard library alone, run as a script.

    python guard.py SOCKET '{"command": [...], "cleanup": [...]}'

The command runs in a process group of its own, with this process's working directory, environment, output and
error. SOCKET is the number of an open socket. Bytes received there are requests: T sends SIGTERM to the
group, K ends everything; the end of the stream means that the starter died, and ends everything as well. Sent
there is one line of JSON when the command has started, {"started": PID} or {"refused": REASON}, and one when
it has ended, {"exit": CODE}, CODE negative for a signal.

Orphans of the command become children of this process, so that none is lost. `cleanup` is a command that is
run last, such as the removal of a container.
"""

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
POLL_S = 1.0
"""Seconds between looks at the starter, besides those at an event."""
END_S = 30.0
"""Seconds for which processes that appear while the others are killed are killed too."""


def descendants(root: int) -> dict[int, float]:
    """Return the CPU seconds of every process below `root` by its id, those of its ended children included;
    empty where there is no /proc.
    """
    parents, seconds = dict[int, int](), dict[int, float]()
    tick = os.sysconf("SC_CLK_TCK")
    for name in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc") else ()):
        with suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
            parents[int(name)] = int(fields[1])
            seconds[int(name)] = sum(map(int, fields[11:15])) / tick
    found, below = dict[int, float](), {root}
    while below := {pid for pid, parent in parents.items() if parent in below and pid not in found}:
        found |= {pid: seconds[pid] for pid in below}
    return found


def _prctl(option: int, value: int) -> None:
    with suppress(OSError, AttributeError):  # Linux alone has it
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _end_all(group: int) -> None:
    """Kill the group and every descendant until there are none."""
    deadline = time.monotonic() + END_S
    while True:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
        left = descendants(os.getpid())
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not left or time.monotonic() > deadline:
            return
        time.sleep(0.01)


def _run(control: socket.socket, command: list[str]) -> None:
    """Run the command to its end, or end it at a request."""
    starter = os.getppid()
    woken, wake = socket.socketpair()
    for end in (woken, wake):
        end.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the socket alone ends this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    guard = os.getpid()

    def in_child() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:
            os._exit(1)

    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=in_child)
    except OSError as error:
        return _say(control, {"refused": f"{error.strerror} ({command[0]})"})
    _say(control, {"started": child.pid})
    code: int | None = None
    while code is None:
        ready, _, _ = select.select([control, woken], [], [], POLL_S)
        if woken in ready:
            with suppress(BlockingIOError):
                woken.recv(4096)
        asked = control.recv(64) if control in ready else b"-"
        if not asked or b"K" in asked or os.getppid() != starter:
            break
        if b"T" in asked:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == child.pid:
                    code = os.waitstatus_to_exitcode(ended[1])
    _end_all(child.pid)
    _say(control, {"exit": -signal.SIGKILL if code is None else code})


def _say(control: socket.socket, line: dict[str, object]) -> None:
    with suppress(OSError):  # the starter died
        control.sendall(json.dumps(line).encode() + b"\n")


def main() -> None:
    """Run the command that the arguments name."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    asked = json.loads(sys.argv[2])
    control = socket.socket(fileno=int(sys.argv[1]))
    try:
        _run(control, asked["command"])
    finally:
        if asked["cleanup"]:
            with suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(asked["cleanup"], stdout=-3, stderr=-3, timeout=END_S, check=False)


if __name__ == "__main__":
    main()
