"""Scoring over two hosts with addresses, names and /tmp of their own: network namespaces, a link between them
that can be cut.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from conftest import CHECKOUT

from polling import until

pytestmark = [pytest.mark.full, pytest.mark.ray, pytest.mark.sim, pytest.mark.timeout(600)]

SUBNET = "10.77.0"
PORT = 6379
HOSTS = ("a", "b")
EPISODES = 100
SWITCH = f"ds{os.getpid():x}"
# Under this name each host sees a folder of its own: the paths of Ray's sockets must be short.
SHARED_NAME = Path("/tmp/ds-hosts")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Host:
    """A network namespace with one core's worth of Ray."""

    def __init__(self, number: int, name: str, folder: Path) -> None:
        self.name, self.address, self.cable = (
            f"{SWITCH}-host-{name}",
            f"{SUBNET}.{number}",
            f"{SWITCH}-{name}",
        )
        self._folder = folder / name
        self._folder.mkdir()
        self._ray: subprocess.Popen[bytes] | None = None

    def connect(self) -> None:
        ip("netns", "add", self.name)
        ip("link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("link", "set", self.cable, "master", SWITCH, "up")
        ip("-n", self.name, "address", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            ip("-n", self.name, "link", "set", device, "up")

    def command(self, *command: str) -> list[str]:
        inside = f'hostname {self.name}; mount --bind {self._folder} {SHARED_NAME}; exec "$@"'
        return [
            "ip",
            "netns",
            "exec",
            self.name,
            "unshare",
            "--uts",
            "--mount",
            "sh",
            "-c",
            inside,
            "sh",
            *command,
        ]

    def start(self, environment: dict[str, str], *options: str) -> None:
        ray = str(Path(sys.executable).parent / "ray")
        options = (
            f"--node-ip-address={self.address}",
            "--num-cpus=1",
            f"--temp-dir={SHARED_NAME}",
            "--object-store-memory=200000000",
            *options,
        )
        with (self._folder / "log").open("wb") as log:
            whole = self.command(ray, "start", "--block", *options)
            self._ray = subprocess.Popen(
                whole, cwd=CHECKOUT, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def cut(self) -> None:
        """Cut the link without notice to either side."""
        ip("link", "set", self.cable, "down")

    def close(self) -> None:
        pids = subprocess.run(
            ["ip", "netns", "pids", self.name], check=True, capture_output=True, text=True
        ).stdout.split()
        for pid in map(int, pids):
            os.kill(pid, signal.SIGKILL)
        if self._ray:
            self._ray.wait()
        ip("link", "delete", self.cable)  # with the namespace it would be removed some time later
        ip("netns", "delete", self.name)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[dict[str, Host]]:
    if (
        os.getuid()
        or not shutil.which("ip")
        or subprocess.run(["ip", "link", "add", SWITCH, "type", "bridge"], capture_output=True).returncode
    ):
        pytest.skip("network namespaces need root, CAP_NET_ADMIN and the package iproute2")
    made: dict[str, Host] = {}
    SHARED_NAME.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="ds-", dir="/var/tmp"))
    try:
        ip("link", "set", SWITCH, "up")
        for number, name in enumerate(HOSTS, 1):
            made[name] = Host(number, name, folder)
            made[name].connect()
        yield made
    finally:
        for host in made.values():
            host.close()
        ip("link", "delete", SWITCH)
        shutil.rmtree(folder, ignore_errors=True)


def until_status(host: Host, environment: dict[str, str], told: str) -> None:
    """Wait until `ray status` on the host contains the text."""
    asking = host.command(
        str(Path(sys.executable).parent / "ray"), "status", "--address", f"{host.address}:{PORT}"
    )
    until(
        lambda: told in subprocess.run(asking, env=environment, capture_output=True, text=True).stdout,
        pause_s=1,
    )


def score(host: Host, environment: dict[str, str], folder: Path) -> "subprocess.Popen[str]":
    options = [
        "examples.waypoints:make",
        "--episodes",
        str(EPISODES),
        "--workers",
        "2",
        "--fingerprint",
        "waypoints",
        "--storage",
        str(folder),
    ]
    whole = host.command(
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "orchestrator",
        "score",
        *options,
        "--save",
        str(folder / "outcomes.parquet"),
    )
    there = environment | {"RAY_ADDRESS": f"{host.address}:{PORT}"}
    folder.mkdir()
    return subprocess.Popen(
        whole, cwd=CHECKOUT, env=there, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def played(folder: Path) -> pd.DataFrame:
    """Return the rows of the ledger, duplicates included."""
    parts = [*folder.glob("outcomes/*/*/*.parquet")]
    return pd.concat(pd.read_parquet(part) for part in parts) if parts else pd.DataFrame({"worker": []})


def results(folder: Path) -> dict[str, tuple[str, int]]:
    table = pd.read_parquet(folder / "outcomes.parquet")
    return {
        episode: (result, steps)
        for episode, result, steps in zip(table.episode, table.result, table.steps, strict=True)
    }


def test_two_hosts_score_together_and_survive_a_cut_link(hosts: dict[str, Host], tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(CHECKOUT),
    }
    head, other = hosts["a"], hosts["b"]
    head.start(environment, "--head", f"--port={PORT}")
    until_status(head, environment, "/1.0 CPU")
    other.start(environment, f"--address={head.address}:{PORT}")
    until_status(head, environment, "/2.0 CPU")

    said, _ = score(head, environment, tmp_path / "peace").communicate(timeout=240)
    table = pd.read_parquet(tmp_path / "peace" / "outcomes.parquet")
    assert len(table) == EPISODES, said
    assert {worker.partition("/")[0] for worker in table.worker} == {head.name, other.name}

    scoring = score(head, environment, tmp_path / "cut")
    until(lambda: any(worker.startswith(other.name) for worker in played(tmp_path / "cut").worker))
    other.cut()
    cut = pd.Timestamp.now("UTC")
    said, _ = scoring.communicate(timeout=240)
    assert scoring.returncode == 0, said
    rows = played(tmp_path / "cut")
    assert len(rows) == rows.episode.nunique() == EPISODES
    lost = rows[rows.worker.str.startswith(other.name)]
    assert lost.recorded.max() < cut + pd.Timedelta(seconds=10)
    assert rows.recorded.max() > cut + pd.Timedelta(seconds=15), "it ended too early to test anything"
    assert results(tmp_path / "cut") == results(tmp_path / "peace")
