"""The MLflow writer with a database in the storage folder: everything is logged once, whichever process is
killed.
"""

import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlflow_views import check_views
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.sweep.republish import republish
from orchestrator.sweep.state import SweepState
from orchestrator.sweep.tracking_publisher import TrackingPublisher
from orchestrator.testing.episodes import make_episode_store
from orchestrator.tracking.mlflow_reader import read_sweep
from orchestrator.tracking.mlflow_writer import EXPERIMENT, SWEEP, MlflowWriter, TrackingError, client, tagged
from orchestrator.tracking.outbox import OutboxReader, OutboxWriter, journals
from orchestrator.tracking.outbox_records import LogMetrics, SetTags
from orchestrator.tracking.outbox_relay import OutboxRelay, OutboxSettings
from polling import until
from reporting_sweep import check, make_sweep, report, report_all, start_process


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_episode_store(tmp_path_factory.mktemp("store") / "lift", 8)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the URI of a database that tests share, since creating one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('tracked') / 'mlflow.db'}"


def run_of(uri: str, name: str, arm: str = "-") -> Any:
    mlflow = client(uri)
    (run,) = mlflow.search_runs(
        [mlflow.get_experiment_by_name(EXPERIMENT).experiment_id], tagged({SWEEP: name, "demoscale.arm": arm})
    )
    return run


def artifact(uri: str, run: Any, name: str) -> Any:
    return Path(client(uri).download_artifacts(run.info.run_id, name)).read_text()


def test_ten_arms_reporting_at_once_lose_nothing_and_a_repetition_adds_nothing(
    tmp_path: Path, store: str, database: str
) -> None:
    sweep = make_sweep(tmp_path, store, database, name="ten")
    assert report_all(sweep, steps=2) == ""
    check(database, SweepState.open(sweep), steps=2)
    assert report_all(sweep, steps=2) == ""
    check(database, SweepState.open(sweep), steps=2)
    assert not journals(next((tmp_path / "telling").iterdir())), "delivered journals are removed"


def test_outbox_waits_while_the_experiment_is_deleted(tmp_path: Path, database: str) -> None:
    about = {"training": "t", "protocol": "p", "steps": 1}
    MlflowWriter(database, "deleted", **about).open()
    mlflow = client(database)
    experiment = mlflow.get_experiment_by_name(EXPERIMENT).experiment_id
    mlflow.delete_experiment(experiment)
    relay = OutboxRelay(database, tmp_path, {"sweep": "deleted", **about})
    fix = f"mlflow experiments restore --experiment-id {experiment}"
    try:
        relay.enqueue(SetTags(arm_id=None, tags={"told": "later"}))
        until(lambda: relay.problem, seconds=20)
        assert (fix in relay.problem, relay.left) == (True, 1)
        with pytest.raises(TrackingError, match=fix):
            read_sweep(database, "deleted")
    finally:
        mlflow.restore_experiment(experiment)
        assert relay.wait()
        relay.close()
    assert run_of(database, "deleted").data.tags["told"] == "later"


@pytest.mark.full
def test_two_sweeps_that_create_the_database_at_once_log_everything(tmp_path: Path, store: str) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    sweeps = [make_sweep(tmp_path, store, uri, name=name, arms=4) for name in ("one", "other")]
    processes = [start_process(sweep, tmp_path, steps=2) for sweep in sweeps]
    for process in processes:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        assert json.loads(said.splitlines()[-1]) == "", said
    for sweep in sweeps:
        check(uri, SweepState.open(sweep), steps=2)


@pytest.mark.full
def test_process_killed_while_it_delivers_loses_and_repeats_nothing(
    tmp_path: Path, store: str, database: str
) -> None:
    """Killed three times at different places; the last process delivers what all of them recorded."""
    sweep = make_sweep(tmp_path, store, database, name="killed", arms=6)
    for kill in range(3):
        process = start_process(sweep, tmp_path, steps=4)
        folder = tmp_path / "telling"
        deadline = time.monotonic() + 120
        while not (told := [int(file.read_text() or 0) for file in folder.glob("*/*.told")]) or max(
            told
        ) < 1500 * (kill + 1):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert sum(OutboxReader(journal).left for journal in journals(next(folder.iterdir()))) > 10, (
        "killed too late to test anything"
    )
    assert report_all(sweep, steps=4) == ""
    check(database, SweepState.open(sweep), steps=4)
    assert not journals(next(folder.iterdir()))


