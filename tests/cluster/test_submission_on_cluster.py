"""A sweep submitted to a real Ray head over its HTTP API: found, stopped, killed, continued; nothing lost or
duplicated, no secret leaked.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from conftest import CHECKOUT

from orchestrator.data.episode_store import commit, put_episode
from orchestrator.storage.base import open_storage
from orchestrator.testing.episodes import CONTRACT, make_episode
from polling import until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

TOKEN = "token-of-this-test-7f3a"
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "aws-secret-7f3a",
    "AWS_SESSION_TOKEN": "aws-session-7f3a",
    "MLFLOW_TRACKING_PASSWORD": "mlflow-7f3a",
}
DEMO_COUNTS, CHECKPOINTS, EPISODES = (1, 4), 3, 20
ARMS = len(DEMO_COUNTS)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def processes_in(folder: str) -> Iterator[psutil.Process]:
    """Yield the processes of a Ray head by its folder, which is on their command line or their working
    directory.
    """
    for process in psutil.process_iter():
        try:
            if folder in " ".join(process.cmdline()) or process.cwd().startswith(folder):
                yield process
        except psutil.Error:
            continue


class Head:
    """A Ray head of its own that requires a token."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        ours = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AWS_", "MLFLOW_", "RAY_"))
        }
        path = os.pathsep.join([str(Path(sys.executable).parent), ours["PATH"]])
        self.environment = ours | {
            "PATH": path,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        names = (
            "port",
            "dashboard-port",
            "dashboard-agent-listen-port",
            "dashboard-agent-grpc-port",
            "ray-client-server-port",
        )
        ports = dict(zip((*names, "metrics-export-port"), free_ports(6), strict=True))
        self.address = f"http://127.0.0.1:{ports['dashboard-port']}"
        command = [
            "ray",
            "start",
            "--head",
            "--block",
            "--node-ip-address=127.0.0.1",
            "--num-cpus=4",
            f"--temp-dir={folder}",
        ]
        command += ["--object-store-memory=200000000", *(f"--{name}={port}" for name, port in ports.items())]
        with open(f"{folder}/head.log", "w") as log:
            self._process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, cwd=folder, start_new_session=True
            )

    def wait(self) -> None:
        deadline = time.monotonic() + 180
        while True:
            try:
                self.get("/api/version")
                return
            except OSError:
                assert time.monotonic() < deadline, Path(self.folder, "head.log").read_text()
                time.sleep(0.5)

    def get(self, path: str) -> str:
        request = urllib.request.Request(self.address + path, headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            text: str = answer.read().decode()
            return text

    def jobs(self) -> dict[str, dict[str, Any]]:
        return {
            job["submission_id"]: job for job in json.loads(self.get("/api/jobs/")) if job["submission_id"]
        }

    def logs(self, job: str) -> str:
        told: str = json.loads(self.get(f"/api/jobs/{job}/logs"))["logs"]
        return told

    def close(self) -> None:
        """Kill all processes at once: Ray's own stop takes half a minute."""
        for process in processes_in(self.folder):
            with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                process.kill()
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Yield a head in a folder with a short name: the paths of Ray's sockets must not be long."""
    head = Head(tempfile.mkdtemp(prefix="ds-", dir="/tmp"))
    try:
        head.wait()
        yield head
    finally:
        head.close()


def begin(head: Head, *command: str, pretended: bool = True, **environment: str) -> subprocess.Popen[str]:
    """Start the command as on a laptop whose environment holds secrets that the cluster lacks."""
    program = ["tests/helpers/fake_cli.py"] if pretended else ["-m", "orchestrator"]
    whole = [sys.executable, "-W", "ignore", *program, *command]
    return subprocess.Popen(
        whole,
        cwd=CHECKOUT,
        env=head.environment | SECRETS | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return (exit code, printed text)."""
    out, err = process.communicate(timeout=600)
    return process.returncode, out + err


def submission_line(process: subprocess.Popen[str]) -> str:
    """Return the line that names the job."""
    assert process.stdout
    return next(line for line in process.stdout if line.startswith(("started ", "running ")))


def demoscale(head: Head, *command: str, **kwargs: Any) -> tuple[int, str]:
    return ended(begin(head, command[0], "--address", head.address, *command[1:], **kwargs))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    storage = open_storage(str(tmp_path_factory.mktemp("store")))
    commit(storage, CONTRACT, [put_episode(storage, make_episode(seed), 20.0) for seed in range(8)])
    return storage.uri


def sweep_file(
    folder: Path, store: str, name: str, steps: int, demo_counts: Sequence[int] = DEMO_COUNTS
) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(f"""
name: {name}
data: {{episodes: {store}, demo_count: {list(demo_counts)}}}
train: {{steps: {steps}, batch_size: 2, checkpoint_every: {steps // CHECKPOINTS}}}
suite: {{tasks: [Lift], episodes: {EPISODES}, horizon: 50}}
storage: {folder / "runs"}
""")
    return str(path)


def live(folder: Path, name: str) -> dict[str, Any]:
    file = folder / "runs" / "live" / f"{name}.json"
    try:
        told: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return told


def outcomes(folder: Path) -> pd.DataFrame:
    """Return every row of every part of the ledger, duplicates included."""
    parts = [
        pd.read_parquet(part)[["checkpoint", "episode", "recorded"]]
        for part in (folder / "runs").glob("outcomes/*/*/*.parquet")
    ]
    return pd.concat(parts) if parts else pd.DataFrame()


def started(said: str) -> str:
    return next(line.split()[1] for line in said.splitlines() if line.startswith("started "))


def test_submit_followed_ends_with_the_curve(head: Head, tmp_path: Path, store: str) -> None:
    file = sweep_file(tmp_path, store, "watched", CHECKPOINTS, demo_counts=(4,))
    code, said = demoscale(head, "submit", file, "--follow")
    assert code == 0, said
    job = started(said)
    assert job.startswith("demoscale-watched-")
    assert f"{job}: done" in said
    assert "the curve again" in said
    rows = outcomes(tmp_path)
    assert len(rows) == len(rows[["checkpoint", "episode"]].drop_duplicates()) == CHECKPOINTS * EPISODES
    readable_by_all = head.get("/api/jobs/") + head.logs(job)
    assert str(tmp_path) in readable_by_all
    for secret in (TOKEN, *SECRETS.values()):
        assert secret not in readable_by_all


@pytest.mark.full
def test_submitted_sweep_is_found_stopped_killed_and_continued_to_its_curve(
    head: Head, tmp_path: Path, store: str
) -> None:
    file = sweep_file(tmp_path, store, "laptop", 180)
    code, said = demoscale(head, "submit", file)
    assert code == 0, said
    first = started(said)
    assert first.startswith("demoscale-laptop-")
    assert f"follow   demoscale submit {file} --address {head.address} --follow" in said

    code, said = demoscale(head, "submit", file)
    assert code == 0
    assert f"{first} at {head.address} is running already; nothing was started" in said
    code, said = demoscale(head, "submit", file, "--set", "train.batch_size=4")
    assert code == 1
    assert "laptop is running already, with other settings" in said

    # Stopped as by Ctrl-C, with time to save.
    until(lambda: live(tmp_path, "laptop").get("training"))
    code, said = demoscale(head, "stop", "laptop")
    assert code == 0, said
    assert "stopped; run the same submit command to resume" in said
    assert "ending: stopped; training saves its state" in head.logs(first)
    assert (live(tmp_path, "laptop")["over"], live(tmp_path, "laptop")["ending"]) == (True, "stopped")
    code, said = demoscale(head, "stop", "laptop")
    assert code == 1
    assert f"no job called laptop is running at {head.address}; the last one, {first}, is STOPPED" in said

    # Killed.
    written = live(tmp_path, "laptop")["written"]
    second = started(demoscale(head, "submit", file)[1])
    assert second.removesuffix("-2") == first.removesuffix("-1")
    until(
        lambda: (
            live(tmp_path, "laptop")["written"] > written
            and live(tmp_path, "laptop")["training"]
            and len(outcomes(tmp_path))
        )
    )
    os.kill(live(tmp_path, "laptop")["pid"], signal.SIGKILL)
    until(lambda: head.jobs()[second]["status"] == "FAILED")
    before = outcomes(tmp_path)
    assert len(before) < ARMS * CHECKPOINTS * EPISODES, "killed too late to test anything"

    # Continued to its end, followed.
    code, said = demoscale(head, "submit", file, "--follow")
    assert code == 0, said
    third = started(said)
    assert third.endswith("-3")
    assert f"{third}: done" in said
    assert "the curve again" in said
    rows = outcomes(tmp_path)
    assert (
        len(rows) == len(rows[["checkpoint", "episode"]].drop_duplicates()) == ARMS * CHECKPOINTS * EPISODES
    )
    assert len(rows.merge(before)) == len(before), "what was recorded before the kill counts"

    # Once more, from Python: nothing is left to do.
    program = (
        f"from orchestrator import Sweep; sent = Sweep.load({file!r}).submit({head.address!r});"
        " print(sent.job.job_id)"
    )
    program += "; print([arm['episodes'] for arm in sent.wait().curve().to_json()['arms']])"
    code, said = ended(begin(head, "-c", program))
    assert code == 0, said
    fourth, counts = said.splitlines()
    assert fourth.endswith("-4")
    assert json.loads(counts) == ARMS * [EPISODES]
    assert len(outcomes(tmp_path)) == len(rows)

    # What every user of the cluster may read about these jobs.
    told = head.get("/api/jobs/") + "".join(head.logs(job) for job in (first, second, third))
    assert str(tmp_path) in told
    for secret in (TOKEN, *SECRETS.values()):
        assert secret not in told
    commits = {job["runtime_env"]["env_vars"]["DEMOSCALE_COMMIT"] for job in head.jobs().values()}
    assert "unknown" not in commits


@pytest.mark.full
def test_two_simultaneous_submits_start_one_job_that_survives_ctrl_c(
    head: Head, tmp_path: Path, store: str
) -> None:
    file = sweep_file(tmp_path, store, "racing", 6000)
    both = [begin(head, "submit", file, "--address", head.address, "--follow") for _ in range(2)]
    heard = [submission_line(process) for process in both]
    assert sorted(line.split()[0] for line in heard) == ["running", "started"]
    mine = {line.split()[1] for line in heard}
    assert len(mine) == 1
    assert {job for job in head.jobs() if job.startswith("demoscale-racing-")} == mine
    (job,) = mine
    until(lambda: head.jobs()[job]["status"] == "RUNNING")
    for process in both:
        process.send_signal(signal.SIGINT)
    ends = [ended(process) for process in both]
    assert [code for code, _ in ends] == [130, 130], ends
    assert all(f"{job} keeps running" in said and "Traceback" not in said for _, said in ends)
    assert head.jobs()[job]["status"] == "RUNNING"
    code, said = demoscale(head, "stop", job)
    assert code == 0, said
    assert head.jobs()[job]["status"] == "STOPPED"


@pytest.mark.parametrize("environment", [{"RAY_AUTH_TOKEN": "wrong"}, {"RAY_AUTH_MODE": "disabled"}])
def test_stop_with_a_wrong_token_prints_one_sentence(head: Head, environment: dict[str, str]) -> None:
    code, said = demoscale(head, "stop", "anything", **environment)
    assert code == 1
    assert (
        f"the cluster at {head.address} requires a token, and the right one was not sent; set"
        " RAY_AUTH_MODE=token" in said
    )
    assert len(said.splitlines()) == 1
    assert TOKEN not in said


@pytest.mark.full
@pytest.mark.sim
def test_collect_job_runs_with_the_code_of_this_checkout(head: Head, tmp_path: Path) -> None:
    """Record two demonstrations of Lift by the cluster's workers."""
    arguments = [
        "--job",
        "collect",
        "--follow",
        "--",
        "--task",
        "Lift",
        "--episodes",
        "2",
        "--store",
        str(tmp_path / "lift"),
        "--workers",
        "1",
    ]
    code, said = demoscale(head, "submit", *arguments, pretended=False)
    assert code == 0, said
    assert "recorded 2 episodes of Lift" in said
    assert (tmp_path / "lift").is_dir()
