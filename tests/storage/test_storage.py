"""The contract of object storages: folders, moto and SeaweedFS."""

import os
import pickle
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import LONG_STORAGES

from orchestrator.storage.base import NoObject, Storage, StorageError, check_conditional_writes, open_storage


def test_storage_get_returns_the_last_put(storage: Storage) -> None:
    storage.put("a/b", b"one")
    storage.put("a/b", b"two")
    assert storage.get("a/b") == b"two"
    assert storage.exists("a/b")


def test_storage_exists_is_true_for_whole_keys_only(storage: Storage) -> None:
    storage.put("a/bc", b"")
    storage.put("a/b/c", b"")
    assert storage.exists("a/bc")
    assert [key for key in ("a", "a/b", "a/b/cd", "nothing") if storage.exists(key)] == []


@pytest.mark.parametrize("data", [b"", bytes(range(256)) * 80_000], ids=["nothing", "20 MB"])
def test_storage_round_trips_empty_and_large_objects(storage: Storage, data: bytes) -> None:
    storage.put("put", data)
    assert storage.put_if_absent("claimed", data)
    assert storage.get("put") == data
    assert storage.get("claimed") == data


def test_storage_keys_may_contain_any_characters(storage: Storage) -> None:
    keys = sorted(["a b/c+d=e&f?.json", "käse/日本語.mp4", "100%/#1.json"])
    for key in keys:
        storage.put(key, key.encode())
    assert storage.list("") == keys
    assert [storage.get(key).decode() for key in keys] == keys


def test_put_if_absent_keeps_the_first_object(storage: Storage) -> None:
    assert storage.put_if_absent("key", b"first")
    assert not storage.put_if_absent("key", b"second")
    assert storage.get("key") == b"first"


@pytest.mark.parametrize(
    ("storage", "keys"),
    # SeaweedFS locks a key for each conditional write, and requests that wait for a lock ask again after
    # seconds: with four keys the test waits 2 to 8 s.
    [("folder", 4), ("moto", 4), pytest.param("weed", 1, marks=pytest.mark.weed)],
    indirect=["storage"],
)
def test_put_if_absent_by_many_writers_at_once_has_one_winner(storage: Storage, keys: int) -> None:
    storage.exists("key")  # so that a test never waits for a client
    claims = [(f"key {key}", f"writer {writer}".encode()) for writer in range(16) for key in range(keys)]
    start = threading.Barrier(len(claims))

    def claim(key: str, data: bytes) -> bool:
        start.wait()
        return storage.put_if_absent(key, data)

    with ThreadPoolExecutor(len(claims)) as pool:
        wins = list(pool.map(claim, *zip(*claims, strict=True)))
    won = [made for made, win in zip(claims, wins, strict=True) if win]
    assert sorted(won) == [(f"key {key}", storage.get(f"key {key}")) for key in range(keys)]


def test_storage_list_returns_exactly_the_keys_with_the_prefix(storage: Storage) -> None:
    for key in ("a/1", "a/2", "a/sub/3", "b/4"):
        storage.put(key, b"")
    assert storage.list("a/") == ["a/1", "a/2", "a/sub/3"]
    assert storage.list("a/s") == ["a/sub/3"]
    assert storage.list("none/") == storage.list("a/1/") == []
    assert storage.list("") == ["a/1", "a/2", "a/sub/3", "b/4"]


def test_storage_list_omits_folder_markers(storage: Storage) -> None:
    """Ray Train writes checkpoints through pyarrow, which makes folders; on S3 a folder is an empty object
    whose key ends in a slash.
    """
    from pyarrow.fs import FileSystem

    system, path = FileSystem.from_uri(storage.uri)
    system.create_dir(f"{path}/step_000006/weights")
    storage.put("step_000006/weights/model", b"data")
    assert storage.list("") == storage.list("step_000006/") == ["step_000006/weights/model"]
    assert open_storage(f"{storage.uri}/step_000006").list("") == ["weights/model"]


