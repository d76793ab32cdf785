"""A command of an external policy: its report, its failures in one sentence each, and its end with everything
that it started.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from textwrap import dedent

import pytest

import polling
from orchestrator.config.policy_manifest import Limits
from orchestrator.external import command as module
from orchestrator.external.command import (
    Command,
    CommandError,
    CommandLog,
    CommandRefusedError,
    Launch,
    Line,
    TrainingRun,
    follow,
)
from orchestrator.external.guard import descendants
from orchestrator.infrastructure import cause_in
from orchestrator.training.control_channel import StopRequest
from polling import until

STEPS = 4
LIMITS = Limits(silent_s=30, stop_s=20)
PREAMBLE = """
import json, os, pathlib, signal, subprocess, sys, time
def report(text):
    with open("report.jsonl", "a") as file:
        file.write(text + "\\n")
def line(step, loss=0.5, **more):
    report(json.dumps({"step": step, "loss": loss, **more}))
def save(step, name="", data=b"weights"):
    folder = pathlib.Path("checkpoints", f"step_{step}")
    folder.mkdir()
    (folder / "weights.bin").write_bytes(data)
    line(step, checkpoint=name or folder.name)
"""


def started(folder: Path, script: str, **variables: str) -> Command:
    (folder / "checkpoints").mkdir(exist_ok=True)
    words = (sys.executable, "-S", "-c", PREAMBLE + dedent(script))
    return Command(
        Launch(words, folder, {**os.environ, "PYTHONUNBUFFERED": "1", **variables}),
        "act: its training",
        folder / "log",
    )


def followed(
    folder: Path,
    script: str,
    limits: Limits = LIMITS,
    stop: Callable[[], StopRequest | None] = lambda: None,
) -> list[tuple[Line, str]]:
    """Return the lines of a training command, with the content of the checkpoints."""
    lines = []

    def on_line(line: Line, checkpoint: Path | None) -> None:
        lines.append((line, (checkpoint / "weights.bin").read_text() if checkpoint else ""))

    run = TrainingRun(folder / "report.jsonl", folder / "checkpoints", 0, STEPS, limits)
    with started(folder, script) as command:
        follow(command, run, on_line, stop)
    return lines


def refused(folder: Path, script: str, limits: Limits = LIMITS) -> tuple[str, bool]:
    """Return the sentence of a training command's failure, and whether a retry would repeat it."""
    with pytest.raises(CommandError) as raised:
        followed(folder, script, limits)
    assert "\n" not in str(raised.value)
    return str(raised.value), isinstance(raised.value, CommandRefusedError)


def alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    return False


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_follow_passes_on_lines_and_checkpoints_until_the_last_step(tmp_path: Path) -> None:
    lines = followed(tmp_path, 'line(1); line(2, 0.25, unknown={"a": [1]}); save(2); line(3); save(4)')
    assert [(line.step, line.checkpoint, data) for line, data in lines] == [
        (1, "", ""),
        (2, "", ""),
        (2, "step_2", "weights"),
        (3, "", ""),
        (4, "step_4", "weights"),
    ]
    assert lines[1][0].loss == 0.25


def test_follow_kills_a_command_that_does_not_end_after_its_last_checkpoint(tmp_path: Path) -> None:
    lines = followed(tmp_path, "save(4); time.sleep(600)", LIMITS.model_copy(update={"stop_s": 0.3}))
    assert [line.step for line, _ in lines] == [4]


@pytest.mark.parametrize(
    ("script", "said", "permanent"),
    [
        (
            'line(1); print("no CUDA"); sys.exit(3)',
            r"ended with exit code 3 after step 1 of 4; its log ends: .*no CUDA$",
            False,
        ),
        (
            'line(1); raise ValueError("shape")',
            r"exit code 1 after step 1 .*\| ValueError: shape$",
            False,
        ),
        ("os.kill(os.getpid(), signal.SIGKILL)", r"SIGKILL after step 0 of 4, perhaps for want", False),
        ("line(1); save(2)", r"ended after step 2 of 4, with exit code 0; it must go on", True),
        ("line(4)", r"ended without a checkpoint of its last step, 4; its log is empty$", True),
        ('line(1); line(2, float("nan"))', r"diverged: the loss at step 2 is nan; lower its le", True),
        ('report("loss 0.3")', r"no JSON .*: loss 0\.3 \(after step 0\)", True),
        ('line(2, checkpoint="step_2")', r"reported a checkpoint step_2 that is not there", False),
        (
            'save(2, data=b"PK\\x03\\x04 and no more")',
            r"checkpoint step_2 whose weights.bin is cut short",
            False,
        ),
    ],
)
def test_follow_reports_each_failure_in_one_sentence(
    script: str, said: str, permanent: bool, tmp_path: Path
) -> None:
    sentence, final = refused(tmp_path, script)
    assert re.search(said, sentence), sentence
    assert sentence.startswith("act: its training ")
    assert final is permanent
    assert len(sentence) < 420


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[1]", "without step and loss: [1]"),
        (b'{"step": 3}', "without step and loss"),
        (b'{"step": true, "loss": 1}', "without step and loss"),
        (b'{"step": 3, "loss": "low"}', "without step and loss"),
        (b'{"step": 3, "loss": 1, "checkpoint": 3}', "without step and loss"),
        (b'{"step": 3, "loss": Infinity}', "the loss at step 3 is inf"),
        (b'{"step": 1, "loss": 1}', "reported step 1, and has to count from 2 up to 4"),
        (b'{"step": 5, "loss": 1}', "reported step 5, and has to count from 2 up to 4"),
        (b'{"step": 3, "loss": 1} {"step"', "is no JSON"),
    ],
)
def test_line_of_a_report_that_is_not_valid_is_refused(text: bytes, said: str, tmp_path: Path) -> None:
    run = TrainingRun(tmp_path, tmp_path, 0, STEPS, LIMITS)
    with pytest.raises(module._InvalidError, match=re.escape(said)) as raised:
        module._parsed(text, Line(2, 0.5), run)
    assert raised.value.permanent


