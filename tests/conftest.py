"""Fixtures and hooks that many tests need: one Ray cluster, one small episode store, two S3 servers."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import settings

import robosuite_recordings
from browser import MISSING, chromium
from fault_proxy import FaultProxy, fault_proxy
from fuzzing import collect_and_freeze
from orchestrator.cluster.ray_runtime import DASHBOARD
from orchestrator.storage.base import Storage, StorageSettings, _client, open_storage
from orchestrator.testing.episodes import make_episode_store
from orchestrator.testing.seaweedfs import BUCKET, NoServerError, make_bucket, started
from sim_workers.arithmetic import Arithmetic
from sim_workers.envs.libero import LiberoMissingError, require_libero

CHECKOUT = Path(__file__).resolve().parent.parent
LEROBOT = CHECKOUT / ".venv-lerobot"
"""The environment of the LeRobot package, which shares no version of Python, numpy or PyAV with this
project's.
"""

# One native thread per process: two cores are shared by many processes, and results must not depend on how
# many there are.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Nothing in the tests asks the dashboard of a Ray that they start on this machine.
os.environ.setdefault(DASHBOARD, "0")

# A shell that starts the tests in the background may have them ignore Ctrl-C, and so would every process they
# start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The duration of an example depends more on the load of the machine than on the code.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


GOLDEN = "golden"
"""Property of a test's report: how this machine's simulation compares with the golden one, one line."""


def pytest_report_header() -> str:
    """Return the processor on which the tests run."""
    return f"processor: {Arithmetic.here().kind}"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how this machine's simulation compares with the golden ones."""
    reports = [report for found in terminalreporter.stats.values() for report in found]
    lines = {
        str(value)
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == GOLDEN
    }
    if lines:
        terminalreporter.section("simulation on this processor")
        for line in sorted(lines):
            terminalreporter.line(line)


FULL = ("bench", "browser", "docs", "lerobot", "libero", "pusht")
"""Markers that imply the full round, but for tests of the stress round: these take long, or need more than
a bare machine has.
"""


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put each test into its round, skip what cannot run here, and order the tests for `pytest -n 2 --dist
    loadgroup`.

    Tests that share the session's Ray cluster are one group, so that it is started once; every bench and
    every other file is a group of its own. The groups that take longest come first, the shortest last, so
    that the processes end at about the same time.
    """
    for item in items:
        if any(map(item.get_closest_marker, FULL)) and not item.get_closest_marker("stress"):
            item.add_marker(pytest.mark.full)
        if item.get_closest_marker("full") and item.get_closest_marker("stress"):
            raise pytest.UsageError(
                f"{item.nodeid}: a test belongs to one round, not to `full` and to `stress`"
            )
        if item.get_closest_marker("gpu") and shutil.which("nvidia-smi") is None:
            item.add_marker(pytest.mark.skip(reason="no GPU here"))
        if item.get_closest_marker("browser") and not chromium() and not os.environ.get("CI"):
            item.add_marker(pytest.mark.skip(reason=MISSING))
        if item.get_closest_marker("lerobot") and not (LEROBOT / "ready").exists():
            item.add_marker(
                pytest.mark.skip(reason="LeRobot is not installed here; `make lerobot` installs it")
            )
        if item.get_closest_marker("pusht") and not find_spec("gym_pusht"):
            item.add_marker(
                pytest.mark.skip(reason="gym-pusht is not installed here; `make pusht` installs it")
            )
        if item.get_closest_marker("docs") and not find_spec("mkdocs"):
            item.add_marker(pytest.mark.skip(reason="mkdocs is not installed here; `make docs` installs it"))
        if item.get_closest_marker("libero") and (missing := missing_libero()):
            item.add_marker(pytest.mark.skip(reason=missing))
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    starts_ray = {_group(item) for item in items if item.get_closest_marker("ray")}
    items.sort(
        key=lambda item: (
            LONGEST.index(_group(item)) if _group(item) in LONGEST else len(LONGEST),
            not item.get_closest_marker("bench"),
            _group(item) not in starts_ray,
            _group(item),
        )
    )


def pytest_collection_finish() -> None:
    """Exclude what the imports of all test modules made from garbage collection: millions of objects, through
    which every full collection would go, one of them in each call of a library that asks for it.
    """
    collect_and_freeze()


@pytest.hookimpl(trylast=True)  # after the fixtures of the module
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Do the same after the last test of a module with what its tests imported."""
    if nextitem is not None and nextitem.path != item.path:
        collect_and_freeze()


LONGEST = ("ray_cluster", "test_chaos", "test_end_to_end", "test_nodes", "test_learning")
"""Groups of minutes, the longest first; the one of nodes waits more than it computes."""


def _group(item: pytest.Item) -> str:
    if "ray_cluster" in getattr(item, "fixturenames", ()):
        return "ray_cluster"
    if item.get_closest_marker("bench"):
        return item.name  # minutes each, and independent of each other
    return item.path.stem


def missing_libero() -> str:
    """Return why tests of LIBERO cannot run here; empty if they can."""
    try:
        require_libero()
    except LiberoMissingError as error:
        return str(error)
    return ""


