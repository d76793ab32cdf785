"""Proposals of the next arm of a sweep, in words and as JSON, with costs of the arms so far."""

import json
from dataclasses import replace
from math import inf

import numpy as np
import pytest

from orchestrator.cost import Cost
from orchestrator.report.next_report import NextArm, next_arms
from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.stats.next_arm import Candidate, Target, proposals
from synthetic_curves import EPISODES, several, with_a_baseline

CANDIDATES = [Candidate(40, 1.0, EPISODES, 1.0), Candidate(10, 0.0, EPISODES, 1.0)]


def anything(demos: int, ratio: float) -> bool:
    """Return that the store has the episodes of any arm."""
    return True


@pytest.fixture(scope="module")
def curve() -> Curve:
    """Return a curve whose arms took an hour to train and 36 s per episode to score."""
    plain = several(gain=0.5, noise=0.2)
    cost = Cost(train_cpu_s=3600, sim_cpu_s=36 * EPISODES, episodes=EPISODES)
    arms = tuple(replace(arm, cost=cost) for arm in plain.arms)
    return replace(plain, arms=arms, sweep={**plain.sweep, "prices": {}})


@pytest.fixture(scope="module")
def found(curve: Curve) -> NextArm:
    (told,) = next_arms(curve, "demos", 0.9, inf, anything)
    assert isinstance(told, NextArm)
    return told


def test_next_arm_has_candidates_with_costs_of_the_sweep(found: NextArm) -> None:
    new = [one.candidate for one in found.ranked if one.candidate.arm is None]
    further = [one.candidate for one in found.ranked if one.candidate.arm is not None]
    assert sorted({one.demos for one in new}) == [10, 14, 20, 28, 40, 57, 80, 160, 320]
    assert {one.ratio for one in new} == {0.0, 1.0}
    assert {round(one.cost, 6) for one in new} == {2.0}, "an hour of training, an hour of scoring"
    assert {round(one.cost, 6) for one in further} == {1.0}
    assert len(further) == 8
    assert found.unit == "CPU-hours"
    assert found.best
    assert [one.worth for one in found.ranked] == sorted((one.worth for one in found.ranked), reverse=True)


def test_next_arm_is_explained_in_three_lines_and_as_json(found: NextArm) -> None:
    first, second, third = found.in_words()
    assert first.startswith("video_action: train a further seed of ") or "further episodes of an arm" in first
    assert "It narrows the interval of the demos that 90 % takes by " in second
    assert " CPU-hours; the next best, " in second
    assert third.startswith("26 candidates were weighed, by the forecast from 24 arms: 90 % interval ")
    assert third.endswith(" demos.")
    told = json.loads(json.dumps(found.to_json()))
    assert told["stop"] is False
    assert len(told["candidates"]) == 26


def test_next_arm_stays_within_the_episode_store(curve: Curve) -> None:
    (told,) = next_arms(curve, "demos", 0.9, inf, lambda demos, ratio: demos * (1 + ratio) <= 100)
    assert isinstance(told, NextArm)
    new = {(one.candidate.demos, one.candidate.ratio) for one in told.ranked if one.candidate.arm is None}
    assert max(demos for demos, ratio in new if ratio == 0) == 80
    assert max(demos for demos, ratio in new if ratio == 1) == 40


def test_next_arm_stops_once_no_candidate_changes_the_verdict(curve: Curve, found: NextArm) -> None:
    """The video's worth is asked about 0; a worth around 5 with a spread of 0.1 is above, whatever comes."""
    target = Target("worth", lambda fitted: 5 + 0.1 * fitted.powers, 0.0)
    (told,) = [replace(found, target=target, ranked=tuple(proposals(found.fitted, target, CANDIDATES)))]
    assert told.settled
    assert told.best is None
    (sentence,) = told.in_words()
    assert (
        "lies above 0, and no candidate changes that with a probability of 5 % or more; stop here."
        in sentence
    )
    open_one = Target("worth", lambda fitted: fitted.powers - np.median(fitted.powers), 0.0)
    ranked = tuple(proposals(found.fitted, open_one, CANDIDATES))
    assert not replace(found, target=open_one, ranked=ranked).settled


def test_next_arm_beyond_the_budget_stops(curve: Curve) -> None:
    (told,) = next_arms(curve, "demos", 0.9, 0.5, anything)
    assert isinstance(told, NextArm)
    assert told.best is None
    assert told.in_words() == [
        "video_action: no candidate narrows the demos that 90 % takes by 1 % or more within the budget; stop here."
    ]


def test_next_arm_without_costs_or_counts_is_refused_in_a_sentence(curve: Curve) -> None:
    unknown = replace(curve, arms=tuple(replace(arm, cost=None) for arm in curve.arms))
    assert next_arms(unknown, "demos", 0.9, inf, anything) == [
        "video_action: the cost of its arms is not recorded, so nothing is proposed."
    ]
    few = next_arms(with_a_baseline(seeds=(0, 1, 2)), "area", 0.9, inf, anything)
    assert all("2 demo counts are too few" in str(one) for one in few)


@pytest.mark.parametrize("target", ["equivalence", "area"])
def test_next_arm_for_other_targets_names_them(curve: Curve, target: str) -> None:
    (told,) = next_arms(curve, target, 0.9, inf, anything)  # type: ignore[arg-type]
    assert isinstance(told, NextArm)
    names = {"equivalence": "what action-free video is worth in demos", "area": "the area under the curve"}
    assert told.target.name == names[target]
