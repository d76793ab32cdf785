"""The paper's sweep files on declared GPUs: plans that are accepted, GPU-hours and bytes by arithmetic."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from conftest import CHECKOUT

from orchestrator.cli.main import main
from orchestrator.config.schema import Device
from orchestrator.config.sweep_config import SweepConfig, SweepError
from orchestrator.data.episode_store import commit, put_episode
from orchestrator.planning.device_estimate import CARDS, device_estimate
from orchestrator.planning.plan import make_plan
from orchestrator.storage.base import open_storage
from orchestrator.sweep.state import SweepState
from orchestrator.testing.episodes import CONTRACT, make_episode
from policy.config import Recipe, SamplerConfig
from policy.model import VideoActionModel
from policy.model_cost import model_cost
from policy.presets import PRESETS
from sim_workers.envs.robocasa import ROBOCASA_24


@pytest.fixture(scope="module")
def kitchens(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a store that lists 300 demonstrations of each of RoboCasa's 24 tasks; the files behind them are
    one and the same.
    """
    storage = open_storage(str(tmp_path_factory.mktemp("kitchens")))
    cameras = ("robot0_eye_in_hand", "robot0_agentview_left", "robot0_agentview_right")
    one = put_episode(storage, make_episode(0, 60), 20.0)
    shown = replace(one, cameras=cameras, image_size=(256, 256))
    contract = replace(CONTRACT, cameras=cameras, image_size=(256, 256))
    commit(
        storage,
        contract,
        [
            replace(shown, episode_id=f"{task.replace('/', '-')}-{number}", task=task)
            for task in ROBOCASA_24
            for number in range(300)
        ],
    )
    return storage.uri


@pytest.fixture
def paper_sweep(kitchens: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SweepConfig]:
    """Return a function: name of a file of jobs/ -> its sweep of the listed store, with RoboCasa's simulator
    taken for installed.
    """
    monkeypatch.setattr("orchestrator.config.sweep_config.unfit", lambda contract, task: [])

    def load(name: str, *overrides: str) -> SweepConfig:
        here = (f"data.episodes={kitchens}", f"storage={tmp_path / 'runs'}")
        return SweepConfig.load(CHECKOUT / "jobs" / f"{name}.yaml", (*here, *overrides))

    return load


@pytest.mark.parametrize(
    ("name", "arms", "video_models"),
    [
        ("robocasa24", 2, 1),
        ("paper_modes", 4, 1),
        ("paper_video_horizon", 3, 3),
        ("paper_demo_counts", 16, 2),
        ("paper_sampler", 1, 1),
        ("paper_execute", 1, 1),
        # 300 episodes per task: demos and videos are other episodes, so each line has a video model
        ("paper_unlabelled_tasks", 9, 7),
    ],
)
def test_plan_accepts_the_papers_sweep_files(
    paper_sweep: Callable[..., SweepConfig], name: str, arms: int, video_models: int
) -> None:
    own = paper_sweep(name)
    plan = make_plan(own)
    assert (plan.arms, plan.video_models) == (arms, video_models)
    assert {own.line_train(line).learning_rate for line in own.lines} == {1e-5}
    assert "recipe" in str(plan)


def test_sampler_ablations_share_one_training(paper_sweep: Callable[..., SweepConfig]) -> None:
    execute = (paper_sweep("paper_execute", f"suite.sampler.execute={n}") for n in (8, 16, 32))
    steps = (
        paper_sweep("paper_sampler", f"suite.sampler.steps={steps}", f"suite.sampler.guidance={guidance}")
        for steps in (1, 30)
        for guidance in (1, 2)
    )
    states = [SweepState.open(own) for own in (*execute, *steps)]
    assert len({tuple(state.arms()) for state in states}) == 1
    samplers: set[SamplerConfig] = {state.sweep.sampler for state in states}
    assert len(samplers) == len({state.protocol for state in states}) == 6, "(30, 2, 16) is in both"


EIGHT = ("device.card=A100", "device.gpus=8")


def _sharded(paper_sweep: Callable[..., SweepConfig]) -> tuple[SweepConfig, Device]:
    own = paper_sweep("robocasa24", *EIGHT, "train.sharding=fsdp")
    assert own.device
    return own, own.device


@pytest.mark.full
def test_paper_training_by_arithmetic_takes_the_papers_time(paper_sweep: Callable[..., SweepConfig]) -> None:
    """Fourteen days on eight A100 are 2,688 GPU-hours."""
    own = paper_sweep("paper_sampler", *EIGHT)
    assert own.device
    told = device_estimate(own, own.device)
    clips = 368866 * 32
    reached = CARDS["A100"].half * 1e12 * own.device.utilisation
    assert told.train_s == pytest.approx(clips * (36.80e12 + 14.94e12) / reached, rel=1e-3)
    assert told.train_s / 3600 == pytest.approx(2688, rel=0.02)
    assert told.checkpoint_bytes == pytest.approx(24.78e9 + 12.36e9, rel=1e-3)
    assert "1 arm at once on 8 of 8; policy servers beside them, and 8 when nothing trains" in str(told)


