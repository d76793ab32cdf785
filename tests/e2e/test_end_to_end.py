"""A sweep from episodes to curve in seconds, on one machine: of action heads, killed in its middle and continued; in
two stages. tests/stress/test_chaos.py kills one of two stages.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import run

from begun_command import begin
from orchestrator.cli.main import main
from orchestrator.config.arms import Arm
from orchestrator.data.episode_store import load_manifest
from orchestrator.data.subset import select_episodes
from orchestrator.evaluation.outcome_ledger import Ledger
from orchestrator.storage.base import open_storage

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.sim]


TRAIN = {"action_only": "mode: action_only", "two_stage": "mode: two_stage, videos: sweep, video_steps: 8"}
"""Training settings that take seconds: an action head on the shipped video model; or a video model, then an
action head on it.
"""
VIDEO_CLIPS = {"action_only": 0, "two_stage": 1}
"""Held-out clips on which generated video is measured, by an actor that imports torch for it."""
SIMULATORS = {"action_only": 1, "two_stage": 2}
"""Rollout workers; each starts a simulator in each of the runs."""


def sweep_file(folder: Path, store: Path, mode: str) -> str:
    path = folder / "sweep.yaml"
    path.write_text(f"""
name: seconds
data: {{episodes: {store}, demo_count: [2], action_free_ratio: [1], on_corrupt: quarantine}}
train: {{{TRAIN[mode]}, steps: 12, batch_size: 4, checkpoint_every: 6, warmup_steps: 2}}
suite: {{tasks: [Lift], episodes: 3, horizon: 16, video_clips: {VIDEO_CLIPS[mode]}}}
rollout_actors: {SIMULATORS[mode]}
storage: {folder / "runs"}
""")
    return str(path)


def printed(command: str, folder: Path) -> Any:
    """Return the JSON that a command prints about the sweep."""
    done = CliRunner().invoke(main, [command, "seconds", "--storage", str(folder / "runs"), "--json"])
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def outcomes(folder: Path) -> dict[tuple[str, str, str], Any]:
    """Return every finished episode of every ledger, without worker and durations, by checkpoint, protocol
    and episode.
    """
    storage, root = open_storage(str(folder / "runs")), folder / "runs" / "outcomes"
    ledgers = {file.relative_to(root).with_suffix("").parts[:2] for file in root.rglob("*.parquet")}
    return {
        (checkpoint, protocol, episode): outcome.played
        for checkpoint, protocol in ledgers
        for episode, outcome in Ledger(storage, checkpoint, protocol).read().items()
    }


@pytest.fixture(scope="module")
def damaged_store(tmp_path_factory: pytest.TempPathFactory, lift_store: Path) -> tuple[Path, str]:
    """Return a store with six episodes, and the id of one with a flipped bit: the first demo of every arm."""
    store = tmp_path_factory.mktemp("damaged") / "store"
    shutil.copytree(lift_store, store)
    manifest = load_manifest(open_storage(str(store)))
    victim = manifest[select_episodes(manifest, Arm(1, 1.0, 0)).demos[0]]
    data = (store / victim.key).read_bytes()
    (store / victim.key).write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    return store, victim.episode_id


@pytest.fixture(scope="module", params=["action_only", pytest.param("two_stage", marks=pytest.mark.stress)])
def mode(request: pytest.FixtureRequest) -> str:
    """Return the sweep's training mode."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, damaged_store: tuple[Path, str], mode: str) -> Path:
    """Run a sweep to its end and return its folder, with what it printed in `said.log`. A sweep of action heads is
    killed after its first checkpoint and run again.
    """
    folder = tmp_path_factory.mktemp("ended")
    file = sweep_file(folder, damaged_store[0], mode)
    printed_before = ""
    if mode == "action_only":
        killed = begin(
            ["-m", "orchestrator", "run", file],
            folder / "killed",
            ready=lambda: [*folder.glob("runs/checkpoints/*/*.json")],
        )
        killed.kill()
        printed_before = killed.stdout
        assert len(outcomes(folder)) < 2 * 3, "killed too late to test anything"
    done = run("-m", "orchestrator", "run", file)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "said.log").write_text(printed_before + done.stdout)
    return folder


