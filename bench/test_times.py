"""Pytest plugin that records how long each phase of each test takes, and the markers of the test. Works with
pytest-xdist.

python -m pytest -p bench.test_times --test-times=FILE      one JSON object per line: nodeid, when, seconds,
                                                            markers
"""

import json
from pathlib import Path

import pytest

MARKERS = "markers"
"""Name of the user property that carries a test's markers from the process that ran it to the one that writes
the file.
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--test-times",
        type=Path,
        metavar="FILE",
        help="Append one JSON object per phase of each test to FILE.",
    )


def pytest_configure(config: pytest.Config) -> None:
    for marker in ("full", "stress"):
        # an expression with an undeclared marker is an error
        config.addinivalue_line("markers", f"{marker}: selects a round of tests")
    path: Path | None = config.getoption("--test-times")
    # workers of pytest-xdist report to the process that started them
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Recorder(path))


def pytest_itemcollected(item: pytest.Item) -> None:
    item.user_properties.append((MARKERS, sorted({marker.name for marker in item.iter_markers()})))


class _Recorder:
    def __init__(self, path: Path) -> None:
        self._path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        line = {
            "nodeid": report.nodeid,
            "when": report.when,
            "seconds": report.duration,
            "markers": dict(report.user_properties)[MARKERS],
        }
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
