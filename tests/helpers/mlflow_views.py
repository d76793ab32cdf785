"""A sweep of four arms whose MLflow runs are read as people read them: one arm failed, the others are scored,
and their checkpoints are real.
"""

from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.evaluation.scores import Score
from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.report.summary import answer
from orchestrator.sweep.state import SweepState
from orchestrator.sweep.tracking_publisher import TrackingPublisher
from orchestrator.testing.checkpoints import make_checkpoint
from orchestrator.tracking.mlflow_reader import logged_checkpoint
from orchestrator.tracking.mlflow_writer import ARM, EXPERIMENT, SWEEP, client, tagged
from policy.checkpoint import fingerprint
from policy.inference import TrainedPolicy
from policy.interface import Observation
from reporting_sweep import EPISODES, make_sweep
from sim_workers.rollout.episode import Outcome

FAILED = "demos-1_ratio-0_seed-1"


def publish(folder: Path, store: str, mlflow: str, wins: int = 2) -> TrackingPublisher:
    """Publish a whole sweep, whose arms win `wins` of 4 episodes; the caller ends the publisher."""
    state = SweepState.open(make_sweep(folder, store, mlflow, name="views", arms=4), pin=True)
    board, publisher, specs = state.board(), TrackingPublisher(state), state.sweep.to_suite().episode_list()
    publisher.start(board.arms)
    for arm_id, arm in board.arms.items():
        if arm.name == FAILED:
            board.record_failure(arm_id, "RuntimeError: the cable is out")
        else:
            place = Path(state.checkpoint_uri(arm_id, 100))
            checkpoint = fingerprint(place if place.exists() else make_checkpoint(place))
            played = [
                Outcome(spec, "success" if i < wins else "failure", 9, 1, 0.1, 0.1)
                for i, spec in enumerate(specs)
            ]
            score = Score.of(played, EPISODES)
            publisher.score(arm_id, 100, checkpoint, "nominal", score, played)
            board.record_score(arm_id, 100, "nominal", score)
        publisher.end_arm(arm_id, arm)
    assert publisher.flush()
    curve = Curve.read(mlflow, "views")
    publisher.curve(curve, "<html></html>", complete=True)
    publisher.end("FAILED")
    return publisher


def runs(mlflow: Any, name: str) -> dict[str, Any]:
    """Return the runs of a sweep by the name of their arm, its own under `-`."""
    experiment = mlflow.get_experiment_by_name(EXPERIMENT)
    found = mlflow.search_runs([experiment.experiment_id], tagged({SWEEP: name}))
    return {run.data.tags[ARM].rpartition("_")[0] or "-": run for run in found}


def check_views(folder: Path, store: str, uri: str) -> None:
    """Publish the sweep twice, resumed the second time, and assert what MLflow's client returns; the variable
    MLFLOW_TRACKING_URI is `uri`.
    """
    for _ in range(2):
        assert publish(folder, store, uri).finish(done=False) == ""
    mlflow, curve = client(uri), Curve.read(uri, "views")
    experiment = mlflow.get_experiment_by_name(EXPERIMENT)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    found = runs(mlflow, "views")
    assert {name: run.info.status for name, run in found.items()} == {
        "-": "FAILED",
        FAILED: "FAILED",
        "demos-1_ratio-0_seed-0": "FINISHED",
        "demos-2_ratio-0_seed-0": "FINISHED",
        "demos-2_ratio-0_seed-1": "FINISHED",
    }
    assert all(run.info.end_time >= run.info.start_time for run in found.values())
    for run in found.values():
        assert run.data.tags["mlflow.source.name"] == "demoscale"
        assert run.data.tags["mlflow.source.type"] == "LOCAL"
        assert len(run.data.tags["mlflow.source.git.commit"]) in (12, 40)
        assert run.data.tags["mlflow.user"]
    sweep = found["-"]
    _check_curve(mlflow, sweep.info.run_id, [(1, 0.5, 4.0, 1.0), (2, 0.5, 8.0, 2.0)])
    text = sweep.data.tags["mlflow.note.content"]
    assert all(f"- {sentence}" in text for sentence in answer(curve))
    files = f"#/experiments/{experiment.experiment_id}/runs/{sweep.info.run_id}/artifacts"
    assert f"[page]({files}/curve.html?workflowType=machine_learning)" in text
    assert {"curve.html", "curve.png"} <= {file.path for file in mlflow.list_artifacts(sweep.info.run_id)}
    assert found[FAILED].data.tags["mlflow.note.content"] == "Failed: RuntimeError: the cable is out"
    arm = found["demos-2_ratio-0_seed-1"]
    assert arm.data.tags["mlflow.note.content"] == "After 100 steps: 2/4 = 0.50 [0.10, 0.90]."
    (output,) = arm.outputs.model_outputs
    assert output.step == 100
    _check_model(uri, output.model_id)
    # The curve comes out otherwise, and a description that a user wrote stays.
    mlflow.set_tag(sweep.info.run_id, "mlflow.note.content", "See the paper.")
    other = Curve("views", curve.arms[1:], curve.sweep, curve.tags)
    publisher = TrackingPublisher(SweepState.named("views", str(folder)))
    publisher.curve(other, "<html></html>", complete=False)
    publisher.start([])
    assert publisher.finish(done=False) == ""
    assert [
        m.step for m in mlflow.get_metric_history(sweep.info.run_id, "success_rate_counts/ratio-0_seeds")
    ] == [1, 2]
    again = mlflow.get_run(sweep.info.run_id)
    assert again.data.tags["mlflow.note.content"] == "See the paper."
    assert again.info.status == "RUNNING"


