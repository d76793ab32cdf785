"""`demoscale score` with a model from MLflow, and runs that are stopped, killed and continued."""

import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import run

from begun_command import BegunCommand, begin
from orchestrator.config.arms import Arm
from orchestrator.evaluation.outcome_ledger import SCHEMA, RenderReferences
from orchestrator.evaluation.policy_ref import PolicyRef
from orchestrator.evaluation.standalone import Simulators, StandaloneEval
from orchestrator.storage.base import open_storage
from orchestrator.testing.checkpoints import make_checkpoint
from orchestrator.testing.episodes import CONTRACT
from orchestrator.testing.outcomes import make_error, make_outcome
from orchestrator.testing.rollout_pool import FakeRolloutPool
from orchestrator.tracking.mlflow_reader import logged_checkpoint
from orchestrator.tracking.mlflow_writer import MlflowWriter, client
from policy.checkpoint import fingerprint
from score_cli import score
from sim_workers.checkout import Files
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.policy_clients import InProcessPolicy
from sim_workers.rollout.suite import EpisodeRules, Suite
from sim_workers.rollout.worker import RolloutJob

# -- a model in MLflow ---------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "checkpoint")


@pytest.fixture
def logged(checkpoint: Path, tmp_path: Path) -> tuple[str, str]:
    """Return a tracking database that holds the checkpoint as a sweep's, and the id of its logged model."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracker = MlflowWriter(
        uri, "tiny", training="t", protocol="p", steps=3, artifacts=str(tmp_path / "artifacts")
    )
    tracker.arm("demos-1_ratio-0_seed-0_12345678", Arm(1, 0.0, 0), {})
    tracker.checkpoint("demos-1_ratio-0_seed-0_12345678", 3, fingerprint(checkpoint), str(checkpoint))
    experiment = client(uri).get_run(tracker.parent).info.experiment_id
    (model,) = client(uri).search_logged_models([experiment])
    return uri, model.model_id


def test_score_of_a_logged_model_with_other_weights_is_refused(
    checkpoint: Path, logged: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, model = logged
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # MLflow's registry looks for the model there
    options = ("--mlflow", uri, "--storage", str(tmp_path / "runs"))
    unknown = score(f"models:/m-{'0' * 32}", *options)
    assert (unknown.exit_code, unknown.stderr.count("\n")) == (1, 1)
    assert (
        f"there is no logged model m-{'0' * 32} here; name another, or the place with --mlflow"
        in unknown.stderr
    )
    assert "there is no registered model lift/3 here" in score("models:/lift/3", *options).stderr
    assert "three is no version; write models:/lift/1" in score("models:/lift/three", *options).stderr
    mlflow = client(uri)
    mlflow.create_registered_model("lift")
    mlflow.create_model_version("lift", f"models:/{model}", model_id=model)
    mlflow.set_registered_model_alias("lift", "champion", "1")
    for registered in ("models:/lift/1", "models:/lift/latest", "models:/lift@champion"):
        assert logged_checkpoint(uri, registered) == (str(checkpoint), fingerprint(checkpoint))
    weights = bytearray((checkpoint / "heads.safetensors").read_bytes())
    weights[-1] ^= 1
    (checkpoint / "heads.safetensors").write_bytes(weights)
    done = score(model, *options)
    assert done.exit_code == 1
    assert done.stderr.startswith(
        f"{checkpoint}: not the checkpoint that {model} names: it was logged with the fingerprint "
    )


@pytest.mark.stress
@pytest.mark.ray
@pytest.mark.sim
def test_score_of_a_logged_model_is_known_by_its_weights(
    checkpoint: Path, logged: tuple[str, str], tmp_path: Path
) -> None:
    uri, model = logged
    file, storage = tmp_path / "suite.yaml", tmp_path / "runs"
    file.write_text("suite: {tasks: [Lift], episodes: 2, horizon: 12, shifts: [lighting]}\n")
    command = ["-m", "orchestrator", "score", f"models:/{model}", "--mlflow", uri, "--suite", str(file)]
    done = run(*command, "--storage", str(storage), "--json", timeout=400)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["fingerprint"] == fingerprint(checkpoint)
    assert told["episodes_played"] == 4
    assert [(one["of"], one["errors"], one["complete"]) for one in told["scores"]] == [
        ("Lift, nominal", 0, True),
        ("Lift, lighting", 0, True),
    ]
    again = score(checkpoint, "--suite", file, "--storage", storage)
    assert again.exit_code == 0, again.output
    assert "nothing to play" in again.stdout


# -- continued runs ------------------------------------------------------------------------------------------


def one_worker(play: Callable[[RolloutJob], Outcome]) -> FakeRolloutPool:
    """Return a pool that plays one episode for each that the test releases."""
    return FakeRolloutPool(play, num_workers=1, paused=True)


@pytest.fixture
def scoring(tmp_path: Path) -> Callable[[FakeRolloutPool], StandaloneEval]:
    """Return a function from a pool to the evaluation of the policy `mine` on four nominal episodes and four
    under the lighting shift.
    """
    subject = PolicyRef("mine", CONTRACT, "mine", None, lambda workers: InProcessPolicy(lambda: None))  # type: ignore[arg-type, return-value]
    suites = [Suite(("Lift",), 4, EpisodeRules(10), shift=shift) for shift in ("nominal", "lighting")]

    def make(pool: FakeRolloutPool) -> StandaloneEval:
        def make_pool(simulators: Simulators, gl: str, portraits: RenderReferences, code: Files) -> Any:
            assert (simulators, gl) == (Simulators(2, 1.0), "egl"), "a simulator per CPU"
            return pool

        return StandaloneEval(
            subject, suites, "egl", None, open_storage(str(tmp_path)), cpus=lambda: 2.0, make_pool=make_pool
        )

    return make


def test_simulators_default_to_one_per_core() -> None:
    assert Simulators.fit(4.0) == Simulators(4, 1.0)
    assert Simulators.fit(0.5) == Simulators(1, 0.25)


def test_simulators_up_to_the_cores_have_one_core_each() -> None:
    assert Simulators.fit(4.0, 3) == Simulators(3, 1.0)


def test_simulators_beyond_the_cores_claim_half_of_their_share() -> None:
    shared = Simulators.fit(4.0, 6)
    assert shared == Simulators(6, 0.33)
    assert shared.number * shared.cpus <= 4.0 / 2


def test_standalone_eval_interrupted_is_continued_by_the_next_run(
    scoring: Callable[[FakeRolloutPool], StandaloneEval],
) -> None:
    pool = one_worker(lambda job: make_outcome(job.spec))
    one = scoring(pool)

    def on_progress(more: int) -> None:
        one.interrupted = one.played == 2

    pool.release(2)
    one.play(None, on_progress)
    assert [(of, score.episodes, score.complete) for of, score in one.lines()] == [
        ("Lift, nominal", 2, False),
        ("Lift, lighting", 0, False),
    ]
    pool = one_worker(lambda job: make_outcome(job.spec))
    pool.release(6)
    other = scoring(pool)
    assert (other.counted, other.listed) == (2, 8)
    other.play(None, lambda more: None)
    assert len(pool.played) == other.played == 6
    assert other.complete
    assert scoring(pool).complete


def test_standalone_eval_error_is_reported_not_counted_and_retried(
    scoring: Callable[[FakeRolloutPool], StandaloneEval], tmp_path: Path
) -> None:
    """The saved file has the ledger's columns, although first_success is null in every row."""
    pool = one_worker(lambda job: make_error(job.spec, "the GPU fell off the bus"))
    pool.release(8)
    broken = scoring(pool)
    broken.play(None, lambda more: None)
    assert broken.causes == ["the GPU fell off the bus"]
    assert [str(score) for _, score in broken.lines()] == [
        "0/0 = nan [0.00, 1.00], 4 errors (PARTIAL: 4 listed)"
    ] * 2
    assert {told["success_rate"] for told in broken.to_json()["scores"]} == {None}
    broken.save(tmp_path / "saved.parquet")
    saved = pq.read_table(tmp_path / "saved.parquet")
    assert saved.schema.equals(SCHEMA)
    assert saved["first_success"].null_count == saved.num_rows == 8
    pool = one_worker(lambda job: make_outcome(job.spec))
    pool.release(8)
    again = scoring(pool)
    assert again.counted == 0
    again.play(None, lambda more: None)
    assert [score.successes for _, score in again.lines()] == [4, 4]


