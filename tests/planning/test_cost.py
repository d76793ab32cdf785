"""Costs: they add up, no run's record is lost or rewritten, an exceeded budget is reported with its
numbers.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from threading import Thread

import pytest
from conftest import CHECKOUT
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.schema import Budget, Prices
from orchestrator.cost import Cost, CostLedger, added, exceeded, of_outcome
from orchestrator.storage.base import Storage, StorageError, open_storage
from orchestrator.training.worker_usage import Meter
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.suite import EpisodeSpec

# Whole seconds: sums of them are exact in whichever order they are made.
SECONDS, COUNTS = st.integers(0, 10**9).map(float), st.integers(0, 10**12)
COSTS = st.builds(Cost, SECONDS, SECONDS, SECONDS, SECONDS, SECONDS, COUNTS, COUNTS, COUNTS, COUNTS)
ONE = Cost(train_cpu_s=1.0, bytes_read=7, episodes=1)


# -- a cost --------------------------------------------------------------------------------------------------


@given(COSTS, COSTS, COSTS)
def test_cost_addition_is_associative_and_commutative(a: Cost, b: Cost, c: Cost) -> None:
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a
    assert a + Cost() == a
    assert added([a, b, c]) == a + b + c


@given(COSTS)
def test_cost_json_round_trips(a: Cost) -> None:
    assert Cost.from_json(json.loads(json.dumps(a.to_json()))) == a


@given(COSTS, st.integers(1, 50))
def test_cost_divided_into_parts_sums_to_the_whole(whole: Cost, parts: int) -> None:
    share = whole / parts
    assert share.train_gpu_s * parts == pytest.approx(whole.train_gpu_s)
    assert abs(share.bytes_read * parts - whole.bytes_read) <= parts / 2
    assert isinstance(share.bytes_read, int)


def test_cost_seconds_of_devices_sum_training_inference_and_simulation() -> None:
    everything = Cost(1.0, 20.0, 300.0, 4000.0, 50000.0)
    assert (everything.gpu_s, everything.cpu_s) == (301.0, 54020.0)


def test_cost_money_is_hours_and_gibibytes_times_prices() -> None:
    spent = Cost(train_gpu_s=1800, infer_gpu_s=1800, train_cpu_s=3600, sim_cpu_s=7200, bytes_read=3 * 2**30)
    assert spent.money(Prices(gpu_hour=2.5)) == pytest.approx(2.5)
    assert spent.money(Prices(cpu_hour=0.1)) == pytest.approx(0.3)
    assert spent.money(Prices(gib_read=0.02)) == pytest.approx(0.06)
    assert spent.money(Prices(gpu_hour=2.5, cpu_hour=0.1, gib_read=0.02)) == pytest.approx(2.86)
    assert spent.money(Prices()) == 0


@given(COSTS, COSTS)
def test_cost_money_is_additive(a: Cost, b: Cost) -> None:
    prices = Prices(gpu_hour=2.0, cpu_hour=0.05, gib_read=0.01)
    assert (a + b).money(prices) == pytest.approx(a.money(prices) + b.money(prices))


def test_cost_text_has_hours_counts_and_bytes() -> None:
    spent = Cost(
        train_gpu_s=4320,
        sim_cpu_s=12240,
        control_steps=50_000,
        frames=12_500,
        bytes_read=3 * 2**29,
        episodes=500,
    )
    assert (
        str(spent) == "1.2 GPU-h, 3.4 CPU-h, 500 episodes, 50,000 control steps, 12,500 frames, 1.5 GiB read"
    )
    assert str(Cost(train_cpu_s=36)) == "0.010 CPU-h"


def test_cost_of_an_outcome_is_its_simulation_and_counts_no_error() -> None:
    played = Outcome(EpisodeSpec("Lift", 1, 1), "failure", 100, 25, 3.5, 9.0)
    assert of_outcome(played, cameras=2) == Cost(sim_cpu_s=3.5, control_steps=100, frames=50, episodes=1)
    failed = Outcome(EpisodeSpec("Lift", 1, 1), "error", 8, 2, 0.5, 0.0, message="it fell over")
    assert of_outcome(failed, cameras=2) == Cost(sim_cpu_s=0.5, control_steps=8, frames=4, episodes=0)


def test_meter_read_returns_usage_since_the_previous_read() -> None:
    meter = Meter()
    meter.fetched(5)
    meter.fetched(6)
    began = time.process_time()
    while time.process_time() < began + 0.05:
        pass
    first, second = meter.read(), meter.read()
    assert first.bytes_read == 11
    assert first.cpu_s >= 0.04, (
        "a virtual machine's processor clock may step back by a fraction of a millisecond"
    )
    assert first.wall_s >= 0.04
    assert second.bytes_read == 0
    assert second.cpu_s < 0.04


def test_meter_separates_step_time_from_stalls() -> None:
    def batches() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.05)
            yield number

    meter = Meter()
    for _ in meter.steps_of(batches(), clips=4):
        time.sleep(0.02)
        meter.stepped(4)
        time.sleep(0.1)  # a checkpoint is saved
        meter.stepped(4)  # nothing more: the step is over
    told = meter.read()
    assert (told.clips, told.steps) == (12, 3)
    assert told.step_s >= 0.059
    assert told.stall_s >= 0.149
    assert told.step_s + told.stall_s <= told.wall_s - 0.299


# -- the cost ledger of a sweep ------------------------------------------------------------------------------


def test_cost_ledger_sums_all_runs_by_arm_and_in_total(storage: Storage) -> None:
    for run_id, arms in (("first", ("a", "b")), ("second", ("b", "c"))):
        spending = CostLedger(storage, "lift", run_id)
        for arm in arms:
            spending.add(arm, ONE)
        spending.close()
    third = CostLedger(storage, "lift", "third")
    third.add("c", ONE)
    expected = {"a": ONE, "b": ONE + ONE, "c": ONE + ONE}
    assert third.by_arm() == expected
    assert third.total() == added(expected.values())
    third.close()
    onlooker = CostLedger.read(storage, "lift")
    assert (onlooker.by_arm(), onlooker.total()) == (expected, third.total())
    assert CostLedger.read(storage, "lif").total() == Cost(), "another sweep has accounts of its own"


def test_cost_ledger_never_writes_the_record_of_another_run(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    first = CostLedger(storage, "lift", "first")
    first.add("a", ONE)
    first.close()
    before = (tmp_path / "costs/lift/first.json").stat()
    second = CostLedger(storage, "lift", "second")
    second.add("a", ONE)
    second.close()
    after = (tmp_path / "costs/lift/first.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    with pytest.raises(ValueError, match="a run first of lift has an account already"):
        CostLedger(storage, "lift", "first")


def test_cost_ledger_add_from_many_threads_loses_nothing(tmp_path: Path) -> None:
    spending = CostLedger(open_storage(str(tmp_path)), "lift", "run")
    threads = [Thread(target=lambda: [spending.add("a", ONE) for _ in range(500)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert spending.total().episodes == 4000
    spending.close()
    assert CostLedger.read(open_storage(str(tmp_path)), "lift").total().bytes_read == 28_000


def test_cost_ledger_wall_time_is_summed_over_runs_and_known_per_run(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    first = CostLedger(storage, "lift", "first")
    time.sleep(0.3)
    first.close()
    second = CostLedger(storage, "lift", "second")
    alone = second.run_wall_s
    assert second.wall_s >= alone + 0.299
    second.close()
    onlooker = CostLedger.read(storage, "lift")
    assert onlooker.runs["first"].wall_s >= 0.299
    assert onlooker.wall_s == sum(run.wall_s for run in onlooker.runs.values())


def test_cost_ledger_limits_how_often_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(str(tmp_path))
    spending = CostLedger(storage, "lift", "run", write_s=0.5)
    written = []
    monkeypatch.setattr(storage, "put", lambda key, data: written.append(time.monotonic()))
    end = time.monotonic() + 1.6
    while time.monotonic() < end:
        spending.add("a", ONE)
        time.sleep(0.01)
    assert 2 <= len(written) <= 4
    assert all(after - before > 0.45 for before, after in pairwise(written))
    spending.close()
    spending.close()


def test_cost_ledger_with_a_failing_storage_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(str(tmp_path))
    spending = CostLedger(storage, "lift", "run", write_s=0.1)

    def fail(key: str, data: bytes) -> None:
        raise StorageError("the disk is full")

    with monkeypatch.context() as failing:
        failing.setattr(storage, "put", fail)
        spending.add("a", ONE)
        time.sleep(0.4)
        with pytest.raises(StorageError, match="the disk is full"):
            spending.flush()
    until = time.monotonic() + 10
    while CostLedger.read(storage, "lift").total() != ONE and time.monotonic() < until:
        time.sleep(0.05)
    assert CostLedger.read(storage, "lift").total() == ONE
    spending.close()


SPENDER = """
import sys, time
from orchestrator.cost import Cost, CostLedger
from orchestrator.storage.base import open_storage
spending = CostLedger(open_storage(sys.argv[1]), "lift", "killed")
while True:
    spending.add("a", Cost(episodes=1))
    print(time.monotonic(), flush=True)
    time.sleep(0.02)
