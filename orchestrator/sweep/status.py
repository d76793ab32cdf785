"""Progress of a sweep's arms, and the table that shows it."""

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from orchestrator.config.arms import Arm
from orchestrator.cost import Cost
from orchestrator.data.action_error import MEASURE
from orchestrator.evaluation.action_error_score import ActionErrorScore
from orchestrator.evaluation.scores import Score
from sim_workers.arithmetic import Arithmetic


@dataclass
class ArmStatus:
    """Progress of one arm."""

    arm: Arm
    steps: int
    """Optimiser step at which training ends, or its budget in seconds."""
    video: str = ""
    """Training run of the video model that the arm's head reads; empty if it is not trained separately."""
    step: int = 0
    video_step: int = 0
    """Last reported optimiser step of that video model; 0 until it reports."""
    loss: float | None = None
    scoring: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Checkpoint step -> (episodes with an outcome, or measured; episodes listed)."""
    scores: dict[int, Score | ActionErrorScore] = field(default_factory=dict)
    removed: set[int] = field(default_factory=set)
    """Steps whose checkpoints were removed (`train.keep`, `demoscale gc`)."""
    shifted: dict[str, Score] = field(default_factory=dict)
    """Complete scores of the last checkpoint, by shift."""
    selecting: bool = False
    """Whether `scores` are on the episodes of `suite.select`."""
    choosing: bool = False
    """Whether the checkpoint that is best by `scores` is scored on the suite's own episodes, too."""
    best: int | None = None
    """Step of that checkpoint; None until every checkpoint has a score, and if not `choosing`."""
    reports: dict[int, Score] = field(default_factory=dict)
    """Complete scores on the suite's own episodes by checkpoint step, if `selecting`: of the last checkpoint
    and of `best`.
    """
    stopped: int | None = None
    """Step after whose score the search stopped the arm; None if it did not."""
    failure: str = ""
    """One line, if training failed permanently; else empty."""
    trained_on: tuple[Arithmetic, ...] = ()
    """Arithmetics of the training processes up to the last checkpoint; none if not recorded."""
    cost: Cost = field(default_factory=Cost)
    """Cost of the arm, with its share of a video model that several arms use."""
    unit: str = "steps"
    """Unit of `step` and `steps`, `Train.unit`."""

    @property
    def name(self) -> str:
        """Name of the arm."""
        return self.arm.name

    @property
    def report(self) -> Score | None:
        """Complete score of the last checkpoint on the suite's own episodes, if `selecting`; else None."""
        return self.reports.get(self.steps)

    @property
    def reported(self) -> bool:
        """Whether no checkpoint still needs a score on the suite's own episodes besides those in `scores`."""
        if not self.selecting:
            return True
        return self.steps in self.reports and (not self.choosing or self.best in self.reports)

    @property
    def state(self) -> str:
        """Phase of the arm: failed, stopped, waiting, stage 1, training, scoring or scored."""
        if self.failure:
            return "failed"
        if self.stopped is not None:
            return "stopped"
        if self.step < self.steps:
            return "training" if self.step else "stage 1" if self.video_step else "waiting"
        return "scored" if self.steps in self.scores and self.reported else "scoring"


