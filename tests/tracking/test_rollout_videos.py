"""Films from MLflow to a curve's page."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from orchestrator.cli.main import main
from orchestrator.config.arms import Arm
from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.tracking.mlflow_writer import SCORE_METRICS, MlflowWriter, outcomes_artifact
from orchestrator.tracking.rollout_videos import films
from sim_workers.rollout.rollout_video import mp4


@pytest.fixture(scope="module")
def film() -> bytes:
    return mp4([np.full((32, 96, 3), 60 * n, np.uint8) for n in range(4)], fps=10)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory, film: bytes) -> Path:
    """Return a folder whose database has a sweep of two arms, each with films of its last checkpoint."""
    folder = tmp_path_factory.mktemp("tracked-films")
    tracker = MlflowWriter(
        f"sqlite:///{folder / 'mlflow.db'}",
        "filmed",
        training="t",
        protocol="p",
        steps=20,
        artifacts=str(folder / "mlartifacts"),
    )
    for index, demos in enumerate((4, 40)):
        arm, outcomes = f"arm-{index}", {f"Lift-{n}-{n}": n < 3 + 4 * index for n in range(10)}
        tracker.arm(arm, Arm(demos, 0.0, 0), {})
        tracker.artifact(arm, outcomes_artifact(20), json.dumps(outcomes).encode())
        values = (sum(outcomes.values()) / 10, sum(outcomes.values()), 10, 0, 0.0, 1.0)
        tracker.metrics(
            arm, 20, dict(zip(SCORE_METRICS, map(float, values), strict=True)) | {"scored_step": 20.0}
        )
        for step, episode in ((10, "Lift-0-0"), (20, "Lift-9-9"), (20, "Lift-0-0"), (20, "Lift-77-77")):
            tracker.artifact(arm, f"rollouts/step_{step:06d}/{episode}.mp4", film)
    tracker.artifact(None, "sweep.yaml", b"name: filmed\n")
    return folder


def test_films_of_the_last_checkpoint_have_the_results_of_their_episodes(tracked: Path, film: bytes) -> None:
    uri = f"sqlite:///{tracked / 'mlflow.db'}"
    found = films(uri, Curve.read(uri, "filmed").arms)
    assert [(f["arm"], f["episode"], f["result"]) for f in found] == [
        (f"demos-{demos}_ratio-0_seed-0", *told)
        for demos in (4, 40)
        for told in (("Lift-0-0", "success"), ("Lift-9-9", "failure"))
    ]
    assert all(f["mp4"] == film for f in found)
    assert found[0]["caption"] == "Lift, 4 demos, seed 0, step 20"


def test_curve_command_writes_the_page_with_films(tracked: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "curve.html"
    done = CliRunner().invoke(
        main, ["curve", "filmed", "--storage", str(tracked), "--html", str(path)], catch_exceptions=False
    )
    assert done.exit_code == 0
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert text.count("data:video/mp4") == 4
    assert ">3/10<" in text
    assert ">7/10<" in text
    assert "name: filmed" in text
