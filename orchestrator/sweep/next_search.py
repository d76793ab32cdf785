"""Search of the next arm: of the arms of a grid, train those that say most about a target for their cost.

Arms are trained one after another, the first ones without a forecast: the smallest, the middle and the
largest demo count. Then every decision rests on the scores that have arrived; arms in progress count as if
they scored what is expected of them. Further episodes of trained arms are no candidates here: an arm's score
has a fixed list of episodes (`demoscale next` proposes them).
"""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from orchestrator.checkpoints.record import read_records
from orchestrator.config.arms import Arm
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.cost import Cost
from orchestrator.report.next_report import ArmCosts, NextArm, describe, unit_of
from orchestrator.stats.forecast import DRAWS, FEWEST_COUNTS, Arms, Forecast, forecast
from orchestrator.stats.next_arm import Candidate, Target, area_between, demos_for, equivalence, proposals
from orchestrator.sweep.state import SweepState

Outcomes = Mapping[str, bool]
"""Whether an episode of an arm's score succeeded, by its id."""


@dataclass(frozen=True)
class Choice:
    """A decision of the search: the arm to train next."""

    arm: Arm
    why: tuple[str, ...]
    """Up to three sentences."""
    unit: str = ""
    """Of the cost; empty if there was no forecast yet."""
    cost: float = 0.0
    """Expected of the arm."""
    width: float | None = None
    """Of the target's interval; None if there was no forecast yet."""
    expected: float | None = None
    """Width of the target's interval after the arm's score, on average."""
    scored: tuple[str, ...] = ()
    """Names of the arms whose scores were known."""
    waiting: tuple[str, ...] = ()
    """Names of the arms in progress."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields, JSON-safe."""
        return asdict(self)

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> "Choice":
        """Invert `to_json`."""
        lists = {name: tuple(told[name]) for name in ("why", "scored", "waiting")}
        return cls(**{**told, **lists, "arm": Arm(**told["arm"])})


@dataclass(frozen=True)
class Ended:
    """No further arm is trained."""

    why: str


class Choices(Protocol):
    """Durable record of a search's decisions; `Decisions`."""

    def choices(self) -> list[dict[str, Any]]:
        """Return the decisions in order."""

    def record_choice(self, number: int, choice: dict[str, Any]) -> None:
        """Store a decision; that of an earlier run stays."""

    def record_end(self, number: int, why: str) -> None:
        """Store the reason for which the search ended after its first `number` decisions."""


