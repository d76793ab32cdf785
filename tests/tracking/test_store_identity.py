"""Sweeps of one name in one MLflow database: each storage has its own, and no outcome counts twice."""

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator.cli.main import main
from orchestrator.config.arms import Arm
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.evaluation.scores import Score
from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.storage.base import StorageError, open_storage
from orchestrator.storage.identity import KEY, NO_IDENTITY, claim_identity, identity_of, store_of
from orchestrator.sweep.republish import republish
from orchestrator.sweep.state import SweepState
from orchestrator.sweep.tracking_publisher import TrackingPublisher
from orchestrator.testing.episodes import make_episode_store
from orchestrator.tracking.mlflow_reader import TrackedSweep, read_sweep
from orchestrator.tracking.mlflow_writer import (
    ARM,
    EXPERIMENT,
    SCORE_METRICS,
    SCORED_STEP,
    STORAGE,
    STORE,
    SWEEP,
    MlflowWriter,
    TrackingError,
    client,
    outcomes_artifact,
    tagged,
)
from orchestrator.tracking.outbox import OutboxWriter, journals
from reporting_sweep import EPISODES, fingerprint, make_sweep
from sim_workers.rollout.episode import Outcome

ONE = Arm(4, 0.0, 0)
ONE_ID = ONE.arm_id("t")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_episode_store(tmp_path_factory.mktemp("store") / "lift", 8)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the URI of one database for all tests, since MLflow takes seconds to create one; every test has
    sweeps of its own name in it.
    """
    folder = tmp_path_factory.mktemp("tracked")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client(uri).create_experiment(EXPERIMENT, artifact_location=str(folder / "mlartifacts"))
    return uri


def runs_of(uri: str, name: str, arm: str = "-") -> list[Any]:
    mlflow = client(uri)
    return list(
        mlflow.search_runs(
            [mlflow.get_experiment_by_name(EXPERIMENT).experiment_id], tagged({SWEEP: name, ARM: arm})
        )
    )


def play(sweep: SweepConfig, successes: int) -> SweepState:
    """Publish the sweep to MLflow with every arm's last checkpoint succeeding in `successes` episodes."""
    state = SweepState.open(sweep, pin=True)
    views, step = TrackingPublisher(state), sweep.train.steps
    specs = sweep.to_suite().episode_list()
    played = [
        Outcome(spec, "success" if i < successes else "failure", 9, 1, 0.1, 0.1)
        for i, spec in enumerate(specs)
    ]
    for arm_id in state.arms():
        views.score(arm_id, step, fingerprint(arm_id, step), "nominal", Score.of(played, EPISODES), played)
    assert views.finish(done=True) == ""
    return state


def tracker(uri: str, name: str, store: str = "") -> MlflowWriter:
    return MlflowWriter(uri, name, training="t", protocol="p", steps=9, store=store)


def outcomes(successes: int) -> bytes:
    return json.dumps({f"Lift-{k}-{k}": k < successes for k in range(10)}).encode()


def score(tracker: MlflowWriter, successes: int) -> None:
    """Publish one arm with a complete score of ten episodes."""
    tracker.arm(ONE_ID, ONE, {})
    tracker.artifact(ONE_ID, outcomes_artifact(9), outcomes(successes))
    values = (successes / 10, successes, 10, 0, 0, 1)
    tracker.metrics(ONE_ID, 9, dict(zip(SCORE_METRICS, map(float, values), strict=True)) | {SCORED_STEP: 9.0})


def counted(tracked: TrackedSweep) -> list[tuple[int, int]]:
    return [(arm.successes, arm.episodes) for arm in tracked.arms]


