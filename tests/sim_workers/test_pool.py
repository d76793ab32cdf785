"""The rollout pool with real simulators in real processes that are killed and stopped: the outcomes never
change.
"""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.evaluation.outcome_ledger import Ledger, RenderReferences
from orchestrator.evaluation.scorer import Scorer
from orchestrator.evaluation.scores import EvalJob, ProtocolError, Score, check_contract
from orchestrator.storage.base import open_storage
from orchestrator.testing.episodes import CONTRACT
from orchestrator.testing.processes import titled_processes
from scoring_listener import RecordingListener
from sim_workers.arithmetic import pinned_kernels
from sim_workers.envs.render_check import RenderFingerprint
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.pool import PoolSettings
from sim_workers.rollout.suite import EpisodeRules, EpisodeSpec, Suite
from sim_workers.rollout.worker import Scene
from wandering_policies import CURSED, start_wanderer

SUITE = Suite(("Lift",), 4, EpisodeRules(24))
PROTOCOL = "protocol"


pytestmark = [pytest.mark.ray, pytest.mark.sim]


@pytest.fixture(scope="module")
def server(ray_cluster: None) -> Any:
    import ray

    actor = start_wanderer(num_cpus=0, max_restarts=-1, max_task_retries=-1)
    yield actor
    ray.kill(actor)


def score(
    folder: Path,
    server: Any,
    workers: int,
    policy: str = "wanderer",
    suite: Suite = SUITE,
    disturb: Any = None,
    films: bool = False,
    mixed: bool = False,
    settings: PoolSettings | None = None,
) -> tuple[RecordingListener, dict[str, Any]]:
    """Return the suite's score through the real scorer and pool, and its ledger without timings."""
    from sim_workers.rollout.pool import RolloutPool
    from sim_workers.rollout.ray_policy_client import RayServedPolicy

    storage, heard = open_storage(str(folder)), RecordingListener()
    heard.pool = RolloutPool(
        workers,
        num_cpus=0.1,
        references=RenderReferences(storage, "simulation", mixed),
        settings=settings or PoolSettings(),
        on_retry=heard.on_retry,
    )
    scorer = Scorer(storage, CONTRACT, heard.pool, heard.on_event)
    scorer.submit(
        EvalJob(
            "arm",
            1,
            CheckpointRef(policy, f"fp-{policy}"),
            suite,
            PROTOCOL,
            RayServedPolicy((server,), policy),
            films,
        )
    )
    if disturb:
        disturb()
    scorer.drain()
    scorer.close()
    ledger = Ledger(storage, f"fp-{policy}", PROTOCOL).read()
    return heard, {episode: outcome.played for episode, outcome in ledger.items()}


