"""The surface of a search over ranges: coverage of its bands, its sentences and its figure."""

from dataclasses import replace

import numpy as np
import pytest

from orchestrator.config.arms import Arm
from orchestrator.cost import Cost
from orchestrator.report.curve_metrics import curve_metrics
from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.report.summary import answer
from orchestrator.stats.success_surface import fit_surface, pareto_front
from orchestrator.tracking.mlflow_reader import ScoredArm

EPISODES = 50


def logit(demos: float, ratio: float) -> float:
    """Return the logit of the true success rate; action-free video has diminishing returns."""
    return 1.1 * np.log(demos / 45) + 0.35 * np.sqrt(ratio)


def arms(number: int, seed: int, noise: float = 0.3) -> list[ScoredArm]:
    """Return arms with demo counts and ratios at random, whose trainings differ by `noise` in logits."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(number):
        demos, ratio = round(float(np.exp(rng.uniform(np.log(10), np.log(200))))), round(rng.uniform(0, 3), 2)
        rate = 1 / (1 + np.exp(-logit(demos, ratio) - noise * rng.normal()))
        won = rng.random(EPISODES) < rate
        outcomes = {f"Lift-{i}-{i}": bool(own) for i, own in enumerate(won)}
        cost = Cost(train_cpu_s=float(demos * (1 + ratio)))
        found.append(
            ScoredArm(Arm(demos, ratio, 0), "p", 100, int(won.sum()), EPISODES, 0, outcomes, cost=cost)
        )
    return found


def curve(number: int, against: str = "", seed: int = 0) -> Curve:
    sweep = {
        "data": {"demo_count": {"low": 10, "high": 200}, "action_free_ratio": {"low": 0.0, "high": 3.0}},
        "search": {"optuna": {"trials": number, "against": against}},
        "seeds": [0],
    }
    return Curve("searched", tuple(arms(number, seed)), sweep)


def fitted(scored: list[ScoredArm]) -> object:
    columns = [(a.arm.demo_count, a.arm.action_free_ratio, a.successes, a.episodes) for a in scored]
    return fit_surface(*np.array(columns, float).T)


def test_surface_rises_and_needs_enough_arms() -> None:
    surface = fitted(arms(24, 1))
    rates = surface.rates(np.geomspace(12, 180, 9), np.linspace(0.2, 2.8, 7))
    assert (np.diff(rates, axis=0) >= 0).all()
    assert (np.diff(rates, axis=1) >= 0).all()
    assert rates[-1, -1] - rates[0, 0] > 0.5
    assert fitted(arms(9, 1)) is None
    same = [replace(one, arm=Arm(10, one.arm.action_free_ratio, 0)) for one in arms(24, 1)]
    assert fitted(same) is None, "one demo count"


@pytest.mark.full
def test_bands_and_demos_to_reach_cover_the_truth() -> None:
    """At least 90 % of 100 sweeps at each of four places; a binomial of 95 % is above 0.88 with p = 0.996."""
    places, held = ((30, 1.0), (60, 0.5), (60, 2.0), (120, 1.0)), []
    truth = 45 * np.exp((np.log(0.6 / 0.4) - 0.35) / 1.1)
    for seed in range(100):
        surface = fitted(arms(24, seed))
        row = []
        for demos, ratio in places:
            low, high = surface.rate(demos, ratio).interval
            row.append(low <= 1 / (1 + np.exp(-logit(demos, ratio))) <= high)
        low, high = surface.demos_to_reach(0.6, 1.0).interval
        held.append([*row, low <= truth <= high])
    assert (np.mean(held, axis=0) >= 0.9).all(), np.mean(held, axis=0)


def test_pareto_front_holds_the_arms_that_no_other_beats() -> None:
    success, cost = np.array([0.5, 0.9, 0.4, 0.9, 0.7]), np.array([2.0, 5.0, 1.0, 6.0, 5.0])
    assert pareto_front(success, cost) == [2, 0, 1]


def test_answer_of_a_search_over_ranges_is_its_surface_and_front() -> None:
    searched = curve(24, against="demo_count")
    first, low, high, front = answer(searched)
    assert first.startswith("Success as a monotone surface over 24 arms, ")
    assert "takes" in low
    assert "demos (95 % interval" in low
    assert low.startswith(f"Ratio {min(a.arm.action_free_ratio for a in searched.arms):g}: ")
    assert high.startswith(f"Ratio {max(a.arm.action_free_ratio for a in searched.arms):g}: ")
    assert front.startswith("Pareto front of success and demos: demos-")
    metrics = curve_metrics(searched, complete=True)
    assert len(metrics) == 8
    assert all(len(values) == 6 for values in metrics.values())
    assert searched.draw("svg").count(b"Pareto front") >= 1
    assert '<figure class="surface"><img src="data:image/png;base64,' in searched.page([])


def test_answer_of_a_search_with_few_arms_says_so() -> None:
    searched = curve(6)
    assert answer(searched) == [
        "6 arms with 4 demo counts are too few for a surface over demo count and action-free ratio; it takes 10"
        " arms with 4 demo counts."
    ]
    assert searched.draw("png").startswith(b"\x89PNG")