def duplicate(uri: str, run: Any, parent: str, successes: int) -> str:
    """Create another run of the same arm, as a second driver of an earlier version did; return its id."""
    mlflow = client(uri)
    second: str = mlflow.create_run(
        run.info.experiment_id, tags={**run.data.tags, "mlflow.parentRunId": parent}
    ).info.run_id
    for name, value in run.data.params.items():
        mlflow.log_param(second, name, value)
    for name, metric in (run.data.metrics | {"successes": successes, "success_rate": successes / 10}).items():
        mlflow.log_metric(second, name, metric, step=9)
    mlflow.log_text(second, outcomes(successes).decode(), outcomes_artifact(9))
    return second


# -- the identity


def test_claim_identity_by_many_at_once_returns_one_identity(tmp_path: Path) -> None:
    barrier, claimed = threading.Barrier(8), list[str]()

    def claim() -> None:
        storage = open_storage(str(tmp_path / "runs"))
        barrier.wait()
        claimed.append(claim_identity(storage))

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == 8
    assert len({*claimed}) == 1
    assert re.fullmatch("[0-9a-f]{32}", claimed[0])
    assert claim_identity(open_storage(str(tmp_path / "other"))) != claimed[0]


def test_identity_is_that_of_the_storage_and_not_of_its_path(tmp_path: Path, store: str) -> None:
    first = SweepState.open(make_sweep(tmp_path / "runs", store, "", arms=2), pin=True)
    assert first.store
    (tmp_path / "mount").symlink_to(tmp_path / "runs")
    assert SweepState.open(make_sweep(tmp_path / "mount", store, "", arms=2), pin=True).store == first.store
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert SweepState.named("reports", str(tmp_path / "moved")).store == first.store
    assert SweepState.open(make_sweep(tmp_path / "runs", store, "", arms=2), pin=True).store != first.store, (
        "the path alone is no identity"
    )


def test_reading_a_state_writes_no_identity(tmp_path: Path, store: str) -> None:
    state = SweepState.open(make_sweep(tmp_path, store, "", arms=2), pin=True)
    (tmp_path / KEY).unlink()
    assert SweepState.open(state.sweep).store == ""
    assert store_of(str(tmp_path), "reports") == NO_IDENTITY
    assert store_of(str(tmp_path), "another") == store_of(str(tmp_path / "nowhere"), "reports") == ""
    assert not (tmp_path / KEY).exists()


@pytest.mark.parametrize("damaged", [b"", b"[]", b'{"id": 3}', b'{"id": "\' or 1"}', b"\xff"])
def test_damaged_identity_raises_with_its_fix(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / KEY).write_bytes(damaged)
    for ask in (identity_of, claim_identity):
        with pytest.raises(StorageError, match=r"identity\.json is damaged; write .* or remove the file"):
            ask(open_storage(str(tmp_path)))
    assert (tmp_path / KEY).read_bytes() == damaged


# -- two storages


