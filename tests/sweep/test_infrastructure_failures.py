"""Infrastructure failures are attributed to no arm: the run ends in good order, and the same command
continues it.
"""

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator.checkpoints.reader import is_complete
from orchestrator.checkpoints.record import CheckpointRecord
from orchestrator.cli.mistakes import report_user_errors
from orchestrator.cluster.placement import ResourcePlan
from orchestrator.cost import Cost
from orchestrator.infrastructure import InfrastructureError, cause_in, cause_of
from orchestrator.storage.base import NoObject, StorageError, open_storage
from orchestrator.sweep import heartbeat as pulse
from orchestrator.sweep import ray_tune
from orchestrator.sweep.heartbeat import Heartbeat
from orchestrator.sweep.run import SweepRun, UnfinishedError
from orchestrator.testing.checkpoints import make_checkpoint
from orchestrator.testing.fake_trainer import FakeTrainer
from orchestrator.tracking.mlflow_writer import TrackingError
from orchestrator.training.control_channel import open_control_channel
from orchestrator.training.train_snapshot import SNAPSHOT, repair
from policy.checkpoint import fingerprint
from polling import until
from sweep_runs import Run, ledger, sweep

TRACES = {
    "Traceback\n  File x\nOSError: [Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device": (
        "the disk is full"
    ),
    "ray.exceptions.OutOfDiskError: Local disk is full": "the disk is full",
    "orchestrator.storage.base.StorageError: s3://b/x: the server 10.0.0.1 cannot be reached": (
        "s3://b/x: the server 10.0.0.1 cannot be reached"
    ),
    "orchestrator.storage.base._UnavailableError: s3://b: the server answered SlowDown\n\nmore": (
        "s3://b: the server answered SlowDown"
    ),
    "OSError: When uploading part: AWS Error NETWORK_CONNECTION during PutObject": (
        "the object storage does not answer"
    ),
    "OSError: When uploading part for key 'x': AWS Error ACCESS_DENIED during UploadPart operation: expired": (
        "the object storage refuses a training process; check its credentials, the clock of its node and the"
        " bucket"
    ),
    "OSError: AWS Error REQUEST_TIME_TOO_SKEWED during PutObject operation: the clock was set back": (
        "the object storage refuses a training process; check its credentials, the clock of its node and the"
        " bucket"
    ),
    "The actor died because its node has died. Node Id: 12": "a node of the cluster died",
    "ray.exceptions.NodeDiedError: Task failed due to the node (where this task was running) was dead": (
        "NodeDiedError"
    ),
    "ray.exceptions.ObjectStoreFullError: Failed to put object": "ObjectStoreFullError",
}
OWN_FAULTS = (
    "RuntimeError: the cable is out",
    "ValueError: loss_action of step 7 is not finite",
    "torch.cuda.OutOfMemoryError: CUDA out of memory",
    "orchestrator.data.episode_format.EpisodeError: s3://b: episode 3 is damaged; restore it",
    "orchestrator.storage.base.NoObject: s3://b: there is no object weights",
    "OSError: AWS Error NO_SUCH_KEY during GetObject operation: the key does not exist",
    "The actor died unexpectedly before finishing this task: killed by signal 11",
)


@pytest.mark.parametrize("trace", TRACES)
def test_cause_in_recognises_an_infrastructure_failure_in_a_trace(trace: str) -> None:
    assert TRACES[trace] in cause_in(trace)


@pytest.mark.parametrize("trace", OWN_FAULTS)
def test_cause_in_of_an_arm_failure_is_empty(trace: str) -> None:
    assert cause_in(trace) == ""


def test_cause_of_distinguishes_infrastructure_errors() -> None:
    from ray.exceptions import ActorDiedError, GetTimeoutError, RayTaskError

    assert cause_of(StorageError("s3://b: the server is away")) == "s3://b: the server is away"
    assert "the disk is full" in cause_of(OSError(errno.ENOSPC, "No space left on device", "/data/x"))
    assert cause_of(ActorDiedError())
    assert cause_of(GetTimeoutError()) == "Ray does not answer"
    assert (
        cause_of(NoObject("nothing there"))
        == cause_of(RayTaskError("f", "trace", ValueError()))
        == cause_of(OSError(2, "no"))
        == ""
    )


def test_infrastructure_error_has_its_own_exit_code() -> None:
    import click

    @click.command()
    @report_user_errors
    def command() -> None:
        raise InfrastructureError("lift: the disk is full; the same command goes on")

    done = CliRunner().invoke(command)
    assert (done.exit_code, done.output) == (
        InfrastructureError.exit_code,
        "lift: the disk is full; the same command goes on\n",
    )