@pytest.fixture(scope="module")
def reference(server: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return the ledger of one worker, undisturbed."""
    folder = tmp_path_factory.mktemp("one")
    heard, ledger = score(folder, server, 1)
    assert heard.scores[0].complete
    assert heard.scores[0].episodes == 4
    return folder, ledger


def playing() -> list[int]:
    """Return the processes of this test's rollout workers that are playing."""
    return [process.pid for process in titled_processes("ray::RolloutWorker.play")]


def after_the_first_outcome(folder: Path, injure: Callable[[], None]) -> Callable[[], None]:
    def disturb() -> None:
        deadline = time.monotonic() + 120
        while not list((folder / "outcomes").rglob("*.parquet")) or not playing():
            assert time.monotonic() < deadline, "no outcome within two minutes"
            time.sleep(0.02)
        injure()

    return disturb


@pytest.mark.full
def test_pool_of_two_workers_has_the_outcomes_of_one(
    reference: tuple[Path, dict[str, Any]], server: Any, tmp_path: Path
) -> None:
    _, ledger = score(tmp_path, server, 2)
    assert ledger == reference[1]


@pytest.mark.full
def test_pool_records_the_pinned_kernels_with_every_outcome(reference: tuple[Path, dict[str, Any]]) -> None:
    outcomes = Ledger(open_storage(str(reference[0])), "fp-wanderer", PROTOCOL).read().values()
    (simulated_on,) = {outcome.simulated_on for outcome in outcomes}
    for name, value in pinned_kernels().items():
        assert f"{name}={value}" in simulated_on
        assert simulated_on.endswith(value), "numpy's kernels are those"
    assert {outcome.acted_on for outcome in outcomes} == {""}, "the server does not say"


@pytest.mark.full
def test_pool_with_a_killed_worker_has_the_same_outcomes(
    reference: tuple[Path, dict[str, Any]], server: Any, tmp_path: Path
) -> None:
    heard, ledger = score(
        tmp_path,
        server,
        1,
        disturb=after_the_first_outcome(tmp_path, lambda: os.kill(playing()[0], signal.SIGKILL)),
    )
    assert heard.scores[0].complete
    assert heard.pool.usage.replaced == {"died": 1}
    assert [kind for kind, _, _ in heard.retries] == ["worker", "episode"]
    for _, job, why in heard.retries:
        assert re.fullmatch(r"Lift-\d+-\d+ of arm after 1 steps", job)
        assert why.startswith("its process died: ")
    assert ledger == reference[1]


@pytest.mark.full
def test_pool_with_a_killed_policy_server_replaces_no_worker(
    reference: tuple[Path, dict[str, Any]], server: Any, tmp_path: Path
) -> None:
    import ray

    def kill_server() -> None:
        os.kill(ray.get(server.process_id.remote()), signal.SIGKILL)

    heard, ledger = score(tmp_path, server, 1, disturb=after_the_first_outcome(tmp_path, kill_server))
    assert heard.scores[0].complete
    assert heard.pool.usage.replaced == {}
    assert ledger == reference[1]


@pytest.mark.full
def test_pool_kills_and_replaces_a_hanging_simulator(
    reference: tuple[Path, dict[str, Any]], server: Any, tmp_path: Path
) -> None:
    """The process is stopped, so that none of its threads can act; it is replaced within ten seconds of the
    silence limit.
    """
    assert PoolSettings().playing_timeout_s + 10 <= 30
    settings = PoolSettings(playing_timeout_s=5.0, asking_timeout_s=5.0)
    hung: list[float] = []

    def hang() -> None:
        process = psutil.Process(playing()[0])
        process.suspend()
        began = time.monotonic()
        time.sleep(0.5)  # a signal takes a moment
        while (
            process.is_running()
            and process.status() == psutil.STATUS_STOPPED
            and time.monotonic() - began < 60
        ):
            time.sleep(0.1)
        hung.append(time.monotonic() - began)

    heard, ledger = score(
        tmp_path, server, 1, disturb=after_the_first_outcome(tmp_path, hang), settings=settings
    )
    assert hung[0] < 5 + 10
    assert heard.pool.usage.replaced == {"stuck": 1}
    assert ledger == reference[1]


@pytest.mark.full
def test_pool_does_not_replay_finished_episodes(reference: tuple[Path, dict[str, Any]], server: Any) -> None:
    folder, ledger = reference
    files = {f: f.stat().st_mtime_ns for f in (folder / "outcomes").rglob("*.parquet")}
    heard, again = score(folder, server, 1)
    assert heard.scores[0].complete
    assert again == ledger
    assert {f: f.stat().st_mtime_ns for f in (folder / "outcomes").rglob("*.parquet")} == files


@pytest.mark.full
def test_pool_reports_an_episode_that_always_fails_as_an_error(server: Any, tmp_path: Path) -> None:
    """The one episode that cannot be played is named; the others count, and the score is partial."""
    heard, ledger = score(tmp_path, server, 2, policy="cursed")
    result = heard.scores[0]
    assert (result.errors, result.episodes, result.complete) == (1, 3, False)
    assert "PARTIAL" in str(result)
    error = next(outcome for outcome in heard.outcomes if outcome.result == "error")
    assert error.spec == CURSED
    assert (
        "the policy did not answer: RuntimeError: this policy is broken (given up after 3 attempts)"
        in error.message
    )
    assert CURSED.episode_id not in ledger, "an error must be tried again by the next run"
    assert heard.pool.usage.replaced == {}, "no simulator failed"
    why = "the policy did not answer: RuntimeError: this policy is broken"
    assert heard.retries == 2 * [("episode", f"{CURSED.episode_id} of arm after 1 steps", why)]


@pytest.mark.full
def test_pool_with_another_driver_refuses_to_score(
    reference: tuple[Path, dict[str, Any]], server: Any, tmp_path: Path
) -> None:
    """The reference was made with another driver, whose pictures differ."""
    genuine = RenderReferences(open_storage(str(reference[0])), "simulation").get(Scene("Lift", CONTRACT))
    assert genuine
    RenderReferences(open_storage(str(tmp_path)), "simulation").put(
        Scene("Lift", CONTRACT), replace(genuine, driver="egl: another GPU", pixels="0")
    )
    heard, ledger = score(tmp_path, server, 1, suite=Suite(("Lift",), 1, EpisodeRules(24)))
    assert ledger == {}
    message = heard.outcomes[0].message
    assert message.startswith(
        f"refused to score, driver: this worker draws with {genuine.driver}, the reference with egl:"
        " another GPU"
    )


@pytest.mark.full
def test_mixed_drivers_are_compared_with_their_own_reference(
    reference: tuple[Path, dict[str, Any]], server: Any, tmp_path: Path
) -> None:
    genuine = RenderReferences(open_storage(str(reference[0])), "simulation").get(Scene("Lift", CONTRACT))
    assert genuine
    other, scene = replace(genuine, driver="egl: another GPU", pixels="0"), Scene("Lift", CONTRACT)
    portraits = RenderReferences(open_storage(str(tmp_path)), "simulation", mixed=True)
    assert other.difference(portraits.put(scene, other)) == ""
    _, ledger = score(tmp_path, server, 1, suite=Suite(("Lift",), 1, EpisodeRules(24)), mixed=True)
    assert len(ledger) == 1, "a driver of its own is no reason to refuse"
    for driver in (genuine, other):
        assert driver.difference(portraits.put(scene, driver)) == ""
        spoiled = replace(driver, pixels="1")
        assert spoiled.difference(portraits.put(scene, spoiled)).startswith("contamination")
    moved = replace(genuine, driver="egl: a third", physics="0")
    assert moved.difference(portraits.put(scene, moved)).startswith("physics"), (
        "physics does not depend on the driver"
    )


def test_mixed_processors_may_differ_in_rounding_alone(tmp_path: Path) -> None:
    scene, storage = Scene("Lift", CONTRACT), open_storage(str(tmp_path))
    epyc = RenderFingerprint(
        "robosuite 1", "egl: llvmpipe", "an EPYC", "aa", "bb", (0.1, -0.2), tuple(range(64))
    )
    xeon = replace(epyc, processor="a Xeon", physics="cc", pixels="dd", state=(0.1 + 1e-12, -0.2))
    one = RenderReferences(storage, "one")
    assert xeon.difference(one.put(scene, epyc)).startswith("physics"), "the default refuses it"
    mixed = RenderReferences(storage, "mixed", processors=True)
    assert mixed.get(scene) is None, "a worker that built another scene must not set a reference"
    for portrait in (epyc, xeon, epyc, xeon):
        assert portrait.difference(mixed.put(scene, portrait)) == ""
    for broken, refusal in (
        (replace(xeon, state=(0.1 + 1e-3, -0.2)), "physics"),
        (replace(xeon, blocks=(9.0, *xeon.blocks[1:]), physics="aa"), "contamination"),
        (replace(xeon, pixels="ee"), "contamination"),
        (replace(xeon, physics="ee"), "physics"),
        (replace(epyc, physics="ee"), "physics"),
        (replace(epyc, processor="a third", simulator="robosuite 2"), "version"),
    ):
        assert broken.difference(mixed.put(scene, broken)).startswith(refusal), (broken, refusal)
    third = replace(epyc, processor="a third", driver="egl: a GPU", pixels="ff", blocks=(99.0,) * 64)
    assert third.difference(mixed.put(scene, third)).startswith("driver")
    both = RenderReferences(storage, "both", mixed=True, processors=True)
    assert epyc.difference(both.put(scene, epyc)) == ""
    assert third.difference(both.put(scene, third)) == ""
    assert RenderFingerprint.from_json(json.loads(json.dumps(asdict(xeon)))) == xeon


def test_render_fingerprint_difference_names_what_differs() -> None:
    mine = RenderFingerprint("robosuite 1, mujoco 2", "egl: llvmpipe", "a processor", "aa", "bb")
    assert mine.difference(mine) == ""
    assert mine.difference(replace(mine, processor="another")) == "", "equal results are equal"
    assert mine.difference(replace(mine, driver="another")) == ""
    assert mine.difference(replace(mine, simulator="robosuite 3")).startswith(
        "version: this worker simulates with robosuite 1, mujoco 2"
    )
    assert mine.difference(replace(mine, physics="cc", processor="another")).endswith(
        "runs on a processor, the reference on another"
    )
    assert mine.difference(replace(mine, pixels="cc")).startswith("contamination: the pictures differ")


@pytest.mark.full
def test_pool_film_is_a_replay_of_the_recorded_episode(server: Any, tmp_path: Path) -> None:
    import av

    heard, ledger = score(tmp_path, server, 2, films=True)
    assert list(heard.films) == ["Lift-1000000-1000000"], "the first failure; there is no success"
    (path,) = [*(tmp_path / "outcomes").rglob("*.mp4")]
    with av.open(str(path)) as film:
        assert sum(1 for _ in film.decode(video=0)) == 1 + ledger["Lift-1000000-1000000"]["steps"] // 2
    heard, _ = score(tmp_path, server, 1, films=True)
    assert heard.films == {}, "what is filmed is not filmed again"


@pytest.mark.full
def test_pool_resized_while_it_plays_has_the_same_outcomes(
    reference: tuple[Path, dict[str, Any]], server: Any
) -> None:
    from sim_workers.rollout.pool import RolloutPool
    from sim_workers.rollout.ray_policy_client import RayServedPolicy
    from sim_workers.rollout.worker import RolloutJob

    pool = RolloutPool(2, num_cpus=0.1)
    outcomes: dict[str, Outcome] = {}
    for spec in SUITE.episode_list():
        pool.submit(RolloutJob(spec, SUITE.rules, CONTRACT, RayServedPolicy((server,), "slow")))
    for _, outcome, _ in pool.results():
        outcomes[outcome.spec.episode_id] = outcome
        pool.resize(1 if len(outcomes) < 3 else 2)
    assert len(outcomes) == 4
    assert pool.num_workers == 2
    assert {episode: outcome.steps for episode, outcome in outcomes.items()} == {
        e: o["steps"] for e, o in reference[1].items()
    }
    pool.close()


@pytest.mark.full
def test_pool_replaces_a_worker_after_its_number_of_episodes(
    reference: tuple[Path, dict[str, Any]], server: Any
) -> None:
    from sim_workers.rollout.pool import RolloutPool
    from sim_workers.rollout.ray_policy_client import RayServedPolicy
    from sim_workers.rollout.worker import RolloutJob

    pool = RolloutPool(1, num_cpus=0.1, episodes_per_process=2)
    for spec in SUITE.episode_list():
        pool.submit(RolloutJob(spec, SUITE.rules, CONTRACT, RayServedPolicy((server,), "wanderer")))
    steps = {outcome.spec.episode_id: outcome.steps for _, outcome, _ in pool.results()}
    assert pool.usage.replaced == {"worn": 2}
    assert steps == {episode: outcome["steps"] for episode, outcome in reference[1].items()}
    pool.close()


def test_check_contract_refuses_other_conventions() -> None:
    check_contract(CONTRACT, ["Lift", "Door"])
    with pytest.raises(
        ProtocolError,
        match=r"simulator: the policy was trained with robosuite 1\.4, here it is robosuite 1\.5",
    ):
        check_contract(replace(CONTRACT, simulator="robosuite 1.4"), ["Lift"])
    with pytest.raises(ProtocolError, match=r"cannot be scored on TwoArmLift here\. proprioception layout"):
        check_contract(CONTRACT, ["Lift", "TwoArmLift"])


def test_score_text_shows_the_denominator() -> None:
    spec = EpisodeSpec("Lift", 1, 1)
    outcomes = tuple(
        Outcome(spec, result, 1, 1, 0, 0) for result in ("success", "success", "failure", "error")
    )  # type: ignore[arg-type]
    text = str(Score.of(outcomes, 4))
    assert text.startswith("2/3 = 0.67 [")
    assert "1 errors" in text
    assert json.dumps(outcomes[3].to_json())


def test_pool_module_imports_no_torch() -> None:
    from conftest import run

    done = run(
        "-c",
        "import sys, sim_workers.rollout.pool; print([m for m in ('torch', 'diffusers', 'mlflow',"
        " 'robosuite') if m in sys.modules])",
    )
    assert done.stdout.strip() == "[]"
