"""Search over arms: proposals and early stopping. The only file with Optuna and with Tune's schedulers.

Both receive scores asynchronously, however late: a score is the lower bound of a checkpoint's success rate.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol

from orchestrator.config.arms import Arm
from orchestrator.config.schema import Range
from orchestrator.config.sweep_config import SweepConfig


@dataclass(frozen=True)
class _Trial:
    """Stand-in for the trial by which Tune's schedulers identify an arm."""

    trial_id: str


class ArmPruner:
    """Early stopping by one of Tune's schedulers, which receives scores asynchronously; without a rule in the
    sweep file no arm is stopped.
    """

    def __init__(self, sweep: SweepConfig) -> None:
        self._scheduler: Any = None
        self._stopped: set[str] = set()
        self._known: set[str] = set()
        self._steps = sweep.scored_steps()
        self._deciding: set[int] = set()
        asha, median = sweep.search.asha, sweep.search.median
        settings = {"time_attr": "step", "metric": "success_low", "mode": "max"}
        if asha:
            from ray.tune.schedulers import ASHAScheduler

            first = asha.first or self._steps[0]
            # The last rung stops no arm: an arm that reaches it is fully trained.
            self._scheduler = ASHAScheduler(
                **settings,
                grace_period=first,
                max_t=self._steps[-1],
                reduction_factor=asha.reduction,
                stop_last_trials=False,
            )
            self._deciding = {
                self._reached(milestone) for milestone in _milestones(first, asha.reduction, self._steps[-1])
            }
        elif median:
            from ray.tune.schedulers import MedianStoppingRule

            first = median.first or self._steps[0]
            # With an infinite time slice the rule never pauses an arm in favour of another.
            self._scheduler = MedianStoppingRule(
                **settings, grace_period=first, min_samples_required=median.arms, min_time_slice=float("inf")
            )
            self._deciding = {step for step in self._steps if step >= first}
        self._deciding.discard(self._steps[-1])

    def _reached(self, milestone: float) -> int:
        """Return the first checkpoint step at or after a milestone."""
        return next(step for step in self._steps if step >= milestone)

    def decides(self, step: int) -> bool:
        """Return whether a decision waits for the score of a checkpoint of this step."""
        return step in self._deciding

    def stops(self, arm_id: str, step: int, success_low: float) -> bool:
        """Record a checkpoint's score and return whether to stop training and scoring the arm."""
        if self._scheduler is None or arm_id in self._stopped:
            return False
        trial = _Trial(arm_id)
        if arm_id not in self._known:
            self._known.add(arm_id)
            self._scheduler.on_trial_add(None, trial)
        decision = self._scheduler.on_trial_result(None, trial, {"step": step, "success_low": success_low})
        if decision != "STOP":
            return False
        self._stopped.add(arm_id)
        return True


def _milestones(first: float, factor: float, last: float) -> Iterator[float]:
    """Yield the rungs of successive halving, in steps."""
    while first <= last:
        yield first
        first *= factor


class ArmSearch(Protocol):
    """Source of a sweep's arms, one after another."""

    exhausted: bool
    """Whether `next` returns no arm any more; otherwise None only means that it waits for a score."""

    def next(self) -> Arm | None:
        """Return the next arm to train; None if there is none now."""

    def tell(self, arm: Arm, success_low: float, seconds: float, stopped_at: int | None) -> None:
        """Record an arm's result: its last score's lower bound, its CPU plus GPU seconds, the step it was
        stopped after (None: it was not).
        """

    def failed(self, arm: Arm) -> None:
        """Record that the arm failed and will have no score."""

    def unscored(self, arm: Arm) -> None:
        """Record that episodes of the arm's score ended in an error; a later run plays them again."""


class GridSearch:
    """The arms of the grid, in order."""

    def __init__(self, arms: Iterable[Arm]) -> None:
        self._arms = iter(arms)
        self.exhausted = False

    def next(self) -> Arm | None:
        """Return the next arm of the grid; None after the last."""
        arm = next(self._arms, None)
        self.exhausted = arm is None
        return arm

    def tell(self, arm: Arm, success_low: float, seconds: float, stopped_at: int | None) -> None:
        """Ignore the result: the grid is fixed."""

    def failed(self, arm: Arm) -> None:
        """Ignore the failure: the grid is fixed."""

    def unscored(self, arm: Arm) -> None:
        """Ignore the arm: the grid is fixed."""


def _cut_where_damaged(journal: Path) -> None:
    """Cut Optuna's journal before its first damaged line, as a full disk or a killed process may leave one;
    Optuna would append to it and could read neither. The damaged file is kept as `<journal>.damaged`.
    """
    written = journal.read_bytes() if journal.exists() else b""
    lines = takewhile(_is_whole, written.splitlines(keepends=True))
    whole = b"".join(lines)
    if whole != written:
        journal.with_name(f"{journal.name}.damaged").write_bytes(written)
        journal.write_bytes(whole)


