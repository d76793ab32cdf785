"""The command line: quick to start, one clear message for each mistake, documented exit codes."""

import json
import os
import re
import signal
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner
from conftest import CHECKOUT, run
from PIL import Image

from imported_packages import HEAVY, imported_modules, imported_packages
from orchestrator.cli.main import SECTIONS, main
from orchestrator.cli.submit_commands import JOBS
from orchestrator.cli.terminal import graceful_interrupt
from orchestrator.sweep.state import SweepState
from orchestrator.testing.episodes import make_episode_store
from reporting_sweep import make_sweep
from sim_workers.rollout.suite import VARIANTS

PACKAGES_AFTER_COMMANDS = """
import contextlib, io, json, sys
from orchestrator.cli.main import main
imported = {}
for command in (["--help"], *([name, "--help"] for name in main.commands), ["plan", "jobs/quickstart.yaml"]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(command)
    imported[" ".join(command)] = [*{module.split(".")[0] for module in sys.modules}]
print(json.dumps(imported))
"""
"""A program that prints the packages that are imported after each command, one after the other."""


def test_help_and_plan_import_no_heavy_package() -> None:
    done = run("-c", PACKAGES_AFTER_COMMANDS)
    assert done.returncode == 0, done.stderr
    imported = {command: set(packages) for command, packages in json.loads(done.stdout).items()}
    assert len(imported) == 2 + len(main.commands)
    assert {command: heavy for command, packages in imported.items() if (heavy := packages & HEAVY)} == {}
    assert "pydantic" in imported["plan jobs/quickstart.yaml"], "it read the file"
    # Each of these takes a tenth of a second or more.
    assert not imported["--help"] & {"scipy", "pyarrow", "pydantic", "pandas", "av", "yaml"}


def test_status_imports_no_package_that_takes_a_second(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, make_episode_store(tmp_path / "lift", 8), "", arms=4)
    SweepState.open(sweep, pin=True)
    done = run(
        "-X", "importtime", "-m", "orchestrator", "status", sweep.name, "--once", "--storage", str(tmp_path)
    )
    assert "demos-2_ratio-0_seed-1" in done.stdout
    assert not imported_packages(done) & (HEAVY | {"pandas", "zarr", "h5py", "matplotlib", "boto3"})
    assert "scipy.stats" not in imported_modules(done)


@pytest.mark.parametrize("command", main.commands)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_has_help_with_an_example(command: str, option: str) -> None:
    done = CliRunner().invoke(main, [command, option])
    assert done.exit_code == 0
    assert command == "doctor" or re.search(rf"^\s+demoscale {command} ", done.stdout, re.M)


def test_help_lists_every_command_once_each_on_one_line() -> None:
    assert sorted(name for section in SECTIONS.values() for name in section) == sorted(main.commands)
    groups = [[name] for name, command in main.commands.items() if isinstance(command, click.Group)]
    for arguments in ([], *groups):
        _, lists = CliRunner().invoke(main, [*arguments, "--help"]).stdout.split("Options:\n")
        assert "..." not in lists
        assert max(map(len, lists.splitlines())) <= 79


SPELLINGS = {
    "collect": "jobs.collect",
    "encode": "jobs.encode",
    "export": "jobs.export",
    "import": "jobs.ingest",
    "pretrain": "jobs.pretrain",
    "replay": "jobs.replay",
    "run": "jobs.sweep",
    "score": "jobs.score",
    "serve": "jobs.serve",
    "sheet": "jobs.sheet",
}
"""Modules that Ray jobs run, by the command that each is."""


@pytest.mark.parametrize("command", SPELLINGS)
def test_jobs_module_has_the_help_of_its_command(command: str) -> None:
    short = CliRunner().invoke(main, [command, "--help"], prog_name="python -m orchestrator")
    job = run("-m", SPELLINGS[command], "--help")
    assert job.returncode == 0
    usage = short.stdout.replace(f"python -m orchestrator {command}", f"python -m {SPELLINGS[command]}")
    assert job.stdout.split() == usage.split()  # click breaks lines elsewhere in a process of its own


