"""A sweep measures the generated video of every checkpoint once, on episodes that no arm reads, and logs it
with the success rate.
"""

import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.sweep_config import SweepConfig
from orchestrator.data.episode_store import commit, put_episode
from orchestrator.data.subset import SubsetError
from orchestrator.evaluation.image_metrics import Fidelity
from orchestrator.evaluation.video_score import VideoBenchmark, VideoScore
from orchestrator.storage.base import open_storage
from orchestrator.sweep.state import SweepState
from orchestrator.testing.episodes import CONTRACT, make_episode

STILL_LIFE = Fidelity(20.0, 0.5, 0.3)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a store with sixteen episodes of Lift, of 12 to 27 frames."""
    storage = open_storage(str(tmp_path_factory.mktemp("store")))
    commit(
        storage, CONTRACT, [put_episode(storage, make_episode(seed, 12 + seed), 20.0) for seed in range(16)]
    )
    return storage.uri


def sweep(folder: Path, store: str, clips: int = 3, **sections: Any) -> SweepConfig:
    data = {"episodes": store, "demo_count": [1, 2], "action_free_ratio": [0, 1]} | sections.pop("data", {})
    suite = {"tasks": ["Lift"], "episodes": 10, "horizon": 50, "video_clips": clips}
    train = {"steps": 6, "batch_size": 2, "checkpoint_every": 3}
    tracked = f"sqlite:///{Path(store.removeprefix('file://')).parent / 'mlflow.db'}"
    everything = {"data": data, "train": train, "suite": suite, "storage": str(folder), "mlflow": tracked}
    return SweepConfig.model_validate({"name": folder.name, **everything, **sections})


def test_held_out_episodes_are_read_by_no_arm(folder: Path, store: str) -> None:
    state = SweepState.open(sweep(folder, store, seeds=[0, 1, 2]))
    test = state.video_test(state.sweep.lines[0])
    assert test
    chosen = {clip.episode.episode_id for clip in test.held_out.clips}
    assert len(chosen) == 3
    for arm in state.arms().values():
        subset = state.subset(arm)
        assert not chosen & {*subset.demos, *subset.action_free}
    damaged = replace(state, quarantined={next(iter(chosen)): "a flipped bit"}).video_test(
        state.sweep.lines[0]
    )
    assert damaged
    assert not {clip.episode.episode_id for clip in damaged.held_out.clips} & {next(iter(chosen))}


def test_video_clips_field_changes_no_fingerprint_and_no_decision(folder: Path, store: str) -> None:
    few, many = (SweepState.open(sweep(folder, store, clips)) for clips in (0, 8))
    assert few.training == many.training
    assert few.protocol == many.protocol
    assert few.decisions.prefix == many.decisions.prefix
    assert few.video_test(few.sweep.lines[0]) is None


def test_video_test_with_too_few_episodes_raises_one_sentence(folder: Path, store: str) -> None:
    state = SweepState.open(sweep(folder, store, 8, data={"demo_count": [5]}))
    with pytest.raises(
        SubsetError,
        match="Lift: 8 held-out episodes of at least 9 frames are asked for, 6 are left that no arm uses",
    ):
        state.video_test(state.sweep.lines[0])


class FakeJudge:
    """A fake of the process that measures: it counts its calls, and may fail or block."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fails = False
        self.allowed = threading.Event()
        self.allowed.set()

    def __call__(self, test: VideoBenchmark, source: Any) -> tuple[VideoScore, float]:
        self.asked.append(source.checkpoint.uri)
        assert self.allowed.wait(120)
        if self.fails:
            raise RuntimeError("the projector\nburnt down")
        made = Fidelity(20.0 + len(source.checkpoint.uri.rpartition("_")[2]) + source.rate(), 0.7, 0.2)
        return VideoScore(made, STILL_LIFE, len(test.held_out.clips), test.digest), 2.0


@pytest.fixture
def run_sweep(folder: Path, store: str) -> Callable[..., tuple[Any, list[str]]]:
    """Return a function that runs a sweep with a judge to its end; it returns the run and its logged
    lines.
    """

    from orchestrator.sweep.run import SweepRun
    from orchestrator.testing.fake_trainer import FakeTrainer
    from orchestrator.testing.players import FakeEvalBackend

    def go(asked: SweepConfig, judge: FakeJudge | None) -> tuple[Any, list[str]]:
        lines: list[str] = []
        run = SweepRun(
            asked,
            lines.append,
            fit=FakeTrainer(0.001),
            players=lambda *given: replace(FakeEvalBackend()(*given), judge=judge),
        )
        run.run()
        return run, lines

    return go