@pytest.mark.parametrize("storage", LONG_STORAGES, indirect=True)
def test_storage_list_returns_more_than_a_thousand_keys(storage: Storage) -> None:
    keys = [f"many/{i:04d}" for i in range(1001)]  # an S3 server names at most 1000 at a time
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: storage.put(key, b"."), keys))
    assert storage.list("many/") == keys


def test_storage_get_of_a_missing_object_names_the_key(storage: Storage) -> None:
    with pytest.raises(NoObject, match="there is no object a/nothing"):
        storage.get("a/nothing")


def test_storage_pickled_reads_the_same_objects(storage: Storage) -> None:
    storage.put("key", b"data")
    assert pickle.loads(pickle.dumps(storage)).get("key") == b"data"


def test_check_conditional_writes_accepts_every_storage(storage: Storage) -> None:
    for _ in range(2):
        check_conditional_writes(storage)
        check_conditional_writes(pickle.loads(pickle.dumps(storage)))


# -- folders -------------------------------------------------------------------------------------------------


def test_storage_put_outside_the_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="outside the store"):
        open_storage(str(tmp_path / "objects")).put("../escaped", b"")


def test_storage_list_omits_parts_of_killed_writers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_storage(str(tmp_path))
    monkeypatch.setattr("pathlib.Path.unlink", lambda path: None)
    store.put_if_absent("a/key", b"data")
    assert len(list(tmp_path.rglob("*.part"))) == 1
    assert store.list("") == ["a/key"]


def test_open_storage_of_a_file_raises(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file: this is a file; name a folder"):
        open_storage(str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        (
            lambda store: store.get("closed/key"),
            r"closed/key cannot be read \(Permission denied\); check its permissions",
        ),
        (lambda store: store.exists("closed/key"), r"closed/key cannot be read \(Permission denied\)"),
        (lambda store: store.list("closed/"), r"closed/ cannot be read \(Permission denied\)"),
        (lambda store: store.list(""), r"the folder cannot be read \(Permission denied\)"),
        (
            lambda store: store.put("closed/key", b""),
            r"closed/key cannot be written \(Permission denied\); is the folder writable",
        ),
        (
            lambda store: store.put("file/key", b""),
            r"file/key cannot be written \((File exists|Not a directory)\)",
        ),
    ],
    ids=["get", "exists", "list", "list all", "put", "put below a file"],
)
def test_storage_in_an_unreadable_folder_raises_one_sentence(
    use: Callable[[Storage], object], sentence: str
) -> None:
    # uid 65534 must reach it, and TMPDIR may be closed to others
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        store = open_storage(folder)
        store.put("closed/key", b"")
        store.put("file", b"")
        os.chmod(folder, 0o755)
        os.chmod(f"{folder}/closed", 0)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)  # uid 65534: permissions do not apply to root
            with pytest.raises(StorageError, match=sentence):
                use(store)
        finally:
            os.seteuid(user)
            os.chmod(f"{folder}/closed", 0o700)


# -- URIs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["gs://bucket", "https://key:sEcReT@host/bucket", "S3://bucket"])
def test_open_storage_with_an_unknown_scheme_raises(uri: str) -> None:
    with pytest.raises(StorageError, match="only folders and s3:// URIs") as raised:
        open_storage(uri)
    assert "sEcReT" not in str(raised.value)


@pytest.mark.parametrize(
    "uri", ["s3://AKIA:sEcReT@bucket/lift", "s3://AKIA:sEc/ReT@bucket", "s3://AKIA@bucket"]
)
def test_open_storage_with_credentials_in_the_uri_raises_without_them(uri: str) -> None:
    with pytest.raises(
        StorageError, match="keep credentials out of it, in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    ) as raised:
        open_storage(uri)
    assert not [part for part in ("AKIA", "sEc", "ReT") if part in str(raised.value)]


@pytest.mark.parametrize(
    "uri", ["s3://", "s3:///lift", "s3://ab/lift", "s3://Robot_Data/lift", "s3://-data/"]
)
def test_open_storage_without_a_valid_bucket_raises(uri: str) -> None:
    with pytest.raises(
        StorageError,
        match=r"an S3 URI is s3://bucket/prefix, and this one names no valid bucket; a name has 3 to 63",
    ):
        open_storage(uri)
