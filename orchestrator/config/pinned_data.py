"""Data that a sweep's last run pinned in its storage: what its arms may read.

merged/<name>/     a store without episodes: the merged manifest of a sweep with parts of several stores
                   (orchestrator/data/merged_store.py), written by its first run
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.config.sweep_config import SweepConfig, SweepError, manifest_of
from orchestrator.data.manifest import Manifest
from orchestrator.data.merged_store import MergeError, merged_uri
from orchestrator.data.subset import evaluation_episodes
from orchestrator.storage.base import Storage, open_storage
from orchestrator.storage.notes import read_json_object


def pinned_facts(storage: Storage, name: str) -> dict[str, Any]:
    """Return the content of `sweeps/<name>.json` (`sweep/state.py`); empty before the sweep's first run.
    Raises StorageError if it is damaged.
    """
    key = f"sweeps/{name}.json"
    return read_json_object(storage, key) if storage.exists(key) else {}


@dataclass(frozen=True)
class PinnedData:
    """Version of the episode store that a sweep keeps to, and the episodes that none of its arms reads."""

    version: int | None
    """None: the newest, which the next run pins. That of a merged store is 1."""
    quarantined: dict[str, str]
    """Damaged episodes: episode id -> defect."""
    held_out: tuple[str, ...] = ()
    """Episodes on which the action error is measured (`suite.held_out`); empty: not chosen yet, or none."""
    merged: str = ""
    """URI of the merged store, if the sweep has parts of several; empty before its first run."""

    def manifest(self, sweep: SweepConfig) -> Manifest:
        """Return the manifest of the sweep's episodes. Raises SweepError if they cannot be read or merged."""
        try:
            return manifest_of(sweep.data, self.version, self.merged)
        except MergeError as error:
            problems = [f"data.episodes.{problem}" for problem in error.problems]
            raise SweepError(sweep.name, problems) from None

    def place(self, sweep: SweepConfig, manifest: Manifest) -> str:
        """Return the URI of the store that workers read; that of a merged one is written by
        `publish_merged`.
        """
        if isinstance(sweep.data.episodes, str):
            return open_storage(sweep.data.episodes).uri
        return self.merged or merged_uri(open_storage(sweep.storage), manifest)

    def evaluation(self, sweep: SweepConfig, manifest: Manifest) -> frozenset[str]:
        """Return the ids of the episodes that are held out for evaluation. Raises SubsetError if there are
        too few.
        """
        return frozenset(
            self.held_out or evaluation_episodes(manifest, sweep.suite.held_out, self.quarantined.keys())
        )

    @classmethod
    def of(cls, sweep: SweepConfig, facts: Mapping[str, Any]) -> "PinnedData":
        """Return what `pinned_facts` hold for the sweep; nothing if it reads another episode store by now."""
        episodes = sweep.data.model_dump(mode="json")["episodes"]
        if facts.get("sweep", {}).get("data", {}).get("episodes") != episodes:
            return cls(None, {})
        same = facts["sweep"].get("suite", {}).get("held_out") == sweep.suite.held_out
        return cls(
            facts["version"],
            facts.get("quarantined", {}) if sweep.data.on_corrupt == "quarantine" else {},
            tuple(facts.get("held_out", ())) if same else (),
            f"{open_storage(sweep.storage).uri}/{facts['merged']}" if facts.get("merged") else "",
        )

    @classmethod
    def read(cls, sweep: SweepConfig) -> "PinnedData":
        """Return the sweep's pinned data. Raises StorageError if its storage cannot be read."""
        return cls.of(sweep, pinned_facts(open_storage(sweep.storage), sweep.name))
