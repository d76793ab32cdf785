"""The curve that a run makes from its ledger is the one that `demoscale curve` reads from MLflow: with everything
that a sweep may have. test_run.py compares those of pruned arms, test_adaptive_sweep.py those of early scores.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.data.episode_store import commit, put_episode
from orchestrator.evaluation.image_metrics import Fidelity
from orchestrator.evaluation.video_score import VideoBenchmark, VideoScore
from orchestrator.report.sample_efficiency_curve import Curve, curve_from_mlflow
from orchestrator.storage.base import open_storage
from orchestrator.sweep.ledger_curve import curve_from_ledger
from orchestrator.sweep.run import SweepRun, UnfinishedError
from orchestrator.sweep.state import SweepState
from orchestrator.sweep.tracking_publisher import COST
from orchestrator.testing.episodes import CONTRACT, make_episode
from orchestrator.testing.fake_trainer import FakeTrainer
from orchestrator.testing.outcomes import simulated_outcome
from orchestrator.testing.players import FakeEvalBackend
from orchestrator.testing.rollout_pool import FakeRolloutPool
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.rollout_video import RecordedVideo
from sim_workers.rollout.worker import RolloutJob
from sweep_runs import curve_in_numbers, equal_curve

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sixteen episodes of Lift, long enough to hold out clips."""
    storage = open_storage(str(tmp_path_factory.mktemp("store")))
    episodes = [put_episode(storage, make_episode(seed, 12 + seed), 20.0) for seed in range(16)]
    commit(storage, CONTRACT, episodes)
    return storage.uri


def sweep(folder: Path, store: str, **sections: Any) -> SweepConfig:
    everything = {
        "name": folder.name,
        "data": {"episodes": store, "demo_count": [1, 2], "action_free_ratio": [0, 1]},
        "train": {"steps": 6, "batch_size": 2, "checkpoint_every": 3},
        "suite": {"tasks": ["Lift"], "episodes": 10, "horizon": 50, "video_clips": 3},
        "storage": str(folder),
        "mlflow": f"sqlite:///{Path(store).parent / 'mlflow.db'}",
        "prices": {"cpu_hour": 3.0},
    }
    return SweepConfig.model_validate(everything | sections)


def judge(test: VideoBenchmark, source: Any) -> tuple[VideoScore, float]:
    made = Fidelity(20.1 + source.rate(), 0.7, 0.2 + source.rate() / 3)
    return VideoScore(made, Fidelity(20.0, 0.5, 0.3), len(test.held_out.clips), test.digest), 2.0


class FilmingPool(FakeRolloutPool):
    """Its policies imagine: films have a note, with a distance unless the episode ended before it was due."""

    def results(
        self, timeout_s: float | None = None
    ) -> Iterator[tuple[RolloutJob, Outcome, RecordedVideo | None]]:
        for job, outcome, film in super().results(timeout_s):
            note = {
                "episode": outcome.spec.episode_id,
                "task": outcome.spec.task,
                "result": outcome.result,
                "mean_distance": 0.1 * outcome.spec.scene_seed if outcome.result == "failure" else None,
            }
            yield job, outcome, film and replace(film, foresight=json.dumps(note).encode())


TRAINER = FakeTrainer(0.001)


def run(asked: SweepConfig, fit: Any = TRAINER) -> Curve | None:
    pool = FilmingPool(simulated_outcome)
    players = lambda *given: replace(FakeEvalBackend()(*given), pool=pool, judge=judge)  # noqa: E731
    return SweepRun(asked, lambda line: None, fit=fit, players=players).run()


@pytest.mark.full
def test_curve_from_ledger_equals_curve_from_mlflow_and_the_published_one(folder: Path, store: str) -> None:
    """With baselines, two seeds, a shifted suite, films, scores of generated video, and one arm that
    fails.
    """

    def fit(job: Any, *arguments: Any) -> Any:
        if (job.arm.demo_count, job.arm.seed, job.arm.kind) == (2, 1, "diffusion_policy"):
            raise RuntimeError("the cable is out")
        return TRAINER(job, *arguments)

    asked = sweep(
        folder,
        store,
        seeds=[0, 1],
        policy={"baselines": ["diffusion_policy"]},
        suite={
            "tasks": ["Lift"],
            "episodes": 10,
            "horizon": 50,
            "video_clips": 3,
            "shifts": ["camera"],
        },
    )
    with pytest.raises(UnfinishedError, match="the cable is out"):
        run(asked, fit)
    curve = equal_curve(asked)
    assert len(curve.arms) == 2 * (2 * 2 + 2) - 1
    (point,) = [point for point in curve.points if point.missing_seeds]
    assert (point.policy, point.demo_count, point.missing_seeds) == ("diffusion_policy", 2, (1,))
    told = curve.to_json()
    assert {point["step"] for point in told["video"]["points"]} == {3, 6}
    assert told["video"]["episodes"]
    assert all(arm["cost"]["money"] > 0 for arm in told["arms"])
    published = Path(client_of(asked).download_artifacts(parent_of(asked), "curve.json"))
    assert in_json(published) == curve_in_numbers(curve), "and so has the run published it"
    tags = client_of(asked).get_run(parent_of(asked)).data.tags
    assert tags["demoscale.claim"] == "trained policies; fewest seeds of a point: 1"

    part = SweepConfig.model_validate(
        asked.model_dump()
        | {"name": f"{folder.name}-part", "seeds": [0]}
        | {"data": {"episodes": store, "demo_count": [1], "action_free_ratio": [0]}}
    )
    run(part, fit)
    state, whole = SweepState.open(part), {arm.arm: spent_on(arm) for arm in curve.arms}
    for shared in (curve_from_ledger(state), curve_from_mlflow(part.mlflow, part.name, state.store)):
        assert shared
        assert {arm.arm: spent_on(arm) for arm in shared.arms}.items() <= whole.items()
    own = client_of(part).get_run(parent_of(part)).data.tags[COST]
    assert "episodes" not in own, "this sweep played none"


def spent_on(arm: Any) -> tuple[float, float, int]:
    return arm.cost.train_cpu_s, arm.cost.sim_cpu_s, arm.cost.episodes


def in_json(file: Path) -> Any:
    return json.loads(file.read_text())


def client_of(asked: SweepConfig) -> Any:
    from orchestrator.tracking.mlflow_writer import client

    return client(asked.mlflow)


def parent_of(asked: SweepConfig) -> str:
    client = client_of(asked)
    experiment = client.get_experiment_by_name("demoscale")
    wanted = f"tags.`demoscale.sweep` = '{asked.name}' and tags.`demoscale.arm` = '-'"
    (parent,) = client.search_runs([experiment.experiment_id], wanted)
    return str(parent.info.run_id)


def test_curve_from_ledger_without_a_complete_score_is_none(folder: Path, store: str) -> None:
    assert curve_from_ledger(SweepState.open(sweep(folder, store))) is None
