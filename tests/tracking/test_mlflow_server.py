"""A real MLflow server that is killed, unreachable, slow, failing or asking for a token receives everything,
once, and no secret.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import run

from fault_proxy import FaultProxy, fault_proxy
from mlflow_views import check_views
from orchestrator.cli.main import main
from orchestrator.sweep.state import SweepState
from orchestrator.sweep.tracking_publisher import TrackingPublisher
from orchestrator.testing.episodes import make_episode_store
from orchestrator.testing.mlflow_server import MlflowServer
from orchestrator.tracking.mlflow_writer import client
from orchestrator.tracking.outbox import OutboxReader, journals
from orchestrator.tracking.outbox_relay import OutboxSettings
from reporting_sweep import check, make_sweep, report, report_all, start_process

SECRET = "hunter2-the-secret-of-the-tests"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("mlflow")
    client(f"sqlite:///{folder / 'server.db'}")  # creates the database faster than the server does
    server = MlflowServer(folder)
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove credentials from the environment, before and after each test."""
    for name in ("TOKEN", "USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def proxy(server: MlflowServer) -> Iterator[FaultProxy]:
    with fault_proxy(server.url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_episode_store(tmp_path_factory.mktemp("store") / "lift", 8)


@pytest.mark.full
def test_arms_that_report_to_a_killed_mlflow_server_lose_nothing(
    tmp_path: Path, store: str, server: MlflowServer
) -> None:
    sweep, said = make_sweep(tmp_path, store, server.url, name="killed-server", arms=4), list[str]()
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
    server.wait()
    assert views.finish(done=True) == ""
    check(server.url, state, steps=6)
    assert [line for line in said if "records wait in" in line]
    assert [line for line in said if "MLflow answers again" in line]


@pytest.mark.full
def test_runs_models_and_curve_are_read_from_a_server(
    tmp_path: Path, store: str, server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    check_views(tmp_path / "runs", store, server.url)


@pytest.mark.full
def test_two_sweeps_at_once_log_everything_to_one_server(
    tmp_path: Path, store: str, server: MlflowServer
) -> None:
    sweeps = [make_sweep(tmp_path, store, server.url, name=name, arms=4) for name in ("one", "other")]
    processes = [start_process(sweep, tmp_path, steps=2) for sweep in sweeps]
    for process in processes:
        said, _ = process.communicate(timeout=300)
        assert json.loads(said.splitlines()[-1]) == "", said
    for sweep in sweeps:
        check(server.url, SweepState.open(sweep), steps=2)


@pytest.mark.full
def test_process_killed_while_it_delivers_to_a_server_loses_and_repeats_nothing(
    tmp_path: Path, store: str, server: MlflowServer
) -> None:
    sweep = make_sweep(tmp_path, store, server.url, name="killed-driver", arms=4)
    for kill in range(2):
        process = start_process(sweep, tmp_path, steps=4)
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
    assert report_all(sweep, steps=4) == ""
    check(server.url, SweepState.open(sweep), steps=4)


@pytest.mark.full
def test_lost_cut_and_failed_answers_repeat_nothing(
    tmp_path: Path, store: str, server: MlflowServer, proxy: FaultProxy
) -> None:
    """Every fifth request fails in one of the ways; three in four of these were carried out all the same."""
    faults = [
        fault for kind in ("unanswered", "SlowDown", "unanswered", "cut") for fault in ("", "", "", "", kind)
    ] * 200
    proxy.will(*faults)
    sweep = make_sweep(tmp_path, store, proxy.url, name="faults", arms=4)
    assert report_all(sweep, steps=2) == ""
    proxy.will()
    check(server.url, SweepState.open(sweep), steps=2)


@pytest.mark.full
def test_requests_that_arrive_after_their_timeout_create_no_duplicates(
    tmp_path: Path, store: str, server: MlflowServer, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    proxy.late_s = 3.5
    proxy.will(*(["", "", "late"] * 4))  # among them those that create runs
    sweep = make_sweep(tmp_path, store, proxy.url, name="late-requests", arms=2)
    assert report_all(sweep, steps=2) == ""
    assert "late" not in proxy.requests
    time.sleep(proxy.late_s)
    assert report_all(sweep, steps=2) == ""  # what arrived after the end is put in order by the next run
    check(server.url, SweepState.open(sweep), steps=2)


@pytest.mark.full
@pytest.mark.parametrize(
    ("fault", "words"),
    [("SlowDown", "answers with error 503"), ("late", "does not answer in time"), ("", "cannot be reached")],
)
def test_unreachable_mlflow_server_blocks_nothing_and_is_updated_later(
    tmp_path: Path,
    store: str,
    server: MlflowServer,
    proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    words: str,
) -> None:
    """Failing, stalling, or unreachable; later the command that the sentence names delivers everything."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    if fault:
        proxy.will(fault, always=True)
    else:
        proxy.upstream = "127.0.0.1:1"
    proxy.late_s = 3.0
    name = f"away-{words.split()[-1]}"
    sweep, said = make_sweep(tmp_path, store, proxy.url, name=name, arms=2), list[str]()
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
    assert len(said) <= 1, "logged once, not at every attempt"
    rebuild = ["status", name, "--storage", str(tmp_path), "--rebuild"]
    still = CliRunner().invoke(main, rebuild, obj=settings)
    assert still.exit_code == 1
    assert "records are not told yet" in still.output
    assert "Traceback" not in still.output
    proxy.will()
    proxy.upstream = server.url.removeprefix("http://")
    # a server that is back may answer slowly on a busy machine
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    told = CliRunner().invoke(main, rebuild, obj=OutboxSettings(patience_s=60.0), catch_exceptions=False)
    assert told.exit_code == 0, told.output
    time.sleep(proxy.late_s if fault == "late" else 0)
    check(server.url, state, steps=2)


@pytest.mark.full
def test_mlflow_token_is_sent_to_the_server_and_written_nowhere(
    tmp_path: Path, store: str, server: MlflowServer, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = OutboxSettings(patience_s=2.0)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    proxy.will("AccessDenied", always=True)
    sweep, said = make_sweep(tmp_path, store, proxy.url, name="token", arms=2), list[str]()
    said.append(report_all(sweep, steps=2, say=said.append, settings=settings))
    assert "refuses the credentials (403); set MLFLOW_TRACKING_TOKEN" in said[-1]
    assert proxy.authorization == f"Bearer {SECRET}"
    assert_absent(SECRET, tmp_path, server, said)
    proxy.will()
    said.append(report_all(sweep, steps=2, say=said.append, settings=settings))
    assert said[-1] == ""
    check(server.url, SweepState.open(sweep), steps=2)
    assert_absent(SECRET, tmp_path, server, said)


@pytest.mark.full
def test_mlflow_password_of_the_environment_is_sent_and_written_nowhere(
    tmp_path: Path, store: str, server: MlflowServer, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    settings = OutboxSettings(patience_s=2.0)
    with pytest.raises(ValueError, match="mlflow: it holds credentials"):
        make_sweep(tmp_path, store, proxy.url.replace("//", f"//me:{SECRET}@"), name="password", arms=2)
    proxy.will("SlowDown", always=True)
    sweep, said = make_sweep(tmp_path, store, proxy.url, name="password", arms=2), list[str]()
    said.append(report_all(sweep, steps=2, say=said.append, settings=settings))
    assert "answers with error 503" in said[-1]
    assert proxy.authorization.startswith("Basic ")
    proxy.upstream = "127.0.0.1:1"
    said.append(report_all(sweep, steps=2, say=said.append, settings=settings))
    assert_absent(SECRET, tmp_path, server, said)
    proxy.upstream = server.url.removeprefix("http://")
    proxy.will()
    said.append(report_all(sweep, steps=2, say=said.append, settings=settings))
    assert said[-1] == ""
    check(server.url, SweepState.open(sweep), steps=2)
    environment = os.environ | {"MLFLOW_TRACKING_TOKEN": SECRET}
    done = run(
        "-m", "orchestrator", "status", "password", "--storage", str(tmp_path), "--rebuild", env=environment
    )
    assert done.returncode == 0, done.stderr
    assert_absent(SECRET, tmp_path, server, [*said, done.stdout, done.stderr])


def assert_absent(secret: str, folder: Path, server: MlflowServer, said: list[str]) -> None:
    """Assert that the secret is in no file of the sweep or of the server, which holds every field and
    artifact, and in no line.
    """
    files = [file for place in (folder, server._folder) for file in place.rglob("*") if file.is_file()]
    assert len(files) > 10
    assert [file for file in files if secret.encode() in file.read_bytes()] == []
    assert secret not in "\n".join(said)
