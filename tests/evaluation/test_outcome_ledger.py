"""The outcome ledger: nothing recorded is lost, counted twice or torn, whichever writers run or die at the
same time.
"""

import io
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from conftest import KILLED_STORAGES, SHARED_STORAGES

from orchestrator.evaluation.outcome_ledger import LATER, SCHEMA, Ledger, scores
from orchestrator.storage.base import Storage, StorageError, open_storage
from orchestrator.testing.outcomes import make_outcome
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.rollout_video import RecordedVideo
from sim_workers.rollout.staged_outcome import StagedOutcome
from sim_workers.rollout.suite import EpisodeSpec
from writer_processes import start, writer


def outcome(seed: int, result: str = "success", **fields: Any) -> Outcome:
    return replace(
        make_outcome(EpisodeSpec("Lift", seed, seed + 1, "lighting"), result == "success"),
        result=result,
        **fields,
    )  # type: ignore[arg-type]


def by_id(*outcomes: Outcome) -> dict[str, Outcome]:
    return {outcome.spec.episode_id: outcome for outcome in outcomes}


def ledger(storage: Storage, checkpoint: str = "weights", protocol: str = "protocol") -> Ledger:
    return Ledger(storage, checkpoint, protocol)


def parts(storage: Storage) -> list[str]:
    return storage.list("outcomes/weights/protocol/")


def rows(storage: Storage) -> list[dict[str, Any]]:
    """Return the rows of every part, as any reader of Parquet sees them."""
    return [row for key in parts(storage) for row in pq.read_table(io.BytesIO(storage.get(key))).to_pylist()]


# -- what is kept --------------------------------------------------------------------------------------------


def test_ledger_round_trips_every_field_of_an_outcome(storage: Storage) -> None:
    spec = EpisodeSpec("kitchen/OpenDrawer", 1_000_003, 2**62, "camera")
    played = Outcome(spec, "success", 40, 5, 1.2345678901234567, 0.1, 31, True, "a note, 日本語", "host/4711")
    played = replace(played, simulated_on="a Xeon", acted_on="an EPYC")
    never = Outcome(replace(spec, scene_seed=4), "failure", 200, 25, 0.0, 0.0)
    assert all(getattr(played, field.name) != field.default for field in fields(Outcome)), (
        "every field must differ from its default"
    )
    assert never.first_success is None
    ledger(storage).record([played, never])
    assert ledger(storage).read() == by_id(played, never)


def test_ledger_round_trips_outcomes_with_and_without_stages(storage: Storage) -> None:
    own = {field.name: getattr(outcome(1), field.name) for field in fields(Outcome)}
    staged, several = (
        StagedOutcome(
            **own | {"spec": EpisodeSpec("Lift", seed, seed)}, stage="grasped", start_x=x, start_y=x
        )
        for seed, x in ((1, 0.1 / 3), (2, None))
    )
    ledger(storage).record([staged, several, outcome(3)])
    assert ledger(storage).read() == by_id(staged, several, outcome(3))
    ledger(storage).seal(ledger(storage).read().values())
    assert ledger(storage).read() == by_id(staged, several, outcome(3))


def test_ledger_of_an_earlier_version_has_outcomes_without_later_columns(storage: Storage) -> None:
    ledger(storage).record([outcome(1, simulated_on="a Xeon", acted_on="an EPYC")])
    (key,) = parts(storage)
    table = pq.read_table(io.BytesIO(storage.get(key))).drop_columns([*LATER])
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    storage.put(key, buffer.getvalue())
    assert ledger(storage).read() == by_id(outcome(1))
    ledger(storage).seal(ledger(storage).read().values())
    assert scores(storage)["simulated_on"].to_pylist() == [""]


def test_ledger_record_writes_one_object_of_the_documented_columns(storage: Storage) -> None:
    began = datetime.now(UTC)
    ledger(storage).record([outcome(seed) for seed in range(64)])
    (key,) = parts(storage)
    table = pq.read_table(io.BytesIO(storage.get(key)))
    assert table.schema.equals(SCHEMA)
    assert table.num_rows == 64
    assert set(table["checkpoint"].to_pylist()) == {"weights"}
    assert set(table["protocol"].to_pylist()) == {"protocol"}
    assert table["episode"].to_pylist() == [outcome(seed).spec.episode_id for seed in range(64)]
    assert all(
        began - timedelta(seconds=1) < when < datetime.now(UTC) for when in table["recorded"].to_pylist()
    )


def test_ledger_record_of_nothing_writes_nothing(storage: Storage) -> None:
    ledger(storage).record([])
    assert storage.list("") == []
    assert ledger(storage).read() == {}