def test_two_storages_with_a_sweep_of_one_name_have_separate_curves(
    tmp_path: Path, store: str, database: str
) -> None:
    alice = play(make_sweep(tmp_path / "alice", store, database, name="quickstart", arms=2), 3)
    bob = play(make_sweep(tmp_path / "bob", store, database, name="quickstart", arms=2), 1)
    assert alice.arms().keys() == bob.arms().keys(), "the same data and code: only the storages differ"
    for state, successes in ((alice, 3), (bob, 1), (alice, 3)):
        assert counted(read_sweep(database, "quickstart", state.store)) == [(successes, EPISODES)] * 2
        asked = ["curve", "quickstart", "--storage", state.storage.uri, "--mlflow", database, "--json"]
        done = CliRunner().invoke(main, asked, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert [(p["successes"], p["episodes"]) for p in json.loads(done.stdout)["points"]] == [
            (2 * successes, 2 * EPISODES)
        ]
    tags = {run.data.tags[STORE]: run.data.tags[STORAGE] for run in runs_of(database, "quickstart")}
    assert tags == {alice.store: alice.storage.uri, bob.store: bob.storage.uri}
    for arm_id in alice.arms():
        assert {run.data.tags[STORE] for run in runs_of(database, "quickstart", arm_id)} == {
            alice.store,
            bob.store,
        }


def test_curve_of_a_name_in_several_storages_lists_them(tmp_path: Path, store: str, database: str) -> None:
    alice = play(make_sweep(tmp_path / "alice", store, database, name="ambiguous", arms=2), 3)
    bob = play(make_sweep(tmp_path / "bob", store, database, name="ambiguous", arms=2), 1)
    elsewhere = ["curve", "ambiguous", "--storage", str(tmp_path / "laptop"), "--mlflow", database]
    done = CliRunner().invoke(main, elsewhere, catch_exceptions=False)
    assert done.exit_code == 1
    assert "2 storages have a sweep named ambiguous" in done.output
    for state in (alice, bob):
        assert re.search(
            rf"{state.storage.uri}, ID {state.store}, begun 20\d\d-\d\d-\d\d \d\d:\d\d UTC", done.output
        )
    assert "choose one with --storage" in done.output
    # A laptop that cannot read the storages names one by its URI.
    for state, successes in ((alice, 3), (bob, 1)):
        (tmp_path / Path(state.storage.uri).name).rename(tmp_path / "out of reach")
        done = CliRunner().invoke(
            main, [*elsewhere[:3], state.storage.uri, *elsewhere[4:], "--json"], catch_exceptions=False
        )
        assert [(p["successes"], p["episodes"]) for p in json.loads(done.stdout)["points"]] == [
            (2 * successes, 2 * EPISODES)
        ]
        (tmp_path / "out of reach").rename(tmp_path / Path(state.storage.uri).name)


def test_curve_of_a_sweep_tracked_by_other_storages_only_exits_one(
    tmp_path: Path, store: str, database: str
) -> None:
    play(make_sweep(tmp_path / "bob", store, database, name="only-bob", arms=2), 1)
    alice = SweepState.open(
        make_sweep(tmp_path / "alice", store, database, name="only-bob", arms=2), pin=True
    )
    asked = ["curve", "only-bob", "--storage", str(tmp_path / "alice"), "--mlflow", database]
    done = CliRunner().invoke(main, asked, catch_exceptions=False)
    assert done.exit_code == 1
    assert (
        f"of this storage is not tracked here, those of other storages are ({tmp_path / 'bob'}, ID"
        in done.output
    )
    (tmp_path / "alice" / KEY).unlink()  # as an earlier version leaves a storage
    assert CliRunner().invoke(main, asked, catch_exceptions=False).exit_code == 1
    by_name = CliRunner().invoke(
        main,
        ["curve", "only-bob", "--storage", str(tmp_path / "laptop"), "--mlflow", database],
        catch_exceptions=False,
    )
    assert by_name.exit_code == 0, "only one sweep has the name, and this machine has none of its own"
    assert republish(alice) == 0
    assert len(runs_of(database, "only-bob")) == 2


# -- runs of earlier versions


def test_sweep_without_a_store_is_adopted_by_the_first_storage(database: str) -> None:
    score(tracker(database, "older"), 7)
    (parent,), (child,) = runs_of(database, "older"), runs_of(database, "older", ONE_ID)
    assert STORE not in {**parent.data.tags, **child.data.tags}
    assert (
        counted(read_sweep(database, "older")) == counted(read_sweep(database, "older", "alice")) == [(7, 10)]
    )
    score(tracker(database, "older", "alice"), 7)
    score(tracker(database, "older", "bob"), 2)
    score(tracker(database, "older", "alice"), 7)
    by_store = {run.data.tags[STORE]: run.info.run_id for run in runs_of(database, "older")}
    assert by_store.keys() == {"alice", "bob"}
    assert by_store["alice"] == parent.info.run_id
    children = {run.data.tags[STORE]: run.info.run_id for run in runs_of(database, "older", ONE_ID)}
    assert children.keys() == {"alice", "bob"}
    assert children["alice"] == child.info.run_id
    assert counted(read_sweep(database, "older", "alice")) == [(7, 10)]
    assert counted(read_sweep(database, "older", "bob")) == [(2, 10)]


def test_sweep_adopted_by_two_storages_at_once_belongs_to_one(database: str) -> None:
    score(tracker(database, "contested"), 7)
    alice, bob = tracker(database, "contested", "alice"), tracker(database, "contested", "bob")

    class Late:
        """An MLflow in which Bob adopts the run between Alice's request and its check."""

        def __init__(self, real: Any) -> None:
            self.real = real

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

        def get_run(self, run_id: str) -> Any:
            self.real.set_tag(run_id, STORE, "bob")
            return self.real.get_run(run_id)

    alice._mlflow = Late(alice._mlflow)
    alice.open()
    bob.open()
    assert alice.parent != bob.parent
    assert {run.info.run_id: run.data.tags[STORE] for run in runs_of(database, "contested")} == {
        alice.parent: "alice",
        bob.parent: "bob",
    }


def test_outbox_of_an_earlier_version_is_delivered_under_its_storage(
    tmp_path: Path, store: str, database: str
) -> None:
    play(make_sweep(tmp_path / "bob", store, database, name="journal", arms=2), 1)
    state = SweepState.open(make_sweep(tmp_path / "alice", store, database, name="journal", arms=2), pin=True)
    first = TrackingPublisher(state, open_tracker=MlflowWriter)
    assert first.finish(done=False) == ""
    (folder,) = (tmp_path / "alice" / "telling").iterdir()
    about = {
        "sweep": "journal",
        "training": state.training,
        "protocol": state.comparable,
        "steps": 100,
        "artifacts": state.uri("mlartifacts"),
    }
    old, arm_id = OutboxWriter(folder, about), next(iter(state.arms()))
    old.append({"do": "metrics", "arm_id": arm_id, "step": 3, "values": {"loss": 0.25}, "at": 1000})
    old.close()
    assert TrackingPublisher(state).finish(done=False) == ""
    assert not journals(folder)
    losses = {
        run.data.tags[STORE]: run.data.metrics.get("loss") for run in runs_of(database, "journal", arm_id)
    }
    assert losses.pop(state.store) == 0.25
    assert [*losses.values()] == [None]
    assert len(runs_of(database, "journal")) == 2


# -- several runs of one arm


def test_two_runs_of_an_arm_with_equal_outcomes_count_once(database: str) -> None:
    one = tracker(database, "equal")
    score(one, 7)
    (run,) = runs_of(database, "equal", ONE_ID)
    duplicate(database, run, one.parent, 7)
    assert counted(read_sweep(database, "equal")) == [(7, 10)]
    (point,) = Curve.read(database, "equal").points
    assert (point.successes, point.episodes, point.seeds) == (7, 10, 1)
    assert read_sweep(database, "equal").arms[0].run_id == run.info.run_id, "the earlier one"


def test_two_runs_of_an_arm_with_different_outcomes_raise_with_the_fix(
    database: str,
) -> None:
    one = tracker(database, "different")
    score(one, 7)
    (run,) = runs_of(database, "different", ONE_ID)
    second = duplicate(database, run, one.parent, 6)
    with pytest.raises(TrackingError) as raised:
        read_sweep(database, "different")
    assert (
        f"runs {run.info.run_id} (7/10) and {second} (6/10) hold different outcomes of the arm {ONE.name}"
        in str(raised.value)
    )
    for deleted in re.findall(r"mlflow runs delete --run-id (\w+)", str(raised.value)):
        client(database).delete_run(deleted)
    score(tracker(database, "different"), 7)  # as --rebuild does
    assert counted(read_sweep(database, "different")) == [(7, 10)]


def test_runs_of_an_arm_under_two_parents_count_once(database: str) -> None:
    one = tracker(database, "parents", "alice")
    score(one, 7)
    (run,), (parent,) = runs_of(database, "parents", ONE_ID), runs_of(database, "parents")
    other = client(database).create_run(run.info.experiment_id, tags=parent.data.tags).info.run_id
    duplicate(database, run, other, 7)
    assert counted(read_sweep(database, "parents", "alice")) == [(7, 10)]
    second = duplicate(database, run, other, 6)
    with pytest.raises(TrackingError, match=f"{run.info.run_id} .*{second} .* hold different outcomes"):
        read_sweep(database, "parents", "alice")


def test_run_with_metrics_and_outcomes_of_two_writers_raises(database: str) -> None:
    score(tracker(database, "mixed"), 2)
    tracker(database, "mixed").artifact(ONE_ID, outcomes_artifact(9), outcomes(5))
    with pytest.raises(
        TrackingError,
        match=(
            r"scores of two writers: its metrics say 2 of 10 episodes, its outcomes 5 of 10; `mlflow runs"
            r" delete"
        ),
    ):
        read_sweep(database, "mixed")


class RacingMlflow:
    """An MLflow whose first search answers reach both drivers before either goes on: the race that creates
    duplicates, every time.
    """

    def __init__(self, real: Any, barrier: threading.Barrier) -> None:
        self.real, self.barrier, self.first = real, barrier, True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def search_runs(self, *args: Any, **kwargs: Any) -> Any:
        found = self.real.search_runs(*args, **kwargs)
        if self.first:
            self.first = False
            self.barrier.wait(30)
        return found


@pytest.mark.parametrize("opened", [True, False], ids=["arm", "sweep"])
def test_two_drivers_that_create_runs_at_once_have_one_curve(database: str, opened: bool) -> None:
    name, barrier, errors = f"race-{opened}", threading.Barrier(2), list[BaseException]()
    both = [tracker(database, name, "alice") for _ in range(2)]
    for driver in both:
        if opened:
            driver.open()
        driver._mlflow = RacingMlflow(driver._mlflow, barrier)

    def drive(driver: MlflowWriter) -> None:
        def loss() -> None:
            driver.arm(ONE_ID, ONE, {})
            driver.metrics(ONE_ID, 1, {"loss": 1.0})

        for step in (loss, lambda: score(driver, 7), driver.remove_duplicates):
            # the relay repeats too: MLflow's database refuses one of two drivers that write one run's params
            # at once
            for attempt in range(5):
                try:
                    step()
                    break
                except Exception as error:
                    if attempt == 4:
                        errors.append(error)

    threads = [threading.Thread(target=drive, args=(driver,)) for driver in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert counted(read_sweep(database, name, "alice")) == [(7, 10)]
    assert len({driver.parent for driver in both}) == 1


def test_driver_moves_to_the_earlier_run_of_an_arm_before_its_score(
    database: str,
) -> None:
    """Its request was answered first, and the other driver's, begun before it, was not visible yet."""
    late = tracker(database, "late", "alice")
    late.arm(ONE_ID, ONE, {"demoscale.data": "d"})
    late.metrics(ONE_ID, 1, {"loss": 1.0})
    (own,) = runs_of(database, "late", ONE_ID)
    mlflow = client(database)
    tags = {
        name: value
        for name, value in own.data.tags.items()
        if name.startswith("demoscale.") or name == "mlflow.parentRunId"
    }
    earlier = mlflow.create_run(
        own.info.experiment_id, tags=tags, start_time=own.info.start_time - 1000
    ).info.run_id
    for name, value in own.data.params.items():
        mlflow.log_param(earlier, name, value)
    mlflow.log_metric(earlier, "loss", 1.0, step=1)
    score(late, 7)
    (kept,) = runs_of(database, "late", ONE_ID)
    assert kept.info.run_id == earlier
    assert kept.data.metrics["successes"] == 7
    assert counted(read_sweep(database, "late", "alice")) == [(7, 10)]