def test_outbox_of_a_killed_process_is_delivered_by_another_process(
    tmp_path: Path, store: str, database: str
) -> None:
    """`demoscale status --rebuild` is enough; here not even its own records are needed."""
    sweep = make_sweep(tmp_path, store, database, name="orphan", arms=4)
    state = SweepState.open(sweep, pin=True)

    def unreachable(uri: str, **about: Any) -> MlflowWriter:
        raise ConnectionError("MLflow is away")

    views = TrackingPublisher(state, open_tracker=unreachable)
    report(views, state, steps=4)
    noted = views.untold
    assert noted > 4 * 4, "every record is journaled, and none delivered"
    views.close()
    assert views.untold == noted
    heir = TrackingPublisher(state)
    assert heir.finish(done=False) == ""
    check(database, state, steps=4)


def test_arm_run_holds_data_environment_and_cost(tmp_path: Path, store: str, database: str) -> None:
    from orchestrator.cost import Cost, added

    sweep = make_sweep(tmp_path, store, database, name="facts", arms=4)
    state = SweepState.open(sweep, pin=True)
    views, arm_ids = TrackingPublisher(state), [*state.arms()]
    costs = {arm_id: Cost(episodes=index + 1) for index, arm_id in enumerate(arm_ids)}
    views.costs(costs, added(costs.values()))
    views.artifact("report/answer.md", b"ten")
    views.arm_artifact(arm_ids[0], "films/index.json", b"[]")
    views.metrics(arm_ids[0], 5, {"video_psnr": 21.5})
    assert views.finish(done=True) == ""
    parent, runs = run_of(database, "facts"), [run_of(database, "facts", arm_id) for arm_id in arm_ids]
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent.info.run_id}
    groups = [run.data.tags["demoscale.replicates"] for run in runs]
    assert groups[0] == groups[1] == "demos-2_ratio-0" != groups[2] == groups[3]
    (data,) = runs[0].inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("lift", state.manifest.fingerprint)
    assert json.loads(data.dataset.source) == {"uri": store}
    assert [(tag.key, tag.value) for tag in data.tags] == [("mlflow.data.context", "training")]
    environment = json.loads(artifact(database, parent, "environment.json"))
    assert {"torch", "ray", "mlflow", "robosuite"} <= environment["packages"].keys()
    assert parent.data.tags["demoscale.version.python"] == environment["python"]
    assert parent.info.status == "FINISHED"
    assert SweepConfig.model_validate(yaml.safe_load(artifact(database, parent, "sweep.yaml"))) == sweep
    assert json.loads(artifact(database, parent, "cost.json"))["episodes"] == 10
    assert json.loads(artifact(database, runs[3], "cost.json"))["episodes"] == 4
    assert "10 episodes" in parent.data.tags["demoscale.cost"]
    assert artifact(database, parent, "report/answer.md") == "ten"
    assert artifact(database, runs[0], "films/index.json") == "[]"
    (metric,) = client(database).get_metric_history(runs[0].info.run_id, "video_psnr")
    assert (metric.step, metric.value) == (5, 21.5)


