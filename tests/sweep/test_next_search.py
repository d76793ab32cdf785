"""The next-arm search: its decisions from late scores, and the same ones after a kill."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.checkpoints.record import CheckpointRecord, write_record
from orchestrator.cli.next_command import store_limit
from orchestrator.config.arms import Arm
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.cost import Cost
from orchestrator.sweep.next_search import Choice, NextArmSearch, adopt_trained
from orchestrator.sweep.state import SweepState

EPISODES = 40
ARM = Cost(train_cpu_s=1800, sim_cpu_s=1800, episodes=EPISODES)
"""An hour of CPU."""


def sweep(
    budget: float | None = None,
    episodes: str = "nowhere",
    demo_count: tuple[int, ...] = (10, 20, 40, 80),
    storage: str = "runs",
    **search: Any,
) -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "name": "search",
            "storage": storage,
            "seeds": [0, 1, 2],
            "data": {"episodes": episodes, "demo_count": demo_count, "action_free_ratio": [0, 1]},
            "train": {"steps": 100, "checkpoint_every": 100},
            "suite": {"tasks": ["Lift"], "episodes": EPISODES, "horizon": 50},
            "search": {"next": {"target": "demos_for_0.7", "budget": budget, **search}},
        }
    )


@dataclass
class Record:
    """Decisions in memory, as JSON."""

    chosen: dict[int, str] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)

    def choices(self) -> list[dict[str, Any]]:
        return [json.loads(told) for _, told in sorted(self.chosen.items())]

    def record_choice(self, number: int, choice: dict[str, Any]) -> None:
        self.chosen.setdefault(number, json.dumps(choice))

    def record_end(self, number: int, why: str) -> None:
        self.ended.append(why)


def outcomes(arm: Arm) -> dict[str, bool]:
    """Return a score whose rate is 0.2 at 10 demos and 0.15 higher with every doubling; video counts half."""
    rate = 0.2 + 0.15 * np.log2(arm.demo_count * (1 + arm.action_free_ratio) ** 0.5 / 10)
    drawn = np.random.default_rng([arm.demo_count, int(arm.action_free_ratio), arm.seed]).random(EPISODES)
    return {f"Lift/{number}": bool(one < rate) for number, one in enumerate(drawn)}


class Lab:
    """Runs a search; every arm costs an hour."""

    def __init__(self, config: SweepConfig, record: Record, choosing: bool = True) -> None:
        self.spent: dict[str, Cost] = {}
        self.said: list[str] = []
        self.search = NextArmSearch(
            config,
            record,
            lambda arm: arm.name,
            outcomes,
            self.costs,
            self.said.append,
            choosing=choosing,
            draws=300,
        )

    def costs(self) -> Mapping[str, Cost]:
        return self.spent

    def score(self, arm: Arm) -> None:
        self.spent[arm.name] = ARM
        self.search.tell(arm, 0.0, 0.0, None)

    def next(self) -> Arm:
        arm = self.search.next()
        assert arm
        return arm

    def run(self, most: int = 100) -> list[Arm]:
        """Train and score one arm after another."""
        arms = list[Arm]()
        while len(arms) < most and (arm := self.search.next()):
            arms.append(arm)
            self.score(arm)
        return arms


def test_search_begins_with_three_counts_and_waits_for_their_scores() -> None:
    record = Record()
    lab = Lab(sweep(), record)
    first = [lab.next() for _ in range(3)]
    assert first == [Arm(10, 0.0, 0), Arm(40, 0.0, 0), Arm(80, 0.0, 0)]
    assert lab.search.next() is None
    for arm in first[:2]:
        lab.score(arm)
    assert lab.search.next() is None
    assert not lab.search.exhausted
    lab.score(first[2])
    fourth = lab.next()
    assert fourth not in first
    told = Choice.from_json(record.choices()[-1])
    assert told.arm == fourth
    assert len(told.why) == 3
    assert told.unit == "CPU-hours"
    assert told.cost == pytest.approx(1.0)
    assert told.width is not None
    assert told.expected is not None
    assert told.expected < told.width
    assert told.scored == ("demos-10_ratio-0_seed-0", "demos-40_ratio-0_seed-0", "demos-80_ratio-0_seed-0")
    assert lab.said[-3:] == [f"search: {sentence}" for sentence in told.why]


def test_search_goes_on_while_fewer_arms_than_ahead_have_no_score() -> None:
    lab = Lab(sweep(ahead=2), Record())
    lab.run(3)
    fourth, fifth = lab.next(), lab.next()
    assert fourth != fifth
    assert lab.said[-1].endswith(f"; {fourth.name} in progress count with the score expected of them.")
    assert lab.search.next() is None, "two arms have no score"
    lab.score(fifth)
    assert lab.next() not in (fourth, fifth), "scores may arrive in any order"


def test_killed_search_repeats_its_decisions_and_makes_the_same_later_ones() -> None:
    killed_after = 4
    whole = Lab(sweep(budget=6.5), Record()).run()
    assert len(whole) == len(set(whole)) == 6
    record = Record()
    killed = Lab(sweep(budget=6.5), record)
    killed.run(killed_after)
    begun = killed.next()  # decided, and no score
    later = Lab(sweep(budget=6.5), record)
    assert later.run() == whole
    assert whole[killed_after] == begun
    assert record.ended == [
        "no candidate narrows the demos that 70 % takes by 1 % or more within the budget; stop here."
    ]


def test_failed_arm_is_replaced_by_another_seed_and_nothing_waits_for_it() -> None:
    lab = Lab(sweep(), Record())
    first = [lab.next() for _ in range(3)]
    lab.search.failed(first[1])
    assert lab.next() == Arm(40, 0.0, 1)
    lab.search.unscored(Arm(40, 0.0, 1))
    assert lab.next() == Arm(40, 0.0, 2)


def test_search_that_only_retries_chooses_no_arm() -> None:
    record = Record()
    first = Lab(sweep(), record).run(4)
    again = Lab(sweep(), record, choosing=False)
    assert [again.search.next() for _ in range(5)] == [*first, None]
    assert again.search.exhausted
    assert record.ended == []


def test_search_ends_once_its_budget_is_spent_and_goes_on_with_a_higher_one() -> None:
    record = Record()
    assert len(Lab(sweep(budget=3), record).run()) == 3
    more = Lab(sweep(budget=4.5), record)
    assert len(more.run()) == 4
    assert record.ended[0] == (
        "its budget of 3 is spent; with a higher search.next.budget the same command goes on."
    )


def test_arms_trained_by_an_earlier_form_of_the_file_are_the_first_decisions(
    folder: Path, store: str
) -> None:
    """A budget or `ahead` of another value finds the same decisions, another target does not."""
    asked = sweep(episodes=store, demo_count=(1, 2, 4), storage=str(folder))
    state, trained = SweepState.open(asked, pin=True), Arm(2, 1.0, 1)
    record = CheckpointRecord(fingerprint="0", loss=0.1, loss_video=0.1, loss_action=0.1)
    write_record(state.storage, state.arm_id(trained), 100, record)
    write_record(state.storage, state.arm_id(Arm(4, 0.0, 0)), 50, record)
    for _ in range(2):
        adopt_trained(state)
    changed = sweep(8.0, store, (1, 2, 4), str(folder), ahead=1)
    other = sweep(None, store, (1, 2, 4), str(folder), target="area")
    for config, chosen in ((changed, [trained]), (other, [])):
        found = SweepState.open(config).decisions
        assert [Choice.from_json(told).arm for told in found.choices()] == found.proposed() == chosen


def test_next_command_proposes_no_arm_beyond_the_episode_store(folder: Path, store: str) -> None:
    SweepState.open(sweep(None, store, (1, 2, 4), str(folder)), pin=True)
    possible = store_limit("search", str(folder))
    assert [possible(demos, 1.0) for demos in (4, 8, 9)] == [True, True, False], "of sixteen episodes"
    assert possible(16, 0.0)
    assert store_limit("no-such-sweep", str(folder))(1000, 3.0), "unknown, so nothing is left out"