@pytest.mark.full
@pytest.mark.parametrize(
    ("card", "precision", "low", "high"),
    [("A100", "bf16", 2.8, 11.1), ("A100", "fp32", 44.1, 176.6), ("H100", "bf16", 0.87, 3.48)],
)
def test_one_pass_score_of_robocasa_by_arithmetic(
    paper_sweep: Callable[..., SweepConfig], card: str, precision: str, low: float, high: float
) -> None:
    """1,200 episodes of 1,000 control steps, none of which ends early: within 24 GPU-hours in half precision."""
    own = paper_sweep("paper_sampler", "suite.rung=one_pass", "suite.sampler={}", f"device.card={card}")
    own = own.model_copy(
        update={
            "suite": own.suite.model_copy(
                update={"sampler": own.suite.sampler.model_copy(update={"precision": precision})}
            )
        }
    )
    assert own.device
    told = device_estimate(own, own.device)
    assert (told.score_s["low"] / 3600, told.score_s["high"] / 3600) == pytest.approx((low, high), rel=0.02)
    assert told.answer_s["low"] < told.score_s["low"], "the quickest demonstrations are shorter"


def test_declared_gpus_that_cannot_train_one_arm_are_refused(paper_sweep: Callable[..., SweepConfig]) -> None:
    with pytest.raises(
        SweepError, match="one arm needs 8 workers at once, the cluster has 4 GPUs for training"
    ):
        device_estimate(paper_sweep("paper_modes"), Device(card="H100", gpus=4))
    with pytest.raises(SweepError, match="device: write a card, such as"):
        paper_sweep("paper_modes", "device.gpus=8")


@pytest.mark.full
def test_plan_command_prints_gpu_hours_of_declared_gpus(
    paper_sweep: Callable[..., SweepConfig], tmp_path: Path
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(paper_sweep("robocasa24", *EIGHT, "suite.every=2").to_yaml())
    done = CliRunner().invoke(main, ["plan", str(file)])
    assert done.exit_code == 0, done.output
    rows = {line[:14].strip(): line[15:] for line in done.stdout.splitlines()}
    assert rows["device"].startswith("A100 at 20 % of 312 TFLOPS in half and 19.5 in full precision")
    assert rows["to train"].endswith("GPU-h")
    assert "GiB" in rows["checkpoints"] or "scored" in rows["checkpoints"]
    whole, shared = (
        float(own.split()[0])
        for own in (rows["memory"], str(device_estimate(*_sharded(paper_sweep))).partition("memory")[2])
    )
    assert shared < whole / 6, "but for the autoencoder an eighth"
    assert rows["not counted"] == "diffusion_policy"


def test_every_second_checkpoint_and_the_last_are_scored(paper_sweep: Callable[..., SweepConfig]) -> None:
    own = paper_sweep("robocasa24", "suite.every=2", "train.checkpoint_every=100000")
    assert own.checkpoint_steps() == [100000, 200000, 300000, 368866]
    assert own.scored_steps() == [200000, 368866]
    plan = make_plan(own)
    assert (plan.checkpoints, plan.scored, plan.rollouts) == (8, 4, 4 * 1200)
    assert "8, 4 scored" in str(plan)
    last = paper_sweep("robocasa24", "suite.every=9")
    assert last.scored_steps() == [368866]
    assert SweepState.open(own).arms() == SweepState.open(last).arms(), "training does not depend on it"


def test_model_cost_of_tiny_is_that_of_its_networks() -> None:
    cost, recipe = model_cost(PRESETS["tiny"], CONTRACT), Recipe()
    with torch.device("meta"):
        model = VideoActionModel(PRESETS["tiny"], CONTRACT)
    assert cost.video_parameters + cost.head_parameters == sum(p.numel() for p in model.parameters())
    assert cost.clip("joint", recipe) == 3 * (cost.video_pass + cost.adaptor_pass + cost.action_pass)
    again = recipe.model_copy(update={"gradient_checkpointing": True})
    assert cost.clip("video", again) == 4 * cost.video_pass
    assert cost.clip("action", recipe, draws=4) == cost.video_pass + 3 * (
        cost.adaptor_pass + 4 * cost.action_pass
    )
    rungs = PRESETS["tiny"].ladder
    one = cost.video_pass + cost.adaptor_pass + 5 * cost.action_pass
    assert cost.answer(rungs["one_pass"]) == one
    assert cost.answer(rungs["faithful"]) == 2 * cost.answer(rungs["unguided"])
    trained = {"video": cost.video_parameters, "action": cost.head_parameters}
    assert cost.checkpoint_bytes("video", recipe) == 4 * 4 * trained["video"]
    assert cost.checkpoint_bytes("action", recipe) == 4 * (sum(trained.values()) + 3 * trained["action"])
    whole = cost.state_bytes("video", recipe)
    assert whole == 4 * (sum(trained.values()) + 4 * trained["video"]), "gradient, two means and an average"
    assert cost.state_bytes("video", recipe, shards=2) == pytest.approx(whole / 2, abs=4)
    assert cost.state_bytes("video", recipe.model_copy(update={"ema_decay": 0.0})) < whole
