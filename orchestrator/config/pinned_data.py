"""Data that a sweep's last run pinned in its storage: what its arms may read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.data.manifest import Manifest
from orchestrator.data.subset import evaluation_episodes
from orchestrator.storage.base import Storage, open_storage


def pinned_facts(storage: Storage, name: str) -> dict[str, Any]:
    """Return the content of `sweeps/<name>.json` (`sweep/state.py`); empty before the sweep's first run."""
    key = f"sweeps/{name}.json"
    facts: dict[str, Any] = json.loads(storage.get(key)) if storage.exists(key) else {}
    return facts


@dataclass(frozen=True)
class PinnedData:
    """Version of the episode store that a sweep keeps to, and the episodes that none of its arms reads."""

    version: int | None
    """None: the newest, which the next run pins."""
    quarantined: dict[str, str]
    """Damaged episodes: episode id -> defect."""
    held_out: tuple[str, ...] = ()
    """Episodes on which the action error is measured (`suite.held_out`); empty: not chosen yet, or none."""

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
        if facts.get("sweep", {}).get("data", {}).get("episodes") != sweep.data.episodes:
            return cls(None, {})
        same = facts["sweep"].get("suite", {}).get("held_out") == sweep.suite.held_out
        return cls(
            facts["version"],
            facts.get("quarantined", {}) if sweep.data.on_corrupt == "quarantine" else {},
            tuple(facts.get("held_out", ())) if same else (),
        )

    @classmethod
    def read(cls, sweep: SweepConfig) -> "PinnedData":
        """Return the sweep's pinned data. Raises StorageError if its storage cannot be read."""
        return cls.of(sweep, pinned_facts(open_storage(sweep.storage), sweep.name))
