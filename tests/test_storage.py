"""One contract for every place objects are kept."""

import pickle
import threading
from pathlib import Path

import pytest

from orchestrator.storage import Storage, StorageError, open_storage


def test_what_was_put_is_got(storage: Storage) -> None:
    storage.put("a/b", b"one")
    storage.put("a/b", b"two")
    assert storage.get("a/b") == b"two"
    assert storage.exists("a/b")
    assert not storage.exists("a/c")


def test_the_first_claim_of_a_key_wins(storage: Storage) -> None:
    assert storage.put_if_absent("key", b"first")
    assert not storage.put_if_absent("key", b"second")
    assert storage.get("key") == b"first"


def test_of_many_who_claim_a_key_at_once_exactly_one_wins(storage: Storage) -> None:
    won = []
    threads = [threading.Thread(target=lambda i=i: won.append(i) if storage.put_if_absent("key", str(i).encode()) else None) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.get("key") == str(won[0]).encode()


def test_list_names_every_key_below_a_prefix_and_no_other(storage: Storage) -> None:
    for key in ("a/1", "a/2", "a/sub/3", "b/4"):
        storage.put(key, b"")
    assert storage.list("a/") == ["a/1", "a/2", "a/sub/3"]
    assert storage.list("none/") == []
    assert storage.list("") == ["a/1", "a/2", "a/sub/3", "b/4"]


def test_a_missing_object_is_named(storage: Storage) -> None:
    with pytest.raises(StorageError, match="there is no object a/nothing"):
        storage.get("a/nothing")


def test_storage_travels_to_other_processes(storage: Storage) -> None:
    storage.put("key", b"data")
    assert pickle.loads(pickle.dumps(storage)).get("key") == b"data"


def test_keys_cannot_leave_a_folder(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="outside the store"):
        open_storage(str(tmp_path / "objects")).put("../escaped", b"")


def test_a_missing_bucket_is_one_sentence_with_the_mend(s3: str) -> None:
    with pytest.raises(StorageError, match="s3://no-such-bucket: the bucket does not exist; create it or correct the URI"):
        open_storage("s3://no-such-bucket").put("key", b"")


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(StorageError, match="only folders and s3:// URIs"):
        open_storage("gs://bucket")