def run(*command: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    """Run a command of this project in a process of its own, in the checkout."""
    return subprocess.run([sys.executable, *command], cwd=CHECKOUT, capture_output=True, text=True, **kwargs)  # type: ignore[call-overload, no-any-return]


@pytest.fixture(scope="session")
def ray_cluster(s3: str) -> Iterator[None]:
    """Start Ray on this machine for tests that use it from this process; its workers inherit the variables of
    the S3 server.
    """
    import ray

    from orchestrator.cluster.ray_runtime import connect

    connect()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def lift_store(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Return a store of six episodes of Lift, recorded by the collect command; once, however many processes
    run tests.
    """
    command = ("-m", "orchestrator", "collect", "--task", "Lift", "--episodes", "6", "--workers", "1")

    def collect(store: Path) -> None:
        done = run(*command, "--store", str(store))
        assert done.returncode == 0, done.stderr

    return made_once("lift", collect, tmp_path_factory, worker_id)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Return three demonstrations of Lift by robosuite's own recorder: `demo.hdf5` as it writes it,
    `episodes.npz` with pictures; once, however many processes run tests.
    """
    return made_once("recorded", robosuite_recordings.record_in_process, tmp_path_factory, worker_id)


def made_once(
    name: str, make: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> Path:
    """Return a folder that all processes of the session share; the first one to ask makes it."""
    shared = tmp_path_factory.getbasetemp()
    folder = (shared if worker_id == "master" else shared.parent) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            make(unfinished)
            unfinished.rename(folder)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the URI of an episode store with sixteen episodes of Lift."""
    return make_episode_store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return an empty folder whose name is valid for a sweep."""
    place = tmp_path / re.sub(r"[^a-z0-9-]", "-", tmp_path.name.lower())
    place.mkdir()
    return place


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Yield the URI of an empty bucket on a moto server; the environment of the whole session points every
    client to it.
    """
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    make_bucket(variables)
    yield f"s3://{BUCKET}"
    server.stop()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Yield the variables that point a client to a SeaweedFS server with an empty bucket."""
    try:
        with started(tmp_path_factory.mktemp("weed")) as variables:
            yield variables
    except NoServerError as error:
        pytest.skip(str(error))


@pytest.fixture
def s3_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, str]], None]]:
    """Yield a function that points S3 clients of this test, and of the processes that it starts, to another
    server than the session's.
    """

    pointed = False

    def point(variables: dict[str, str]) -> None:
        nonlocal pointed
        pointed = True
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        _client.cache_clear()

    yield point
    if pointed:
        _client.cache_clear()


STORAGES = ("folder", "moto", pytest.param("weed", marks=pytest.mark.weed))
LONG_STORAGES = (
    "folder",
    pytest.param("moto", marks=pytest.mark.full),
    pytest.param("weed", marks=pytest.mark.weed),
)
"""Storages of tests that take seconds: the fast round runs them on a folder and on the real S3 server."""
KILLED_STORAGES = (
    "folder",
    pytest.param("moto", marks=pytest.mark.full),
    pytest.param("weed", marks=[pytest.mark.weed, pytest.mark.full]),
)
"""Storages of tests that kill a writer. A folder is where half an object could be left."""
SHARED_STORAGES = (
    pytest.param("folder", marks=pytest.mark.full),
    pytest.param("moto", marks=pytest.mark.full),
    pytest.param("weed", marks=pytest.mark.weed),
)
"""Storages of tests with two writing processes. A server is what two machines write to."""


@pytest.fixture(params=STORAGES)
def storage(
    request: pytest.FixtureRequest, tmp_path: Path, s3_environment: Callable[[dict[str, str]], None]
) -> Storage:
    """Return an empty storage of each kind: a folder, an S3 server in this process, a real S3 server."""
    if request.param == "folder":
        return open_storage(str(tmp_path / "objects"))
    if request.param == "weed":
        s3_environment(request.getfixturevalue("weed"))
    else:
        request.getfixturevalue("s3")
    return open_storage(f"s3://{BUCKET}/{tmp_path.name}")


@pytest.fixture
def proxy(s3: str, s3_environment: Callable[[dict[str, str]], None]) -> Iterator[FaultProxy]:
    """Yield a fault-injecting proxy between the clients of this test and the S3 server in this process."""
    with fault_proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        s3_environment({"AWS_ENDPOINT_URL": proxy.url})
        yield proxy


@pytest.fixture
def bucket(proxy: FaultProxy, tmp_path: Path) -> Storage:
    return open_storage(f"s3://{BUCKET}/{tmp_path.name}")


@pytest.fixture
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the S3 client retry at once; botocore has no setting for its pauses."""
    monkeypatch.setattr(
        "botocore.retries.standard.ExponentialBackoff.delay_amount", lambda backoff, context: 0
    )


IMPATIENT = StorageSettings(outage_s=0.0, retry_delay_s=0.0)
"""Settings under which retries come at once, and no request waits for an unreachable server."""


@pytest.fixture
def impatient_bucket(bucket: Storage, no_backoff: None) -> Storage:
    return open_storage(bucket.uri, IMPATIENT)
