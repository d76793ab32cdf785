"""Writers of a sweep on a full disk: what was written stays whole, and the error is classified as the
disk's.
"""

import json
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.checkpoints.node_cache import cached_checkpoint
from orchestrator.checkpoints.reader import is_complete
from orchestrator.config.arms import Arm
from orchestrator.evaluation.outcome_ledger import Ledger
from orchestrator.infrastructure import cause_in, cause_of
from orchestrator.storage.base import Storage, StorageError, open_storage
from orchestrator.sweep.driver_lease import Lease
from orchestrator.testing.checkpoints import make_card, make_checkpoint
from orchestrator.testing.outcomes import make_outcome
from orchestrator.testing.small_disk import NoMountError, SmallDisk, small_disk
from orchestrator.tracking.mlflow_writer import MlflowWriter, TrackingError
from orchestrator.tracking.outbox import OutboxReader, OutboxWriter
from orchestrator.tracking.outbox_records import DescribeArm, LogMetrics
from orchestrator.tracking.outbox_relay import OutboxRelay
from policy.checkpoint import fingerprint, save
from polling import until
from sim_workers.rollout.suite import EpisodeSpec

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A file system of 48 MiB; skips the test where none can be mounted."""
    with ExitStack() as stack:
        try:
            mounted = stack.enter_context(small_disk(tmp_path / "disk"))
        except NoMountError as error:
            pytest.skip(str(error))
        yield mounted


def refused(write: Callable[[], object]) -> BaseException:
    """Return the error that a write raises."""
    try:
        write()
    except Exception as error:
        return error
    raise AssertionError("the disk took it")


@pytest.mark.parametrize("method", ["put", "put_if_absent"])
def test_folder_put_on_a_full_disk_keeps_the_previous_objects(disk: SmallDisk, method: str) -> None:
    storage = open_storage(str(disk.root / "runs"))
    storage.put("kept", b"before" * 100)
    disk.fill()
    key = "kept" if method == "put" else "another"
    error = refused(lambda: getattr(storage, method)(key, bytes(MIB)))
    assert isinstance(error, StorageError)
    assert "No space left on device" in cause_of(error)
    assert storage.get("kept") == b"before" * 100
    assert storage.list("") == ["kept"]
    disk.free()
    getattr(storage, method)(key, bytes(MIB))
    assert storage.get(key) == bytes(MIB)


def recorded(storage: Storage) -> set[str]:
    return {*Ledger(storage, "checkpoint", "protocol").read()}


def test_ledger_on_a_full_disk_keeps_its_rows_and_accepts_more_later(disk: SmallDisk) -> None:
    storage = open_storage(str(disk.root / "runs"))
    first, second = (make_outcome(EpisodeSpec("Lift", seed, seed)) for seed in (1, 2))
    ledger = Ledger(storage, "checkpoint", "protocol")
    ledger.record([first])
    disk.fill()
    assert cause_of(refused(lambda: ledger.record([second])))
    assert recorded(storage) == {first.spec.episode_id}
    assert cause_of(refused(lambda: ledger.seal([first])))
    disk.free()
    ledger.record([second])
    assert recorded(storage) == {first.spec.episode_id, second.spec.episode_id}


def test_outbox_on_a_full_disk_keeps_whole_entries_and_accepts_more_later(disk: SmallDisk) -> None:
    journal = OutboxWriter(disk.root / "telling", {"sweep": "x"})
    journal.append({"do": "metrics", "n": 1})
    disk.fill()
    error = refused(lambda: [journal.append({"do": "metrics", "n": 2, "text": "x" * 4096}) for _ in range(2)])
    assert isinstance(error, TrackingError)
    assert "No space left on device" in cause_of(error)
    disk.free()
    journal.append({"do": "metrics", "n": 3})
    reading, told = OutboxReader(journal.path), list[int]()
    while found := reading.next():
        assert found[0]
        told.append(found[0]["n"])
        reading.advance(found[1])
    assert told[0] == 1
    assert told[-1] == 3
    assert not reading.cut


def test_checkpoint_save_on_a_full_disk_is_incomplete(disk: SmallDisk, tmp_path: Path) -> None:
    """Save as a training worker does; the driver classifies the error by its traceback alone."""
    model = torch.nn.Linear(4, 4)
    disk.fill()

    def write() -> None:
        save(disk.root / "checkpoint", make_card(), model, {"weights": torch.zeros(4 * MIB)}, {})  # type: ignore[arg-type]

    (disk.root / "checkpoint").mkdir()
    try:
        write()
    except Exception:
        assert cause_in(traceback.format_exc()) == "the disk is full"
    else:
        pytest.fail("the disk took it")
    assert not is_complete(str(disk.root / "checkpoint"), "any")


def test_node_cache_on_a_full_disk_serves_no_partial_checkpoint(disk: SmallDisk, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "source")
    name = fingerprint(source)
    disk.fill()
    with pytest.raises(OSError, match="No space left on device"):
        cached_checkpoint(str(source), name, disk.root / "cache")
    disk.free()
    assert fingerprint(cached_checkpoint(str(source), name, disk.root / "cache")) == name


def test_outbox_relay_with_a_full_database_delivers_once_there_is_room(
    disk: SmallDisk, tmp_path: Path
) -> None:
    uri, arm = f"sqlite:///{disk.root / 'mlflow.db'}", Arm(4, 0.0, 0)
    about: dict[str, Any] = {
        "sweep": "s",
        "training": "t",
        "protocol": "p",
        "steps": 9,
        "artifacts": str(tmp_path / "artifacts"),
    }
    tracker = MlflowWriter(uri, **about)
    tracker.open()
    teller = OutboxRelay(uri, tmp_path / "telling", about)
    try:
        disk.fill()
        teller.enqueue(DescribeArm(arm_id="arm_1", arm=arm, facts={"text": "x" * 4000}))
        for step in range(40):
            values = {f"m{i}": 1.0 for i in range(40)}
            teller.enqueue(LogMetrics(arm_id="arm_1", step=step, values=values))
        until(lambda: teller.problem or not teller.left, seconds=60)
        assert teller.failure is None
        if not teller.left:
            pytest.skip("the database had room within its pages")
        disk.free()
        assert teller.wait(60.0)
        assert teller.refused == 0
    finally:
        teller.close()
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    run = client.search_runs(
        [client.get_experiment_by_name("demoscale").experiment_id], "tags.`demoscale.arm` = 'arm_1'"
    )[0]
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "m7")] == [*range(40)]


def test_lease_survives_a_full_disk(disk: SmallDisk) -> None:
    lost: list[str] = []
    with Lease(open_storage(str(disk.root / "runs")), "lift", lost.append, beat_s=0.02, lease_s=1.0).claim():
        disk.fill()
        time.sleep(0.2)
        disk.free()
        beat = disk.root / "runs" / "leases" / "lift" / "000001.beat"
        before = beat.read_text() if beat.exists() else ""
        until(lambda: beat.exists() and beat.read_text() != before, seconds=10)
    assert not lost
    assert json.loads((disk.root / "runs" / "leases" / "lift" / "000001.json").read_text())["host"]