def test_run_ends_with_the_full_disk_that_its_last_records_meet_too(folder: Path, store: str) -> None:
    full = TrackingError("telling: the records for MLflow cannot be written here (No space left on device)")
    closed = list[bool]()

    def refuse(*_: object) -> None:
        raise full

    run = SweepRun(sweep(folder, store), lambda line: None)
    run.__dict__["_publisher"] = SimpleNamespace(
        end_arm=refuse, end=refuse, finish=lambda done: closed.append(done) or ""
    )
    with pytest.raises(InfrastructureError, match=r"No space left.*the same command"), run._ending_cleanly():
        raise full
    run._held.close()
    assert closed == [False]


class WatchedRun:
    """The part of a run that a heartbeat uses."""

    def __init__(self) -> None:
        self.interrupted, self.untold, self.ending, self.thread, self.taken_over, self.cost = (
            False,
            0,
            "",
            "",
            "",
            Cost(),
        )
        self.said, self.ended, self.written = list[str](), list[str](), list[float]()
        scorer = SimpleNamespace(waiting=0, unscored=0, use=lambda number: None)
        self.evaluation = SimpleNamespace(scorer=scorer, workers=1)
        self.training = SimpleNamespace(running=[], limit=lambda slots: None)
        self.board = SimpleNamespace(lock=threading.Lock(), arms={}, charge=lambda costs: None, lines=list)
        self.spending = SimpleNamespace(total=lambda: self.cost, run_wall_s=1.0, by_arm=dict)
        budget = SimpleNamespace(max_gpu_hours=None, max_episodes=100, max_wall=None)
        suite = SimpleNamespace(listed=10)
        named = SimpleNamespace(
            name="s", budget=budget, rollout_actors=2, suite=suite, scored_steps=lambda: [1]
        )
        self.state = SimpleNamespace(
            held_out=(),
            sweep=named,
            storage=SimpleNamespace(put=lambda key, data: self.written.append(time.monotonic())),
        )
        self.say = self.said.append

    def failed_thread(self) -> str:
        return self.thread

    def end(self, why: str) -> None:
        self.ended.append(why)

    suspend = end


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> WatchedRun:
    for name in ("BEAT_S", "SHARE_S", "WRITE_S", "PATIENCE_S"):
        monkeypatch.setattr(pulse, name, 0.02)
    monkeypatch.setattr(pulse, "present", lambda: 1)
    return WatchedRun()


def pulse_of(run: Any) -> Heartbeat:
    return Heartbeat(run, ResourcePlan(1, {}, 0.5, 1, 0.0))


def asks_to_stop(run: WatchedRun) -> None:
    run.interrupted = True


def spends_too_much(run: WatchedRun) -> None:
    run.cost = Cost(episodes=1000)


def loses_a_thread(run: WatchedRun) -> None:
    run.thread = "scoring"


def is_taken_over(run: WatchedRun) -> None:
    run.taken_over = "process 7 on b takes the sweep over"


REASONS = [
    (is_taken_over, "process 7 on b"),
    (asks_to_stop, "stopped"),
    (spends_too_much, "budget.max_episodes is 100"),
    (loses_a_thread, "scoring failed"),
]


@pytest.mark.parametrize(("happens", "why"), REASONS)
@pytest.mark.parametrize("ray", ["dead", "silent"])
def test_heartbeat_ends_the_run_without_ray_or_storage(
    watched: WatchedRun,
    monkeypatch: pytest.MonkeyPatch,
    ray: str,
    happens: Callable[[WatchedRun], None],
    why: str,
) -> None:
    from ray.exceptions import ActorDiedError

    forever = threading.Event()

    def dead() -> int:
        raise ActorDiedError

    monkeypatch.setattr(pulse, "present", dead if ray == "dead" else forever.wait)
    watched.state.storage.put = lambda key, data: forever.wait()
    try:
        with pulse_of(watched):
            time.sleep(0.1)
            assert not watched.ended
            happens(watched)
            until(lambda: watched.ended, seconds=10)
            assert watched.ended[0].startswith(why)
            forever.set()
    finally:
        forever.set()
    assert len([line for line in watched.said if "tries again" in line]) == (ray == "dead"), (
        "logged once, not at every beat"
    )


def test_heartbeat_raises_its_own_error_and_ends_the_run(
    watched: WatchedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "present", lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError), pulse_of(watched):
        until(lambda: watched.ended, seconds=10)
    assert "ZeroDivisionError" in watched.ended[0]