# -- stopped and killed --------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.sim
def test_score_command_stopped_and_killed_plays_every_episode_once(tmp_path: Path) -> None:
    """Ctrl-C in the middle, then kill -9 in the middle of the rest, then to the end; a later run starts
    nothing.
    """
    command = ["-m", "orchestrator", "score", "examples.waypoints:make", "--fingerprint", "waypoints"]
    command += ["--storage", str(tmp_path)]
    command += ["--episodes", "30", "--horizon", "70", "--settle", "0", "--workers", "2"]

    def recorded() -> list[str]:
        parts = tmp_path.glob("outcomes/waypoints/*/*.parquet")
        return [episode for part in parts for episode in pq.read_table(part)["episode"].to_pylist()]

    def begun(name: str, more: int) -> BegunCommand:
        """Start the command and return it once so many more episodes are recorded."""
        enough = len(recorded()) + more
        return begin(command, tmp_path / name, ready=lambda: len(recorded()) >= enough)

    stopped = begun("stopped", 2)
    stopped.process.send_signal(signal.SIGINT)
    assert stopped.process.wait(timeout=120) == 130, stopped.stderr
    assert "stopped; run the same command to resume" in stopped.stderr
    assert f"/{len(recorded())} = " in stopped.stdout, "what was finished is counted"
    assert "(PARTIAL: 30 listed)" in stopped.stdout
    begun("killed", 2).kill()
    known = len(recorded())
    assert 4 <= known < 30, "stopped too late to test anything"

    done = run(*command, "--json", timeout=400)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["episodes_played"] == 30 - known
    assert f"30 episodes, {known} of them are in {tmp_path} already" in done.stderr
    assert [*Counter(recorded()).values()] == [1] * 30
    (sealed,) = tmp_path.glob("outcomes/waypoints/*.parquet")
    assert pq.read_table(sealed).schema.equals(SCHEMA)
    again = run(*command, "--json", env={**os.environ, "RAY_ADDRESS": "nowhere:1"})
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["scores"] == json.loads(done.stdout)["scores"]