def test_checkpoint_may_leave_out_the_loss_only_after_a_line_with_one(tmp_path: Path) -> None:
    run, text = TrainingRun(tmp_path, tmp_path, 0, STEPS, LIMITS), b'{"step": 3, "checkpoint": "a"}'
    assert module._parsed(text, Line(2, 0.5), run) == Line(3, 0.5, "a")
    with pytest.raises(module._InvalidError, match="without step and loss"):
        module._parsed(text, Line(0, float("nan")), run)


@pytest.mark.parametrize(
    ("text", "last", "said"),
    [
        (b'{"step": 9, "loss": 1}', Line(2, 0.5), "without seconds, though it ends by time"),
        (b'{"step": 9, "loss": 1, "seconds": "3"}', Line(2, 0.5), "without seconds"),
        (b'{"step": 9, "loss": 1, "seconds": 3}', Line(2, 0.5, seconds=4), "has to count from 4 s up"),
        (b'{"step": 9, "loss": 1, "seconds": 5000}', Line(2, 0.5), "reported 5000 s of training, and has"),
        (b'{"step": 1, "loss": 1, "seconds": 5}', Line(2, 0.5), "reported step 1, and has to count from 2"),
        (b'{"step": 9, "loss": 1, "seconds": 11}', Line(8, 1, seconds=10), "goes on training after step 8,"),
    ],
)
def test_line_of_a_training_by_time_that_cannot_be_true_is_refused(
    text: bytes, last: Line, said: str, tmp_path: Path
) -> None:
    run = TrainingRun(tmp_path, tmp_path, 0, 0, LIMITS, seconds=10)
    with pytest.raises(module._InvalidError, match=re.escape(said)):
        module._parsed(text, last, run, elapsed_s=20)
    assert module._parsed(b'{"step": 9, "loss": 1, "seconds": 10}', Line(8, 1, seconds=9), run, 20) == Line(
        9, 1.0, "", 10.0
    )


@pytest.mark.parametrize("name", ["../a", "/etc", "a/b", "..", ".", "outside", "within"])
def test_checkpoint_outside_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    (tmp_path / "a").mkdir()
    (root / "within").mkdir(parents=True)
    (root / "within" / "passwords").symlink_to("/etc/passwd")
    (root / "outside").symlink_to(tmp_path / "a")
    with pytest.raises(module._InvalidError, match=r"not the name of a folder|leads out|a link out of it"):
        module.checkpoint_folder(root, name)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("config.json", b'{"a": [1, 2', "config.json is no whole JSON"),
        ("model.safetensors", (100).to_bytes(8, "little") + b'{"a":', "model.safetensors is cut short"),
        (
            "model.safetensors",
            (64).to_bytes(8, "little")
            + json.dumps({"a": {"data_offsets": [0, 9]}}).encode().ljust(64)
            + b"12345678",
            "model.safetensors is cut short",
        ),
    ],
)
def test_half_a_checkpoint_is_recognised_by_its_files(
    name: str, data: bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_bytes(data)
    with pytest.raises(module._InvalidError, match=re.escape(said)) as raised:
        module.checkpoint_folder(tmp_path, "a")
    assert not raised.value.permanent


@pytest.mark.full
def test_silence_is_a_failure_and_output_or_lines_are_none(tmp_path: Path) -> None:
    limits = LIMITS.model_copy(update={"silent_s": 0.8})
    sentence, permanent = refused(tmp_path, "line(1); time.sleep(600)", limits)
    assert sentence == "act: its training wrote nothing for 0.8 s after step 1 of 4; its log is empty"
    assert not permanent
    (tmp_path / "other").mkdir()
    busy = 'for _ in range(4): print("busy"); time.sleep(0.4)\nsave(4)'
    assert followed(tmp_path / "other", busy, limits)


@pytest.mark.full
def test_report_beyond_its_bounds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentence, _ = refused(tmp_path, 'report("x" * 70000)')
    assert (
        "a line of more than 65536 bytes" in sentence or "no JSON (it has more than 65536 bytes)" in sentence
    )
    monkeypatch.setattr(module, "REPORT_BYTES", 1 << 20)
    (tmp_path / "large").mkdir()
    sentence, _ = refused(tmp_path / "large", "for _ in range(60000): line(1, unknown='x' * 50)")
    assert "a report of more than 1 MiB" in sentence


def test_command_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CommandRefusedError, match=r"cannot be started: No such file or directory \(/no/program\)"
    ):
        Command(Launch(("/no/program",), tmp_path, {}), "act: its training", tmp_path / "log")