class SweepStatus:
    """States of all arms, updated by the sweep's threads."""

    def __init__(self, arms: dict[str, ArmStatus]) -> None:
        """Create a board. arms: by arm id, in display order."""
        self.arms = arms
        self.lock = threading.Lock()

    def record_training(self, arm_id: str, step: int, loss: float) -> None:
        """Record an arm's last reported step and loss."""
        with self.lock:
            arm = self.arms[arm_id]
            arm.step, arm.loss = max(step, arm.step), loss

    def record_trained_on(self, arm_id: str, trained_on: tuple[Arithmetic, ...]) -> None:
        """Record the arithmetics of an arm's training processes."""
        with self.lock:
            self.arms[arm_id].trained_on = trained_on

    def record_video_training(self, arm_ids: Iterable[str], step: int, loss: float) -> None:
        """Record the last reported step and loss of the video model that these arms wait for."""
        with self.lock:
            for arm_id in arm_ids:
                self.arms[arm_id].video_step, self.arms[arm_id].loss = step, loss

    def record_failure(self, arm_id: str, failure: str) -> None:
        """Record that an arm's training failed permanently."""
        with self.lock:
            self.arms[arm_id].failure = failure

    def record_outcomes(self, arm_id: str, step: int, done: int, listed: int) -> None:
        """Record how many of the listed episodes of an arm's checkpoint have an outcome."""
        with self.lock:
            self.arms[arm_id].scoring[step] = done, listed

    def record_action_error(self, arm_id: str, step: int, score: ActionErrorScore) -> None:
        """Record the action error of an arm's checkpoint."""
        with self.lock:
            self.arms[arm_id].scores[step] = score

    def record_report(self, arm_id: str, step: int, score: Score) -> None:
        """Record the score of an arm's checkpoint on the episodes that the curve shows."""
        with self.lock:
            self.arms[arm_id].reports.pop(step, None)
            if score.complete:
                self.arms[arm_id].reports[step] = score

    def record_best(self, arm_id: str, step: int | None) -> None:
        """Record the step of an arm's best checkpoint."""
        with self.lock:
            self.arms[arm_id].best = step

    def record_score(self, arm_id: str, step: int, shift: str, score: Score) -> None:
        """Record the score of an arm's checkpoint under a shift."""
        with self.lock:
            arm = self.arms[arm_id]
            if shift != "nominal":
                arm.shifted[shift] = score
                return
            arm.scores[step] = score
            if score.verdict:  # decided: no further episodes are listed
                arm.scoring[step] = score.episodes, score.episodes

    def charge(self, spent: Mapping[str, Cost]) -> None:
        """Set every arm's cost; `spent`: cost by training run. The cost of a video model is divided among the
        arms that share it.
        """
        with self.lock:
            sharing = Counter(arm.video for arm in self.arms.values())
            for arm_id, arm in self.arms.items():
                video = spent.get(arm.video, Cost()) / sharing[arm.video] if arm.video else Cost()
                arm.cost = spent.get(arm_id, Cost()) + video

    def lines(self) -> list["ArmLine"]:
        """Return one line per arm; `table` draws them."""
        with self.lock:
            return [ArmLine.of(arm) for arm in self.arms.values()]