def test_ledger_keeps_an_error_and_does_not_return_it(storage: Storage) -> None:
    failed = outcome(1, "error", message="the GL context broke")
    ledger(storage).record([outcome(0), failed])
    assert ledger(storage).read() == by_id(outcome(0))
    assert [row["message"] for row in rows(storage) if row["result"] == "error"] == ["the GL context broke"]
    ledger(storage).record([outcome(1)])
    assert ledger(storage).read() == by_id(outcome(0), outcome(1))


def test_ledger_counts_the_first_record_of_an_episode(storage: Storage) -> None:
    for number in range(6):  # the names of the objects are random: their order means nothing
        ledger(storage).record([outcome(0, worker=f"host/{number}")])
    assert len(parts(storage)) == 6
    assert ledger(storage).read() == by_id(outcome(0, worker="host/0"))


def test_ledgers_of_other_checkpoints_and_protocols_are_separate(storage: Storage) -> None:
    ledger(storage).record([outcome(0)])
    assert (
        ledger(storage, protocol="protocol2").read()
        == ledger(storage, protocol="proto").read()
        == ledger(storage, "weights2").read()
        == {}
    )


def test_ledger_keeps_films_with_the_outcomes(storage: Storage) -> None:
    ledger(storage).record([outcome(0)])
    ledger(storage).keep_film(outcome(0).spec.episode_id, RecordedVideo(b"film", b"{}"))
    assert ledger(storage).films() == {"Lift-lighting-0-1": "outcomes/weights/protocol/Lift-lighting-0-1.mp4"}
    assert ledger(storage).read() == by_id(outcome(0))


# -- complete scores -----------------------------------------------------------------------------------------


def test_sealed_ledger_is_one_sorted_object_with_the_recording_times(storage: Storage) -> None:
    writing = ledger(storage)
    for seed in (2, 0):
        writing.record([outcome(seed, "failure")])
    resumed = ledger(storage)
    known = resumed.read()
    resumed.record([outcome(1)])
    resumed.seal([outcome(1), *known.values()])
    sealed = pq.read_table(io.BytesIO(storage.get("outcomes/weights/protocol.parquet"))).to_pylist()
    assert [row["scene_seed"] for row in sealed] == [0, 1, 2]
    assert {row["episode"]: row["recorded"] for row in sealed} == {
        row["episode"]: row["recorded"] for row in rows(storage)
    }
    assert len(parts(storage)) == 3, "the parts stay"
    assert ledger(storage).read() == by_id(outcome(0, "failure"), outcome(1), outcome(2, "failure"))


def test_sealed_ledger_is_read_without_its_parts(storage: Storage) -> None:
    writing = ledger(storage)
    writing.record([outcome(0)])
    writing.seal([outcome(0)])
    storage.put(parts(storage)[0], b"nobody looks here")
    assert ledger(storage).read() == by_id(outcome(0))


def test_ledger_keeps_and_returns_the_first_seal(storage: Storage) -> None:
    first, second = outcome(0, worker="host/1"), outcome(0, worker="host/2")
    assert ledger(storage).seal([first]) == [first]
    assert ledger(storage).seal([second]) == [first]
    assert ledger(storage).read() == by_id(outcome(0, worker="host/1"))


def test_ledger_seal_with_an_error_raises(storage: Storage) -> None:
    with pytest.raises(ValueError, match="no complete score: Lift-lighting-1-2 ended in an error"):
        ledger(storage).seal([outcome(0), outcome(1, "error")])
    assert storage.list("") == []


def test_scores_table_holds_all_sealed_ledgers(storage: Storage) -> None:
    assert scores(storage).num_rows == 0
    assert scores(storage).schema.equals(SCHEMA)
    for checkpoint in ("weights", "other"):
        for protocol in ("protocol", "shifted"):
            ledger(storage, checkpoint, protocol).seal([outcome(0), outcome(1, "failure")])
    ledger(storage, "unfinished").record([outcome(0)])
    table = scores(storage).to_pandas()
    assert len(table) == 8
    rates = table.groupby(["checkpoint", "protocol"])["result"].apply(
        lambda result: (result == "success").mean()
    )
    assert rates.to_dict() == {(c, p): 0.5 for c in ("weights", "other") for p in ("protocol", "shifted")}


