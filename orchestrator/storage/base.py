"""Object storage by URI: a local folder or an S3 bucket behind one small interface.

The only file outside orchestrator/testing that uses boto3. Keys are relative, with `/` between parts.
Credentials come from the environment or an instance role (the standard chain), the endpoint from
`AWS_ENDPOINT_URL`. None of them is ever stored or shown.
"""

import functools
import io
import itertools
import os
import random
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from weakref import WeakSet

from orchestrator.storage.s3_errors import MEND_OF, passes
from policy.errors import DemoscaleError

_FIRST_CALL = threading.Lock()  # creating a client takes 0.1 s: concurrent threads must not each create one
READ_ATTEMPTS = 3  # a body that breaks off is requested again; botocore retries requests that fail earlier
# first and last exponent of the pause while a server is unavailable: up to 0.8 s, and 6.4 s
FIRST_PAUSE, LONGEST_PAUSE = 3, 6
# S3 answers 409 when two conditional writes of a key collide: neither is done, so both retry
CLAIM_ATTEMPTS = 8
# clients whose server has answered; a server that never has is more likely misspelt than unavailable
_ANSWERED: WeakSet[Any] = WeakSet()
# set in the environment of processes that are started after the server has answered
PATIENCE = "DEMOSCALE_STORAGE_ANSWERED"


Versions = list[tuple[str, int, str]]
"""Keys of a bucket with their sizes in bytes and ETags."""


class StorageError(DemoscaleError):
    """Error of a storage: one sentence that names the place or object, the problem and the fix."""


class NoObject(StorageError):  # noqa: N818
    """Error if there is no object under a key."""


class _RejectedError(StorageError):
    """Refusal by a server: args are the sentence and the server's error code."""

    def __str__(self) -> str:
        return str(self.args[0])


class _UnavailableError(StorageError):
    """Error of a server that is unreachable or failing, which may be transient."""


@dataclass(frozen=True, kw_only=True)
class StorageSettings:
    """Retry limits of an S3 storage; a folder has none."""

    outage_s: float = 60.0
    """Seconds for which requests to a server that has answered before are retried while it is unreachable or
    failing, before StorageError.
    """
    retry_delay_s: float = 0.1
    """Upper bound, in seconds, of the random pause before the first retry; doubled for each further one."""