def _check_curve(mlflow: Any, run_id: str, points: list[tuple[int, float, float, float]]) -> None:
    """Assert demo count, success rate, episodes and seeds of every point, each logged once."""
    names = {
        "success_rate": "success_rate/ratio-0",
        "success_low": "success_rate_bounds/ratio-0_low",
        "success_high": "success_rate_bounds/ratio-0_high",
        "success_band_low": "success_rate_bounds/ratio-0_band_low",
        "episodes": "success_rate_counts/ratio-0_episodes",
        "seeds": "success_rate_counts/ratio-0_seeds",
    }
    told = {
        name: sorted((m.step, m.value) for m in mlflow.get_metric_history(run_id, metric))
        for name, metric in names.items()
    }
    assert told["success_rate"] == [(demos, rate) for demos, rate, _, _ in points]
    assert told["episodes"] == [(demos, episodes) for demos, _, episodes, _ in points]
    assert told["seeds"] == [(demos, seeds) for demos, _, _, seeds in points]
    assert [demos for demos, _ in told["success_band_low"]] == [
        demos for demos, _, _, seeds in points if seeds >= 3
    ]
    for (_, low), (_, rate), (_, high) in zip(
        told["success_low"], told["success_rate"], told["success_high"], strict=True
    ):
        assert 0 < low < rate < high < 1


def _check_model(uri: str, model_id: str) -> None:
    """Load a logged model, also as a registered one, and compare its actions with the checkpoint's."""
    import mlflow

    registered = mlflow.register_model(f"models:/{model_id}", f"views-{model_id[-6:]}")
    place, checkpoint = logged_checkpoint(uri, f"models:/{registered.name}/{registered.version}")
    policy = TrainedPolicy(Path(place))
    for name in (f"models:/{model_id}", f"models:/{registered.name}/1"):
        model = mlflow.pyfunc.load_model(name)
        assert model.metadata.metadata["contract"]["action"] == list(policy.contract.action)
        assert model.metadata.metadata["checkpoint"]["fingerprint"] == checkpoint
        black = model.input_example
        (camera,) = policy.contract.cameras
        assert black[f"images.{camera}"].shape == (1, *policy.contract.image_size, 3)
        assert model.predict(black).shape[0] == 1
        rng = np.random.default_rng(0)
        inputs = {
            f"images.{camera}": rng.integers(0, 255, (2, *policy.contract.image_size, 3), dtype=np.uint8),
            "proprio": rng.normal(size=(2, len(policy.contract.proprio))).astype(np.float32),
            "instruction": np.array(["lift the red cube", "lift it"]),
        }
        actions = model.predict(inputs, params={"noise_seed": 7})
        wanted = policy.act(
            [
                Observation(
                    {camera: inputs[f"images.{camera}"][row]},
                    inputs["proprio"][row],
                    str(inputs["instruction"][row]),
                    7,
                )
                for row in range(2)
            ]
        )
        np.testing.assert_array_equal(actions, np.stack([chunk.actions for chunk in wanted]))