def test_sweep_says_what_it_leaves_out_and_measures(
    ended: Path, damaged_store: tuple[Path, str], mode: str
) -> None:
    said = (ended / "said.log").read_text()
    assert f"quarantined now {damaged_store[1]}" in said
    assert said.count("on 1 held-out clips") == 2 * VIDEO_CLIPS[mode]
    assert "picture" in said


def test_sweep_ends_with_a_curve_of_every_episode(ended: Path, mode: str) -> None:
    told = printed("curve", ended)["points"]
    assert [(p["policy"], p["demo_count"], p["action_free_ratio"]) for p in told] == [
        ("video_action", 2, 1.0)
    ]
    for point in told:
        assert point["episodes"] == 3
        assert point["errors"] == 0
        assert point["low"] <= point["success_rate"] == point["successes"] / 3 <= point["high"]
    assert (ended / "runs" / "seconds-curve.png").read_bytes().startswith(b"\x89PNG")
    assert len(outcomes(ended)) == 2 * 3
    assert len(list(ended.glob("runs/video/*/*.json"))) == 2 * VIDEO_CLIPS[mode]


def test_mlflow_has_parent_and_child_runs_with_scores_at_training_steps(ended: Path, mode: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{ended}/runs/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("demoscale").experiment_id])
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert [run.data.params["policy"] for run in children] == ["video_action"]
    for child in children:
        for metric in ("success_rate", "success_low", "success_high", "successes", "episodes", "errors"):
            assert [m.step for m in client.get_metric_history(child.info.run_id, metric)] == [6, 12]
        assert 12 in {m.step for m in client.get_metric_history(child.info.run_id, "loss_action")}
        kept = {
            Path(file.path).name for file in client.list_artifacts(child.info.run_id, "rollouts/step_000012")
        }
        films = {name.removesuffix(".mp4") for name in kept if name.endswith(".mp4")}
        assert films
        assert kept == {f"{film}.{kind}" for film in films for kind in ("mp4", "json")}
        for film in films:
            told = json.loads(
                Path(
                    client.download_artifacts(child.info.run_id, f"rollouts/step_000012/{film}.json")
                ).read_text()
            )
            assert (told["episode"], told["task"], told["result"]) == (film, "Lift", "failure")
            assert told["steps"] == [0, 4, 8], "it looks every 4 of 16 steps and imagines what comes after 8"
            assert all(0 < value < 255 for value in (*told["distances"], *told["still"]))
        for metric in ("video_psnr", "video_ssim", "video_distance", "video_psnr_still", "video_clips"):
            steps = [m.step for m in client.get_metric_history(child.info.run_id, metric)]
            assert steps == [6, 12] * VIDEO_CLIPS[mode]
        assert (
            len({m.value for m in client.get_metric_history(child.info.run_id, "video_psnr_still")})
            == VIDEO_CLIPS[mode]
        ), "the clips are always the same"
        consumed = {
            m.step: m.value for m in client.get_metric_history(child.info.run_id, "clips_with_actions")
        }
        assert consumed[12] == 12 * 4, "a head learns from demos alone"
        stage_one = [m.step for m in client.get_metric_history(child.info.run_id, "stage1_loss_video")]
        assert (8 in stage_one) == (mode == "two_stage")
        subset = json.loads(Path(client.download_artifacts(child.info.run_id, "subset.json")).read_text())
        assert len(subset["demos"]) == int(child.data.params["demo_count"]) == 2
        assert len(subset["action_free"]) == 2 * float(child.data.params["action_free_ratio"])
        assert subset["digest"] == child.data.tags["demoscale.subset"]
    assert {"curve.png", "curve.svg", "curve.json", "sweep.yaml", "quarantined.json"} <= {
        a.path for a in client.list_artifacts(parent.info.run_id)
    }


def test_status_command_reports_arms_and_costs(ended: Path) -> None:
    told = printed("status", ended)
    assert not told["running"]
    assert told["cost"]["episodes"] >= 2 * 3
    for arm in told["arms"]:
        assert arm["state"] == "scored"
        assert arm["scores"]["12"]["episodes"] == 3
