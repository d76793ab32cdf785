"""The `report` callback of a training loop that stores its checkpoints in a folder."""

from pathlib import Path
from typing import Any


class CheckpointFolder:
    """Keeps every reported checkpoint as `step_<step>` in `folder`, as Ray Train's storage does, and the
    metrics in `reports`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.reports = folder, list[tuple[int, dict[str, Any]]]()

    def __call__(self, step: int, metrics: dict[str, Any], checkpoint: Path | None) -> None:
        self.reports.append((step, metrics))
        if checkpoint:
            checkpoint.rename(self.folder / f"step_{step:06d}")
            checkpoint.mkdir()
