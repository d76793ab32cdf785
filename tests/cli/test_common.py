"""The command line: quick to start, one clear message for each mistake, documented exit codes."""

import os
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import CHECKOUT, run

from imported_packages import HEAVY, imported_packages
from orchestrator.cli.common import graceful_interrupt


@pytest.mark.parametrize(
    "command", [["--help"], ["run", "--help"], ["score", "--help"], ["plan", "jobs/quickstart.yaml"]]
)
def test_help_and_plan_import_no_heavy_package(command: list[str]) -> None:
    done = run("-X", "importtime", "-m", "orchestrator", *command)
    assert not imported_packages(done) & HEAVY
    assert "click" in imported_packages(done)


@pytest.mark.parametrize("command", ["plan", "run", "submit", "stop", "status", "curve", "score", "doctor"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    done = run("-m", "orchestrator", command, "--help")
    assert done.returncode == 0
    assert command == "doctor" or re.search(rf"^\s+demoscale {command} ", done.stdout, re.M)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["plan", "nothing.yaml"], 2, "nothing.yaml: 1 mistake\n  - there is no such file"),
        (["run", "nothing.yaml"], 2, "there is no such file"),
        (
            ["run", "jobs/quickstart.yaml", "--set", "data.episodes=/nowhere/lift"],
            2,
            "there is no episode store here; record one with",
        ),
        (["status", "nobody", "--storage", "EMPTY"], 2, "no sweep named nobody ran here"),
        (["curve", "nobody", "--storage", "EMPTY"], 1, "no sweep named nobody is tracked here"),
    ],
)
def test_mistake_is_one_message_without_traceback(
    arguments: list[str], code: int, sentence: str, tmp_path: Path
) -> None:
    done = run("-m", "orchestrator", *(str(tmp_path) if a == "EMPTY" else a for a in arguments))
    assert done.returncode == code
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_collect_lists_all_mistakes_before_it_starts(tmp_path: Path) -> None:
    done = run(
        "-m",
        "jobs.collect",
        "--task",
        "Wipe",
        "--episodes",
        "3",
        "--store",
        str(tmp_path / "s"),
        "--render-profile",
        "pretty",
        "--cameras",
        "wrist",
    )
    assert done.returncode == 2
    assert "no scripted expert does Wipe" in done.stderr
    assert "unknown profile pretty" in done.stderr
    assert "unknown camera wrist; Wipe has agentview" in done.stderr
    assert not (tmp_path / "s").exists()


@pytest.mark.sim
def test_doctor_on_this_machine_reports_ok() -> None:
    done = run("-m", "orchestrator", "doctor")
    assert done.returncode == 0, done.stdout
    assert all(line.startswith("ok") for line in done.stdout.splitlines())


def test_doctor_detects_a_shadowed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.cli import doctor

    (tmp_path / "policy.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "policy", raising=False)
    before = {
        name: module for name, module in sys.modules.items() if name == "policy" or name.startswith("policy.")
    }
    try:
        assert doctor.shadowed_packages() == {"policy": str(tmp_path / "policy.py")}
    finally:
        sys.modules.pop("policy", None)
        sys.modules.update(before)


def test_constraints_equal_the_installed_versions() -> None:
    from importlib.metadata import version

    for line in (CHECKOUT / "constraints.txt").read_text().splitlines():
        name, _, wanted = line.partition("==")
        if wanted:
            assert version(name).split("+")[0] == wanted, name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_interrupts_the_sweep_and_the_second_raises(number: signal.Signals) -> None:
    sweep_run = SimpleNamespace(interrupted=False)
    before = signal.getsignal(number)
    with graceful_interrupt(sweep_run):
        os.kill(os.getpid(), number)
        assert sweep_run.interrupted
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
