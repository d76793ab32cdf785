"""The fakes of `orchestrator.testing` have the interfaces that they replace."""

import doctest
import inspect
import pickle
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run

import orchestrator.testing
from imported_packages import HEAVY
from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.config.arms import Arm
from orchestrator.data.episode_store import load_manifest
from orchestrator.evaluation.policy_server import PolicyServer
from orchestrator.storage.base import open_storage
from orchestrator.testing import processes
from orchestrator.testing.checkpoints import TINY, make_checkpoint, make_observation
from orchestrator.testing.episodes import CAMERA, CONTRACT, make_episode, make_episode_store
from orchestrator.testing.fake_policy_server import FakePolicyServer, PolicyServerWithoutCheckpoints
from orchestrator.testing.fake_trainer import FakeTrainer
from orchestrator.testing.outcomes import (
    FakePolicy,
    make_error,
    make_outcome,
    simulated_outcome,
    stand_still,
    success_rate,
)
from orchestrator.testing.rollout_pool import FakeRolloutPool
from orchestrator.testing.servo import cameras, servo
from policy.checkpoint import fingerprint
from policy.inference import TrainedPolicy
from policy.interface import ActionChunk, Observation
from sim_workers.rollout.pool import RolloutPool
from sim_workers.rollout.suite import EpisodeRules, Suite
from sim_workers.rollout.worker import RolloutJob

SUITE = Suite(("Lift",), 4, EpisodeRules(50))
POLICY = FakePolicy(CheckpointRef("runs/arms/a/step_000010"), (("a", Arm(60, 0.0, 0)),), 10)
JOBS = [RolloutJob(spec, SUITE.rules, CONTRACT, POLICY, key="a") for spec in sorted(SUITE.episode_list())]


def public(kind: type) -> dict[str, Any]:
    """Return public methods and properties by name."""
    found = {name: value for name, value in inspect.getmembers(kind) if not name.startswith("_")}
    return {
        name: value
        for name, value in found.items()
        if inspect.isfunction(value) or isinstance(value, property)
    }


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    """Return name, default and kind of every parameter, without the one that Ray adds to the methods of an
    actor class.
    """
    every = inspect.signature(function).parameters.values()
    return [(one.name, one.default, one.kind) for one in every if one.name != "_ray_trace_ctx"]


def assert_same_calls(real: type, fake: type) -> None:
    for name, function in public(real).items():
        ours = public(fake)[name]
        assert isinstance(function, property) == isinstance(ours, property), name
        if not isinstance(function, property):
            assert parameters(ours) == parameters(function), name
            assert (
                inspect.signature(ours).return_annotation == inspect.signature(function).return_annotation
            ), name


# -- the interfaces ------------------------------------------------------------------------------------------


def test_fake_pool_has_every_call_of_the_real_pool() -> None:
    assert_same_calls(RolloutPool, FakeRolloutPool)
    pool, source = FakeRolloutPool(simulated_outcome), inspect.getsource(RolloutPool.__init__)
    for name in ("num_workers", "most_workers", "references", "usage", "on_retry"):
        assert name == "num_workers" or f"self.{name}" in source, f"RolloutPool has no {name}"
        assert hasattr(pool, name)


def test_fake_policy_server_has_every_call_of_the_real_server() -> None:
    assert_same_calls(PolicyServer, FakePolicyServer)


def test_fake_trainer_takes_the_arguments_of_fit() -> None:
    from orchestrator.training.ray_train import fit

    assert parameters(FakeTrainer(0.0)) == parameters(fit)
    assert (
        inspect.signature(FakeTrainer.__call__).return_annotation == inspect.signature(fit).return_annotation
    )


