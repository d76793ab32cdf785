"""A sweep, a command and the policy server write everything without secrets; sweeps that contain secrets are
refused.
"""

import http.client
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import click
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from conftest import CHECKOUT
from pydantic import ValidationError

from orchestrator.cli.main import main
from orchestrator.cli.mistakes import report_user_errors
from orchestrator.cluster.preflight import check_sweep
from orchestrator.cluster.ray_jobs import Job
from orchestrator.cluster.submission import has_ended
from orchestrator.config.sweep_config import SweepConfig, SweepError, load_suite
from orchestrator.cost import CostLedger
from orchestrator.evaluation.outcome_ledger import Ledger
from orchestrator.redaction import redact, redacted_in
from orchestrator.storage.base import StorageError
from orchestrator.sweep.arm_search import GridSearch
from orchestrator.sweep.heartbeat import Heartbeat
from orchestrator.sweep.run import SweepRun
from orchestrator.sweep.state import SweepState
from orchestrator.sweep.tracking_publisher import TrackingPublisher
from orchestrator.sweep.train_scheduler import TrainScheduler
from orchestrator.testing.outcomes import make_outcome
from orchestrator.tracking.outbox_relay import OutboxSettings
from orchestrator.tracking.tracking_errors import redacted as short
from orchestrator.training.train_events import Failed, Retried
from policy.http_limits import TOKEN
from policy.http_policy import RemotePolicy
from policy.http_protocol import RemoteError
from policy.http_server import make_server
from policy.interface import ActionChunk, Contract, Observation
from reporting_sweep import make_sweep

SECRET = "hunter2"
SAID = f"GET https://me:{SECRET}@host/x?token={SECRET} failed, password='{SECRET}'"
LEFT = "GET https://***@host/x?token=*** failed, password='***'"


@pytest.fixture
def state(folder: Path, store: str) -> SweepState:
    return SweepState.open(make_sweep(folder, store, "", arms=2), pin=True)


def files_with(folder: Path, text: str) -> list[str]:
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and text.encode() in path.read_bytes()
    ]


# -- files and messages --------------------------------------------------------------------------------------


def test_failure_record_holds_no_secret(state: SweepState) -> None:
    state.record_failure("arm", SAID, f"Traceback:\n  login(password='{SECRET}')\nOSError: {SAID}")
    kept = json.loads(state.storage.get(f"failures/{state.sweep.name}/arm.json"))
    assert kept == {"sentence": LEFT, "trace": f"Traceback:\n  login(password='***')\nOSError: {LEFT}"}
    assert state.failures()["arm"].startswith(LEFT)


def test_training_failure_is_redacted_before_it_is_truncated(state: SweepState) -> None:
    """The 300 characters end within the password, where its prefix is cut off."""
    arm = next(iter(state.arms().values()))
    run_id, lines = arm.arm_id(state.training), list[str]()
    run = SweepRun(state.sweep, lines.append)
    run.training = TrainScheduler(
        state, run.board, _no_views(), GridSearch([]), None, 1, lambda job: {}, False
    )
    run.training._running[run_id] = state.job(arm)
    trace = f"Traceback:\nRuntimeError: {'x' * 270} https://me:{SECRET}{SECRET}@host"
    run.handle(Retried(run_id, trace))
    run.handle(Failed(run_id, trace))
    run.spending.close()
    assert len(lines) == 2
    assert not [line for line in lines if "hunt" in line]
    assert all("https://***" in line for line in lines)
    assert files_with(Path(state.storage.uri), "hunt") == []


def _no_views() -> Any:
    return SimpleNamespace()


def test_live_status_holds_no_secret(state: SweepState, monkeypatch: pytest.MonkeyPatch) -> None:
    board = state.board()
    next(iter(board.arms.values())).failure = SAID
    pulse = Heartbeat.__new__(Heartbeat)  # its thread asks Ray for more; this is what it writes
    scorer = SimpleNamespace(waiting=0, unscored=0)
    pulse._run = SimpleNamespace(  # type: ignore[assignment]
        state=state,
        board=board,
        spending=CostLedger(state.storage, state.sweep.name, "r"),
        ending=SAID,
        untold=0,
        evaluation=SimpleNamespace(scorer=scorer, workers=0),
        training=SimpleNamespace(running=[]),
    )
    pulse._began, pulse._at_first = 0.0, (1, 1)
    pulse._write()
    kept = json.loads(state.storage.get(f"live/{state.sweep.name}.json"))
    assert kept["ending"] == LEFT
    assert LEFT in json.dumps(kept["arms"])
    assert files_with(Path(state.storage.uri), SECRET) == []


