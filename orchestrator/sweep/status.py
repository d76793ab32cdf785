"""How far every arm of a sweep is, and the table that shows it."""

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.config.arms import Arm
from orchestrator.cost import Cost
from orchestrator.evaluation.scores import Score


@dataclass
class ArmState:
    """How far one arm is."""

    arm: Arm
    steps: int
    """Optimiser steps it is to make."""
    video: str = ""
    """The training run of the video model its head reads, where that is trained apart."""
    step: int = 0
    video_step: int = 0
    """Of that video model, while the arm waits for it."""
    loss: float | None = None
    scoring: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Checkpoint step -> (episodes with an outcome, episodes listed)."""
    scores: dict[int, Score] = field(default_factory=dict)
    shifted: dict[str, Score] = field(default_factory=dict)
    """The last checkpoint's, by shift."""
    stopped: int | None = None
    """The step after whose score the search gave it up."""
    failure: str = ""
    """One line, if its training failed for good."""
    cost: Cost = field(default_factory=Cost)
    """With its part of a video model that several arms share."""

    @property
    def name(self) -> str:
        return self.arm.name

    @property
    def state(self) -> str:
        if self.failure:
            return "failed"
        if self.stopped is not None:
            return "stopped"
        if self.step < self.steps:
            return "training" if self.step else "stage 1" if self.video_step else "waiting"
        return "scored" if self.steps in self.scores else "scoring"


class Board:
    """All arms; updated from the sweep's threads, drawn by whoever looks."""

    def __init__(self, arms: dict[str, ArmState]) -> None:
        """arms: by arm id, in the order to show them."""
        self.arms = arms
        self.lock = threading.Lock()

    def charge(self, spent: Mapping[str, Cost]) -> None:
        """Tell every arm what it has cost; `spent`: by training run."""
        with self.lock:
            sharing = Counter(arm.video for arm in self.arms.values())
            for arm_id, arm in self.arms.items():
                video = spent.get(arm.video, Cost()) / sharing[arm.video] if arm.video else Cost()
                arm.cost = spent.get(arm_id, Cost()) + video

    def lines(self) -> list[dict[str, Any]]:
        """A line per arm, as data; `table` draws them."""
        with self.lock:
            return [_line(arm) for arm in self.arms.values()]


def _line(arm: ArmState) -> dict[str, Any]:
    played, listed = (sum(counts) for counts in zip(*arm.scoring.values(), strict=True)) if arm.scoring else (0, 0)
    scores = {
        str(step): {
            "successes": score.successes,
            "episodes": score.episodes,
            "errors": score.errors,
            "interval": [round(bound, 4) for bound in score.interval],
            "complete": score.complete,
            "decided": score.decided,
        }
        for step, score in sorted(arm.scores.items())
    }
    return {
        "arm": arm.name,
        "state": arm.state,
        "step": arm.step,
        "steps": arm.steps,
        "stage_1_step": arm.video_step,
        "loss": arm.loss,
        "episodes_played": played,
        "episodes_listed": listed,
        "scores": scores,
        "last_score": str(arm.scores[max(arm.scores)]) if arm.scores else "",
        "shifted": {shift: {"successes": score.successes, "episodes": score.episodes} for shift, score in arm.shifted.items()},
        "stopped_after": arm.stopped,
        "failure": arm.failure,
        "cost": arm.cost.to_json(),
    }


def table(lines: list[dict[str, Any]]) -> Any:
    """A rich table of a board's lines: one row per arm."""
    from rich.table import Table

    drawn = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("arm", "state", "steps", "loss", "played", "last score"):
        drawn.add_column(title, no_wrap=True, justify="right" if title in ("steps", "loss", "played") else "left")
    for line in lines:
        drawn.add_row(
            line["arm"],
            line["state"],
            f"{line['step']}/{line['steps']}",
            "" if line["loss"] is None else f"{line['loss']:.2f}",
            f"{line['episodes_played']}/{line['episodes_listed']}" if line["episodes_listed"] else "",
            "; ".join(filter(None, (line["last_score"], line["failure"]))),
        )
    return drawn
