"""Sequential stopping: the blocks of the list, the rule, the verdict, and the arm that others are compared
with.
"""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.arms import expand_grid, is_reference, reference_of
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.evaluation.sequential_rule import StoppingRule, Verdict, blocks, decide, prefix, to_play
from orchestrator.stats.sequential import anytime_interval
from sequential_cases import ABOVE, AGAINST, CUT, LISTED, SUITE, played
from sim_workers.rollout.episode import Outcome


def test_blocks_keep_the_list_order_and_balance_the_tasks() -> None:
    assert sorted(spec for block in CUT for spec in block) == sorted(LISTED)
    assert all(Counter(spec.task for spec in block) == {"Lift": 5, "Stack": 5} for block in CUT)
    for task in SUITE.tasks:
        assert [spec for block in CUT for spec in block if spec.task == task] == [
            spec for spec in LISTED if spec.task == task
        ]
    assert [len(block) for block in blocks(LISTED, 20)] == [40, 40, 20]


@given(rate=st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]), seed=st.integers(0, 10_000), against=st.booleans())
def test_verdict_is_that_of_the_first_deciding_look_in_any_episode_order(
    rate: float, seed: int, against: bool
) -> None:
    """Successes tend to end first. Only a whole beginning of the list decides, and outcomes beyond it change
    nothing.
    """
    rule, truth, others = AGAINST if against else ABOVE, played(rate, seed), played(0.5, seed + 1)
    rng = np.random.default_rng(seed)
    order = sorted(LISTED, key=lambda spec: rng.random() + (truth[spec.episode_id].result == "failure"))
    final = decide(rule, CUT, truth, others)
    assert final
    known: dict[str, Outcome] = {}
    needed = {spec.episode_id for spec in [spec for block in CUT for spec in block][: final.episodes]}
    for spec in order:
        known[spec.episode_id] = truth[spec.episode_id]
        verdict = decide(rule, CUT, known, others)
        assert verdict == (final if needed <= known.keys() else None)
    counted = prefix(CUT, truth, final.episodes)
    assert len(counted) == final.episodes
    if final.says and not against:
        low, high = anytime_interval(sum(o.result == "success" for o in counted), len(counted))
        assert low > 0.5 if final.says == "above 0.5" else high < 0.5
    assert final.says or final.episodes == len(LISTED)


def test_decide_against_missing_or_failed_outcomes_gives_no_verdict() -> None:
    ours, theirs = played(0.95), played(0.3, 1)
    verdict = decide(AGAINST, CUT, ours, theirs)
    assert verdict
    assert verdict.says == "succeeds more often than demos-50_ratio-0_seed-0"
    assert decide(AGAINST, CUT, theirs, ours) == Verdict(
        "succeeds less often than demos-50_ratio-0_seed-0", verdict.episodes
    )
    assert decide(AGAINST, CUT, ours, {}) == Verdict("", 100)
    first = CUT[0][3]
    broken = {first.episode_id: Outcome(first, "error", 0, 0, 0.0, 0.0, message="gone")}
    assert decide(AGAINST, CUT, ours, theirs | broken) == Verdict("", 100)
    assert decide(ABOVE, CUT, ours | broken, {}) is None
    assert to_play(CUT, ours | broken) == [], "the error blocks the verdict in this run"


def test_decide_keeps_the_error_rate_at_the_threshold() -> None:
    """A policy exactly at the threshold, with a look at every second episode of each task."""
    rule, cut = StoppingRule(2, 0.9, 0.5), blocks(LISTED, 2)
    verdicts = [decide(rule, cut, played(0.5, seed), {}) for seed in range(150)]
    assert sum(bool(verdict and verdict.says) for verdict in verdicts) <= 15


def test_reference_arm_may_be_named_by_the_fields_that_differ() -> None:
    arms = expand_grid((10, 50), (0.0, 1.0), (0, 1), ("diffusion_policy",))
    by_name = {arm.name: arm for arm in arms}

    def against(name: str, whom: str) -> str | None:
        other = reference_of(by_name[name], whom, arms)
        return other and other.name

    assert against("demos-10_ratio-1_seed-1", "demos-50") == "demos-50_ratio-1_seed-1"
    assert against("demos-10_ratio-1_seed-1", "demos-50_ratio-0") == "demos-50_ratio-0_seed-1"
    assert against("demos-10_ratio-1_seed-1", "demos-50_ratio-0_seed-0") == "demos-50_ratio-0_seed-0"
    assert against("diffusion_policy_demos-10_ratio-0_seed-0", "demos-10") == "demos-10_ratio-0_seed-0"
    assert against("demos-50_ratio-1_seed-1", "demos-50") is None, "no arm is compared with itself"
    assert against("demos-10_ratio-1_seed-1", "demos-5") is None
    assert [arm.name for arm in arms if is_reference(arm, "demos-50_ratio-0")] == [
        "demos-50_ratio-0_seed-1",
        "demos-50_ratio-0_seed-0",
    ]


def sweep(decide: Any, **sections: Any) -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "name": "some",
            "data": {"episodes": "nowhere", "demo_count": [10, 50], "action_free_ratio": [0, 1]},
            "train": {"steps": 9, "checkpoint_every": 3},
            "suite": {"tasks": ["Lift"], "episodes": 50, "horizon": 50, "decide": decide},
            **sections,
        }
    )


@pytest.mark.parametrize(
    ("decide", "sections", "sentence"),
    [
        ({}, {}, "write {threshold: 0.8} or"),
        ({"threshold": 0.8, "against": "demos-50"}, {}, "only one of them"),
        ({"threshold": 80}, {}, "less than 1"),
        (
            {"against": "demos-40"},
            {},
            (
                "no arm can be compared with demos-40; the arms are demos-10_ratio-0_seed-0,"
                " demos-10_ratio-1_seed-0"
            ),
        ),
        ({"against": "demos-50"}, {"search": {"optuna": {"trials": 9}}}, "Optuna may never propose that arm"),
    ],
)
def test_decide_section_that_cannot_be_raises_with_the_remedy(
    decide: Any, sections: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        sweep(decide, **sections)


def test_suite_fewest_episodes_are_those_of_the_first_look() -> None:
    assert sweep({"threshold": 0.8}).suite.fewest == 10
    assert sweep({"threshold": 0.8, "look_every": 80}).suite.fewest == 50
    assert sweep(None).suite.fewest == sweep(None).suite.listed == 50


def test_suite_fingerprint_does_not_depend_on_the_rule() -> None:
    assert sweep({"threshold": 0.8}).to_suite().fingerprint() == sweep(None).to_suite().fingerprint()