def test_late_score_is_linked_with_its_checkpoint_at_its_step(
    tmp_path: Path, store: str, database: str
) -> None:
    """The metric was logged before there were logged models, or by another process: the run's metric stays as
    it is, and the model gets the same.
    """
    sweep = make_sweep(tmp_path, store, database, name="late", arms=2)
    state = SweepState.open(sweep, pin=True)
    arm_id = next(iter(state.arms()))
    views = TrackingPublisher(state)
    views.metrics(arm_id, 2, {"success_rate": 0.5})
    assert views.flush()
    (before,) = client(database).get_metric_history(
        run_of(database, "late", arm_id).info.run_id, "success_rate"
    )
    views.training(arm_id, 8, {"loss": 1.0})
    report(views, state, steps=4)
    assert views.finish(done=False) == ""
    run = run_of(database, "late", arm_id)
    after = client(database).get_metric_history(run.info.run_id, "success_rate")
    assert sorted(metric.step for metric in after) == [2, 4]
    assert before.timestamp in [metric.timestamp for metric in after if metric.step == 2]
    models = client(database).search_logged_models(
        [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"
    )
    assert sorted(m.step for model in models for m in model.metrics if m.key == "success_rate") == [2, 4]


def test_republish_rebuilds_mlflow_from_the_storage_alone(tmp_path: Path, store: str, database: str) -> None:
    sweep = make_sweep(tmp_path, store, database, name="rebuilt", arms=2)
    state = SweepState.open(sweep, pin=True)
    assert republish(state) == 0
    assert run_of(database, "rebuilt")


def test_record_that_mlflow_refuses_is_kept_and_later_ones_are_delivered(
    tmp_path: Path, store: str, database: str
) -> None:
    sweep, said = make_sweep(tmp_path, store, database, name="refused", arms=2), list[str]()
    state = SweepState.open(sweep, pin=True)
    arm_id, views = next(iter(state.arms())), TrackingPublisher(state, said.append)
    views.metrics(arm_id, 1, {"no such name: {}": 1.0})
    views.metrics(arm_id, 1, {"loss": 1.0})
    assert "refused 1 record" in views.finish(done=False)
    assert any("refuses a metrics record" in line for line in said)
    assert run_of(database, "refused", arm_id).data.metrics == {"loss": 1.0}
    (kept,) = (tmp_path / "telling").glob("*/*.refused")
    assert json.loads(kept.read_text())["values"] == {"no such name: {}": 1.0}


def test_run_deleted_during_a_sweep_is_created_again(tmp_path: Path, store: str, database: str) -> None:
    sweep = make_sweep(tmp_path, store, database, name="deleted", arms=2)
    state = SweepState.open(sweep, pin=True)
    arm_id, views = next(iter(state.arms())), TrackingPublisher(state)
    views.metrics(arm_id, 1, {"loss": 1.0})
    assert views.flush()
    client(database).delete_run(run_of(database, "deleted", arm_id).info.run_id)
    views.metrics(arm_id, 2, {"loss": 2.0})
    assert views.finish(done=False) == ""
    assert run_of(database, "deleted", arm_id).data.metrics == {"loss": 2.0}


@pytest.mark.full
def test_runs_models_and_curve_are_read_through_the_client(
    tmp_path: Path, store: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    check_views(tmp_path / "runs", store, database)


def test_curve_values_that_change_are_added_and_an_earlier_curve_is_not(
    tmp_path: Path, database: str
) -> None:
    writer = MlflowWriter(
        database, "curves", training="t", protocol="p", steps=3, artifacts=str(tmp_path / "files")
    )
    for at, value in ((2000, 0.5), (2000, 0.5), (3000, 0.6), (1000, 0.4), (4000, 0.6)):
        writer.curve(25, {"success_rate/ratio-1": value}, at)
    history = client(database).get_metric_history(writer.parent, "success_rate/ratio-1")
    assert [(m.step, m.value, m.timestamp) for m in history] == [(25, 0.5, 2000), (25, 0.6, 3000)]
    assert client(database).get_run(writer.parent).data.metrics == {"success_rate/ratio-1": 0.6}


def test_status_of_a_run_created_late_ends_no_earlier_and_is_set_once(tmp_path: Path, database: str) -> None:
    arm_id = "demos-1_ratio-0_seed-0_12345678"
    writer = MlflowWriter(
        database, "ends", training="t", protocol="p", steps=3, artifacts=str(tmp_path / "files")
    )
    writer.status(arm_id, "KILLED", at=1000)  # recorded before MLflow had the run
    ended = run_of(database, "ends", arm_id).info
    assert (ended.status, ended.end_time) == ("KILLED", ended.start_time)
    writer.status(arm_id, "RUNNING")
    assert run_of(database, "ends", arm_id).info.status == "RUNNING"
    later = ended.start_time + 5000
    for at in (later, later + 1000):  # delivered again, or by a later run of the same sweep
        writer.status(arm_id, "FINISHED", at)
    again = run_of(database, "ends", arm_id).info
    assert (again.status, again.end_time) == ("FINISHED", later)


def test_model_of_an_earlier_version_gets_its_files_and_one_output(tmp_path: Path, database: str) -> None:
    arm_id, contract = (
        "demos-1_ratio-0_seed-0_12345678",
        {"cameras": ["front"], "image_size": [4, 4], "proprio": ["x"], "action": ["dx"]},
    )

    def writer() -> MlflowWriter:
        return MlflowWriter(
            database, "models", training="t", protocol="p", steps=3, artifacts=str(tmp_path / "files")
        )

    writer().checkpoint(arm_id, 3, "f1", "/c")
    for _ in range(2):
        writer().checkpoint(arm_id, 3, "f1", "/c", contract, example=True)
    mlflow = client(database)
    (output,) = run_of(database, "models", arm_id).outputs.model_outputs
    model = mlflow.get_logged_model(output.model_id)
    assert (str(model.status), model.tags["demoscale.loadable"]) == ("READY", "true")
    files = {file.path for file in mlflow.list_logged_model_artifacts(model.model_id)}
    assert files == {"MLmodel", "checkpoint.json", "input_example.json"}


class Slow:
    """A tracker whose every call takes 0.2 s."""

    def __init__(self, uri: str, **about: Any) -> None:
        self.told: list[int] = about["told"]

    def open(self) -> None: ...

    def metrics(self, arm_id: str, step: int, values: dict[str, float], *_: Any) -> None:
        time.sleep(0.2)
        self.told.append(step)


@pytest.mark.full
def test_outbox_relay_of_a_slow_server_blocks_no_caller(tmp_path: Path) -> None:
    told: list[int] = []
    settings = OutboxSettings(patience_s=0.1, longest_wait_s=1.0)
    teller = OutboxRelay(
        "", tmp_path, {}, open_tracker=lambda uri, **about: Slow(uri, told=told), settings=settings
    )
    began = time.monotonic()
    for step in range(100):
        teller.enqueue(LogMetrics(arm_id="arm", step=step, values={}))
    assert time.monotonic() - began < 1.0
    began = time.monotonic()
    assert not teller.wait()
    assert 0.9 < time.monotonic() - began < 15
    assert teller.left > 80
    teller.close()
    settings = OutboxSettings(longest_wait_s=60.0)
    other = OutboxRelay(
        "", tmp_path, {}, open_tracker=lambda uri, **about: Slow(uri, told=told), settings=settings
    )
    other.enqueue(LogMetrics(arm_id="arm", step=100, values={}))
    assert other.wait(patience_s=0.1)
    other.close()
    assert sorted(set(told)) == list(range(101)), "nothing is lost"
    assert told == sorted(told), "and everything in order"


def test_second_outbox_relay_waits_for_the_first_and_delivers_the_rest(
    tmp_path: Path,
) -> None:
    told: list[int] = []

    def open_slow(uri: str, **about: Any) -> Slow:
        return Slow(uri, told=told)

    first = OutboxRelay("", tmp_path, {}, open_tracker=open_slow)
    first.enqueue(LogMetrics(arm_id="arm", step=1, values={}))
    assert first.wait(5)
    second = OutboxRelay("", tmp_path, {}, open_tracker=open_slow)
    second.enqueue(LogMetrics(arm_id="arm", step=2, values={}))
    assert second.wait(5)
    assert (first.telling, second.telling) == (True, False)
    first.close()
    second.enqueue(LogMetrics(arm_id="arm", step=3, values={}))
    assert second.wait(5)
    assert second.telling
    second.close()
    assert told == [1, 2, 3]


def test_outbox_appended_by_many_threads_has_whole_lines_in_order(tmp_path: Path) -> None:
    journal = OutboxWriter(tmp_path, {})

    def note(thread: int) -> None:
        for number in range(200):
            journal.append(
                {"do": "x", "thread": thread, "number": number},
                data=b"%d" % number if number % 50 == 0 else None,
            )

    threads = [threading.Thread(target=note, args=(thread,)) for thread in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reading, seen = OutboxReader(journal.path), list[dict[str, Any]]()
    assert reading.left == 2000
    while found := reading.next():
        seen.append(found[0])
        reading.advance(found[1], found[0].get("file", ""))
    assert len(seen) == 2000
    for thread in range(10):
        assert [note["number"] for note in seen if note["thread"] == thread] == list(range(200))
    assert all(note["data"] == b"%d" % note["number"] for note in seen if "data" in note)


def test_outbox_reader_ignores_a_partial_line(tmp_path: Path) -> None:
    journal = OutboxWriter(tmp_path, {})
    journal.append({"do": "whole"})
    journal.close()
    with journal.path.open("ab") as file:
        file.write(b'{"do": "ha')
    reading = OutboxReader(journal.path)
    note, end = reading.next() or ({}, 0)
    assert note == {"do": "whole"}
    reading.advance(end)
    assert reading.next() is None
    assert OutboxReader(journal.path).next() is None


def test_outbox_that_cannot_be_written_raises_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match="the records for MLflow cannot be written here"):
        OutboxWriter(tmp_path / "file" / "folder", {})
