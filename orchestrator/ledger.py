"""What is written down about episodes: their outcomes, their films, and the portrait every simulator must match."""

import json
from dataclasses import asdict

from orchestrator.provenance import digest
from orchestrator.storage import Storage
from sim_workers.rollout import Outcome
from sim_workers.selftest import Portrait
from sim_workers.worker import Scene


class Ledger:
    """The outcomes of one checkpoint under one protocol: an object per finished episode, written once."""

    def __init__(self, storage: Storage, checkpoint: str, protocol: str) -> None:
        self._storage = storage
        self._prefix = f"outcomes/{checkpoint}/{protocol}/"

    def read(self) -> dict[str, Outcome]:
        """Finished episodes by id. Errors are not among them: they are tried again."""
        keys = self._storage.list(self._prefix)
        outcomes = (Outcome.from_json(json.loads(self._storage.get(key))) for key in keys if key.endswith(".json"))
        return {outcome.spec.episode_id: outcome for outcome in outcomes}

    def record(self, outcome: Outcome) -> None:
        """Keep a success or failure for good."""
        if outcome.result != "error":
            self._storage.put_if_absent(f"{self._prefix}{outcome.spec.episode_id}.json", json.dumps(outcome.to_json()).encode())

    def keep_film(self, episode_id: str, film: bytes) -> None:
        self._storage.put_if_absent(f"{self._prefix}{episode_id}.mp4", film)

    def films(self) -> dict[str, str]:
        """Keys of the films by episode id."""
        keys = [key for key in self._storage.list(self._prefix) if key.endswith(".mp4")]
        return {key.rpartition("/")[2].removesuffix(".mp4"): key for key in keys}


class Portraits:
    """The first portrait of every scene (`sim_workers.selftest`): whoever scores later, anywhere, must match it."""

    def __init__(self, storage: Storage, simulation: str) -> None:
        """simulation: fingerprint of the simulators' code and GL backend; another one begins anew."""
        self._storage, self._prefix = storage, f"portraits/{simulation}/"
        self._known: dict[Scene, Portrait] = {}

    def get(self, scene: Scene) -> Portrait | None:
        if scene not in self._known and self._storage.exists(self._key(scene)):
            self._known[scene] = Portrait(**json.loads(self._storage.get(self._key(scene))))
        return self._known.get(scene)

    def put(self, scene: Scene, portrait: Portrait) -> Portrait:
        """Keep the first one; returns the one that is kept."""
        if known := self.get(scene):
            return known
        self._storage.put_if_absent(self._key(scene), json.dumps(asdict(portrait), indent=1).encode())
        return self.get(scene) or portrait

    def all(self) -> dict[str, dict[str, str]]:
        """Every portrait that is kept, by its key's last part."""
        return {key.removeprefix(self._prefix).removesuffix(".json"): json.loads(self._storage.get(key)) for key in self._storage.list(self._prefix)}

    def _key(self, scene: Scene) -> str:
        world = "" if scene.shift == "nominal" else f"-{scene.shift}{scene.variant}"
        return f"{self._prefix}{scene.task.replace('/', '.')}{world}-{digest(scene.contract.to_json())}.json"
