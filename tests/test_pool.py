"""The rollout pool: real simulators in real processes, killed for real; the outcomes never change."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from conftest import CAMERA
from orchestrator.score import Ledger, ProtocolError, Score, Scorer, ScoringJob, check_contract
from orchestrator.storage import open_storage
from policy.interface import ActionChunk, Observation
from sim_workers.env import contract
from sim_workers.rollout import Outcome
from sim_workers.suite import EpisodeSpec, Suite

CONTRACT = contract((CAMERA,), (64, 64), "fast")
SUITE = Suite(("Lift",), 4, 24)
PROTOCOL = "protocol"


class Wanderer:
    """A policy server whose actions depend on picture, proprioception and noise seed, so that any difference in them shows."""

    def act(self, policy: str, observation: Observation) -> ActionChunk:
        if policy == "broken":
            raise RuntimeError("this policy is broken")
        seen = int(observation.images[CAMERA].sum()) + int(abs(observation.proprio).sum() * 1e6)
        rng = np.random.default_rng([seen, observation.noise_seed])
        return ActionChunk(rng.uniform(-1, 1, (8, 7)).astype(np.float32), 4)


pytestmark = [pytest.mark.ray, pytest.mark.sim]


@pytest.fixture(scope="module")
def server(ray_cluster: None) -> Any:
    import ray
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import a test module
    actor = ray.remote(Wanderer).options(num_cpus=0).remote()
    yield actor
    ray.kill(actor)


def score(
    folder: Path, server: Any, workers: int, policy: str = "wanderer", suite: Suite = SUITE, disturb: Any = None
) -> tuple[Score, dict[str, Any]]:
    """The suite's score through the real scorer and pool, and its ledger without timings."""
    from sim_workers.pool import RolloutPool

    storage = open_storage(str(folder))
    pool = RolloutPool(workers, num_cpus=0.1)
    scores: list[Score] = []
    scorer = Scorer(storage, suite, CONTRACT, pool, server, lambda *_: None, lambda _, s: scores.append(s), PROTOCOL)
    scorer.submit(ScoringJob("arm", 1, policy, f"fp-{policy}"))
    if disturb:
        disturb()
    scorer.drain()
    scorer.close()
    ledger = Ledger(storage, f"fp-{policy}", PROTOCOL).read()
    plain = {k: {f: v for f, v in outcome.to_json().items() if not f.endswith("_s")} for k, outcome in ledger.items()}
    return scores[0], plain


@pytest.fixture(scope="module")
def reference(server: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One worker, undisturbed."""
    folder = tmp_path_factory.mktemp("one")
    result, ledger = score(folder, server, 1)
    assert result.complete
    assert result.episodes == 4
    return folder, ledger


def test_two_workers_give_the_outcomes_of_one(reference: tuple[Path, dict[str, Any]], server: Any, tmp_path: Path) -> None:
    _, ledger = score(tmp_path, server, 2)
    assert ledger == reference[1]


def test_a_killed_worker_changes_nothing(reference: tuple[Path, dict[str, Any]], server: Any, tmp_path: Path) -> None:
    def kill_one() -> None:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "outcomes").rglob("*.json")):
            assert time.monotonic() < deadline, "no outcome within two minutes"
            time.sleep(0.02)
        playing = [p.pid for p in psutil.process_iter(["cmdline"]) if "ray::RolloutWorker.play" in " ".join(p.info["cmdline"] or ())]
        assert playing, "no rollout worker is playing"
        os.kill(playing[0], signal.SIGKILL)

    result, ledger = score(tmp_path, server, 1, disturb=kill_one)
    assert result.complete
    assert ledger == reference[1]


def test_finished_episodes_are_not_played_again(reference: tuple[Path, dict[str, Any]], server: Any) -> None:
    folder, ledger = reference
    files = {f: f.stat().st_mtime_ns for f in (folder / "outcomes").rglob("*.json")}
    result, again = score(folder, server, 1)
    assert result.complete
    assert again == ledger
    assert {f: f.stat().st_mtime_ns for f in (folder / "outcomes").rglob("*.json")} == files


def test_what_fails_every_time_is_an_error_never_a_failure(server: Any, tmp_path: Path) -> None:
    result, ledger = score(tmp_path, server, 1, policy="broken", suite=Suite(("Lift",), 1, 24))
    assert (result.errors, result.episodes, result.successes) == (1, 0, 0)
    assert not result.complete
    assert "PARTIAL" in str(result)
    assert "this policy is broken" in result.outcomes[0].message
    assert ledger == {}, "an error must be tried again by the next run"


def test_other_conventions_are_refused_before_the_first_step() -> None:
    from dataclasses import replace

    check_contract(CONTRACT)
    with pytest.raises(ProtocolError, match=r"simulator: the policy was trained with robosuite 1\.4, here it is robosuite 1\.5"):
        check_contract(replace(CONTRACT, simulator="robosuite 1.4"))


def test_a_score_shows_its_denominator() -> None:
    spec = EpisodeSpec("Lift", 1, 1)
    outcomes = tuple(Outcome(spec, result, 1, 1, 0, 0) for result in ("success", "success", "failure", "error"))  # type: ignore[arg-type]
    text = str(Score(outcomes, 4))
    assert text.startswith("2/3 = 0.67 [")
    assert "1 errors" in text
    assert json.dumps(outcomes[3].to_json())