class NextArmSearch:
    """Arms of the grid, chosen one after another by what they say about a target for their cost.

    A decision is stored before its arm starts, and a later run of the sweep repeats the stored ones first.
    Thread-safe: Tune's loop calls `next`, the scorer's thread and that of training events the other methods.
    """

    def __init__(
        self,
        sweep: SweepConfig,
        record: Choices,
        arm_id: Callable[[Arm], str],
        outcomes: Callable[[Arm], Outcomes],
        costs: Callable[[], Mapping[str, Cost]],
        say: Callable[[str], None],
        choosing: bool = True,
        draws: int = DRAWS,
    ) -> None:
        """Read the decisions of earlier runs.

        arm_id: returns the id of an arm, by which its cost is known. outcomes: reads the score of an arm that
        was told. costs: of all training runs and scores so far, by arm id or that of a shared video model.
        choosing: False to return the stored decisions only. draws: of the forecasts.
        """
        assert sweep.search.next
        self.exhausted = False
        self._grid = sorted(sweep.possible_arms())
        self._sweep, self._search, self._record, self._say = sweep, sweep.search.next, record, say
        self._arm_id = arm_id
        self._outcomes, self._costs, self._choosing, self._draws = outcomes, costs, choosing, draws
        chosen = [Choice.from_json(told) for told in record.choices()]
        self._again = [choice.arm for choice in chosen]
        self._begun = list(self._again)
        self._expected = {choice.arm: choice.cost for choice in chosen}
        self._results: dict[Arm, Outcomes] = {}
        self._lost: set[Arm] = set()
        self._lock = threading.Lock()
        self._waits = False
        """Whether there was nothing to choose and nothing has happened since."""

    def next(self) -> Arm | None:
        """Return the next arm to train, those of earlier runs first; None if there is none now, and once
        `exhausted` never again.
        """
        if self._again:
            return self._again.pop(0)
        with self._lock:
            if self.exhausted or self._waits:
                return None
            results, waiting = dict(self._results), self._waiting()
            self._waits = True  # until a score arrives, also one that arrives while this is decided
        decided = self._decide(results, waiting) if self._choosing else Ended("")
        if isinstance(decided, Ended):
            self.exhausted = True
            if decided.why:
                self._record.record_end(len(self._begun), decided.why)
                self._say(f"search: {decided.why}")
            return None
        if decided is None:
            return None
        self._record.record_choice(len(self._begun), decided.to_json())
        for sentence in decided.why:
            self._say(f"search: {sentence}")
        with self._lock:
            self._begun.append(decided.arm)
            self._expected[decided.arm] = decided.cost
            self._waits = False
        return decided.arm

    def tell(self, arm: Arm, success_low: float, seconds: float, stopped_at: int | None) -> None:
        """Read the arm's score, whose last checkpoint has a complete one."""
        told = self._outcomes(arm)
        with self._lock:
            self._results[arm] = told
            self._waits = False

    def failed(self, arm: Arm) -> None:
        """Record that the arm has no score in this run."""
        with self._lock:
            self._lost.add(arm)
            self._waits = False

    unscored = failed

    def _waiting(self) -> list[Arm]:
        return [arm for arm in self._begun if arm not in self._results and arm not in self._lost]

    def _decide(self, results: Mapping[Arm, Outcomes], waiting: Sequence[Arm]) -> Choice | Ended | None:
        """Return the next arm, or why there is none; None: wait for a score."""
        left = (self._search.budget or math.inf) - self._spent(waiting)
        if left <= 0:
            return Ended(
                f"its budget of {self._search.budget:g} is spent; with a higher search.next.budget the same"
                " command goes on."
            )
        low, demos = self._lowest_ratio, self._demos
        alive = {(arm.demo_count, arm.action_free_ratio) for arm in (*results, *waiting)}
        for count in (demos[0], demos[len(demos) // 2], demos[-1]):
            if (count, low) not in alive and (arm := self._fresh(count, low)):
                return Choice(
                    arm,
                    (f"{arm.name}: the search begins with the smallest, the middle and the largest count.",),
                    scored=_names(results),
                    waiting=_names(waiting),
                )
        if len({arm.demo_count for arm in results}) < FEWEST_COUNTS:
            if waiting:
                return None
            for count in demos:
                if (count, low) not in alive and (arm := self._fresh(count, low)):
                    return Choice(
                        arm,
                        (f"{arm.name}: a forecast takes {FEWEST_COUNTS} counts, and others failed.",),
                        scored=_names(results),
                    )
            return Ended(f"fewer than {FEWEST_COUNTS} demo counts have a score, so nothing is forecast.")
        if len(waiting) >= self._search.ahead:
            return None
        return self._weigh(results, waiting, left)

    def _weigh(
        self, results: Mapping[Arm, Outcomes], waiting: Sequence[Arm], left: float
    ) -> Choice | Ended | None:
        fitted = forecast(_arms(results), draws=self._draws)
        if waiting:
            expected = _expected_scores(fitted, waiting, self._sweep.suite.deciding)
            fitted = forecast(fitted.arms.joined(expected), draws=self._draws)
        (unit, candidates), target = self._candidates(results), self._target()
        ranked = tuple(proposals(fitted, target, candidates))
        found = NextArm(self._sweep.name, target, fitted, unit, ranked, left)
        if not found.best:
            # the scores of arms in progress may be others than expected
            return None if waiting else Ended(found.in_words()[0].removeprefix(f"{found.policy}: "))
        best = found.best.candidate
        arm = self._fresh(best.demos, best.ratio)
        assert arm
        _, narrows, rests = found.in_words()
        if waiting:
            named = ", ".join(_names(waiting))
            rests = f"{rests.removesuffix('.')}; {named} in progress count with the score expected of them."
        return Choice(
            arm,
            (f"{arm.name}: {describe(best)}.", narrows, rests),
            unit,
            best.cost,
            found.best.width,
            found.best.expected,
            _names(results),
            _names(waiting),
        )

    @property
    def _demos(self) -> list[int]:
        """Demo counts of the grid, rising."""
        return sorted({arm.demo_count for arm in self._grid})

    @property
    def _lowest_ratio(self) -> float:
        return min(arm.action_free_ratio for arm in self._grid)

    def _target(self) -> Target:
        if self._search.rate:
            return demos_for(self._search.rate, self._lowest_ratio)
        if self._search.target == "equivalence":
            return equivalence()
        return area_between(self._demos[0], self._demos[-1], self._lowest_ratio)

    def _candidates(self, results: Mapping[Arm, Outcomes]) -> tuple[str, list[Candidate]]:
        """Return the unit of the costs, and one further seed of every point of the grid that has one left."""
        episodes, spent = self._sweep.suite.deciding, self._costs()
        known = {arm: cost for arm in sorted(results) if (cost := self._cost(arm, spent)).episodes}
        costs = ArmCosts.fitted(
            self._sweep.prices,
            [arm.demo_count for arm in known] or [0],
            [*known.values()] or [Cost(episodes=1)],
        )
        points = sorted({(arm.demo_count, arm.action_free_ratio) for arm in self._grid})
        return costs.unit, [
            Candidate(demos, ratio, episodes, costs.training(demos, episodes))
            for demos, ratio in points
            if self._fresh(demos, ratio)
        ]

    def _fresh(self, demos: int, ratio: float) -> Arm | None:
        """Return the arm of a point with the first seed that was not trained there; None if all were."""
        left = [
            arm
            for arm in self._grid
            if (arm.demo_count, arm.action_free_ratio) == (demos, ratio) and arm not in self._begun
        ]
        return min(left, key=lambda arm: self._sweep.seeds.index(arm.seed), default=None)

    def _cost(self, arm: Arm, spent: Mapping[str, Cost]) -> Cost:
        return spent.get(self._arm_id(arm), Cost())

    def _spent(self, waiting: Sequence[Arm]) -> float:
        """Return what the sweep cost so far, arms in progress at least what was expected of them."""
        spent = self._costs()
        _, of = unit_of(self._sweep.prices, [*spent.values()])
        to_come = (self._expected.get(arm, 0.0) - of(self._cost(arm, spent)) for arm in waiting)
        return sum(map(of, spent.values())) + sum(max(0.0, cost) for cost in to_come)


def adopt_trained(state: SweepState) -> None:
    """Store the arms of the grid that are trained already, as by an earlier form of the sweep file, as the
    search's first decisions, or as its next ones.
    """
    known = {Choice.from_json(told).arm for told in state.decisions.choices()}
    number = len(known)
    for arm in sorted(set(state.sweep.possible_arms()) - known):
        last = read_records(state.storage, state.arm_id(arm)).get(state.sweep.train_of(arm).end)
        if last and not last.removed:
            state.decisions.record_choice(
                number, Choice(arm, (f"{arm.name}: it is trained already.",)).to_json()
            )
            state.decisions.record_proposal(arm, number)
            number += 1


def _arms(results: Mapping[Arm, Outcomes]) -> Arms:
    arms = sorted(results)  # in an order that does not depend on when scores arrived
    return Arms.of(
        [arm.demo_count for arm in arms],
        [arm.action_free_ratio for arm in arms],
        [results[arm] for arm in arms],
    )


def _expected_scores(fitted: Forecast, arms: Sequence[Arm], episodes: int) -> Arms:
    """Return arms in progress with the scores that are expected of them."""
    rates = []
    for arm in arms:
        first, second = fitted.trained(arm.demo_count, arm.action_free_ratio)
        rates.append(float(np.mean(first / (first + second))))
    columns = [(arm.demo_count, arm.action_free_ratio) for arm in arms]
    demos, ratios = np.array(columns, np.float64).T
    played = np.full(len(arms), float(episodes))
    return Arms(demos, ratios, np.round(played * rates), played)


def _names(arms: Sequence[Arm] | Mapping[Arm, Outcomes]) -> tuple[str, ...]:
    return tuple(sorted(arm.name for arm in arms))