class Storage(Protocol):
    """Store of bytes under keys, safe for many writers: of two that claim one key with `put_if_absent`,
    exactly one wins.
    """

    uri: str

    def get(self, key: str) -> bytes:
        """Return the object's bytes. Raises NoObject if there is none."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Write an object, replacing an existing one; readers see the old or the new bytes, never a part."""
        ...

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write unless the key exists; return whether this call wrote it. False also if a retried request
        finds its own first write.
        """
        ...

    def exists(self, key: str) -> bool:
        """Return whether there is an object under the key."""
        ...

    def list(self, prefix: str) -> list[str]:
        """Return every key that starts with `prefix`, sorted."""
        ...

    def put_file(self, key: str, path: Path) -> None:
        """Write an object with a file's content, of any size, as `put` does."""
        ...

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the bytes of every object whose key starts with `prefix`, by key, sorted."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; do nothing if there is none. For what `demoscale gc` and `train.keep` name;
        nothing else of a storage is ever removed.
        """
        ...

    def sync(self, prefix: str) -> None:
        """Flush to disk what any process wrote below `prefix`, which ends in `/`, so that it survives a power
        failure.
        """
        ...


class LocalStorage:
    """Storage in a folder of a local or shared file system."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()
        self.uri = str(self.root)
        if os.path.isfile(self.root):
            raise StorageError(f"{self.uri}: this is a file; name a folder")

    def _path(self, key: str) -> Path:
        path = (self.root / key).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise StorageError(f"{self.uri}: the key {key!r} points outside the store")
        return path

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{self.uri}: {key or 'the folder'} cannot be read ({error.strerror}); check its permissions"
                " and the disk"
            ) from None

    def get(self, key: str) -> bytes:
        """Return a file's bytes. Raises NoObject if there is none, StorageError if it cannot be read."""
        with self._reading(key):
            try:
                return self._path(key).read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise NoObject(f"{self.uri}: there is no object {key}") from None

    def put(self, key: str, data: bytes) -> None:
        """Write a file through a temporary one and a rename. Raises StorageError if it cannot be written."""
        with self._written(key, io.BytesIO(data)) as part:
            os.replace(part, self._path(key))

    def put_file(self, key: str, path: Path) -> None:
        """Copy a file as `put` writes one. Raises StorageError if it cannot be written."""
        with path.open("rb") as source, self._written(key, source) as part:
            os.replace(part, self._path(key))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write a file unless it exists, through a hard link; return whether this call wrote it."""
        with self._written(key, io.BytesIO(data)) as part:
            try:
                os.link(part, self._path(key))
            except FileExistsError:
                return False
            return True

    @contextmanager
    def _written(self, key: str, data: BinaryIO) -> Iterator[Path]:
        """Write the data to a temporary file next to its destination, so that renaming it is one atomic step.

        It is flushed to disk before the rename: a power failure may lose the object, but never leaves an
        empty one in its place.
        """
        path = self._path(key)
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                shutil.copyfileobj(data, file)
                file.flush()
                os.fsync(file.fileno())
            yield part
        except OSError as error:
            raise StorageError(
                f"{self.uri}: {key} cannot be written ({error.strerror}); is the folder writable and the disk"
                " not full?"
            ) from None
        finally:
            with suppress(OSError):
                part.unlink()

    def exists(self, key: str) -> bool:
        """Return whether there is a file under the key."""
        with self._reading(key):
            return self._path(key).is_file()

    def list(self, prefix: str) -> list[str]:
        """Return every key that starts with `prefix`, sorted, without files that are being written."""

        def fail(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                raise error

        root, keys = self.root.resolve(), []
        with self._reading(prefix):
            for folder, _, names in os.walk(self._path(prefix.rpartition("/")[0]), onerror=fail):
                # left by a killed writer
                whole = (name for name in names if not (name.startswith(".") and name.endswith(".part")))
                keys += [Path(folder, name).relative_to(root).as_posix() for name in whole]
        return sorted(key for key in keys if key.startswith(prefix))

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the bytes of every file whose key starts with `prefix`, by key, sorted."""
        found = {}
        for key in self.list(prefix):
            with self._reading(key), suppress(FileNotFoundError):  # removed meanwhile
                found[key] = self._path(key).stat().st_size
        return found

    def delete(self, key: str) -> None:
        """Remove a file, and the folders that are empty without it. Raises StorageError if it cannot be
        removed.
        """
        path, root = self._path(key), self.root.resolve()
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"{self.uri}: {key} cannot be removed ({error.strerror}); check its permissions"
            ) from None
        with suppress(OSError):  # not empty
            for folder in path.parents:
                if folder == root:
                    break
                folder.rmdir()

    def sync(self, prefix: str) -> None:
        """Flush the files and folders below `prefix` to disk. Raises StorageError if that fails."""
        try:
            for folder, _, names in os.walk(self._path(prefix)):
                for path in (folder, *(os.path.join(folder, name) for name in names)):
                    descriptor = os.open(path, os.O_RDONLY)
                    try:
                        os.fsync(descriptor)
                    finally:
                        os.close(descriptor)
        except OSError as error:
            raise StorageError(
                f"{self.uri}: {prefix} cannot be written ({error.strerror}); is the disk not full?"
            ) from None


@functools.cache
def _client(process: int) -> Any:
    """Return the S3 client of this process, for all its threads. boto3's default session is not used:
    creating it is not thread-safe.
    """
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"total_max_attempts": 3, "mode": "standard"},
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=32,
    )
    return boto3.session.Session().client("s3", config=config)