def logged(asked: SweepConfig) -> dict[str, dict[str, dict[int, float]]]:
    """Return arm -> metric -> step -> value from MLflow; asserts that no step was logged twice."""
    from mlflow import MlflowClient

    client = MlflowClient(asked.mlflow)
    experiment = client.get_experiment_by_name("demoscale")
    assert experiment
    found: dict[str, dict[str, dict[int, float]]] = {}
    for run in client.search_runs([experiment.experiment_id], f"tags.`demoscale.sweep` = '{asked.name}'"):
        if (arm := run.data.tags["demoscale.arm"]) != "-":
            histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
            assert all(len({one.step for one in history}) == len(history) for history in histories.values())
            found[arm] = {
                name: {one.step: one.value for one in history} for name, history in histories.items()
            }
    return found


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_sweep_measures_the_video_of_every_checkpoint_once(folder: Path, store: str, run_sweep: Any) -> None:
    few: dict[str, Any] = {"data": {"action_free_ratio": [0]}, "policy": {"baselines": ["diffusion_policy"]}}
    asked, judge = sweep(folder, store, **few), FakeJudge()
    run, lines = run_sweep(asked, judge)
    arms = {arm_id: arm for arm_id, arm in run.board.arms.items() if arm.arm.kind == "video_action"}
    assert len(arms) == 2
    assert len(run.board.arms) == 4, "the baselines generate no video"
    assert len(judge.asked) == len(set(judge.asked)) == 2 * 2
    digest = run.state.video_test(run.state.sweep.lines[0]).digest
    for arm_id, metrics in logged(asked).items():
        told = {name for name in metrics if name.startswith("video_")}
        assert set(metrics["success_rate"]) == {3, 6}
        if arm_id not in arms:
            assert not told
            continue
        measured = {f"video_{name}{kind}" for name in ("psnr", "ssim", "distance") for kind in ("", "_still")}
        assert told == measured | {"video_clips", "video_clips_id"}
        assert all(set(metrics[name]) == {3, 6} for name in told)
        assert metrics["video_ssim"] == {3: 0.7, 6: 0.7}
        assert metrics["video_ssim_still"] == {3: 0.5, 6: 0.5}
        assert metrics["video_clips"] == {3: 3, 6: 3}
        assert metrics["video_clips_id"] == {step: int(digest[:12], 16) for step in (3, 6)}
    assert (
        len([line for line in lines if line.startswith("video demos-") and "on 3 held-out clips" in line])
        == 4
    )
    spent = run.spending.by_arm()
    assert all(spent[arm_id].infer_cpu_s == pytest.approx(2 * 2.0) for arm_id in arms), (
        "it is inference and has a cost"
    )
    # Once more, and MLflow rebuilt: nothing is measured again, everything is there.
    again, lines = run_sweep(asked, judge)
    assert len(judge.asked) == 4
    assert not [line for line in lines if line.startswith("video ")]
    assert sum(cost.infer_cpu_s for cost in again.spending.by_arm().values()) == sum(
        cost.infer_cpu_s for cost in spent.values()
    )
    from orchestrator.sweep.republish import republish

    elsewhere = asked.model_copy(update={"mlflow": f"sqlite:///{folder / 'anew.db'}"})
    republish(SweepState.open(elsewhere))
    before = logged(asked)
    for arm_id, metrics in logged(elsewhere).items():
        assert {name: values for name, values in metrics.items() if name.startswith("video_")} == {
            name: values for name, values in before[arm_id].items() if name.startswith("video_")
        }


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_sweep_scores_do_not_wait_for_videos_and_failed_ones_are_retried(
    folder: Path, store: str, run_sweep: Any
) -> None:
    asked, judge = sweep(folder, store, data={"action_free_ratio": [0]}), FakeJudge()
    judge.allowed.clear()
    judge.fails = True
    ran: list[tuple[Any, list[str]]] = []
    thread = threading.Thread(target=lambda: ran.append(run_sweep(asked, judge)))
    thread.start()
    sealed, deadline = [], time.monotonic() + 200
    while len(sealed) < 4 and time.monotonic() < deadline:
        sealed = [*folder.glob("outcomes/*/*.parquet")]
        time.sleep(0.1)
    assert len(sealed) == 4, "all checkpoints are scored while the first video is still being measured"
    assert len(judge.asked) == 1
    judge.allowed.set()
    thread.join(200)
    (_, lines), *_ = ran
    assert (
        len(
            [
                line
                for line in lines
                if re.match(
                    "no video score of demos-.* after [36] steps: burnt down; the next run tries again", line
                )
            ]
        )
        == 4
    )
    assert not [*folder.glob("video/*/*.json")]
    judge.fails = False
    run_sweep(asked, judge)
    assert len(judge.asked) == 8
    assert len([*folder.glob("video/*/*.json")]) == 4


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_sweep_without_held_out_episodes_logs_it_once_and_finishes(
    folder: Path, store: str, run_sweep: Any
) -> None:
    judge = FakeJudge()
    run, lines = run_sweep(
        sweep(folder, store, 16, data={"demo_count": [2], "action_free_ratio": [0]}), judge
    )
    assert [line for line in lines if "video" in line] == [
        "no video score: Lift: 16 held-out episodes of at least 9 frames are asked for, 14 are left that no"
        " arm uses; record more episodes, or set suite.video_clips lower (0: none)"
    ]
    assert judge.asked == []
    assert all(len(arm.scores) == 2 for arm in run.board.arms.values())
