"""The state of a sweep's arms, as a table a person reads while it runs or afterwards."""

import threading
from dataclasses import dataclass, field
from typing import Any

from orchestrator.score import Score


@dataclass
class ArmState:
    """How far one arm is."""

    name: str
    steps: int
    """Optimiser steps it is to make."""
    step: int = 0
    loss: float | None = None
    scoring: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Checkpoint step -> (episodes with an outcome, episodes listed)."""
    scores: dict[int, Score] = field(default_factory=dict)
    failure: str = ""
    """One line, if its training failed for good."""

    @property
    def state(self) -> str:
        if self.failure:
            return "failed"
        if self.step < self.steps:
            return "training" if self.step else "waiting"
        return "scored" if self.steps in self.scores else "scoring"


class Board:
    """All arms; updated from the sweep's threads, drawn by whoever looks."""

    def __init__(self, arms: dict[str, ArmState]) -> None:
        """arms: by arm id, in the order to show them."""
        self.arms = arms
        self.lock = threading.Lock()

    def table(self) -> Any:
        """A rich table: one row per arm."""
        from rich.table import Table

        table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1))
        for title in ("arm", "state", "steps", "loss", "played", "last score"):
            table.add_column(title, no_wrap=True, justify="right" if title in ("steps", "loss", "played") else "left")
        with self.lock:
            for arm in self.arms.values():
                done, listed = (sum(counts) for counts in zip(*arm.scoring.values(), strict=True)) if arm.scoring else (0, 0)
                table.add_row(
                    arm.name,
                    arm.state,
                    f"{arm.step}/{arm.steps}",
                    "" if arm.loss is None else f"{arm.loss:.2f}",
                    f"{done}/{listed}" if listed else "",
                    str(arm.scores[max(arm.scores)]) if arm.scores else arm.failure,
                )
        return table

    def lines(self) -> list[dict[str, Any]]:
        """The same as data, for `--json`."""
        rows = []
        with self.lock:
            for arm in self.arms.values():
                scores = {
                    str(step): {"successes": s.successes, "episodes": s.episodes, "errors": s.errors, "complete": s.complete}
                    for step, s in sorted(arm.scores.items())
                }
                rows.append(
                    {
                        "arm": arm.name,
                        "state": arm.state,
                        "step": arm.step,
                        "steps": arm.steps,
                        "loss": arm.loss,
                        "scores": scores,
                        "failure": arm.failure,
                    }
                )
        return rows