class OneRun:
    """One training run, whose sweep has lost its control actor."""

    finished, lost = False, True

    def __init__(self) -> None:
        self._left = ["arm"]

    def next(self) -> str | None:
        return self._left.pop() if self._left else None


@pytest.mark.full
@pytest.mark.ray
def test_trials_end_once_the_node_of_their_process_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    """Nothing says that a trial of a dead node ended, and Tune would wait for it without end."""
    from ray.exceptions import NodeDiedError

    def hangs(job: Any, folder: str, *rest: Any) -> list[Any]:
        while Path(folder).exists():
            time.sleep(0.1)
        return []

    folder = tmp_path / "arms"
    folder.mkdir()
    monkeypatch.setattr(ray_tune, "this_node_is_alive", lambda: False)
    with open_control_channel() as channel:
        try:
            with pytest.raises(NodeDiedError) as died:
                ray_tune.run_trials(OneRun(), print, hangs, str(folder), lambda job: {}, channel, 1)
        finally:
            folder.rmdir()
    assert cause_of(died.value) == "Ray's node of this process died"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "any")


def make_run(root: Path, checkpoint: Path) -> dict[int, CheckpointRecord]:
    """Make a training run's folder as Ray Train leaves it; return the metrics reported with each checkpoint,
    by step.
    """
    records: dict[int, CheckpointRecord] = {}
    for step in (2, 4, 6):
        place = root / "arm" / f"step_{step:06d}"
        shutil.copytree(checkpoint, place)
        card = json.loads((place / "checkpoint.json").read_text())
        card["provenance"]["step"] = step
        (place / "checkpoint.json").write_text(json.dumps(card))
        records[step] = CheckpointRecord(
            fingerprint=fingerprint(place), loss=1 / step, loss_video=0.0, loss_action=1 / step
        )
    results = [
        {
            "version": 0,
            "checkpoint_dir_name": f"step_{step:06d}",
            "metrics": record.to_json() | {"step": step},
        }
        for step, record in records.items()
    ]
    lists = {
        "pending_training_results": [],
        "pending_validation_specs": [],
        "validated_checkpoint_dir_names": [],
    }
    told = {
        "ray_version": "any",
        "checkpoint_results": results,
        "checkpoint_report_indices": [1, 2, 3],
        "latest_checkpoint_result": results[-1],
    }
    (root / "arm" / SNAPSHOT).write_text(json.dumps({**told, "current_report_index": 3, **lists}))
    return records


def left(root: Path) -> list[int]:
    """Return the steps that Ray Train resumes from."""
    told = json.loads((root / "arm" / SNAPSHOT).read_text())
    steps = [one["metrics"]["step"] for one in told["checkpoint_results"]]
    latest = told["latest_checkpoint_result"]
    assert (latest["metrics"]["step"] if latest else None) == (steps[-1] if steps else None)
    assert len(told["checkpoint_report_indices"]) == len(steps)
    return steps


def newest(root: Path) -> Path:
    return root / "arm" / "step_000006"


def cut_weights(root: Path) -> None:
    file = next(newest(root).rglob("heads.safetensors"))
    file.write_bytes(file.read_bytes()[:-10])


def zero_weights(root: Path) -> None:
    file = next(newest(root).rglob("heads.safetensors"))
    file.write_bytes(bytes(file.stat().st_size))


def cut_trainer(root: Path) -> None:
    file = newest(root) / "trainer.safetensors"
    file.write_bytes(file.read_bytes()[:-10] if file.exists() else b"\0" * 4)


def empty_card(root: Path) -> None:
    (newest(root) / "checkpoint.json").write_bytes(b"")


def lose_folder(root: Path) -> None:
    shutil.rmtree(newest(root))


def lose_two(root: Path) -> None:
    lose_folder(root)
    (root / "arm" / "step_000004" / "checkpoint.json").unlink()


def nothing(root: Path) -> None: ...


def empty_list(root: Path) -> None:
    (root / "arm" / SNAPSHOT).write_bytes(b"")


def half_a_list(root: Path) -> None:
    file = root / "arm" / SNAPSHOT
    file.write_bytes(file.read_bytes()[:100])


def strange_list(root: Path) -> None:
    (root / "arm" / SNAPSHOT).write_text('{"checkpoint_results": [7]}')


def empty_list_and_cut_weights(root: Path) -> None:
    empty_list(root)
    cut_weights(root)


TORN = [
    (nothing, [2, 4, 6], 0),
    (cut_weights, [2, 4], 1),
    (zero_weights, [2, 4], 1),
    (cut_trainer, [2, 4], 1),
    (empty_card, [2, 4], 1),
    (lose_folder, [2, 4], 1),
    (lose_two, [2], 2),
    (empty_list, [2, 4, 6], 1),
    (half_a_list, [2, 4, 6], 1),
    (strange_list, [2, 4, 6], 1),
    (empty_list_and_cut_weights, [2, 4], 2),
]