def _is_whole(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except ValueError:
        return False


class OptunaSearch:
    """Arms that Optuna's TPE sampler proposes, from the results of earlier ones.

    The study is stored in a journal file, which optuna-dashboard reads. It is a view: missing trials are
    added from the sweep's own record.
    """

    def __init__(self, sweep: SweepConfig, journal: Path, before: Sequence[Arm]) -> None:
        """Open or create the study. before: the arms proposed by earlier runs of the sweep, in order; `next`
        returns those first.
        """
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        assert sweep.search.optuna
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        journal.parent.mkdir(parents=True, exist_ok=True)
        _cut_where_damaged(journal)
        self._choice = sweep.search.optuna
        self._seed = sweep.seeds[0]
        demos, ratios = sweep.data.demo_count, sweep.data.action_free_ratio
        self._space: dict[str, Any] = {
            "demo_count": (
                optuna.distributions.IntDistribution(int(demos.low), int(demos.high), log=True)
                if isinstance(demos, Range)
                else optuna.distributions.CategoricalDistribution(demos)
            ),
            "action_free_ratio": (
                optuna.distributions.FloatDistribution(ratios.low, ratios.high)
                if isinstance(ratios, Range)
                else optuna.distributions.CategoricalDistribution(ratios)
            ),
        }
        self.study = optuna.create_study(
            study_name=sweep.name,
            storage=JournalStorage(JournalFileBackend(str(journal))),
            # arms run concurrently
            sampler=optuna.samplers.TPESampler(seed=self._choice.seed + len(before), constant_liar=True),
            directions=["maximize", "minimize"] if self._choice.against else ["maximize"],
            load_if_exists=True,
        )
        trials, recorded = self.study.get_trials(deepcopy=False), {arm.name for arm in before}
        # an arm that the sweep did not record, since its process was killed, may be proposed again
        self._numbers = {
            trial.user_attrs["arm"]: trial.number
            for trial in trials
            if trial.user_attrs.get("arm") in recorded
        }
        self._again = list(before)
        # duplicates of earlier runs count, so that a finished sweep proposes nothing further
        self._proposed = sum(trial.state.is_finished() and "arm" not in trial.user_attrs for trial in trials)
        self.exhausted = False

    def next(self) -> Arm | None:
        """Return the next arm to train, those of an earlier run first; None once all trials are proposed."""
        if self._again:
            self._proposed += 1
            arm = self._again.pop(0)
            if arm.name not in self._numbers:
                self.study.enqueue_trial(
                    {"demo_count": arm.demo_count, "action_free_ratio": arm.action_free_ratio}
                )
                self._ask()
            return arm
        while self._proposed < self._choice.trials:
            self._proposed += 1
            arm, number, known = self._ask()
            if known is None:
                return arm
            # A duplicate of an earlier proposal has the same score, so it needs no training.
            self._end(number, self.study.get_trials(deepcopy=False)[known].values)
        self.exhausted = True
        return None

    def _ask(self) -> tuple[Arm, int, int | None]:
        """Return a proposal, its trial number, and the number of an equal earlier trial (None if there is
        none).
        """
        trial = self.study.ask(self._space)
        arm = Arm(
            int(trial.params["demo_count"]), round(float(trial.params["action_free_ratio"]), 2), self._seed
        )
        known = self._numbers.get(arm.name)
        if known is None:
            trial.set_user_attr("arm", arm.name)
            self._numbers[arm.name] = trial.number
        return arm, trial.number, known

    def tell(self, arm: Arm, success_low: float, seconds: float, stopped_at: int | None) -> None:
        """Report an arm's final score to Optuna."""
        against = {"demo_count": float(arm.demo_count), "seconds": seconds}
        values = [success_low, *([against[self._choice.against]] if self._choice.against else [])]
        # Optuna does not support pruned trials with two objectives: there a stopped arm counts with its last
        # score.
        self._end(self._numbers[arm.name], values, pruned=stopped_at is not None and not self._choice.against)

    def failed(self, arm: Arm) -> None:
        """Report to Optuna that an arm failed, without a value."""
        self._end(self._numbers[arm.name], None)

    def unscored(self, arm: Arm) -> None:
        """Leave the trial open: a later run ends it."""

    def _end(self, number: int, values: Sequence[float] | None, pruned: bool = False) -> None:
        """Finish a trial with its values, or as failed if it has none; a finished trial stays unchanged."""
        from optuna.trial import TrialState

        if self.study.get_trials(deepcopy=False)[number].state.is_finished():
            return
        state = TrialState.PRUNED if pruned else TrialState.COMPLETE if values else TrialState.FAIL
        self.study.tell(number, values if state is TrialState.COMPLETE else None, state=state)
