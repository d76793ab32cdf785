"""Arm search and evaluation priority: decided from late scores, by Tune's and Optuna's own rules."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.config.arms import Arm
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.evaluation.priority import EvalPriority
from orchestrator.evaluation.scores import EvalJob
from orchestrator.sweep.arm_search import ArmPruner, GridSearch, OptunaSearch
from sim_workers.rollout.policy_clients import InProcessPolicy
from sim_workers.rollout.suite import EpisodeRules, Suite


def sweep(search: Any, steps: int = 900, every: int = 100, **data: Any) -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "name": "search",
            "data": {"episodes": "nowhere", "demo_count": [10], **data},
            "train": {"steps": steps, "checkpoint_every": every},
            "suite": {"tasks": ["Lift"], "episodes": 10, "horizon": 50},
            "search": search,
        }
    )


def test_pruner_of_a_grid_stops_no_arm() -> None:
    rule = ArmPruner(sweep("grid"))
    assert not any(rule.decides(step) for step in range(0, 901, 100))
    assert not any(rule.stops(f"arm {i}", 100, i / 10) for i in reversed(range(10)))


def test_asha_decides_at_its_rungs_but_not_at_the_end() -> None:
    rule = ArmPruner(sweep({"asha": {"first": 100, "reduction": 3}}))
    assert [step for step in range(100, 901, 100) if rule.decides(step)] == [100, 300]
    rule = ArmPruner(sweep({"asha": {"first": 150, "reduction": 2}}))
    assert [step for step in range(100, 901, 100) if rule.decides(step)] == [
        200,
        300,
        600,
    ], "a rung is decided at the checkpoint that reaches it"


def test_asha_continues_the_best_of_each_rung() -> None:
    rule = ArmPruner(sweep({"asha": {"first": 100, "reduction": 3}}))
    stopped = [arm for arm in range(9) if rule.stops(f"arm {arm}", 100, 1 - arm / 10)]
    assert stopped == [*range(1, 9)], "each that comes later is worse than a third of those before"
    assert not rule.stops("arm 0", 300, 0.9)
    assert not rule.stops("arm 1", 300, 0.0), "a stopped arm is not decided again"


def test_asha_accepts_late_scores_in_any_order() -> None:
    """The score of a later checkpoint comes first: the earlier one still counts at its rung."""
    rule = ArmPruner(sweep({"asha": {"first": 100, "reduction": 3}}))
    assert not rule.stops("early bird", 300, 0.9)
    assert not rule.stops("early bird", 100, 0.8)
    assert rule.stops("late", 100, 0.1)


def test_median_rule_stops_an_arm_below_the_median_of_the_others() -> None:
    rule = ArmPruner(sweep({"median": {"arms": 2}}))
    for arm, low in (("a", 0.5), ("b", 0.6)):
        assert not rule.stops(arm, 100, low)
    assert rule.stops("c", 100, 0.2)
    assert not rule.stops("d", 100, 0.7)
    assert not rule.stops("c", 200, 0.9)


def job(arm: str, step: int, shift: str = "nominal") -> EvalJob:
    suite = Suite(("Lift",), 2, EpisodeRules(10), shift=shift)
    return EvalJob(arm, step, CheckpointRef(f"{arm}/{step}"), suite, shift, InProcessPolicy(lambda: None))  # type: ignore[arg-type, return-value]


def drained(urgency: EvalPriority, jobs: list[EvalJob]) -> list[tuple[str, int]]:
    """Return (arm, step) in the order of scoring."""
    for one in jobs:
        urgency.opened(one)
    done = []
    while jobs:
        first = urgency.first(jobs)
        urgency.begun(first)
        jobs.remove(first)
        done.append(
            (first.arm_id, first.step) if first.suite.shift == "nominal" else (first.suite.shift, first.step)
        )
    return done


def test_priority_is_unscored_arms_then_decisions_then_newest_checkpoints() -> None:
    jobs = [
        job("a", 100),
        job("a", 200),
        job("a", 300),
        job("a", 300, "camera"),
        job("b", 100),
        job("b", 200),
    ]
    assert drained(EvalPriority(lambda step: False), jobs[:]) == [
        ("a", 300),
        ("b", 200),
        ("a", 100),
        ("a", 200),
        ("b", 100),
        ("camera", 300),
    ]
    decided = drained(EvalPriority(lambda step: step == 100), jobs[:])
    assert decided == [("a", 100), ("b", 100), ("a", 300), ("b", 200), ("a", 200), ("camera", 300)]


def test_grid_search_returns_arms_in_order() -> None:
    arms = [Arm(8, 1.0, 0), Arm(4, 1.0, 0)]
    grid = GridSearch(arms)
    assert [grid.next(), grid.next(), grid.next()] == [*arms, None]


RANGES = {"demo_count": {"low": 2, "high": 200}, "action_free_ratio": {"low": 0, "high": 3}}


def test_optuna_search_proposes_the_requested_number_within_the_ranges(tmp_path: Path) -> None:
    asked = sweep({"optuna": {"trials": 6}}, **RANGES)
    proposed = OptunaSearch(asked, tmp_path / "study.log", [])
    arms = []
    while arm := proposed.next():
        arms.append(arm)
        proposed.tell(arm, arm.demo_count / 200, 1.0, None)
    assert len(arms) == len(set(arms)) == 6
    assert all(
        2 <= arm.demo_count <= 200 and 0 <= arm.action_free_ratio <= 3 and arm.seed == 0 for arm in arms
    )


def test_optuna_study_is_rebuilt_from_the_sweep_record(tmp_path: Path) -> None:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    asked = sweep({"optuna": {"trials": 4, "against": "demo_count"}}, **RANGES)
    first = OptunaSearch(asked, tmp_path / "study.log", [])
    begun = [arm for arm in (first.next(), first.next()) if arm]
    first.tell(begun[0], 0.25, 60.0, None)

    for journal in ("study.log", "lost.log"):  # the same file again; and where it was lost
        again = OptunaSearch(asked, tmp_path / journal, begun)
        assert [
            again.next(),
            again.next(),
        ] == begun, "begun arms come before new proposals"
        if journal == "lost.log":
            again.tell(begun[0], 0.25, 60.0, None)
        again.tell(begun[1], 0.5, 60.0, 200)
        assert again.next() not in (None, *begun)
        study = optuna.load_study(
            study_name="search", storage=JournalStorage(JournalFileBackend(str(tmp_path / journal)))
        )
        assert [trial.values for trial in study.trials[:2]] == [
            [0.25, begun[0].demo_count],
            [0.5, begun[1].demo_count],
        ]


def test_optuna_search_does_not_repeat_an_arm(tmp_path: Path) -> None:
    few = sweep({"optuna": {"trials": 12}}, demo_count=[2, 4], action_free_ratio=[0])
    proposed = OptunaSearch(few, tmp_path / "study.log", [])
    arms = []
    while arm := proposed.next():
        arms.append(arm.demo_count)
        proposed.tell(arm, arm.demo_count / 10, 1.0, None)
    assert sorted(arms) == [2, 4]
    again = OptunaSearch(few, tmp_path / "study.log", [Arm(demos, 0.0, 0) for demos in arms])
    while again.next():
        pass
    assert len(again.study.trials) == 12, "a run of the finished sweep proposes nothing"


def test_optuna_search_proposes_an_arm_again_that_was_not_recorded(tmp_path: Path) -> None:
    few = sweep({"optuna": {"trials": 12}}, demo_count=[2, 4], action_free_ratio=[0])
    assert OptunaSearch(few, tmp_path / "study.log", []).next()  # killed before the sweep had it
    search, arms = OptunaSearch(few, tmp_path / "study.log", []), list[int]()
    while arm := search.next():
        arms.append(arm.demo_count)
    assert sorted(arms) == [2, 4]


TORN = {"cut": b'{"op_code":5,"wor', "zeros": bytes(40), "within": b'[1]\n{"op_code"'}


@pytest.mark.parametrize("tail", TORN.values(), ids=TORN)
def test_optuna_search_goes_on_after_its_journal_was_torn(tmp_path: Path, tail: bytes) -> None:
    asked, journal = sweep({"optuna": {"trials": 3}}, **RANGES), tmp_path / "study.log"
    first = OptunaSearch(asked, journal, []).next()
    assert first
    written = journal.read_bytes()
    journal.write_bytes(written + tail)
    again = OptunaSearch(asked, journal, [first])
    assert (again.next(), len(again.study.trials)) == (first, 1)
    again.tell(first, 0.5, 1.0, None)
    assert again.next()
    assert journal.with_name("study.log.damaged").read_bytes() == written + tail


@pytest.mark.parametrize("stopped_at", [None, 200])
def test_optuna_search_records_a_stopped_arm_as_pruned(tmp_path: Path, stopped_at: int | None) -> None:
    import optuna

    proposed = OptunaSearch(
        sweep({"optuna": {"trials": 2}, "asha": {}}, **RANGES), tmp_path / "study.log", []
    )
    arm = proposed.next()
    assert arm
    proposed.tell(arm, 0.5, 1.0, stopped_at)
    state = proposed.study.trials[0].state
    assert state == (optuna.trial.TrialState.PRUNED if stopped_at else optuna.trial.TrialState.COMPLETE)
