"""What a real MLflow server is told while it is killed, away, slow, failing or asking for a token: all of it,
once, and nothing secret.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import run

from fault_proxy import FaultProxy, fault_proxy
from orchestrator.cli.main import main
from orchestrator.sweep.state import SweepState
from orchestrator.sweep.tracking_publisher import TrackingPublisher
from orchestrator.testing.episodes import make_episode_store
from orchestrator.tracking.mlflow_writer import client
from orchestrator.tracking.outbox import OutboxReader, journals
from orchestrator.tracking.outbox_relay import OutboxSettings
from reports import a_sweep, check, in_a_process, report, tell

SECRET = "hunter2-the-secret-of-the-tests"


class Server:
    """`mlflow server` on a port of its own, that can be killed and started again on what it kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        client(f"sqlite:///{folder / 'server.db'}")  # quicker than the server makes it
        self.start()

    def start(self) -> None:
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1", "--allowed-hosts", "*"]
        options += [
            "--backend-store-uri",
            f"sqlite:///{self._folder / 'server.db'}",
            "--artifacts-destination",
            str(self._folder / "artifacts"),
        ]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *options],
                env=environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 240
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except OSError:
                assert self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
                assert time.monotonic() < deadline, "the server did not start within four minutes"
                time.sleep(0.2)

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mlflow"))
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def nobody_s_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test, or what it tests, puts into the environment goes with it."""
    for name in ("TOKEN", "USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    with fault_proxy(server.url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_episode_store(tmp_path_factory.mktemp("store") / "lift", 8)


@pytest.mark.full
def test_ten_arms_at_once_tell_a_server_that_is_killed_in_the_middle_everything(
    tmp_path: Path, store: str, server: Server
) -> None:
    sweep, said = a_sweep(tmp_path, store, server.url, name="killed-server"), list[str]()
    state = SweepState.open(sweep, pin=True)
    views = TrackingPublisher(state, said.append)
    reporting = threading.Thread(target=report, args=(views, state, 6, 0.3))
    reporting.start()
    time.sleep(1.0)
    server.kill()
    reporting.join(20)
    assert not reporting.is_alive(), "the arms waited for the server"
    assert views._relay.left > 10, "the server was killed too late to test anything"
    server.start()
    assert views.finish(done=True) == ""
    check(server.url, state, steps=6)
    assert [line for line in said if "what it is to be told is kept in" in line]
    assert [line for line in said if "MLflow answers again" in line]


@pytest.mark.full
def test_two_sweeps_at_once_tell_one_server_everything(tmp_path: Path, store: str, server: Server) -> None:
    sweeps = [a_sweep(tmp_path, store, server.url, name=name, arms=6) for name in ("one", "other")]
    processes = [in_a_process(sweep, tmp_path, steps=4) for sweep in sweeps]
    for process in processes:
        said, _ = process.communicate(timeout=300)
        assert json.loads(said.splitlines()[-1]) == "", said
    for sweep in sweeps:
        check(server.url, SweepState.open(sweep), steps=4)


@pytest.mark.full
def test_a_process_killed_while_it_tells_a_server_loses_nothing_and_repeats_nothing(
    tmp_path: Path, store: str, server: Server
) -> None:
    sweep = a_sweep(tmp_path, store, server.url, name="killed-driver", arms=4)
    for kill in range(2):
        process = in_a_process(sweep, tmp_path, steps=4)
        deadline = time.monotonic() + 120
        while not (told := [int(file.read_text() or 0) for file in tmp_path.glob("telling/*/*.told")]) or max(
            told
        ) < 2500 * (kill + 1):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert (
        sum(OutboxReader(journal).left for journal in journals(next((tmp_path / "telling").iterdir()))) > 5
    ), "killed too late to test anything"
    assert tell(sweep, steps=4) == ""
    check(server.url, SweepState.open(sweep), steps=4)


@pytest.mark.full
def test_answers_that_are_lost_cut_or_errors_repeat_nothing(
    tmp_path: Path, store: str, server: Server, proxy: FaultProxy
) -> None:
    """Every fifth request fails in one of the ways; three in four of these were carried out all the same."""
    faults = [
        fault for kind in ("unanswered", "SlowDown", "unanswered", "cut") for fault in ("", "", "", "", kind)
    ] * 200
    proxy.will(*faults)
    sweep = a_sweep(tmp_path, store, proxy.url, name="faults", arms=4)
    assert tell(sweep, steps=2) == ""
    proxy.will()
    check(server.url, SweepState.open(sweep), steps=2)


@pytest.mark.full
def test_requests_that_arrive_after_they_were_given_up_make_no_twins(
    tmp_path: Path, store: str, server: Server, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    proxy.late_s = 3.5
    proxy.will(*(["", "", "late"] * 4))  # among them those that create runs
    sweep = a_sweep(tmp_path, store, proxy.url, name="twins", arms=2)
    assert tell(sweep, steps=2) == ""
    assert "late" not in proxy.requests
    time.sleep(proxy.late_s)
    assert tell(sweep, steps=2) == ""  # what arrived after the very end is put in order by the next run
    check(server.url, SweepState.open(sweep), steps=2)


@pytest.mark.full
@pytest.mark.parametrize(
    ("fault", "words"),
    [("SlowDown", "answers with error 503"), ("late", "does not answer in time"), ("", "cannot be reached")],
)
def test_a_server_that_stays_away_stalls_nothing_and_is_told_later(
    tmp_path: Path,
    store: str,
    server: Server,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    words: str,
) -> None:
    """Failing, stalling, or not there; then the command that the sentence names tells it all."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    if fault:
        proxy.will(fault, always=True)
    else:
        proxy.upstream = "127.0.0.1:1"
    proxy.late_s = 3.0
    name = f"away-{words.split()[-1]}"
    sweep, said = a_sweep(tmp_path, store, proxy.url, name=name, arms=4), list[str]()
    settings = OutboxSettings(patience_s=3.0)
    began = time.monotonic()
    state = SweepState.open(sweep, pin=True)
    views = TrackingPublisher(state, said.append, settings=settings)
    report(views, state, steps=2)
    assert time.monotonic() - began < 15, "reporting waited for the server"
    sentence = views.finish(done=True)
    assert time.monotonic() - began < 60, "the end waited for the server"
    assert words in sentence
    assert f"demoscale status {name} --storage {tmp_path} --rebuild" in sentence
    assert len(said) <= 1, "told once, not at every attempt"
    rebuild = ["status", name, "--storage", str(tmp_path), "--rebuild"]
    still = CliRunner().invoke(main, rebuild, obj=settings)
    assert still.exit_code == 1
    assert "records are not told yet" in still.output
    assert "Traceback" not in still.output
    proxy.will()
    proxy.upstream = server.url.removeprefix("http://")
    told = CliRunner().invoke(main, rebuild, obj=settings, catch_exceptions=False)
    assert told.exit_code == 0, told.output
    time.sleep(proxy.late_s if fault == "late" else 0)
    check(server.url, state, steps=2)


