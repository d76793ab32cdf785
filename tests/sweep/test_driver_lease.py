"""The driver lease: a second driver is refused, takes over on request, and starts at once after a killed
one.
"""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import CHECKOUT

from orchestrator.storage.base import Storage, StorageError, open_storage
from orchestrator.sweep.driver_lease import OVER, HeldError, Holder, Lease
from polling import until

LEASE_S = 1.0
HERE = Holder.here()


def driver(
    storage: Storage, lost: list[str] | None = None, sweep: str = "lift", lease_s: float = LEASE_S
) -> Lease:
    return Lease(storage, sweep, (lost if lost is not None else []).append, beat_s=0.05, lease_s=lease_s)


def test_lease_refuses_a_second_driver_until_the_first_ends(
    storage: Storage,
) -> None:
    with driver(storage).claim():
        with pytest.raises(HeldError, match=rf"^lift: process {os.getpid()} on .* runs it; .*--take-over$"):
            driver(storage).claim()
        with driver(storage, sweep="can").claim():
            pass
    began = time.monotonic()
    with driver(storage, lease_s=60).claim():
        assert time.monotonic() - began < 30, "an ended run is not waited for"


def test_lease_claimed_by_many_at_once_has_one_holder(storage: Storage) -> None:
    held, refused, start = list[Lease](), list[str](), threading.Barrier(6)

    def claim() -> None:
        start.wait()
        try:
            held.append(driver(storage).claim())
        except HeldError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=claim) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 5)


def test_lease_take_over_notifies_the_holder_once_and_waits_for_it(tmp_path: Path) -> None:
    storage, lost, said, ended = open_storage(str(tmp_path)), list[str](), list[str](), list[float]()

    def first() -> None:
        with driver(storage, lost).claim():
            claimed.set()
            until(lambda: lost, seconds=20)
            time.sleep(2 * LEASE_S)  # it saves its state, for longer than a silent driver is waited for
            ended.append(time.monotonic())

    claimed, thread = threading.Event(), threading.Thread(target=first)
    thread.start()
    claimed.wait()
    with driver(storage).claim(said.append, take_over=True):
        assert time.monotonic() >= ended[0]
    thread.join()
    assert lost == [f"{HERE} takes the sweep over"]
    assert said == [f"takes over from {HERE}, which saves its state and ends"]


@pytest.mark.parametrize("beats", [True, False])
def test_lease_of_another_machine_is_watched_by_its_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beats: bool
) -> None:
    storage, said, closing = open_storage(str(tmp_path)), list[str](), threading.Event()
    monkeypatch.setattr(Holder, "here", lambda: replace(HERE, place="another machine", host="far"))
    driver(storage).claim()  # and no beat of its own
    monkeypatch.undo()

    def beat() -> None:
        number = 0
        while not closing.wait(0.1):
            storage.put("leases/lift/000001.beat", str(number := number + 1).encode())

    thread = threading.Thread(target=beat)
    if beats:
        thread.start()
        with pytest.raises(HeldError, match="on far"):
            driver(storage).claim(said.append)
        closing.set()
        thread.join()
    else:
        with driver(storage).claim(said.append):
            pass
    assert said == [
        f"process {HERE.pid} on far, of {HERE.user} ran this sweep last; looks for 1 s whether it still does"
    ]


def test_lease_of_a_driver_that_waits_for_another_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(str(tmp_path))
    monkeypatch.setattr(Holder, "here", lambda: replace(HERE, place="another machine", host="far"))
    waiting = driver(storage, lease_s=0.3)
    monkeypatch.undo()
    taking = threading.Thread(target=lambda: waiting.claim(take_over=True))
    with driver(storage, lease_s=0.3).claim():
        taking.start()
        until(lambda: storage.exists("leases/lift/000002.json"), seconds=10)
        with pytest.raises(HeldError, match="on far"):
            driver(storage, lease_s=0.3).claim()
    taking.join()
    with waiting:
        assert driver(storage, lease_s=0.3).held()
    assert not driver(storage, lease_s=0.3).held()


def test_lease_after_an_interrupted_take_over_is_still_the_first_drivers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(str(tmp_path))
    monkeypatch.setattr(Holder, "here", lambda: replace(HERE, started="1", host="killed"))
    second = driver(storage)
    monkeypatch.undo()

    def interrupt(number: int, seen: bytes) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(second, "_stands_still", interrupt)
    with driver(storage).claim():
        with pytest.raises(KeyboardInterrupt):
            second.claim(take_over=True)
        with pytest.raises(HeldError, match=f"on {HERE.host}"):
            driver(storage).claim()
    with driver(storage).claim():
        pass


HOLDS = """
import sys, time
from orchestrator.sweep.driver_lease import Lease
from orchestrator.storage.base import open_storage
with Lease(open_storage(sys.argv[1]), "lift", print).claim():
    print("held", flush=True)
    time.sleep(600)
"""


def test_lease_of_a_killed_local_driver_is_claimed_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    process = subprocess.Popen(
        command,
        cwd=CHECKOUT,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    storage = open_storage(str(tmp_path))
    with pytest.raises(HeldError, match=f"process {process.pid} on "):
        driver(storage).claim()
    process.kill()
    process.wait()
    began = time.monotonic()
    with driver(storage, lease_s=60).claim():
        assert time.monotonic() - began < 30


def test_lease_of_a_reused_process_id_is_free(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    driver(storage).claim()
    told = json.loads(storage.get("leases/lift/000001.json"))
    assert told["started"]
    storage.put("leases/lift/000001.json", json.dumps(told | {"started": "1"}).encode())
    with driver(storage).claim():
        pass


def test_lease_survives_an_unreachable_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, lost, tries = open_storage(str(tmp_path)), list[str](), list[str]()

    def unreachable(self: Storage, prefix: str) -> list[str]:
        tries.append(prefix)
        raise StorageError("unreachable")

    with driver(storage, lost).claim():
        with monkeypatch.context() as patched:
            patched.setattr(type(storage), "list", unreachable)
            until(lambda: len(tries) > 3, seconds=10)
        until(lambda: storage.exists("leases/lift/000001.beat"), seconds=10)
        before = storage.get("leases/lift/000001.beat")
        until(lambda: storage.get("leases/lift/000001.beat") != before, seconds=10)
    assert not lost
    assert storage.get("leases/lift/000001.beat").decode() == OVER
