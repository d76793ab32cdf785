"""References of a suite: scored once, drawn as lines, and part of no key, comparison or decision."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.planning.plan import make_plan
from orchestrator.report.sample_efficiency_curve import Curve, curve_from_mlflow
from orchestrator.sweep.ledger_curve import curve_from_ledger
from orchestrator.sweep.references import references_of
from orchestrator.sweep.run import SweepRun
from orchestrator.sweep.state import SweepState
from orchestrator.testing.fake_trainer import FakeTrainer
from orchestrator.testing.outcomes import simulated_outcome
from orchestrator.testing.players import FakeEvalBackend
from orchestrator.testing.rollout_pool import FakeRolloutPool
from sim_workers.envs.robosuite import SimEnv, contract
from sim_workers.rollout.episode import Outcome, run_episode
from sim_workers.rollout.reference_policies import DemoActions, ReferencePolicy
from sim_workers.rollout.suite import EpisodeRules, EpisodeSpec

NAMES = ["random", "expert", "replay"]


def sweep(folder: Path, store: str, **suite: Any) -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "name": folder.name,
            "data": {"episodes": store, "demo_count": [1, 2]},
            "train": {"steps": 6, "batch_size": 2, "checkpoint_every": 3},
            "suite": {"tasks": ["Lift"], "episodes": 10, "horizon": 50, **suite},
            "search": {"asha": {}},
            "storage": str(folder),
            "mlflow": f"sqlite:///{folder / 'mlflow.db'}",
        }
    )


def run(asked: SweepConfig) -> tuple[Curve, Counter[str]]:
    """Return the curve and the number of played episodes by arm or reference."""
    pool = FakeRolloutPool(simulated_outcome)
    players = lambda *given: replace(FakeEvalBackend()(*given), pool=pool)  # noqa: E731
    curve = SweepRun(asked, lambda line: None, fit=FakeTrainer(), players=players).run()
    assert isinstance(curve, Curve)
    return curve, Counter(getattr(job.source, "name", "arm") for job in pool.played)


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_references_are_scored_once_and_drawn_without_any_comparison(folder: Path, store: str) -> None:
    plain, played = run(sweep(folder, store))
    assert played.keys() == {"arm"}
    asked = sweep(folder, store, references=NAMES)
    curve, played = run(asked)
    assert played == dict.fromkeys(NAMES, 10), "arms keep their scores, each reference is played once"
    assert run(asked)[1] == {}
    state = SweepState.open(asked)
    read = curve_from_mlflow(asked.mlflow, asked.name, state.store)
    assert curve_from_ledger(state) == replace(read, arms=curve.arms, tags=curve.tags) == curve
    assert [(one.name, one.successes, one.episodes) for one in read.references] == [
        ("random", 0, 10),
        ("expert", 10, 10),
        ("replay", curve.references[2].successes, 10),
    ]
    told = read.to_json()
    assert told["comparisons"] == plain.to_json()["comparisons"]
    assert [line["label"] for line in told["references"]] == [
        "random actions",
        "scripted expert",
        "replayed demonstrations",
    ]
    assert plain.to_json()["references"] == []
    page = read.page([])
    assert "scripted expert 10/10" in page
    assert "References on the same episodes" not in plain.page([])
    assert b"scripted expert 10/10" not in plain.draw("svg")
    assert len(SweepState.open(asked).board().arms) == 2
    assert curve_from_mlflow(asked.mlflow, asked.name, state.store).references == read.references


def test_references_change_no_key_of_a_sweep(folder: Path, store: str) -> None:
    plain, asked = (SweepState.open(sweep(folder, store, **suite)) for suite in ({}, {"references": NAMES}))
    assert plain.comparable == asked.comparable
    assert plain.decisions.prefix == asked.decisions.prefix
    assert list(plain.arms()) == list(asked.arms())
    assert [*references_of(plain)] == []
    random, expert, replay = references_of(asked)
    assert len({one.checkpoint.fingerprint for one in (random, expert, replay)}) == 3
    assert replay.demos
    assert not replay.contract.cameras, "nothing is rendered"
    assert make_plan(asked.sweep).rollouts == make_plan(plain.sweep).rollouts + 3 * 10
    mixed = SweepState.open(sweep(folder, store, processors="mixed"))
    assert mixed.comparable != plain.comparable
    assert mixed.decisions.prefix != plain.decisions.prefix


def test_expert_of_a_task_without_one_is_refused_before_the_run(folder: Path, store: str) -> None:
    asked = sweep(folder, store, references=["expert"])
    milk = asked.suite.model_copy(update={"tasks": ("PickPlaceMilk",)})
    (why,) = milk.store_problems(SweepState.open(asked).manifest.contract)
    assert why.startswith("suite.references: expert: no scripted expert does PickPlaceMilk; there is one for")
    with pytest.raises(ValidationError, match="references"):
        sweep(folder, store, references=["oracle"])


@pytest.mark.full
@pytest.mark.sim
def test_reference_policies_act_in_the_simulator_without_pictures() -> None:
    env = SimEnv("Lift", contract((), (64, 64), "fast"))
    spec, rules = EpisodeSpec("Lift", 1_000_000, 1_000_000), EpisodeRules(100, settle=0)
    low, high = (-1.0,) * 7, (1.0,) * 7

    def played(policy: ReferencePolicy, spec: EpisodeSpec = spec) -> tuple[Outcome, Any]:
        client, actions = policy.connect(), []

        def act(seen: Any) -> Any:
            chunk = client.act(seen)
            actions.extend(chunk.actions[: chunk.execute])
            return chunk

        client.attach(env, spec)
        return run_episode(env, spec, rules, act), actions

    expert, moves = played(ReferencePolicy("expert", low, high))
    assert expert.result == "success"
    assert expert.looks == expert.steps
    demo = DemoActions.of("lift-0", "Lift", np.stack(moves))
    replayed, again = played(ReferencePolicy("replay", low, high, (demo,)))
    assert replayed.played == replace(expert, looks=replayed.looks).played, "the same scene, the same actions"
    assert np.array_equal(np.stack(again)[: len(moves)], np.stack(moves))
    elsewhere, _ = played(ReferencePolicy("replay", low, high, (demo,)), replace(spec, scene_seed=1_000_007))
    assert elsewhere.steps >= len(moves)
    random, chosen = played(ReferencePolicy("random", low, (0.5,) * 7))
    assert random.result == "failure"
    assert np.max(chosen) <= 0.5
    env.close()