class S3Storage:
    """Storage below a prefix of an S3 bucket. Pickles as its URI and settings; each process opens its own
    client.
    """

    def __init__(self, uri: str, settings: StorageSettings = StorageSettings()) -> None:
        self._bucket, _, prefix = uri.rstrip("/").removeprefix("s3://").partition("/")
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", self._bucket):
            # The URI may contain a secret, so it is not repeated.
            mend = (
                "keep credentials out of it, in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                if "@" in uri
                else "a name has 3 to 63 of a-z 0-9 . -"
            )
            raise StorageError(f"an S3 URI is s3://bucket/prefix, and this one names no valid bucket; {mend}")
        self.uri = uri.rstrip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._settings = settings
        self.keeps_conditions = False  # not known yet

    def __reduce__(self) -> tuple[type["S3Storage"], tuple[str, StorageSettings]]:
        return S3Storage, (self.uri, self._settings)

    def _call(self, method: str, **arguments: Any) -> Any:
        """Return the server's answer. A server that never answered is tried once, any other for `outage_s`.

        Raises StorageError if it refuses or stays unavailable.
        """
        deadline = time.monotonic() + self._settings.outage_s
        for attempt in itertools.count(FIRST_PAUSE):
            try:
                return self._ask(method, **arguments)
            except _UnavailableError:
                if (
                    _client(os.getpid()) not in _ANSWERED and PATIENCE not in os.environ
                ) or time.monotonic() > deadline:
                    raise
            self._pause(min(attempt, LONGEST_PAUSE))

    def _ask(self, method: str, **arguments: Any) -> Any:
        from boto3.exceptions import S3UploadFailedError
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            with _FIRST_CALL:
                client = _client(os.getpid())
            try:
                answer = getattr(client, method)(Bucket=self._bucket, **arguments)
            except S3UploadFailedError as failed:  # raised while the server's refusal was handled
                raise failed.__context__ or failed from None
            _ANSWERED.add(client)
            return answer
        except ClientError as error:
            code, status = (
                error.response["Error"]["Code"],
                str(error.response["ResponseMetadata"]["HTTPStatusCode"]),
            )
            sentence = f"{self.uri}: {self._mend(code) or f'the server answered {code}'}"
            if passes(code, status):
                raise _UnavailableError(sentence) from None
            _ANSWERED.add(client)
            if code == "NoSuchKey":
                raise NoObject(
                    f"{self.uri}: there is no object {arguments['Key'].removeprefix(self._prefix)}"
                ) from None
            raise _RejectedError(sentence, code) from None
        except (BotoCoreError, ValueError) as error:
            kind = type(error).__name__
            mend = (
                self._mend(kind)
                or f"no access to S3 ({kind}); check AWS_ENDPOINT_URL, region and credentials"
            )
            raise (_UnavailableError if passes(kind) else StorageError)(f"{self.uri}: {mend}") from None

    def _mend(self, code: str) -> str:
        mend = MEND_OF.get(code, "")
        if "{server}" not in mend:
            return mend
        address = _client(os.getpid()).meta.endpoint_url.partition("://")[2].rpartition("@")[2]
        return mend.format(server=f"the server {address}")

    def _pause(self, attempt: int) -> None:
        # random, so that colliding writers do not collide again
        time.sleep(random.uniform(0, self._settings.retry_delay_s * 2**attempt))

    def get(self, key: str) -> bytes:
        """Return an object's bytes; retried if the connection breaks. Raises NoObject or StorageError."""
        from botocore.exceptions import BotoCoreError
        from urllib3.exceptions import HTTPError

        for attempt in range(READ_ATTEMPTS):
            body = self._call("get_object", Key=self._prefix + key)["Body"]
            try:
                data: bytes = body.read()
                return data
            except (BotoCoreError, HTTPError):
                self._pause(attempt)
        raise StorageError(
            f"{self.uri}: the connection broke {READ_ATTEMPTS} times while {key} was read; check the network"
            " and start again"
        )

    def put(self, key: str, data: bytes) -> None:
        """Write an object, replacing an existing one. Raises StorageError if the server refuses it."""
        self._call("put_object", Key=self._prefix + key, Body=data)

    def put_file(self, key: str, path: Path) -> None:
        """Write an object in parts, since a single request takes 5 GB. Raises StorageError if the server
        refuses it.
        """
        self._call("upload_file", Key=self._prefix + key, Filename=str(path))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write with `If-None-Match: *`; return whether this call wrote it. Collisions are retried; raises
        StorageError if they persist.
        """
        for attempt in range(CLAIM_ATTEMPTS):
            try:
                self._call("put_object", Key=self._prefix + key, Body=data, IfNoneMatch="*")
                return True
            except _RejectedError as refused:
                if refused.args[1] in ("PreconditionFailed", "412"):
                    return False
                if refused.args[1] not in ("ConditionalRequestConflict", "OperationAborted", "409"):
                    raise
                self._pause(attempt)
        raise StorageError(
            f"{self.uri}: {key} stayed contended for {CLAIM_ATTEMPTS} attempts; start again with fewer"
            " writers"
        )

    def exists(self, key: str) -> bool:
        """Return whether there is an object under the key. Raises StorageError without access."""
        # HEAD responses have no body, so a missing bucket would look like a missing key, and expired
        # credentials like missing permission.
        page = self._call("list_objects_v2", Prefix=self._prefix + key, MaxKeys=1)
        return any(item["Key"] == self._prefix + key for item in page.get("Contents", ()))

    def list(self, prefix: str) -> list[str]:
        """Return every key that starts with `prefix`, sorted."""
        return sorted(key for key, _, _ in self.versions(prefix))

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the bytes of every object whose key starts with `prefix`, by key, sorted."""
        return {key: size for key, size, _ in self.versions(prefix)}

    def delete(self, key: str) -> None:
        """Remove an object. Raises StorageError if the server refuses it."""
        self._call("delete_object", Key=self._prefix + key)

    def versions(self, prefix: str) -> Versions:
        """Return every key that starts with `prefix`, sorted; other content under a key has another ETag."""
        found: Versions = []
        token = dict[str, str]()
        while True:
            page = self._call("list_objects_v2", Prefix=self._prefix + prefix, **token)
            # an empty folder of another program
            items = (item for item in page.get("Contents", ()) if not item["Key"].endswith("/"))
            found += [
                (item["Key"].removeprefix(self._prefix), item["Size"], item.get("ETag", "").strip('"'))
                for item in items
            ]
            if not page.get("IsTruncated"):
                return sorted(found)
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def sync(self, prefix: str) -> None:
        """Do nothing: a server keeps every write that it has acknowledged."""