def test_job_that_can_be_submitted_has_a_module() -> None:
    modules = {file.stem for file in (CHECKOUT / "jobs").glob("*.py")} - {"__init__", "quickstart"}
    assert modules == {name.removeprefix("jobs.") for name in SPELLINGS.values()}
    assert {*JOBS} - {"import"} <= modules


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
        (["curve", "nobody", "--storage", "EMPTY"], 2, "no sweep named nobody is tracked here"),
        (["score", "nothing"], 2, "nothing names no policy"),
    ],
)
def test_mistake_is_one_message(arguments: list[str], code: int, sentence: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, [str(tmp_path) if a == "EMPTY" else a for a in arguments])
    assert done.exit_code == code
    assert sentence in done.stderr


def test_reading_a_sweep_where_none_ran_creates_no_database(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["curve", "quickstart", "--storage", str(tmp_path / "typo")])
    assert "no sweep named quickstart is tracked here; name one that ran" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spelling", ["orchestrator collect", "jobs.collect"])
def test_collect_lists_all_mistakes_before_it_starts(tmp_path: Path, spelling: str) -> None:
    done = run(
        "-m",
        *spelling.split(),
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
    assert done.stderr.startswith(f"python -m {spelling}: 3 mistakes\n")
    assert "no scripted expert does Wipe" in done.stderr
    assert "unknown profile pretty" in done.stderr
    assert "unknown camera wrist; Wipe has agentview" in done.stderr
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["import", "EMPTY/nothing", "EMPTY/store"], 2, "there is no such file or folder"),
        (["export", "EMPTY/store", "s3://a/b"], 2, "s3://a/b is no path of this machine"),
        (["export", "EMPTY/store", "EMPTY/new"], 1, "there is no episode store here"),
        (["export", "--contract-of", "EMPTY/nothing"], 1, "EMPTY/nothing: "),
        (["encode", "EMPTY/store", "--weights", "w", "--preset", "tiny"], 2, "there is nothing to keep"),
        (["pretrain", "EMPTY", "--out", "policy/pretrained/tiny"], 2, "already holds weights; name another"),
        (["serve", "--policy", "nowhere"], 2, "--policy: nowhere names no policy"),
        (["sheet", "--task", "Juggle", "--save", "a.jpg"], 2, "--task: unknown task Juggle; known are Lift"),
        (["sheet", "--save", "a.bmp", "--shift", "fog"], 2, "2 mistakes"),
    ],
)
def test_wrong_argument_is_one_message_and_writes_nothing(
    arguments: list[str], code: int, sentence: str, tmp_path: Path
) -> None:
    done = CliRunner().invoke(main, [argument.replace("EMPTY", str(tmp_path)) for argument in arguments])
    assert done.exit_code == code, done.output
    assert sentence.replace("EMPTY", str(tmp_path)) in done.stderr
    assert not any(tmp_path.iterdir())


def test_command_at_ctrl_c_exits_130(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.storage.base.open_storage", interrupted)
    for command in (
        ["collect", "--episodes", "1", "--store", "s"],
        ["import", "a", "s"],
        ["export", "s", str(tmp_path / "new")],
        ["encode", "s", "--weights", "w"],
    ):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 130, command
        assert done.stderr == "stopped; progress is saved: run the same command to resume\n"


@pytest.mark.full
@pytest.mark.sim
def test_sheet_draws_a_row_per_camera_and_a_column_per_variant(tmp_path: Path) -> None:
    path = tmp_path / "lighting.png"
    done = run(
        "-m", "orchestrator", "sheet", "--shift", "lighting", "--image-size", "32", "--save", str(path)
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"drew {1 + VARIANTS} worlds of Lift: {path}\n"
    rows, label = 2, 16
    assert Image.open(path).size == (32 * (1 + VARIANTS), rows * (32 + label))


@pytest.mark.sim
def test_doctor_on_this_machine_reports_ok() -> None:
    done = run("-m", "orchestrator", "doctor")
    assert done.returncode == 0, done.stdout
    assert all(line.startswith("ok") for line in done.stdout.splitlines())


def test_doctor_names_packages_that_are_missing_or_of_another_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from orchestrator.cli import doctor

    asked = ["torch==2.13.0", "mujoco>=3.3.2,<3.10", "boto3>=1.40", "gym; extra == 'gym'", "absent>=2"]
    installed = {"torch": "2.13.0+cpu", "mujoco": "3.10.1", "boto3": "1.41"}

    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(doctor, "requires", lambda _: asked)
    monkeypatch.setattr(doctor, "version", version)
    packages = next(check for check in doctor.checks() if check.name == "packages")
    assert packages.finding == (
        "mujoco 3.10.1 instead of <3.10,>=3.3.2, absent missing instead of >=2; run `make setup`"
    )


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
