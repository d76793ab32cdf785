"""A checkout edited during a run: processes that imported other code than the driver refuse, and no arm fails
because of it.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from functools import partial
from pathlib import Path

import pytest

from installed_package import install, on_path
from learner_package import install_linear
from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.cli.new_task import files
from orchestrator.code_fingerprint import run_files
from orchestrator.config.arms import Arm
from orchestrator.config.schema import Train
from orchestrator.evaluation.policy_server import PolicyServer
from orchestrator.evaluation.score_events import OutcomesRecorded, ScorerEvent
from orchestrator.evaluation.scorer import Scorer
from orchestrator.evaluation.scores import EvalJob
from orchestrator.infrastructure import cause_in, cause_of
from orchestrator.storage.base import open_storage
from orchestrator.testing.checkpoints import make_checkpoint, make_observation
from orchestrator.testing.episodes import CONTRACT, make_episode_store
from orchestrator.testing.outcomes import FakePolicy
from orchestrator.testing.rollout_pool import FakeRolloutPool
from orchestrator.training import loop
from orchestrator.training.loop import TrainJob
from orchestrator.training.ray_train import _raise_permanent
from policy.entry_points import TASKS
from policy.interface import Contract
from policy.presets import PRESETS, learner_config
from selected_episodes import selected
from sim_workers.checkout import CHECKOUT, PACKAGES, CodeChangedError, Files, check_imported, file_hashes
from sim_workers.envs.registry import contract_of
from sim_workers.rollout.policy_clients import InProcessPolicy
from sim_workers.rollout.suite import EpisodeRules, EpisodeSpec, Suite
from sim_workers.rollout.worker import Outdated, RolloutJob, RolloutWorker, Unanswered

SENTENCE = (
    "the checkout was edited while the run was in progress (sim_workers/rollout/worker.py); start the same"
    " command again"
)
EDITED = file_hashes() | {"sim_workers/rollout/worker.py": "another"}
SUITE = Suite(("Lift",), 1, EpisodeRules(5))


def test_check_imported_compares_imported_files_only() -> None:
    check_imported(file_hashes())
    check_imported(None)
    check_imported(file_hashes() | {"orchestrator/nowhere.py": "a file that is not imported"})
    with pytest.raises(CodeChangedError) as caught:
        check_imported(EDITED)
    assert str(caught.value) == SENTENCE


def test_check_imported_refuses_a_file_unknown_to_the_driver() -> None:
    known = {file: told for file, told in file_hashes().items() if file != "sim_workers/rollout/worker.py"}
    with pytest.raises(CodeChangedError, match=r"sim_workers/rollout/worker\.py"):
        check_imported(known)


def test_check_imported_in_another_checkout_compares_contents(
    tmp_path: Path,
) -> None:
    for package in PACKAGES:
        shutil.copytree(
            CHECKOUT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "pretrained")
        )
    program = (
        "import sys, json; from sim_workers.checkout import *; import sim_workers.envs.tasks;"
        " check_imported(json.loads(sys.argv[1])); print('same')"
    )

    def process() -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-c", program, json.dumps(file_hashes())]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert process().stdout == "same\n", "a submitted job runs a copy of the checkout"
    tasks = tmp_path / "sim_workers/envs/tasks.py"
    tasks.write_text(tasks.read_text().replace("lift the red cube", "LIFT THE RED CUBE"))
    assert "in progress (sim_workers/envs/tasks.py); start" in process().stderr


def test_check_imported_takes_less_than_a_tenth_of_a_second() -> None:
    """The quickest of five counts, since other work slows the machine."""

    def seconds() -> float:
        file_hashes.cache_clear()
        began = time.process_time()
        check_imported(file_hashes())
        return time.process_time() - began

    assert min(seconds() for _ in range(5)) < 0.1


PACKAGE_EDITED = (
    "an installed package was edited while the run was in progress, or is another version on this node ({});"
    " install one version on every node and start the same command again"
)


def test_policy_of_an_edited_package_neither_trains_nor_acts(tmp_path: Path) -> None:
    """The driver read the package before the edit; the other processes import it afterwards."""
    config, arm, reports = learner_config("tiny", "linear", {}), Arm(3, 0.0, 0), list[int]()
    store = make_episode_store(tmp_path / "store", 8)
    settings = Train(steps=1, batch_size=2, checkpoint_every=1, warmup_steps=0)
    begin = partial(TrainJob, arm, "a", store, 1, selected(store, arm), config, settings, "action", "none")

    def train(code: Files) -> None:
        loop.train(begin(code=code), 0, 1, None, lambda event, _: reports.append(event.step))

    def act(code: Files) -> None:
        place = CheckpointRef(str(tmp_path / "checkpoint"))
        asyncio.run(PolicyServer(1, "cpu", code=code).act(place, make_observation(0)))

    with on_path(tmp_path / "site") as site:
        install_linear(site)
        make_checkpoint(tmp_path / "checkpoint", config=config)
        read = run_files(learners=["linear", ""])
        assert {*read} == {*file_hashes(), "linear_policy.py"}
        edited = {**read, "linear_policy.py": "another"}
        for use in (train, act):
            with pytest.raises(CodeChangedError) as caught:
                use(edited)
            assert str(caught.value) == PACKAGE_EDITED.format("linear_policy.py")
            assert cause_in("".join(traceback.format_exception(caught.value))) == str(caught.value)
        assert not reports
        train(read)
        act(read)
        assert reports == [1]


def test_task_of_an_edited_package_is_not_played(tmp_path: Path) -> None:
    with on_path(tmp_path / "site") as site:
        install(site, "dots", files("dots"), {TASKS.name: {"dots/Reach": "dots.reach:REACH"}})
        code = run_files(["dots/Reach", "Lift"])
        assert {"dots/__init__.py", "dots/reach.py"} <= {*code}
        spec, contract = (
            EpisodeSpec("dots/Reach", 1, 1),
            contract_of("dots/Reach", ("top",), (32, 32), "fast"),
        )
        job = RolloutJob(spec, SUITE.rules, contract, InProcessPolicy(raise_if_connected))  # type: ignore[arg-type]
        said = [*RolloutWorker(code={**code, "dots/reach.py": "another"}).play(job)]
        assert said[-1] == Outdated(PACKAGE_EDITED.format("dots/reach.py"))
        *_, last = RolloutWorker(code=code).play(job)
        assert isinstance(last, Unanswered), "it got as far as its policy"


def raise_if_connected() -> object:
    raise AssertionError("a policy was asked for")


def test_rollout_worker_with_edited_code_is_outdated() -> None:
    job = RolloutJob(SUITE.episode_list()[0], SUITE.rules, CONTRACT, InProcessPolicy(raise_if_connected))  # type: ignore[arg-type]
    assert [*RolloutWorker(code=EDITED).play(job)] == [Outdated(SENTENCE)]


def test_policy_server_with_edited_code_raises(tmp_path: Path) -> None:
    place = str(make_checkpoint(tmp_path / "checkpoint"))
    chunk = asyncio.run(
        PolicyServer(1, "cpu", code=file_hashes()).act(CheckpointRef(place), make_observation(0))
    )
    assert len(chunk.actions)
    with pytest.raises(CodeChangedError):
        asyncio.run(PolicyServer(1, "cpu", code=EDITED).act(CheckpointRef(place), make_observation(0)))


def test_train_with_edited_code_raises_before_the_first_step(tmp_path: Path) -> None:
    store, settings = (
        make_episode_store(tmp_path / "store", 8),
        Train(steps=1, batch_size=2, checkpoint_every=1, warmup_steps=0),
    )
    arm = Arm(3, 1.0, 0)
    begin = partial(
        TrainJob, arm, "a", store, 1, selected(store, arm), PRESETS["tiny"], settings, "joint", "none"
    )
    reports = list[int]()
    with pytest.raises(CodeChangedError):
        loop.train(begin(code=EDITED), 0, 1, None, lambda event, _: reports.append(event.step))
    assert not reports
    loop.train(begin(code=file_hashes()), 0, 1, None, lambda event, _: reports.append(event.step))
    assert reports == [1]


def test_code_changed_error_is_infrastructure_and_permanent() -> None:
    with pytest.raises(CodeChangedError) as caught:
        check_imported(EDITED)
    trace = "".join(traceback.format_exception(caught.value))
    assert cause_of(caught.value) == SENTENCE
    assert cause_in(trace) == SENTENCE
    with pytest.raises(CodeChangedError, match="start the same command again"):
        _raise_permanent(trace)


def test_scorer_with_edited_workers_raises_without_an_outcome(tmp_path: Path) -> None:
    def on_event(event: ScorerEvent) -> None:
        assert isinstance(event, OutcomesRecorded)
        assert not event.outcomes

    def play(job: RolloutJob) -> object:
        raise CodeChangedError(SENTENCE)

    contract: Contract = CONTRACT
    storage = open_storage(str(tmp_path))
    scorer = Scorer(storage, contract, FakeRolloutPool(play), on_event)  # type: ignore[arg-type]
    checkpoint = CheckpointRef("uri", "f")
    scorer.submit(EvalJob("a", 1, checkpoint, SUITE, "p", FakePolicy(checkpoint, (), 1)))
    with pytest.raises(CodeChangedError):
        scorer.drain()
    assert not storage.list("outcomes/")


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_rollout_pool_with_edited_workers_raises() -> None:
    from sim_workers.rollout.pool import RolloutPool

    pool = RolloutPool(1, num_cpus=0.1, code=EDITED)
    pool.submit(
        RolloutJob(SUITE.episode_list()[0], SUITE.rules, CONTRACT, FakePolicy(CheckpointRef("uri"), (), 1))
    )
    try:
        with pytest.raises(CodeChangedError, match=r"sim_workers/rollout/worker\.py"):
            list(pool.results())
    finally:
        pool.close()