@pytest.mark.parametrize("request_", [StopRequest.PAUSE, StopRequest.STOP])
def test_stop_request_sends_sigterm_and_passes_on_a_checkpoint_at_pause(
    request_: StopRequest, tmp_path: Path
) -> None:
    script = """
    signal.signal(signal.SIGTERM, lambda *_: (save(2), sys.exit(0)))
    line(1)
    time.sleep(600)
    """
    started = tmp_path / "report.jsonl"  # its handler is set by then
    lines = followed(tmp_path, script, stop=lambda: request_ if started.exists() else None)
    assert [line.step for line, _ in lines] == ([1, 2] if request_ is StopRequest.PAUSE else [1])


def test_command_that_ignores_sigterm_is_killed_after_its_limit(tmp_path: Path) -> None:
    script = "signal.signal(signal.SIGTERM, signal.SIG_IGN); line(1); time.sleep(600)"
    limits = LIMITS.model_copy(update={"stop_s": 0.5})
    asked = iter([None] * 5)
    began = time.monotonic()
    assert followed(tmp_path, script, limits, lambda: next(asked, StopRequest.PAUSE))
    assert time.monotonic() - began < 15


FAMILY = """
# a child, a grandchild in a session of its own, and one that is orphaned
child = "import os, subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-S", "-c", child])
subprocess.Popen(["/bin/sh", "-c", "sleep 600 &"]).wait()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
line(1)
time.sleep(600)
"""


def family(folder: Path, command: Command) -> list[int]:
    wait_until(lambda: (folder / "report.jsonl").exists() and len(descendants(command._guard.pid)) >= 4)
    return list(descendants(command._guard.pid))


def test_closing_ends_every_process_also_orphans_and_other_sessions(tmp_path: Path) -> None:
    with started(tmp_path, FAMILY) as command:
        processes = family(tmp_path, command)
        assert len(processes) == 4
    assert not any(map(alive, processes))


def test_death_of_the_starter_ends_every_process(tmp_path: Path) -> None:
    starter = f"""
    import sys, time
    from pathlib import Path
    sys.path[:0] = {[str(Path(__file__).parent), str(Path(polling.__file__).parent)]!r}
    from test_command import FAMILY, family, started
    folder = Path({str(tmp_path)!r})
    command = started(folder, FAMILY)
    print(command._guard.pid, *family(folder, command), flush=True)
    time.sleep(600)
    """
    with subprocess.Popen(
        [sys.executable, "-c", dedent(starter)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        processes = [int(pid) for pid in process.stdout.readline().split()]
        assert len(processes) == 5
        assert all(map(alive, processes))
        process.kill()
    wait_until(lambda: not any(map(alive, processes)))


@pytest.mark.full
def test_cpu_seconds_count_every_process_of_the_command(tmp_path: Path) -> None:
    script = """
    busy = "import time\\nwhile time.process_time() < 0.4: pass"
    subprocess.run([sys.executable, "-S", "-c", busy])
    line(1)
    exec(busy)
    time.sleep(600)
    """
    with started(tmp_path, script) as command:
        wait_until(lambda: command.cpu_s() > 0.75)
        time.sleep(0.2)
        assert command.cpu_s() < 1.5
        command.kill()
        assert command.cpu_s() > 0.75, "ended processes count"


def test_log_is_bounded_and_redacted_and_keeps_both_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOG_BYTES", 20_000)
    script = """
    print("first")
    for i in range(3000): print("step", i, end="\\r")
    print("\\npassword=hunter2secret")
    print("last")
    sys.exit(3)
    """
    sentence, _ = refused(tmp_path, script)
    assert sentence.endswith("| password=*** | last")
    log = (tmp_path / "log").read_text()
    assert log.startswith("first\nstep 0\nstep 1\n")
    assert log.endswith("step 2999\npassword=***\nlast\n")
    assert re.search(r"\.\.\. \d+ bytes left out \.\.\.", log)
    assert len(log) < 40_000
    assert "hunter2secret" not in log


def test_command_log_on_a_full_disk_is_read_on_and_says_so() -> None:
    read, write = os.pipe()
    log = CommandLog(os.fdopen(read, "rb"), Path("/dev/full"))
    os.write(write, b"begins\n")
    until(lambda: "begins" in log._tail, seconds=10)
    os.write(write, b"OSError: cannot save\n")
    os.close(write)
    log.close()
    assert "the log cannot be written: No space left on device | OSError: cannot save" in log.quoted()
    assert cause_in(log.quoted()) == "the disk is full"