@pytest.mark.parametrize(("tear", "steps", "problems"), TORN)
def test_repair_keeps_the_newest_whole_checkpoint(
    tmp_path: Path, checkpoint: Path, tear: Callable[[Path], None], steps: list[int], problems: int
) -> None:
    noted = make_run(tmp_path, checkpoint)
    tear(tmp_path)
    storage = open_storage(str(tmp_path))
    assert len(repair(storage, "arm", noted)) == problems
    assert left(tmp_path) == steps
    assert repair(storage, "arm", noted) == [], "a repaired run needs no further repair"


def test_repair_without_a_whole_checkpoint_or_note_leaves_none(tmp_path: Path, checkpoint: Path) -> None:
    make_run(tmp_path, checkpoint)
    empty_list(tmp_path)
    assert repair(open_storage(str(tmp_path)), "arm", {})
    assert left(tmp_path) == []
    assert repair(open_storage(str(tmp_path / "nowhere")), "arm", {}) == []


def test_repaired_snapshot_is_readable_by_ray_train(tmp_path: Path, checkpoint: Path) -> None:
    """With the reader of the installed Ray: a release that changes the format fails here."""
    from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import _CheckpointManagerState

    noted = make_run(tmp_path, checkpoint)
    cut_weights(tmp_path)
    assert repair(open_storage(str(tmp_path)), "arm", noted)
    told = _CheckpointManagerState.parse_obj(json.loads((tmp_path / "arm" / SNAPSHOT).read_text()))
    assert {name for name in _CheckpointManagerState.__fields__} == {
        *json.loads((tmp_path / "arm" / SNAPSHOT).read_text())
    }
    assert told.latest_checkpoint_result.checkpoint_dir_name == "step_000004"
    assert [one.metrics["step"] for one in told.checkpoint_results] == [2, 4]


def test_is_complete_requires_the_fingerprint(tmp_path: Path, checkpoint: Path) -> None:
    records = make_run(tmp_path, checkpoint)
    assert is_complete(str(newest(tmp_path)), records[6].fingerprint)
    assert not is_complete(str(newest(tmp_path)), records[4].fingerprint)
    assert not is_complete(str(tmp_path / "nowhere"), records[6].fingerprint)


def test_storage_sync_of_any_prefix_succeeds(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.put("a/b/c", b"x")
    storage.sync("a/")
    storage.sync("nothing/")


FULL_DISK = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/arms/x")
AWAY = StorageError("s3://bucket: the server cannot be reached")


def failing_once(trouble: Exception, marks: Path) -> Callable[..., Any]:
    """Return a trainer that raises `trouble` once, after it has trained."""

    def fit(job: Any, folder: str, resources: dict[str, float], desk: Any, attempts: int) -> Any:
        reported = FakeTrainer(0.001)(job, folder, resources, desk, attempts)
        if not (marks / "trouble").exists():
            (marks / "trouble").touch()
            raise trouble
        return reported

    return fit


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("trouble", "said"), [(FULL_DISK, "the disk is full"), (AWAY, "the server cannot be reached")]
)
def test_sweep_with_a_full_disk_or_an_unreachable_storage_pauses(
    folder: Path, store: str, trouble: Exception, said: str
) -> None:
    asked = sweep(folder, store)
    first = Run(asked, failing_once(trouble, folder))
    with pytest.raises(InfrastructureError, match=said):
        first()
    assert "failed" not in first.states.values()
    assert not list(folder.glob("failures/**/*.json"))
    done = Run(asked)()
    assert set(done.states.values()) == {"scored"}
    rows = ledger(folder)
    assert len(rows) == len(rows[["checkpoint", "episode"]].drop_duplicates()) == 4 * 3 * 40


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_sweep_whose_control_actor_dies_pauses_and_resumes(folder: Path, store: str) -> None:
    import ray

    asked = sweep(folder, store, train={"steps": 100, "checkpoint_every": 20})
    first = Run(asked, FakeTrainer(0.05))

    def kill() -> None:
        until(lambda: any(arm.step for arm in first.run.board.arms.values()), seconds=120)
        ray.kill(first.run.training._channel)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(InfrastructureError, match="the control actor of the sweep is lost"):
            first()
    except UnfinishedError as error:
        pytest.fail(str(error))
    killer.join()
    assert "failed" not in first.states.values()
    assert set(Run(asked)().states.values()) == {"scored"}