def open_storage(uri: str, settings: StorageSettings = StorageSettings()) -> Storage:
    """Open `s3://bucket/prefix` or a folder. Raises StorageError for any other scheme."""
    if uri.startswith("s3://"):
        return S3Storage(uri, settings)
    scheme, separator, _ = uri.partition("://")
    if separator and scheme != "file":
        raise StorageError(f"{scheme}://: only folders and s3:// URIs are supported")
    return LocalStorage(uri.removeprefix("file://"))


def claim(storage: Storage, key: str, data: bytes) -> bool:
    """Write unless the key exists; return whether it now holds `data`, as it also does if a retried request
    finds its own first write.
    """
    return storage.put_if_absent(key, data) or storage.get(key) == data


def check_conditional_writes(storage: Storage) -> None:
    """Raise StorageError if the server lets a second writer overwrite the first. Checked once per opened
    storage; a folder needs no check.
    """
    if not isinstance(storage, S3Storage) or storage.keeps_conditions:
        return
    storage.put_if_absent("probe", uuid.uuid4().bytes)
    before = storage.get("probe")
    if storage.put_if_absent("probe", uuid.uuid4().bytes) or storage.get("probe") != before:
        mend = "use one that honours If-None-Match, such as AWS S3 or SeaweedFS from 4.48 on, or a folder"
        raise StorageError(
            f"{storage.uri}: the server ignores conditional writes, so two writers could overwrite each"
            f" other; {mend}"
        )
    storage.keeps_conditions = True


def download(uri: str, folder: Path) -> None:
    """Copy every object below `uri` into `folder`, keeping relative names. Raises StorageError if a name
    leads out of the folder.
    """
    storage, inside = open_storage(uri), LocalStorage(folder)
    for key in storage.list(""):
        target = inside._path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(storage.get(key))