def test_quarantine_note_holds_no_secret(state: SweepState, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = state.manifest.select([state.subset(state.sweep.largest()).demos[0]])[0]
    whole = iter([[(damaged, SAID)], []])
    monkeypatch.setattr("orchestrator.sweep.state.check_all", lambda *_: next(whole))
    assert state.without_damaged(lambda *_: None).quarantined == {damaged.episode_id: LEFT}
    assert files_with(Path(state.storage.uri), SECRET) == []


def test_ledger_message_holds_no_secret(state: SweepState) -> None:
    episode = state.sweep.to_suite().episode_list()[0]
    Ledger(state.storage, "c", "p").record(
        [replace(make_outcome(episode, False), result="error", message=SAID)]
    )
    (key,) = state.storage.list("outcomes/c/p/")
    assert pq.read_table(io.BytesIO(state.storage.get(key)))["message"].to_pylist() == [LEFT]


def test_run_log_line_holds_no_secret(state: SweepState) -> None:
    lines = list[str]()
    run = SweepRun(state.sweep, lines.append)
    run.say(SAID)
    run._publisher.close()
    assert lines == [LEFT]


def test_mlflow_receives_no_secret(state: SweepState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "orchestrator.sweep.tracking_publisher.environment",
        lambda: {"python": SAID, "platform": "p", "packages": {}},
    )
    lines = list[str]()
    views = TrackingPublisher(
        replace(state, quarantined={"episode_0": SAID}), lines.append, settings=OutboxSettings(patience_s=60)
    )
    assert views.finish(done=True) == ""
    place = Path(state.storage.uri)
    assert files_with(place, "https://***@host") != [], "it was logged"
    assert files_with(place, SECRET) == []


def test_job_message_holds_no_secret() -> None:
    assert has_ended(Job("id", "FAILED", f"{SAID}\nmore", {})).endswith(LEFT)


# -- what a command prints -----------------------------------------------------------------------------------

UNCAUGHT = """
import threading, sys
from orchestrator.cli.mistakes import report_user_errors
@report_user_errors
def command():
    thread = threading.Thread(target=fail, args=("in a thread",), name="helper")
    thread.start(); thread.join()
    fail("in the command")
def fail(where):
    raise RuntimeError(where + " https://me:hunter2@host HIDDEN-IN-ENVIRONMENT")
command()
"""


def test_uncaught_traceback_is_printed_without_secrets() -> None:
    environment = {"PYTHONPATH": str(CHECKOUT), "API_TOKEN": "HIDDEN-IN-ENVIRONMENT"}
    done = subprocess.run(
        [sys.executable, "-c", UNCAUGHT], env=environment, cwd=CHECKOUT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.count("Traceback (most recent call last)") == 2
    assert "RuntimeError: in a thread https://***@host ***" in done.stderr
    assert "RuntimeError: in the command https://***@host ***" in done.stderr
    assert SECRET not in done.stderr
    assert "HIDDEN" not in done.stderr


@pytest.mark.parametrize(
    ("error", "code"), [(SweepError(SAID, [SAID]), 2), (StorageError(SAID), 1), (click.BadParameter(SAID), 2)]
)
def test_command_error_holds_no_secret(error: Exception, code: int) -> None:
    @click.command()
    @report_user_errors
    def fails() -> None:
        raise error

    done = CliRunner().invoke(fails)
    assert done.exit_code == code
    assert LEFT in done.output
    assert SECRET not in done.output


def test_mlflow_error_is_short_and_holds_no_secret() -> None:
    assert short(f"{'x' * 290}\nhttps://me:{SECRET}@host") == f"{'x' * 290} https://*"


# -- the environment -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "text", "left"),
    [
        ("HF_TOKEN", "hunter2", "with hunter2.", "with ***."),
        ("AWS_SECRET_ACCESS_KEY", "abc/def+ghi/jkl", "q=abc%2Fdef%2Bghi%2Fjkl&b", "q=***&b"),
        ("DB_PASSWORD", 'a"b<c>d', r"""said {"x": "a\"b<c>d"}""", 'said {"x": "***"}'),
        ("DB_PASSWORD", 'a"b<c>d', "said a&quot;b&lt;c&gt;d", "said ***"),
        ("MLFLOW_TRACKING_PASSWORD", "hunter2", "dXNlcjpodW50ZXIy", "***"),
        ("DATABASE_URL", "postgresql://me:hun%40ter2@db/x", "for me: hun@ter2", "for me: ***"),
        ("WANDB_API_KEY", "0123456789abcdef", "x0123456789abcdefx", "x***x"),
        ("HF_TOKEN", "hunter2", "hunter22 is another word", "hunter22 is another word"),
        ("HF_TOKEN", "abc", "abc is too short to be removed", "abc is too short to be removed"),
        ("TOKENIZERS_PARALLELISM", "parallel", "parallel", "parallel"),
        ("RAY_AUTH_TOKEN_PATH", "/run/ray/auth", "/run/ray/auth", "/run/ray/auth"),
        ("OLDPWD", "/home/someone", "/home/someone", "/home/someone"),
        ("RAY_AUTH_MODE", "password", "the password", "the password"),
    ],
)
def test_redact_hides_secret_environment_values_in_every_encoding(
    name: str, value: str, text: str, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "user")
    monkeypatch.setenv(name, value)
    assert redact(text) == left


def test_redacted_in_keeps_the_structure() -> None:
    told = {"n": 1, "token": SECRET, "lines": [SAID, None, 0.5], "tokens": 5}
    assert redacted_in(told) == {"n": 1, "token": "***", "lines": [LEFT, None, 0.5], "tokens": 5}


# -- refused sweeps ------------------------------------------------------------------------------------------

HELD = {
    "storage": f"s3://me:{SECRET}@results/lift",
    "mlflow": f"https://{SECRET}@mlflow.example.org",
    "name": f"https://me:{SECRET}@host",
    "data.episodes": f"s3://AKIAX:{SECRET}@bucket/lift",
    "policy.weights": f"s3://AKIAX:{SECRET}@bucket/svd",
    "policy.baselines.0": f"https://host/?token={SECRET}",
    "suite.decide.against": f"me:{SECRET}@db:5432/x",
    "suite.tasks.1": f"https://host/?X-Amz-Signature={SECRET}",
    "search.optuna.against": f"password={SECRET}",
    "labels.token": SECRET,
    "labels.0.deep.1.note": f"Bearer {SECRET}A",
}


def with_field(raw: dict[str, Any], field: str, value: str) -> dict[str, Any]:
    *parents, last = field.split(".")
    place: Any = raw
    for parent in parents:
        place[parent] = dict(place[parent]) if isinstance(place.get(parent), dict) else {}
        place = place[parent]
    place[last] = value
    return raw


def written(folder: Path, raw: dict[str, Any]) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.mark.parametrize("field", HELD)
@pytest.mark.parametrize(
    "command",
    [["run"], ["plan"], ["submit", "--address", "http://127.0.0.1:1"]],
    ids=lambda command: command[0],
)
def test_command_with_credentials_in_the_sweep_exits_two_before_it_starts(
    command: list[str], field: str, tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = with_field(
        make_sweep(tmp_path / "runs", store, "", arms=2).model_dump(mode="json"), field, HELD[field]
    )
    path = written(tmp_path, raw)
    done = CliRunner().invoke(main, [*command, str(path)])
    assert done.exit_code == 2
    assert f"  - {field}: it holds credentials" in done.output
    assert "environment" in done.output
    assert SECRET not in done.output
    assert sorted(place.name for place in tmp_path.iterdir()) == ["sweep.yaml"], "nothing was started"
    with pytest.raises(ValidationError, match="it holds credentials") as refused:
        SweepConfig.model_validate(raw)
    assert SECRET not in str(refused.value)


def test_sweep_load_names_every_field_with_credentials(tmp_path: Path, store: str) -> None:
    raw = make_sweep(tmp_path / "runs", store, "", arms=2).model_dump(mode="json")
    raw |= {"mlflow": HELD["mlflow"], f"https://me:{SECRET}@host": 1, "storage": HELD["storage"]}
    with pytest.raises(SweepError) as refused:
        SweepConfig.load(written(tmp_path, raw))
    assert [problem.partition(": it holds")[0] for problem in sorted(refused.value.problems)] == [
        "https://***@host",
        "mlflow",
        "storage",
    ]
    assert SECRET not in str(refused.value)
    with pytest.raises(SweepError, match="mlflow: it holds credentials"):
        load_suite(written(tmp_path, raw))


@pytest.mark.parametrize(
    "override",
    [
        f"mlflow=https://me:{SECRET}@host",
        f"mlflow=[https://me:{SECRET}@host",
        f"name.x=https://me:{SECRET}@h",
        f"token={SECRET}",
    ],
)
def test_override_with_credentials_is_refused_without_them(override: str, tmp_path: Path, store: str) -> None:
    path = written(tmp_path, make_sweep(tmp_path / "runs", store, "", arms=2).model_dump(mode="json"))
    done = CliRunner().invoke(main, ["plan", str(path), "--set", override])
    assert done.exit_code == 2
    assert SECRET not in done.output


def test_invalid_yaml_is_reported_without_its_text(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(f'name: x\nnote: "{SECRET}\n')
    with pytest.raises(SweepError, match="not readable as YAML") as refused:
        SweepConfig.load(path)
    assert "line 3" in str(refused.value)
    assert SECRET not in str(refused.value)


def test_yaml_aliases_do_not_delay_the_credential_check(tmp_path: Path) -> None:
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "\n".join(["a0: &a0 [x]", "loop: &loop [*loop]", *levels, f"mlflow: https://me:{SECRET}@host"])
    )
    began = time.monotonic()
    with pytest.raises(SweepError, match="an alias stands for a value that contains it") as refused:
        SweepConfig.load(path)
    assert time.monotonic() - began < 30
    assert SECRET not in str(refused.value)


def test_check_sweep_finds_credentials_added_after_validation(tmp_path: Path, store: str) -> None:
    sweep = make_sweep(tmp_path / "runs", store, "", arms=2).model_copy(update={"mlflow": HELD["mlflow"]})
    (problem,) = check_sweep(sweep)
    assert problem.startswith("mlflow: it holds credentials")
    assert SECRET not in problem


# -- the policy server's token -------------------------------------------------------------------------------


class Still:
    contract = Contract(("front",), (6, 8), "fast", ("x",), ("dx",), 20.0, "none")

    def act(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return [ActionChunk(np.zeros((2, 1), np.float32), 1) for _ in observations]


LOOK = Observation({"front": np.zeros((6, 8, 3), np.uint8)}, np.zeros(1, np.float32), "lift", 0)


@contextmanager
def served(token: str) -> Iterator[str]:
    server = make_server(Still(), port=0, token=token)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def asked(url: str, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    told = answer.status, answer.read().decode(errors="replace")
    connection.close()
    return told


@pytest.mark.parametrize(("method", "path"), [("GET", "/contract"), ("POST", "/act"), ("GET", "/nothing")])
@pytest.mark.parametrize(
    "sent",
    [
        "",
        f"Bearer {SECRET}x",
        f"Bearer {SECRET[:-1]}",
        SECRET,
        f"Basic {SECRET}",
        "Bearer ",
        "Bearer h\xfcnter2",
    ],
)
def test_policy_server_with_a_token_answers_401_without_it(
    method: str, path: str, sent: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with served(SECRET) as url:
        status, sentence = asked(url, method, path, {"Authorization": sent} if sent else {})
    assert (status, sentence) == (
        401,
        "this policy server requires a token; set DEMOSCALE_POLICY_TOKEN to it in the client's environment",
    )
    assert capfd.readouterr() == ("", "")


def test_remote_policy_sends_the_token_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with served(SECRET) as url:
        with pytest.raises(RemoteError, match=r"refused \(401\): this policy server requires a token"):
            RemotePolicy(url).act([LOOK])
        monkeypatch.setenv(TOKEN, "another")
        with pytest.raises(RemoteError, match=r"refused \(401\)") as refused:
            RemotePolicy(url).act([LOOK])
        assert "another" not in str(refused.value)
        monkeypatch.setenv(TOKEN, f"{SECRET}\n")
        assert len(RemotePolicy(url).act([LOOK, LOOK])) == 2
        assert len(RemotePolicy(url, token=SECRET).act([LOOK])) == 1
    with served("") as url:
        assert len(RemotePolicy(url).act([LOOK])) == 1, "a server without a token ignores it"
    assert SECRET not in "".join(capfd.readouterr())


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "h\xfcnter2"])
def test_token_invalid_in_a_header_raises_without_it(token: str) -> None:
    for make in (
        lambda: make_server(Still(), port=0, token=token),
        lambda: RemotePolicy("http://127.0.0.1:1", token=token),
    ):
        with pytest.raises(RemoteError, match="must be printable ASCII without spaces") as refused:
            make()
        assert token not in str(refused.value)


def serving(*options: str, **variables: str) -> subprocess.Popen[str]:
    environment = {"PYTHONPATH": f"{CHECKOUT}", "PYTHONUNBUFFERED": "1", **variables}
    command = [
        sys.executable,
        "-m",
        "orchestrator",
        "serve",
        "--policy",
        "examples.waypoints:make",
        "--port",
        "0",
        *options,
    ]
    return subprocess.Popen(
        command, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize(("options", "variable"), [((), TOKEN), (("--token-env", "MY_TOKEN"), "MY_TOKEN")])
def test_serve_command_reads_the_token_from_a_variable(options: tuple[str, ...], variable: str) -> None:
    process = serving(*options, **{variable: SECRET})
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert "to those who send the token" in line
        assert SECRET not in line
        url = line.partition(" answers at ")[2].partition(",")[0]
        assert asked(url, "GET", "/contract", {})[0] == 401
        assert asked(url, "GET", "/contract", {"Authorization": f"Bearer {SECRET}"})[0] == 200
    finally:
        process.kill()
        said, _ = process.communicate()
    assert SECRET not in said


def test_serve_command_without_its_token_variable_exits_two() -> None:
    process = serving("--token-env", SECRET)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "--token-env: the variable that it names is not set" in said
    assert SECRET not in said
