"""Identity of a storage: a random id stored in it, the same through every mount and URI that opens it.

MLflow files sweeps under it, so that sweeps of one name in two storages stay separate. A copy of a whole
storage has the identity of its original; remove `identity.json` from the copy to give it another one.
"""

import json
import uuid

from orchestrator.storage.base import NoObject, Storage, StorageError, check_conditional_writes, open_storage

KEY = "identity.json"
NO_IDENTITY = "-"
"""Placeholder for the identity of a storage that has none, since only earlier versions wrote to it. No
storage has this value.
"""


def identity_of(storage: Storage) -> str:
    """Return the storage's id, empty if it has none. Raises StorageError if its file is damaged or cannot be
    read.
    """
    try:
        data = storage.get(KEY)
    except NoObject:
        return ""
    try:
        identity = json.loads(data)["id"]
    except (ValueError, TypeError, KeyError):
        identity = None
    if not (isinstance(identity, str) and identity.isalnum()):
        fix = (
            'write {"id": "..."} with the tag demoscale.store that its sweeps have in MLflow, or remove the'
            " file to give the storage a new identity"
        )
        raise StorageError(f"{storage.uri}: {KEY} is damaged; {fix}")
    return identity


def claim_identity(storage: Storage) -> str:
    """Return the storage's id; write a random one if there is none. Concurrent processes all return the same
    id.
    """
    if identity := identity_of(storage):
        return identity
    check_conditional_writes(storage)
    storage.put_if_absent(KEY, json.dumps({"id": uuid.uuid4().hex}).encode())
    return identity_of(storage)  # read back even after a successful write: other processes read the same


def store_of(storage_uri: str, sweep: str) -> str:
    """Return the identity by which MLflow identifies a sweep of this storage; writes nothing.

    Empty if the storage cannot be read from this machine or has no sweep of that name: then only the name is
    known. NO_IDENTITY if it has the sweep and no identity. Raises StorageError as `identity_of` does.
    """
    try:
        storage = open_storage(storage_uri)
        if not storage.exists(f"sweeps/{sweep}.json"):
            return ""
    except StorageError:
        return ""
    return identity_of(storage) or NO_IDENTITY


def sweep_names(storage: Storage) -> list[str]:
    """Return the names of the sweeps that a storage keeps, sorted."""
    return [key.removeprefix("sweeps/").removesuffix(".json") for key in storage.list("sweeps/")]
