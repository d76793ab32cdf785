"""A storage server that is unreachable for a moment: clients that have reached it before wait and lose
nothing.
"""

import pickle
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from threading import Event

import pytest
from conftest import BUCKET

from fault_proxy import FaultProxy
from orchestrator.data.episode_store import commit, latest_version, load_manifest, put_episode
from orchestrator.storage.base import (
    PATIENCE,
    Storage,
    StorageError,
    StorageSettings,
    check_conditional_writes,
    open_storage,
)
from orchestrator.testing.episodes import CONTRACT, make_episode
from orchestrator.testing.seaweedfs import running

Point = Callable[[dict[str, str]], None]

SOON = StorageSettings(retry_delay_s=0.01)
"""The default outage limit of a minute, with short pauses between requests."""


@pytest.mark.usefixtures("no_backoff")
@pytest.mark.parametrize("fault", ["SlowDown", "unanswered"])
def test_storage_after_a_first_answer_waits_for_the_server(
    proxy: FaultProxy, bucket: Storage, fault: str
) -> None:
    bucket.put("key", b"data")
    proxy.will(*[fault] * 10)  # more than a client repeats by itself
    assert open_storage(bucket.uri, SOON).get("key") == b"data"
    impatient = open_storage(bucket.uri, StorageSettings(outage_s=1.0, retry_delay_s=0.01))
    proxy.will(fault, always=True)
    began = time.monotonic()
    with pytest.raises(
        StorageError, match=r"the server 127\.0\.0\.1:\d+ (is overloaded or failing|cannot be reached)"
    ):
        impatient.get("key")
    assert 1 < time.monotonic() - began < 40


@pytest.mark.usefixtures("no_backoff")
@pytest.mark.parametrize("fault", ["RequestTimeout", "TooManyRequests"])
def test_storage_repeats_a_request_that_was_too_slow_or_one_too_many(
    proxy: FaultProxy, bucket: Storage, fault: str
) -> None:
    bucket.put("key", b"data")
    proxy.will(*[fault] * 5)  # more than a client repeats by itself
    assert open_storage(bucket.uri, SOON).get("key") == b"data"


@pytest.mark.usefixtures("no_backoff")
def test_storage_pickled_keeps_its_settings(proxy: FaultProxy, bucket: Storage) -> None:
    bucket.put("key", b"data")
    travelled = pickle.loads(
        pickle.dumps(open_storage(bucket.uri, StorageSettings(outage_s=0.0, retry_delay_s=0.0)))
    )
    proxy.will("SlowDown", always=True)
    began = time.monotonic()
    with pytest.raises(StorageError, match="is overloaded or failing"):
        travelled.get("key")
    assert time.monotonic() - began < 40, "the default is to wait for a minute"


@pytest.mark.parametrize("fault", ["AccessDenied", "ExpiredToken", "NotImplemented"])
def test_storage_does_not_retry_permanent_errors(proxy: FaultProxy, bucket: Storage, fault: str) -> None:
    bucket.put("key", b"data")
    proxy.will(fault, always=True)
    with pytest.raises(StorageError):
        bucket.get("key")
    assert len(proxy.requests) == 1


@pytest.mark.parametrize("fault", ["SlowDown", "unanswered"])
def test_storage_without_a_first_answer_raises_within_seconds(
    proxy: FaultProxy, bucket: Storage, fault: str
) -> None:
    proxy.will(fault, always=True)
    began = time.monotonic()
    with pytest.raises(
        StorageError, match=r"the server 127\.0\.0\.1:\d+ (is overloaded or failing|cannot be reached)"
    ):
        bucket.get("key")
    assert time.monotonic() - began < 40


@pytest.mark.usefixtures("no_backoff")
@pytest.mark.parametrize("fault", ["SlowDown", "unanswered"])
def test_storage_of_a_child_process_waits_for_its_first_answer(
    proxy: FaultProxy, bucket: Storage, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setenv(PATIENCE, "1")
    bucket = open_storage(bucket.uri, SOON)
    proxy.will(*[fault] * 10)
    bucket.put("key", b"data")
    assert bucket.get("key") == b"data"


@pytest.mark.usefixtures("s3")
def test_storage_at_a_closed_port_raises_within_seconds(s3_environment: Point) -> None:
    s3_environment({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"})
    began = time.monotonic()
    with pytest.raises(
        StorageError, match=r"the server 127\.0\.0\.1:9 cannot be reached; check AWS_ENDPOINT_URL"
    ):
        open_storage(f"s3://{BUCKET}").put("key", b"data")
    assert time.monotonic() - began < 40


@pytest.mark.usefixtures("no_backoff")
def test_put_if_absent_with_a_lost_answer_returns_false_and_commit_succeeds(
    proxy: FaultProxy, bucket: Storage
) -> None:
    bucket = open_storage(bucket.uri, StorageSettings(outage_s=30.0, retry_delay_s=0.0))
    bucket.put("key", b"data")
    proxy.will(*["unanswered"] * 4)
    assert not bucket.put_if_absent("claimed", b"first")
    assert len(proxy.requests) == 5
    assert bucket.get("claimed") == b"first"
    entry = put_episode(bucket, make_episode(), 20.0)
    check_conditional_writes(bucket)
    proxy.will("", "", *["unanswered"] * 4)  # a list, the manifest, and the claim of the version
    commit(bucket, CONTRACT, [entry])
    assert latest_version(bucket) == 1
    assert load_manifest(bucket).episode_ids == [entry.episode_id]


@pytest.mark.full
@pytest.mark.weed
@pytest.mark.usefixtures("weed")  # skips where it is not installed
def test_writers_of_a_killed_and_restarted_server_lose_nothing(tmp_path: Path, s3_environment: Point) -> None:
    """The server is killed while objects are written: every object is there and whole, earlier ones included,
    and no writer sees an error.
    """
    with running(tmp_path) as server:
        s3_environment(server.variables)
        storage, over = open_storage(f"s3://{BUCKET}/outage"), Event()
        written: list[str] = []

        def write(writer: int) -> None:
            for number in count():
                if over.is_set():
                    break
                key = f"{writer}/{number:05d}"
                storage.put_if_absent(key, key.encode() * 20_000)
                written.append(key)
                assert storage.get(written[number // 2]) == written[number // 2].encode() * 20_000

        def wait_for(more: int) -> None:
            enough, deadline = len(written) + more, time.monotonic() + StorageSettings().outage_s
            while len(written) < enough and not any(future.done() for future in writers):
                assert time.monotonic() < deadline
                time.sleep(0.01)

        with ThreadPoolExecutor(4) as pool:
            writers = [pool.submit(write, writer) for writer in range(4)]
            try:
                for _ in range(2):
                    wait_for(40)
                    server.kill()
                    time.sleep(2)
                    assert not any(future.done() for future in writers), "the writers wait"
                    server.start()
                wait_for(40)
            finally:
                over.set()
        for future in writers:
            future.result()
        assert storage.list("") == sorted(written)
        assert all(storage.get(key) == key.encode() * 20_000 for key in written)