def test_a_server_that_asks_for_a_token_is_given_it_and_nobody_else_is(
    tmp_path: Path, store: str, server: Server, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = OutboxSettings(patience_s=2.0)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    proxy.will("AccessDenied", always=True)
    sweep, said = a_sweep(tmp_path, store, proxy.url, name="token", arms=2), list[str]()
    said.append(tell(sweep, steps=2, say=said.append, settings=settings))
    assert "refuses the credentials (403); set MLFLOW_TRACKING_TOKEN" in said[-1]
    assert proxy.authorization == f"Bearer {SECRET}"
    nowhere(SECRET, tmp_path, server, said)
    proxy.will()
    said.append(tell(sweep, steps=2, say=said.append, settings=settings))
    assert said[-1] == ""
    check(server.url, SweepState.open(sweep), steps=2)
    nowhere(SECRET, tmp_path, server, said)


@pytest.mark.full
def test_a_password_of_the_environment_is_used_and_written_down_nowhere(
    tmp_path: Path, store: str, server: Server, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    settings = OutboxSettings(patience_s=2.0)
    with pytest.raises(ValueError, match="mlflow: it holds credentials"):
        a_sweep(tmp_path, store, proxy.url.replace("//", f"//me:{SECRET}@"), name="password", arms=2)
    proxy.will("SlowDown", always=True)
    sweep, said = a_sweep(tmp_path, store, proxy.url, name="password", arms=2), list[str]()
    said.append(tell(sweep, steps=2, say=said.append, settings=settings))
    assert "answers with error 503" in said[-1]
    assert proxy.authorization.startswith("Basic ")
    proxy.upstream = "127.0.0.1:1"
    said.append(tell(sweep, steps=2, say=said.append, settings=settings))
    nowhere(SECRET, tmp_path, server, said)
    proxy.upstream = server.url.removeprefix("http://")
    proxy.will()
    said.append(tell(sweep, steps=2, say=said.append, settings=settings))
    assert said[-1] == ""
    check(server.url, SweepState.open(sweep), steps=2)
    environment = os.environ | {"MLFLOW_TRACKING_TOKEN": SECRET}
    done = run(
        "-m", "orchestrator", "status", "password", "--storage", str(tmp_path), "--rebuild", env=environment
    )
    assert done.returncode == 0, done.stderr
    nowhere(SECRET, tmp_path, server, [*said, done.stdout, done.stderr])


def nowhere(secret: str, folder: Path, server: Server, said: list[str]) -> None:
    """In no file of the sweep or of the server, which holds every field and artifact of MLflow, and in
    nothing that was said.
    """
    files = [file for place in (folder, server._folder) for file in place.rglob("*") if file.is_file()]
    assert len(files) > 10
    assert [file for file in files if secret.encode() in file.read_bytes()] == []
    assert secret not in "\n".join(said)
