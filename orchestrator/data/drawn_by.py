"""Which drivers drew a store's pictures: objects `drawn/<hash>.json` beside its episodes.

Pictures of another GL driver differ in single pixels up to whole shadows without an error, so that a policy
is scored on other pictures than it was trained on. Stores of earlier versions, and imported ones, do not say.
"""

import hashlib
import json
from collections.abc import Iterable

from orchestrator.data.episode_format import EpisodeError
from orchestrator.storage.base import Storage
from orchestrator.storage.notes import read_json_objects

PREFIX = "drawn/"


def note_driver(storage: Storage, driver: str, note: str) -> None:
    """Record that a driver drew pictures of the store; once per driver. driver: backend, renderer and version
    (`sim_workers.envs.render.driver`). note: the command.
    """
    key = f"{PREFIX}{hashlib.sha256(driver.encode()).hexdigest()[:16]}.json"
    storage.put_if_absent(key, json.dumps({"driver": driver, "note": note}, indent=1).encode())


def drivers_of(storage: Storage) -> tuple[str, ...]:
    """Return the drivers that drew the store's pictures, sorted; empty if it does not say."""
    return tuple(sorted(one["driver"] for one in read_json_objects(storage, PREFIX).values()))


def refuse_other_driver(storage: Storage, driver: str) -> None:
    """Raise EpisodeError if the store's pictures were drawn by another driver."""
    known = drivers_of(storage)
    if known and driver not in known:
        raise EpisodeError(
            f"{storage.uri}: its pictures were drawn by {'; '.join(known)}, this machine draws with {driver};"
            " use another store, or a machine with that driver"
        )


def difference(stores: Iterable[tuple[str, tuple[str, ...]]], driver: str) -> str:
    """Return one sentence on the stores whose pictures another driver drew than the suite's; empty if there
    are none. stores: URI and `drivers_of` of each.
    """
    other = [
        f"{uri} was drawn by {'; '.join(known)}" for uri, known in stores if known and driver not in known
    ]
    if not other:
        return ""
    return (
        f"driver: the suite is drawn by {driver}, but {' and '.join(other)}; policies see other pictures than"
        " they were trained on: `demoscale replay` draws a store again on this machine"
    )
