"""A URI becomes a place to keep objects: a local folder or an S3 bucket, behind one small contract.

The only file that speaks boto3 or pyarrow.fs. Keys are relative, with `/` between parts. Credentials come from the environment or an
instance role (the standard chain); endpoint from `AWS_ENDPOINT_URL`. None of them is ever stored or shown.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol


class StorageError(Exception):
    """One sentence: which place or object, what is wrong, and the mend."""


class Storage(Protocol):
    """Immutable bytes under keys. Safe for many writers: of two that claim one key with `put_if_absent`, exactly one wins."""

    uri: str

    def get(self, key: str) -> bytes:
        """The object's bytes; StorageError if there is none."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Write, replacing what was there; readers see the old or the new bytes, never a part."""
        ...

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write unless the key exists; whether this call wrote it."""
        ...

    def exists(self, key: str) -> bool: ...

    def list(self, prefix: str) -> list[str]:
        """Every key that starts with `prefix`, sorted."""
        ...


class Folder:
    """A local or shared file system."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()
        self.uri = str(self.root)

    def _path(self, key: str) -> Path:
        path = (self.root / key).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise StorageError(f"{self.uri}: the key {key!r} points outside the store")
        return path

    def get(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise StorageError(f"{self.uri}: there is no object {key}") from None

    def put(self, key: str, data: bytes) -> None:
        with self._written(key, data) as part:
            os.replace(part, self._path(key))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        with self._written(key, data) as part:
            try:
                os.link(part, self._path(key))
            except FileExistsError:
                return False
            return True

    @contextmanager
    def _written(self, key: str, data: bytes) -> Iterator[Path]:
        """The data in a file beside its destination, so that taking its name is one atomic step."""
        path = self._path(key)
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data)
            yield part
        except OSError as error:
            raise StorageError(f"{self.uri}: {key} cannot be written ({error.strerror}); is the folder writable and the disk not full?") from None
        finally:
            part.unlink(missing_ok=True)

    def exists(self, key: str) -> bool:
        return self._path(key).exists()

    def list(self, prefix: str) -> list[str]:
        folder = self._path(prefix.rpartition("/")[0])
        keys = (path.relative_to(self.root.resolve()).as_posix() for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".part"))
        return sorted(key for key in keys if key.startswith(prefix))


class Bucket:
    """A prefix of an S3 bucket. Pickles as its URI; each process opens its own client."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._bucket, _, prefix = self.uri.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._client: Any = None

    def __reduce__(self) -> tuple[type["Bucket"], tuple[str]]:
        return Bucket, (self.uri,)

    def _call(self, method: str, **arguments: Any) -> Any:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            if self._client is None:
                self._client = boto3.client("s3", config=Config(retries={"max_attempts": 5, "mode": "standard"}))
            return getattr(self._client, method)(Bucket=self._bucket, **arguments)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in ("404", "NoSuchKey", "412", "PreconditionFailed", "409", "ConditionalRequestConflict"):
                raise
            mend = {
                "NoSuchBucket": "the bucket does not exist; create it or correct the URI",
                "AccessDenied": "access is denied; check the permissions of the credentials in use",
                "403": "access is denied; check the permissions of the credentials in use",
                "ExpiredToken": "the credentials have expired; renew them",
                "InvalidAccessKeyId": "the access key is not known to this server; check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL",
                "SignatureDoesNotMatch": "the secret key does not match; check AWS_SECRET_ACCESS_KEY",
            }.get(code, f"the server answered {code}")
            raise StorageError(f"{self.uri}: {mend}") from None
        except BotoCoreError as error:
            raise StorageError(f"{self.uri}: no access to S3 ({type(error).__name__}); check AWS_ENDPOINT_URL, region and credentials") from None

    def get(self, key: str) -> bytes:
        from botocore.exceptions import ClientError

        try:
            data: bytes = self._call("get_object", Key=self._prefix + key)["Body"].read()
        except ClientError:
            raise StorageError(f"{self.uri}: there is no object {key}") from None
        return data

    def put(self, key: str, data: bytes) -> None:
        self._call("put_object", Key=self._prefix + key, Body=data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        try:
            self._call("put_object", Key=self._prefix + key, Body=data, IfNoneMatch="*")
        except ClientError:
            return False
        return True

    def exists(self, key: str) -> bool:
        from botocore.exceptions import ClientError

        try:
            self._call("head_object", Key=self._prefix + key)
        except ClientError:
            return False
        return True

    def list(self, prefix: str) -> list[str]:
        keys: list[str] = []
        token: dict[str, str] = {}
        while True:
            page = self._call("list_objects_v2", Prefix=self._prefix + prefix, **token)
            keys += [item["Key"].removeprefix(self._prefix) for item in page.get("Contents", ())]
            if not page.get("IsTruncated"):
                return sorted(keys)
            token = {"ContinuationToken": page["NextContinuationToken"]}


def open_storage(uri: str) -> Storage:
    """`s3://bucket/prefix`, or a folder."""
    if "://" in uri and not uri.startswith(("s3://", "file://")):
        raise StorageError(f"{uri}: only folders and s3:// URIs are understood")
    return Bucket(uri) if uri.startswith("s3://") else Folder(uri.removeprefix("file://"))


def download(uri: str, folder: Path, skip: tuple[str, ...] = ()) -> None:
    """Copy every object below `uri`, but those named in `skip`, into `folder`, keeping relative names."""
    storage = open_storage(uri)
    for key in storage.list(""):
        if key in skip:
            continue
        target = folder / key
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(storage.get(key))