def test_testing_package_imports_no_heavy_package() -> None:
    code = (
        "import sys, orchestrator.testing.rollout_pool, orchestrator.testing.episodes,"
        " orchestrator.testing.outcomes; print(*sys.modules)"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert "orchestrator.testing.rollout_pool" in done.stdout.split()
    assert not HEAVY & set(done.stdout.split())


def test_testing_docstring_lists_every_module_and_its_example_runs() -> None:
    (folder,) = orchestrator.testing.__path__
    modules = {file.name for file in Path(folder).glob("*.py")} - {"__init__.py", "__main__.py"}
    assert {
        line.split()[0]
        for line in (orchestrator.testing.__doc__ or "").splitlines()
        if line.startswith("    ") and ".py " in line
    } == modules
    assert doctest.testmod(orchestrator.testing) == (0, 11)


# -- the pool ------------------------------------------------------------------------------------------------


def test_fake_pool_with_an_order_ends_jobs_by_it_and_withdraws_by_key() -> None:
    pool = FakeRolloutPool(lambda job: make_outcome(job.spec), order=lambda job: -job.spec.scene_seed)
    for job in JOBS:
        pool.submit(job)
    assert [job for job, _, _ in pool.results()] == JOBS[::-1]
    pool.submit(JOBS[0])
    assert pool.withdraw("b") == []
    assert (pool.waiting, pool.unfinished) == (1, 1)
    assert pool.withdraw("a") == JOBS[:1]
    assert pool.unfinished == 0


def test_fake_pool_paused_plays_released_episodes_and_all_once_resumed() -> None:
    pool = FakeRolloutPool(lambda job: make_outcome(job.spec), paused=True)
    for job in JOBS:
        pool.submit(job)
    assert [*pool.results()] == []
    pool.release(2)
    assert [len([*pool.results()]) for _ in range(3)] == [1, 1, 0]
    pool.resume()
    assert len([*pool.results()]) == 2
    assert pool.played == JOBS


def test_fake_pool_release_while_results_waits_ends_an_episode() -> None:
    pool, ended = FakeRolloutPool(lambda job: make_outcome(job.spec), paused=True), []
    pool.submit(JOBS[0])

    def collect() -> None:
        while not ended:
            ended.extend(pool.results())

    thread = threading.Thread(target=collect)
    thread.start()
    time.sleep(0.1)
    assert not ended
    pool.release()
    thread.join(10)
    assert len(ended) == 1


# -- outcomes and policies -----------------------------------------------------------------------------------


def test_fake_success_rate_rises_with_demos_video_and_steps() -> None:
    for worse, better in (
        ((8, 0, 5, 10), (16, 0, 5, 10)),
        ((8, 0, 5, 10), (8, 1, 5, 10)),
        ((8, 0, 5, 10), (8, 0, 10, 10)),
    ):
        assert 0 < success_rate(*worse) < success_rate(*better) < 0.95


def test_simulated_outcomes_have_the_rate_and_are_nested() -> None:
    specs = Suite(("Lift",), 2000, EpisodeRules(50)).episode_list()
    weak = FakePolicy(CheckpointRef("arms/a/step_000005"), POLICY.arms, 10)
    wins = []
    for policy in (weak, POLICY):
        outcomes = [simulated_outcome(RolloutJob(spec, SUITE.rules, CONTRACT, policy)) for spec in specs]
        wins.append({outcome.spec for outcome in outcomes if outcome.result == "success"})
        assert len(wins[-1]) / 2000 == pytest.approx(policy.rate(), abs=0.04)
    assert wins[0] < wins[1]


def test_fake_policy_finds_its_arm_by_the_checkpoint() -> None:
    named = FakePolicy(replace(POLICY.checkpoint, fingerprint="0123456789abcdef"), POLICY.arms, 10)
    assert named.rate() == POLICY.rate() == success_rate(60, 0.0, 10, 10)
    assert not named.connect().act(make_observation(0)).actions.any()


def test_made_outcomes_are_consistent() -> None:
    won, lost, broken = (
        make_outcome(SUITE.episode_list()[0]),
        make_outcome(SUITE.episode_list()[0], won=False),
        make_error(SUITE.episode_list()[0]),
    )
    assert (won.result, won.success_once, won.success_at_end) == ("success", True, True)
    assert (lost.result, lost.success_once, lost.success_at_end) == ("failure", False, False)
    assert (broken.result, broken.steps) == ("error", 0)
    assert won.first_success is not None
    assert won.first_success <= won.steps


def test_fake_policy_server_answers_by_checkpoint_and_is_picklable() -> None:
    def go(observation: Observation) -> ActionChunk:
        return ActionChunk(np.ones((1, 7), np.float32), 1)

    server = FakePolicyServer(stand_still, {"b": go})
    assert not server.act("a", make_observation(0)).actions.any()
    assert server.act("b", make_observation(0)).actions.all()
    assert pickle.loads(pickle.dumps(FakePolicyServer(servo)))._policy is servo
    assert server.answered().rows == 0


def test_policy_server_without_checkpoints_answers_through_the_real_queue() -> None:
    import asyncio

    async def ask() -> tuple[ActionChunk, object, int]:
        server = PolicyServerWithoutCheckpoints(1, "cpu")
        chunk = await server.act(CheckpointRef("any"), make_observation(0))
        return (
            chunk,
            await server.imagine(CheckpointRef("any"), make_observation(0)),
            (await server.answered(CheckpointRef("any"))).rows,
        )

    chunk, imagined, rows = asyncio.run(ask())
    assert not chunk.actions.any()
    assert imagined is None
    assert rows == 1


def test_servo_approaches_a_red_cube_and_lifts_without_one() -> None:
    images = {CAMERA: np.zeros((128, 128, 3), np.uint8)}
    above = Observation(images, np.array([0, 0, 1, 0, 0, 0, 0, 0, 0], np.float32), "lift the red cube", 0)
    assert servo(above).actions[-1, 2] > 0
    images[CAMERA][80:90, 60:70, 0] = 200
    assert servo(above).actions[0, 2] < 0
    assert cameras("fast").image_size == (128, 128)


# -- data ----------------------------------------------------------------------------------------------------


def test_make_episode_store_has_the_requested_episodes(tmp_path: Path) -> None:
    manifest = load_manifest(open_storage(make_episode_store(tmp_path, 3, length=4, size=32)))
    assert [entry.episode_id for entry in manifest.entries] == ["Lift-000000", "Lift-000001", "Lift-000002"]
    assert {entry.length for entry in manifest.entries} == {4}
    assert manifest.contract.image_size == (32, 32)
    assert np.array_equal(make_episode(1).frames[CAMERA], make_episode(1).frames[CAMERA])


def test_make_checkpoint_is_deterministic_and_acts(tmp_path: Path) -> None:
    one, other = make_checkpoint(tmp_path / "one"), make_checkpoint(tmp_path / "other")
    assert fingerprint(one) == fingerprint(other)
    (chunk,) = TrainedPolicy(one).act([make_observation(0)])
    assert chunk.actions.shape == (TINY.clip.horizon, 7)
    with pytest.raises(FileExistsError):
        make_checkpoint(tmp_path / "one")


def test_titled_processes_finds_a_process_by_title() -> None:
    import subprocess
    import sys

    process = subprocess.Popen(
        [sys.executable, "-c", "input()", "a-title-of-this-test"], stdin=subprocess.PIPE
    )
    try:
        assert [one.pid for one in processes.titled_processes("a-title-of-this-test")] == [process.pid]
    finally:
        process.communicate(b"\n")