@dataclass(frozen=True, kw_only=True)
class ScoreLine:
    """A score of the nominal suite, as `demoscale status` shows it."""

    successes: int
    episodes: int
    errors: int = 0
    interval: tuple[float, float]
    """Bounds of the 95 % interval, rounded to four digits."""
    complete: bool = True
    decided: str = ""
    """Verdict in words; empty if nothing was decided."""

    @classmethod
    def of(cls, score: Score) -> "ScoreLine":
        """Return the line of a score."""
        low, high = score.interval
        return cls(
            successes=score.successes,
            episodes=score.episodes,
            errors=score.errors,
            interval=(round(low, 4), round(high, 4)),
            complete=score.complete,
            decided=score.decided,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the object of `status --json`."""
        return asdict(self) | {"interval": list(self.interval)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ScoreLine":
        """Return the line that `to_json` wrote."""
        low, high = data["interval"]
        return cls(**known_fields(cls, data) | {"interval": (low, high)})


@dataclass(frozen=True, kw_only=True)
class ActionErrorLine:
    """An action error on held-out episodes, as `demoscale status` shows it."""

    action_error: float
    episodes: int
    interval: tuple[float, float]
    """Bounds of the 95 % interval, rounded to four digits."""
    loss: float | None = None
    complete: bool = True
    measure: str = MEASURE

    @classmethod
    def of(cls, score: ActionErrorScore) -> "ActionErrorLine":
        """Return the line of a score."""
        low, high = score.interval
        return cls(
            action_error=score.mean,
            episodes=score.episodes,
            interval=(round(low, 4), round(high, 4)),
            loss=score.loss,
            complete=score.complete,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the object of `status --json`."""
        return asdict(self) | {"interval": list(self.interval)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ActionErrorLine":
        """Return the line that `to_json` wrote."""
        low, high = data["interval"]
        return cls(**known_fields(cls, data) | {"interval": (low, high)})


def _score_line(score: Score | ActionErrorScore) -> ScoreLine | ActionErrorLine:
    return ScoreLine.of(score) if isinstance(score, Score) else ActionErrorLine.of(score)


def _score_line_from(data: Mapping[str, Any]) -> ScoreLine | ActionErrorLine:
    return (ActionErrorLine if "action_error" in data else ScoreLine).from_json(data)


@dataclass(frozen=True, kw_only=True)
class ShiftedLine:
    """A complete score of the last checkpoint under a shift."""

    successes: int
    episodes: int


@dataclass(frozen=True, kw_only=True)
class ArmLine:
    """An arm's progress, as `demoscale status` shows it."""

    arm: str
    """Name of the arm."""
    state: str
    """`ArmStatus.state`."""
    step: int
    steps: int
    """Optimiser step at which training ends, or its budget in seconds."""
    unit: str = "steps"
    """Unit of `step` and `steps`."""
    stage_1_step: int = 0
    """`ArmStatus.video_step`."""
    loss: float | None = None
    episodes_played: int = 0
    """Episodes with an outcome, or measured, over all checkpoints."""
    episodes_listed: int = 0
    scores: Mapping[int, ScoreLine | ActionErrorLine] = field(default_factory=dict)
    """Scores of the nominal suite, or action errors, by checkpoint step."""
    last_score: str = ""
    """Score of the newest scored checkpoint in words; empty if there is none. With `suite.select`, which
    episodes it is of.
    """
    report: ScoreLine | None = None
    """Score of the last checkpoint on the suite's own episodes, if the sweep has `suite.select`."""
    shifted: Mapping[str, ShiftedLine] = field(default_factory=dict)
    """Scores of the last checkpoint by shift."""
    stopped_after: int | None = None
    """Step after whose score the search stopped the arm; None if it did not."""
    failure: str = ""
    """One line, if training failed permanently; else empty."""
    trained_on: tuple[Arithmetic, ...] = ()
    """`ArmStatus.trained_on`."""
    cost: Cost = field(default_factory=Cost)

    @classmethod
    def of(cls, arm: ArmStatus) -> "ArmLine":
        """Return the line of an arm."""
        return cls(
            arm=arm.name,
            state=arm.state,
            step=arm.step,
            steps=arm.steps,
            unit=arm.unit,
            stage_1_step=arm.video_step,
            loss=arm.loss,
            episodes_played=sum(played for played, _ in arm.scoring.values()),
            episodes_listed=sum(listed for _, listed in arm.scoring.values()),
            scores={step: _score_line(score) for step, score in sorted(arm.scores.items())},
            last_score=_last_score(arm),
            report=ScoreLine.of(arm.report) if arm.report else None,
            shifted={
                shift: ShiftedLine(successes=score.successes, episodes=score.episodes)
                for shift, score in arm.shifted.items()
            },
            stopped_after=arm.stopped,
            failure=arm.failure,
            trained_on=arm.trained_on,
            cost=arm.cost,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the object of `status --json`."""
        return {
            **vars(self),
            "scores": {str(step): score.to_json() for step, score in self.scores.items()},
            "shifted": {shift: asdict(score) for shift, score in self.shifted.items()},
            "report": self.report and self.report.to_json(),
            "trained_on": [arithmetic.to_json() for arithmetic in self.trained_on],
            "cost": self.cost.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ArmLine":
        """Return a line that `to_json` wrote, in this version or an earlier one."""
        scores, shifted = data.get("scores", {}), data.get("shifted", {})
        typed = {
            "scores": {int(step): _score_line_from(score) for step, score in scores.items()},
            "shifted": {
                shift: ShiftedLine(**known_fields(ShiftedLine, score)) for shift, score in shifted.items()
            },
            "report": ScoreLine.from_json(data["report"]) if data.get("report") else None,
            "trained_on": tuple(map(Arithmetic.from_json, data.get("trained_on", ()))),
            "cost": Cost.from_json(data.get("cost", {})),
        }
        return cls(**known_fields(cls, data) | typed)


def _last_score(arm: ArmStatus) -> str:
    """Return the score of an arm's newest scored checkpoint in words."""
    if arm.report:
        return str(arm.report)
    if not arm.scores:
        return ""
    return f"{arm.scores[max(arm.scores)]}{' to select' if arm.selecting else ''}"


def known_fields(kind: type[Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a JSON object that are fields of a dataclass: a file of another version may have
    others.
    """
    return {one.name: data[one.name] for one in fields(kind) if one.name in data}


def table(lines: Iterable[ArmLine]) -> Any:
    """Return a rich table of a board's lines: one row per arm."""
    from rich.table import Table

    drawn = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    lines = list(lines)
    held_out = any(isinstance(score, ActionErrorLine) for line in lines for score in line.scores.values())
    played, last = ("measured", MEASURE) if held_out else ("played", "last score")
    steps = lines[0].unit if lines else "steps"
    for title in ("arm", "state", steps, "loss", played, last):
        drawn.add_column(title, no_wrap=True, justify="right" if title in (steps, "loss", played) else "left")
    for line in lines:
        drawn.add_row(
            line.arm,
            line.state,
            f"{line.step}/{line.steps}",
            "" if line.loss is None else f"{line.loss:.2f}",
            f"{line.episodes_played}/{line.episodes_listed}" if line.episodes_listed else "",
            "; ".join(filter(None, (line.last_score, line.failure))),
        )
    return drawn
