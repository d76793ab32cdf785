"""How long do the project's own tests take, per round and per marker?

    python -m bench.suite                  `make test` and the rest of `make test-full`
    python -m bench.suite --processes 3    the same with three tests at a time
    python -m bench.suite --read A B       two rounds run with --test-times=A and B; `make test-full` ends so
    python -m bench.suite --quick          one small test file: shows that the command works, its figures mean
                                           little

Seconds of a round are wall-clock time with two tests at a time, unless asked otherwise; `seconds_full` is
both rounds together. Seconds of a marker are summed over its tests, set-up and teardown included; a fixture
that several tests share counts where it was built. The markers `full` and `stress` select rounds and are not
among them. Ends with exit code 1 if a test fails.

The module is also the pytest plugin that records how long each phase of each test takes; it works with
pytest-xdist: python -m pytest -p bench.suite --test-times=FILE
"""

import json
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from bench import harness

CHECKOUT = Path(__file__).resolve().parent.parent
ROUNDS = {"make test": "not full and not stress", "rest of make test-full": "full"}
SELECTING = {"full", "stress"}
QUICK = "tests/data/test_subset.py"
NO_TESTS = 5  # pytest's exit code


@dataclass(frozen=True)
class Phase:
    """Set-up, call or teardown of one test."""

    nodeid: str
    when: str
    seconds: float
    markers: list[str]


@dataclass(frozen=True)
class Round:
    """One call of pytest."""

    seconds: float
    status: int
    """Pytest's exit code."""
    phases: list[Phase]

    @classmethod
    def read(cls, path: Path) -> "Round":
        """Return the last round that was run with `--test-times=PATH`. Raises ValueError if it has no end."""
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        *_, end = lines or [{}]
        if "status" not in end:
            raise ValueError(f"{path}: no round of tests ended with --test-times={path}; run it again")
        begins = max((place + 1 for place, line in enumerate(lines[:-1]) if "status" in line), default=0)
        return cls(**end, phases=[Phase(**line) for line in lines[begins:-1]])

    @property
    def tests(self) -> int:
        return len({phase.nodeid for phase in self.phases})

    @property
    def passed(self) -> bool:
        return self.status in (0, NO_TESTS)


def play(expression: str, paths: list[str], processes: int) -> Round:
    """Run the tests that a marker expression selects, `processes` at a time; their output goes to stderr."""
    with tempfile.TemporaryDirectory() as folder:
        times = Path(folder) / "times"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "bench.suite",
            f"--test-times={times}",
            "-p",
            "no:cacheprovider",
            "-m",
            expression,
        ]
        command += ["-n", str(processes), "--dist", "loadgroup", "--no-loadscope-reorder", *paths]
        subprocess.run(command, cwd=CHECKOUT, stdout=sys.stderr)
        return Round.read(times)


def markers() -> list[str]:
    """The markers that pyproject.toml declares, without those that select rounds."""
    declared = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"][
        "markers"
    ]
    return sorted({line.partition(":")[0].partition("(")[0].strip() for line in declared} - SELECTING)


def seconds_by_marker(rounds: list[Round], names: list[str]) -> dict[str, float]:
    """Seconds of all phases of the tests that carry a marker; 0 if no such test ran."""
    seconds: dict[str, float] = defaultdict(float)
    for one in rounds:
        for phase in one.phases:
            for marker in phase.markers:
                seconds[marker] += phase.seconds
    return {name: seconds[name] for name in names}


@click.command()
@click.option("--quick", is_flag=True, help="Run one small test file only.")
@click.option("--processes", type=click.IntRange(1), default=2, show_default=True, help="Tests at a time.")
@click.option(
    "--read",
    "files",
    type=(Path, Path),
    help="Run nothing: read what the rounds wrote with --test-times, the fast one first.",
)
def main(quick: bool, processes: int, files: tuple[Path, Path] | None) -> None:
    """Print a table and, last, one line of JSON."""
    paths, processes = ([QUICK], 1) if quick else ([], processes)
    if files:
        rounds = {title: Round.read(file) for title, file in zip(ROUNDS, files, strict=True)}
    else:
        rounds = {title: play(expression, paths, processes) for title, expression in ROUNDS.items()}
    by_marker = seconds_by_marker(list(rounds.values()), markers())
    print(f"{'round':<28}{'tests':>7}{'wall s':>9}")
    for title, one in rounds.items():
        failed = "" if one.passed else f"   failed, exit code {one.status}"
        print(f"{title:<28}{one.tests:>7}{one.seconds:>9.1f}{failed}")
    print(f"\n{'marker':<28}{'tests':>7}{'s of its tests':>16}")
    for name, seconds in by_marker.items():
        marked = {phase.nodeid for one in rounds.values() for phase in one.phases if name in phase.markers}
        print(f"{name:<28}{len(marked):>7}{seconds:>16.1f}")
    fast, rest = rounds.values()
    answer: dict[str, object] = {
        "seconds_fast": round(fast.seconds, 1),
        "seconds_full": round(fast.seconds + rest.seconds, 1),
    }
    answer |= {f"seconds_{name}": round(seconds, 1) for name, seconds in by_marker.items()}
    answer |= {"tests": fast.tests + rest.tests, "passed": fast.passed and rest.passed}
    print()
    harness.print_answer("suite", answer, quick)
    if not (fast.passed and rest.passed):
        sys.exit(1)


# -- the pytest plugin ---------------------------------------------------------------------------------------

MARKERS = "markers"
"""Name of the user property that carries a test's markers from the process that ran it to the one that writes
the file.
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--test-times",
        type=Path,
        metavar="FILE",
        help="Append one JSON object per phase of each test to FILE: nodeid, when, seconds, markers; and last"
        " one of the round: seconds, status.",
    )


def pytest_configure(config: pytest.Config) -> None:
    for marker in SELECTING:
        # an expression with an undeclared marker is an error
        config.addinivalue_line("markers", f"{marker}: selects a round of tests")
    path: Path | None = config.getoption("--test-times")
    # workers of pytest-xdist report to the process that started them
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Recorder(path))


def pytest_itemcollected(item: pytest.Item) -> None:
    item.user_properties.append((MARKERS, sorted({marker.name for marker in item.iter_markers()})))


class _Recorder:
    """Plugin that appends each phase of each test to a file, and last the round."""

    def __init__(self, path: Path) -> None:
        self._path, self._began = path, time.perf_counter()
        path.parent.mkdir(parents=True, exist_ok=True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        markers: Any = dict(report.user_properties)[MARKERS]
        self._append(asdict(Phase(report.nodeid, report.when or "", report.duration, markers)))

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self._append({"seconds": time.perf_counter() - self._began, "status": int(exitstatus)})

    def _append(self, one: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(one) + "\n")


if __name__ == "__main__":
    harness.run(main)