def test_ledger_objects_are_readable_by_pandas_and_pyarrow(tmp_path: Path) -> None:
    for checkpoint in ("weights", "other"):
        ledger(open_storage(str(tmp_path)), checkpoint).seal([outcome(0), outcome(1, "failure")])
    one = pd.read_parquet(tmp_path / "outcomes" / "weights" / "protocol.parquet")
    assert one["first_success"].isna().tolist() == [False, True]
    assert str(one["recorded"].dtype) == "datetime64[us, UTC]"
    files = [str(path) for path in tmp_path.glob("outcomes/*/*.parquet")]
    every = pyarrow.dataset.dataset(files).to_table(filter=pyarrow.dataset.field("result") == "success")
    assert sorted(every["checkpoint"].to_pylist()) == ["other", "weights"]


# -- damage --------------------------------------------------------------------------------------------------


def damaged(data: bytes) -> Iterator[bytes]:
    """Yield the data cut short anywhere, with a bit flipped anywhere in the rows, and bytes that are no
    Parquet.
    """
    yield from (data[:size] for size in range(0, len(data), 97))
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for place in range(4, footer, 61):
        yield data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    yield b"[]"
    table = io.BytesIO()
    pd.DataFrame({"another": [1]}).to_parquet(table)
    yield table.getvalue()


@pytest.mark.parametrize(
    ("key", "fix"),
    [
        ("outcomes/weights/protocol/part.parquet", "its episodes will be played again"),
        ("outcomes/weights/protocol.parquet", "its parts are still there"),
    ],
    ids=["part", "sealed"],
)
def test_damaged_ledger_object_raises_one_sentence_or_is_read_whole(
    tmp_path: Path, key: str, fix: str
) -> None:
    storage, outcomes = open_storage(str(tmp_path)), [outcome(seed) for seed in range(8)]
    ledger(storage, "intact").record(outcomes)
    data = storage.get(storage.list("outcomes/intact/")[0])
    told = []
    for wrong in damaged(data):
        storage.put(key, wrong)
        try:
            assert ledger(storage).read() == by_id(*outcomes), "unread bits may differ"
        except StorageError as error:
            told.append(str(error))
    assert set(told) == {f"{storage.uri}: {key} is damaged; restore it, or delete it: {fix}"}
    assert len(told) > len(data) // 97 + 10, "all truncations and most of the flipped bits"
    (tmp_path / key).unlink()
    assert ledger(storage).read() == {}


# -- writers -------------------------------------------------------------------------------------------------

WRITER = """
import sys
import pandas  # pyarrow imports it with the first table, which takes longer than the writer may live
from orchestrator.evaluation.outcome_ledger import Ledger
from orchestrator.storage.base import open_storage
from orchestrator.testing.outcomes import make_outcome
from sim_workers.rollout.suite import EpisodeSpec

ledger = Ledger(open_storage(sys.argv[1]), "weights", "protocol")
ledger.read()
print("ready", flush=True)
sys.stdin.readline()
for first in range(int(sys.argv[2]), int(sys.argv[3]), 4):
    ledger.record([make_outcome(EpisodeSpec("Lift", seed, seed + 1, "lighting")) for seed in range(first, first + 4)])
    print(first, flush=True)
"""


@pytest.mark.parametrize("storage", SHARED_STORAGES, indirect=True)
def test_ledger_written_by_two_processes_loses_nothing(storage: Storage) -> None:
    processes = [writer(WRITER, storage, 0, 60), writer(WRITER, storage, 40, 100)]
    start(*processes)
    assert [process.wait(60) for process in processes] == [0, 0]
    assert ledger(storage).read() == by_id(*map(outcome, range(100)))
    assert len(rows(storage)) == 120


def test_ledger_shared_by_threads_loses_nothing(storage: Storage) -> None:
    shared = ledger(storage)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: shared.record([outcome(seed)]), range(64)))
    assert shared.read() == by_id(*map(outcome, range(64)))


@pytest.mark.parametrize("storage", KILLED_STORAGES, indirect=True)
def test_ledger_of_a_killed_writer_has_whole_records_and_all_acknowledged_ones(storage: Storage) -> None:
    rng = random.Random(0)
    most = 0
    for kill in range(3):
        process = writer(WRITER, storage, kill * 10_000, (kill + 1) * 10_000)
        start(process)
        time.sleep(rng.uniform(0.05, 0.15))
        process.kill()
        said, _ = process.communicate()
        known = ledger(storage).read()
        seeds = {outcome.spec.scene_seed for outcome in known.values()}
        assert known == by_id(*map(outcome, seeds))
        mine = {seed for seed in seeds if seed // 10_000 == kill}
        firsts = {seed // 4 * 4 for seed in mine}
        assert mine == {first + i for first in firsts for i in range(4)}, (
            "what was recorded together is there together"
        )
        assert {int(first) for first in said.split()} <= firsts
        assert len(firsts) < 2500, "killed too late to test anything"
        most = max(most, len(firsts))
    assert most > 1, "killed too early to test anything"
