"""The `report` callback of a training loop that stores its checkpoints in a folder."""

from pathlib import Path
from typing import Any

from orchestrator.training.train_events import Reported


class CheckpointFolder:
    """Keeps every reported checkpoint as `step_<step>` in `folder`, as Ray Train's storage does, and the
    metrics in `reports`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.reports = folder, list[tuple[int, dict[str, Any]]]()

    def __call__(self, event: Reported, checkpoint: Path | None) -> None:
        self.reports.append((event.step, event.to_metrics()))
        if checkpoint:
            checkpoint.rename(self.folder / f"step_{event.step:06d}")
            checkpoint.mkdir()
