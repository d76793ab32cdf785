"""Episodes of an arm, as the driver of a sweep selects them."""

from pathlib import Path

from orchestrator.config.arms import Arm
from orchestrator.data.episode_store import load_manifest
from orchestrator.data.subset import Subset, select_episodes
from orchestrator.storage.base import open_storage


def selected(store: str | Path, arm: Arm) -> Subset:
    """Return the arm's episodes of a store's newest version."""
    return select_episodes(load_manifest(open_storage(str(store))), arm)