"""


def test_cost_ledger_of_a_killed_run_loses_at_most_two_seconds(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SPENDER, str(tmp_path)], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
    ) as spender:
        assert spender.stdout
        said = [float(spender.stdout.readline())]
        while said[-1] - said[0] < 3.2:  # between two writes
            said.append(float(spender.stdout.readline()))
        os.kill(spender.pid, signal.SIGKILL)
        said += [float(line) for line in spender.stdout.read().splitlines()]
    kept = CostLedger.read(open_storage(str(tmp_path)), "lift").total().episodes
    lost = said[kept:]
    assert 0 < len(lost) < len(said)
    assert lost[-1] - lost[0] < 2.5, "two seconds, and what a busy machine takes to write"


# -- the budget ----------------------------------------------------------------------------------------------


def test_exceeded_budget_is_reported_with_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spending = CostLedger(open_storage(str(tmp_path)), "lift", "run")
    budget = Budget(max_gpu_hours=2, max_episodes=1500, max_wall=1)
    spending.add("a", Cost(train_gpu_s=7100, episodes=1499))
    assert exceeded(budget, spending) == ""
    spending.add("b", Cost(episodes=1))
    assert (
        exceeded(budget, spending)
        == "budget.max_episodes is 1,500 episodes, and 1,500 are spent; raise it and run the same"
        " command to resume"
    )
    spending.add("b", Cost(infer_gpu_s=1180))
    assert exceeded(budget, spending).startswith("budget.max_gpu_hours is 2 GPU-hours, and 2.3 are spent")
    assert exceeded(Budget(), spending) == ""
    spending.close()


def test_budget_wall_limit_is_per_run_and_other_limits_over_all_runs(tmp_path: Path) -> None:
    storage, budget = open_storage(str(tmp_path)), Budget(max_episodes=2, max_wall=1.8 / 3600)
    first = CostLedger(storage, "lift", "first")
    first.add("a", Cost(episodes=2))
    time.sleep(1.9)
    assert exceeded(Budget(max_wall=budget.max_wall), first).startswith(
        "budget.max_wall is 0.0005 hours of wall clock, and 0.000"
    )
    first.close()
    second = CostLedger(storage, "lift", "second")
    assert exceeded(Budget(max_wall=budget.max_wall), second) == ""
    assert exceeded(budget, second).startswith("budget.max_episodes is 2 episodes, and 2 are spent")
    second.close()
