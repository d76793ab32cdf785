"""Non-finite actions, states, losses and weights: errors with a sentence, never failures of a policy."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from conftest import CHECKOUT, run
from safetensors.torch import load_file, save_file

from checkpoint_folder import CheckpointFolder
from orchestrator.config.arms import Arm
from orchestrator.config.schema import Train
from orchestrator.data.clips import ClipBatch
from orchestrator.data.collect_demos import record
from orchestrator.data.episode_format import EpisodeError
from orchestrator.data.episode_store import latest_version
from orchestrator.storage.base import open_storage
from orchestrator.testing.checkpoints import make_batch, make_checkpoint, make_observation
from orchestrator.testing.episodes import CAMERA, CONTRACT
from orchestrator.training.control_channel import StopRequest
from orchestrator.training.loop import TrainJob, train
from policy.checkpoint import CheckpointError, new_model
from policy.config import Recipe
from policy.finite import NotFiniteError, not_finite
from policy.inference import TrainedPolicy
from policy.interface import Observation
from policy.presets import PRESETS, policy_config
from policy.trainer import Trainer, _refuse, _Watched
from selected_episodes import selected
from sim_workers.demos.recorder import Demonstration
from sim_workers.rollout.divergence import ActionError, DivergedError, refuse_action, refuse_divergence
from sim_workers.rollout.episode import Outcome, run_episode
from sim_workers.rollout.suite import EpisodeRules, EpisodeSpec

NAMES = CONTRACT.action

# -- actions and simulations, in MuJoCo ----------------------------------------------------------------------

# One environment per process. A sound episode, then one per fault, each followed by the sound one again.
# Action chunks become unsound after they were made, as those of a policy that reuses its buffer.
FAULTS = """
import json, sys
import numpy as np
from policy.interface import ActionChunk
from sim_workers.envs.robosuite import SimEnv, contract
from sim_workers.rollout.episode import run_episode
from sim_workers.rollout.suite import EpisodeSpec, EpisodeRules

env = SimEnv("Lift", contract((), (64, 64), "fast"), fast_control=sys.argv[1] == "fast")
spec, moves = EpisodeSpec("Lift", 1_000_000, 1_000_000), np.random.default_rng(0).uniform(-1, 1, (40, 7)).astype(np.float32)
data = lambda: env._env.sim.data._data

def play(at=None, fault=None):
    looks, trace = [], []
    def act(seen):
        trace.append(env.physics.tolist() + seen.proprio.tolist())
        chunk = ActionChunk(moves[4 * len(looks) : 4 * len(looks) + 4].copy(), 4)
        if len(looks) == at:
            fault(chunk.actions)
        looks.append(seen)
        return chunk
    outcome = run_episode(env, spec, EpisodeRules(16), act)
    return outcome, [outcome.played, trace, env.physics.tolist()] if fault is None else None

def state(name, index, value):
    def fault(actions):
        getattr(data(), name)[index] = value
    return fault

def action(index, value):
    def fault(actions):
        actions[index] = value
    return fault

def gains(actions):
    env._env.robots[0].part_controllers["right"].kp[:] = np.nan

faults = {
    "all nan": (0, action(np.s_[:], np.nan)),
    "gripper": (2, action(np.s_[1:, 6], np.nan)),
    "infinite": (1, action(np.s_[3, :2], [np.inf, -np.inf])),
    "BADQPOS": (1, state("qpos", 9, np.nan)),
    "BADQVEL": (1, state("qvel", 9, 1e11)),
    "BADQACC": (2, state("xfrc_applied", np.s_[-1, 0], 1e30)),
    "BADCTRL": (1, gains),
}
sound, fresh = play()
outcomes = {"sound": sound.to_json()}
for name, (at, fault) in faults.items():
    outcomes[name] = play(at, fault)[0].to_json() | {"same after": play()[1] == fresh}
print(json.dumps(outcomes))
"""


@pytest.fixture(scope="module", params=["fast", pytest.param("slow", marks=pytest.mark.full)])
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the outcome of each of FAULTS by either control path."""
    file = tmp_path_factory.mktemp(request.param) / "faults.py"
    file.write_text(
        f"import os, sys\nos.chdir({str(file.parent)!r})  # MuJoCo writes a log\nsys.path.insert(0,"
        f" {str(CHECKOUT)!r})\n{FAULTS}"
    )
    done = run("-W", "ignore", str(file), request.param)
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


@pytest.mark.sim
def test_episode_with_a_non_finite_action_is_an_error_naming_its_dimensions(
    outcomes: dict[str, Any],
) -> None:
    assert (outcomes["sound"]["result"], outcomes["sound"]["steps"], outcomes["sound"]["message"]) == (
        "failure",
        16,
        "",
    )
    end = "; check the weights and the normalisation of the policy that gave it"
    for fault, steps, what in (
        ("all nan", 0, f"in control step 1 the action holds nan in {', '.join(NAMES)}"),
        ("gripper", 9, "in control step 10 the action holds nan in gripper_minus1_open_plus1_close"),
        (
            "infinite",
            7,
            "in control step 8 the action holds inf in eef_delta_x_x0.05m and -inf in eef_delta_y_x0.05m",
        ),
    ):
        outcome = outcomes[fault]
        assert (outcome["result"], outcome["steps"], outcome["message"]) == ("error", steps, what + end)
        assert (outcome["first_success"], outcome["success_at_end"]) == (None, False)


@pytest.mark.sim
@pytest.mark.parametrize(
    ("warning", "step", "what"),
    [
        ("BADQPOS", 5, "the position of joint cube_joint0"),
        ("BADQVEL", 5, "the velocity of joint cube_joint0"),
        ("BADQACC", 9, "the acceleration of joint cube_joint0"),
        ("BADCTRL", 5, "the control of actuator robot0_torq_j1"),
    ],
)
def test_episode_with_a_diverging_simulation_is_an_error(
    outcomes: dict[str, Any], warning: str, step: int, what: str
) -> None:
    outcome = outcomes[warning]
    assert (outcome["result"], outcome["steps"]) == ("error", step - 1)
    assert outcome["message"].startswith(
        f"in control step {step} the simulation diverged: MuJoCo warned of {what} ({warning}), which is not"
    )


@pytest.mark.sim
def test_episode_after_a_fault_equals_that_of_a_fresh_simulator(outcomes: dict[str, Any]) -> None:
    after = {name: outcome["same after"] for name, outcome in outcomes.items() if name != "sound"}
    assert len(after) == 7
    assert all(after.values()), after


SWING = '<mujoco><worldbody><body><joint name="hinge"/><geom size=".1"/></body></worldbody></mujoco>'


@pytest.mark.parametrize(
    ("field", "value"), [("qpos", math.nan), ("qpos", -1.1e10), ("qvel", math.inf), ("qvel", 1.1e10)]
)
def test_refuse_divergence_finds_a_state_that_mujoco_would_warn_of(field: str, value: float) -> None:
    model = mujoco.MjModel.from_xml_string(SWING)
    data = mujoco.MjData(model)
    getattr(data, field)[0] = 0.9e10
    refuse_divergence(model, data)
    getattr(data, field)[0] = value
    named = {"qpos": "position", "qvel": "velocity"}[field]
    with pytest.raises(
        DivergedError,
        match=rf"^the simulation diverged: the {named} of joint hinge is {value:g}; check ".replace(
            "+", r"\+"
        ),
    ):
        refuse_divergence(model, data)


def test_refuse_divergence_accepts_models_without_joints_and_other_warnings() -> None:
    model = mujoco.MjModel.from_xml_string("<mujoco/>")
    data = mujoco.MjData(model)
    for kind in ("INERTIA", "CONTACTFULL", "CNSTRFULL"):
        data.warning.number[int(getattr(mujoco.mjtWarning, f"mjWARN_{kind}"))] = 1
    refuse_divergence(model, data)


class Rig:
    """A simulator that succeeds in its first step and diverges in a later one."""

    contract, film_camera = CONTRACT, ""

    def __init__(self, diverges_in: int) -> None:
        self.steps, self._diverges_in = 0, diverges_in

    def reset(self, seed: int) -> None:
        self.steps = 0
        if self._diverges_in == 0:
            raise DivergedError("the simulation diverged: somewhere")

    def step(self, action: Any) -> None:
        self.steps += 1
        if self.steps == self._diverges_in:
            raise DivergedError("the simulation diverged: somewhere")

    def observe(self, noise_seed: int) -> Observation:
        return Observation({}, np.zeros(9, np.float32), "", noise_seed)

    @property
    def succeeded(self) -> bool:
        return self.steps > 0


class Chunk:
    """An action chunk as a policy of another library may return it."""

    def __init__(self, actions: Any, execute: int = 8) -> None:
        self.actions, self.execute = np.asarray(actions), execute


def played(env: Any, chunk: Any, settle: int = 10) -> Outcome:
    return run_episode(env, EpisodeSpec("Lift", 5, 5), EpisodeRules(20, settle), lambda seen: chunk)


def test_episode_that_diverges_after_success_is_an_error() -> None:
    assert played(Rig(99), Chunk(np.zeros((8, 7)))).result == "success"
    later = played(Rig(6), Chunk(np.zeros((8, 7))))
    assert (later.result, later.steps, later.first_success, later.success_at_end) == ("error", 5, None, False)
    assert later.message == "in control step 6 the simulation diverged: somewhere"
    first = played(Rig(0), Chunk(np.zeros((8, 7))))
    assert (first.result, first.steps, first.looks) == ("error", 0, 0)
    assert first.message == "before the first control step the simulation diverged: somewhere"


def test_episode_checks_only_the_executed_actions_of_a_chunk() -> None:
    actions = np.zeros((8, 7))
    actions[4:] = np.nan
    assert played(Rig(99), Chunk(actions, execute=4)).result == "success"
    assert played(Rig(99), Chunk(actions, execute=5)).message.startswith(
        "in control step 5 the action holds nan in eef_delta_x"
    )
    assert played(Rig(99), Chunk(actions), 3).result == "success", "the episode ends with the fourth step"


@pytest.mark.parametrize("chunk", [Chunk(np.zeros((0, 7))), Chunk(np.zeros((8, 7)), execute=0)])
def test_episode_with_an_empty_chunk_is_an_error(chunk: Chunk) -> None:
    outcome = played(Rig(99), chunk)
    assert (outcome.result, outcome.steps, outcome.looks) == ("error", 0, 1)
    assert "in control step 1 the policy answered with an empty chunk" in outcome.message


def test_refuse_action_numbers_a_dimension_without_a_name() -> None:
    refuse_action(np.array([1e30, -1.0]), NAMES)
    with pytest.raises(ActionError, match="the action holds nan in dimension 7; check"):
        refuse_action(np.array([0.0] * 7 + [np.nan]), NAMES)


# One environment per process: what its users see outside the rollouts.
AROUND = """
import json
import numpy as np
from sim_workers.envs.gymnasium_env import RolloutEnv
gym = RolloutEnv("Lift", cameras=(), chunk=3)
gym.reset(seed=0)
env, outcomes = gym._env, {}
before, actions = env.physics, np.zeros((3, 7), np.float32)
actions[2, 6] = np.nan
def of(call, *arguments):
    try:
        call(*arguments)
    except Exception as error:
        return [type(error).__name__, str(error).partition(";")[0], type(error.__cause__).__name__]
outcomes["gym"] = of(gym.step, actions)
outcomes["still"] = bool(np.array_equal(before, env.physics))
def fails(diverges):
    def advance(action):
        if diverges:
            env._env.sim.data._data.qpos[:] = np.nan
        raise np.linalg.LinAlgError("SVD did not converge")
    return advance
for diverges in (True, False):
    env._advance = fails(diverges)
    outcomes[f"controller {diverges}"] = of(env.step, np.zeros(7))
    gym.reset(seed=0)
del env._advance
outcomes["goes on"] = of(gym.step, np.zeros((3, 7), np.float32))
print(json.dumps(outcomes))
"""


@pytest.mark.sim
def test_rollout_env_and_sim_env_raise_action_and_divergence_errors(
    tmp_path: Path,
) -> None:
    file = tmp_path / "around.py"
    file.write_text(
        f"import os, sys\nos.chdir({str(tmp_path)!r})\nsys.path.insert(0, {str(CHECKOUT)!r})\n{AROUND}"
    )
    done = run("-W", "ignore", str(file))
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert outcomes["gym"] == [
        "ActionError",
        "the action holds nan in gripper_minus1_open_plus1_close",
        "NoneType",
    ]
    assert outcomes["still"], "no action of a refused chunk is executed"
    assert outcomes["controller True"][::2] == ["DivergedError", "LinAlgError"]
    assert "position of joint robot0_joint1 is nan" in outcomes["controller True"][1]
    assert outcomes["controller False"] == ["LinAlgError", "SVD did not converge", "NoneType"]
    assert outcomes["goes on"] is None


class Recorded:
    """The part of a simulator that `record` uses, with one non-finite value or one fault."""

    contract, state = CONTRACT, dict[str, Any]()

    def __init__(self, proprio: float = 0.0, diverges: bool = False) -> None:
        self._proprio, self._diverges, self._steps = proprio, diverges, 0
        self.task = "Lift"

    def reset(self, seed: int) -> None: ...

    def step(self, action: Any) -> None:
        self._steps += 1
        if self._diverges:
            raise DivergedError("the simulation diverged: somewhere")

    def observe(self, noise_seed: int) -> Observation:
        proprio = np.full(9, self._proprio if self._steps == 1 else 0.0, np.float32)
        return Observation({CAMERA: np.zeros((64, 64, 3), np.uint8)}, proprio, "", noise_seed)

    def from_delta_pose(self, action: Any) -> Any:
        return action

    @property
    def succeeded(self) -> bool:
        return self._steps > 2


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize(
    ("env", "expert", "what"),
    [
        (Recorded(proprio=math.inf), 0.0, "its proprioception hold a value that is not a number"),
        (Recorded(), math.nan, "its actions hold a value that is not a number"),
        (Recorded(), 1e39, "its actions hold a value that is not a number"),  # more than float32 holds
        (Recorded(diverges=True), 0.0, "the simulation diverged: somewhere"),
    ],
)
def test_record_of_a_non_finite_demonstration_stores_nothing(
    env: Recorded, expert: float, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acting = type("Expert", (), {"horizon": 9, "act": staticmethod(lambda state: np.full(7, expert))})
    monkeypatch.setattr("sim_workers.demos.recorder.expert_for", lambda task: acting)
    storage = open_storage(str(tmp_path))
    with pytest.raises(EpisodeError, match=rf"episode Lift-000003: {what}"):
        record(env, storage, Demonstration("Lift", 3, 0.0))  # type: ignore[arg-type]
    assert not list(storage.list(""))


# -- training ------------------------------------------------------------------------------------------------


def trainer(objective: str = "joint", **recipe: Any) -> Trainer:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = new_model(policy_config("tiny"), CONTRACT)
    model.learn(objective)
    return Trainer(model, Recipe(**recipe), 5)


def stepped(of: Trainer, **unsound: float) -> Any:
    clips = make_batch(3)
    for name, value in unsound.items():
        getattr(clips, name)[1, 0] = value
    return of.step(clips, 6, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("objective", ["joint", "action"])
@pytest.mark.parametrize("clip_norm", [1.0, 0.0])
def test_trainer_with_a_non_finite_loss_raises_with_name_and_step(objective: str, clip_norm: float) -> None:
    of = trainer(objective, clip_norm=clip_norm)
    assert math.isfinite(stepped(of).total.item())
    with pytest.raises(NotFiniteError, match=r"lower train\.learning_rate") as raised:
        stepped(of, actions=math.nan)
    assert re.match(
        r"loss, loss_action and gradient norm are not finite at step 7 \(loss nan, loss_video [\d.]+,"
        r" loss_action nan, ",
        str(raised.value),
    )


@pytest.mark.parametrize("clip_norm", [1.0, 0.0])
def test_trainer_with_a_non_finite_gradient_raises(clip_norm: float) -> None:
    of = trainer(clip_norm=clip_norm)
    of._parameters[0].register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(
        NotFiniteError,
        match=(
            r"^gradient norm is not finite at step 7 \(loss [\d.]+, loss_video [\d.]+, loss_action [\d.]+, "
        ),
    ):
        stepped(of)


def test_trainer_under_fp16_tolerates_overflow_while_the_loss_scale_can_drop() -> None:
    _refuse(None)
    values = [0.5, 0.2, 0.3, math.inf]
    _refuse(_Watched(3, torch.tensor([*values, 2.0]), None))
    with pytest.raises(NotFiniteError, match=r"^gradient norm is not finite at step 3"):
        _refuse(_Watched(3, torch.tensor([*values, 1.0]), None))
    with pytest.raises(NotFiniteError, match=r"^loss is not finite at step 3"):
        _refuse(_Watched(3, torch.tensor([math.nan, 0.2, 0.3, 1.0, 65536.0]), None))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_trainer_on_a_gpu_raises_at_the_next_step_or_check(precision: str) -> None:
    torch.manual_seed(0)
    model = new_model(policy_config("tiny"), CONTRACT)
    model.learn("joint")
    model.to("cuda")
    for ends in (lambda of, clips: of.check(), lambda of, clips: of.step(clips, 4, torch.Generator())):
        of = Trainer(model, Recipe(precision=precision), 5)
        on_gpu = {
            name: value.cuda()
            for name, value in vars(make_batch(3)).items()
            if isinstance(value, torch.Tensor)
        }
        clips = replace(make_batch(3), **on_gpu)
        clips.actions[0] = math.nan
        of.step(clips, 3, torch.Generator())
        with pytest.raises(NotFiniteError, match="at step 4"):
            ends(of, clips)


def job(store: str, **train: Any) -> TrainJob:
    settings = Train(**{"steps": 6, "batch_size": 4, "checkpoint_every": 3, "warmup_steps": 2, **train})
    version = latest_version(open_storage(store))
    arm = Arm(3, 1.0, 0)
    subset = selected(store, arm)
    return TrainJob(arm, "arm", store, version, subset, PRESETS["tiny"], settings, "joint", "none")


@pytest.fixture
def kept(tmp_path: Path) -> CheckpointFolder:
    torch.set_num_threads(1)
    return CheckpointFolder(tmp_path)


def test_train_with_a_non_finite_loss_keeps_earlier_checkpoints(
    store: str, kept: CheckpointFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, steps = ClipBatch.to, []

    def spoilt(*arguments: Any) -> Any:
        batch = read(*arguments)
        steps.append(0)
        return replace(batch, actions=batch.actions * math.inf) if len(steps) == 5 else batch

    monkeypatch.setattr(ClipBatch, "to", spoilt)
    with pytest.raises(NotFiniteError, match=r"are not finite at step 5 \("):
        train(job(store), 0, 1, None, kept)
    assert len(steps) == 5
    assert max(step for step, _ in kept.reports) < 5
    assert [folder.name for folder in kept.folder.iterdir()] == ["step_000003"]


@pytest.mark.parametrize("part", ["weights", "trainer"])
def test_train_writes_no_checkpoint_with_non_finite_tensors(
    store: str, kept: CheckpointFolder, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = {"weights": "acting_weights", "trainer": "state"}[part]
    sound = getattr(Trainer, method)

    def spoilt(self: Trainer) -> Any:
        tensors = sound(self)
        next(iter(tensors.values())).view(-1)[0] = math.nan
        return tensors

    monkeypatch.setattr(Trainer, method, spoilt)
    with pytest.raises(
        NotFiniteError,
        match=(
            r"^weights are not finite at step 3 \([\w./]+\), though its losses are; lower"
            r" train.learning_rate$"
        ),
    ):
        train(job(store), 0, 1, None, kept)
    assert not list(kept.folder.iterdir())


def spoil(folder: Path, file: str) -> str:
    """Make one value of the file NaN and return the name of its tensor."""
    tensors = load_file(folder / file)
    name = next(
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not name.startswith("scaler/")
    )
    tensors[name].view(-1)[-1] = math.nan
    save_file(tensors, folder / file, {"format": "pt"})
    return name


@pytest.mark.parametrize("file", ["heads.safetensors", "trainer.safetensors"])
def test_train_from_a_non_finite_checkpoint_raises(store: str, kept: CheckpointFolder, file: str) -> None:
    train(job(store), 0, 1, None, kept, stop_request=lambda: StopRequest.PAUSE)
    name = spoil(kept.folder / "step_000001", file)
    with pytest.raises(
        NotFiniteError,
        match=rf"^the checkpoint of step 1 is not finite \({name}\); remove arms/arm to train it again$",
    ):
        train(job(store), 0, 1, kept.folder / "step_000001", kept)


def test_train_from_a_non_finite_video_model_raises(store: str, kept: CheckpointFolder) -> None:
    video = replace(job(store), objective="video")
    train(video, 0, 1, None, kept)
    folder = kept.folder / "step_000006"
    name = spoil(folder, "unet/diffusion_pytorch_model.safetensors")
    with pytest.raises(
        NotFiniteError,
        match=rf"^the weights in {folder} are not finite \(video.unet.{name}\); start training from others$",
    ):
        train(replace(job(store), video_model=str(folder)), 0, 1, None, kept)


# -- acting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["heads.safetensors", "unet/diffusion_pytorch_model.safetensors"])
def test_trained_policy_with_non_finite_weights_raises(tmp_path: Path, file: str) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint")
    TrainedPolicy(folder)
    name = spoil(folder, file)
    with pytest.raises(
        CheckpointError, match=rf"^{folder}: the weights of [\w.]*{name} hold a value that is not finite"
    ):
        TrainedPolicy(folder)


def test_trained_policy_with_one_nan_observation_answers_the_others_unchanged(tmp_path: Path) -> None:
    policy = TrainedPolicy(make_checkpoint(tmp_path / "checkpoint"))
    sound = [make_observation(seed) for seed in range(4)]
    unsound = replace(sound[1], proprio=np.full(9, np.nan, np.float32))
    alone, beside = policy.act(sound), policy.act([sound[0], unsound, *sound[2:]])
    assert np.isnan(beside[1].actions).all()
    assert all(np.array_equal(alone[i].actions, beside[i].actions) for i in (0, 2, 3))


def test_not_finite_names_the_tensors() -> None:
    tensors = {
        "a": torch.zeros(3),
        "none": torch.zeros(0),
        "count": torch.tensor(3),
        "half": torch.tensor([6e4], dtype=torch.float16),
    }
    assert not_finite({}) == not_finite(tensors) == ""
    assert not_finite(tensors | {"b": torch.tensor([[0.0, -math.inf]])}) == "b"
    assert (
        not_finite(tensors | {"b": torch.tensor([math.nan, 1.0]), "c": torch.tensor(math.inf).bfloat16()})
        == "b and 1 more of 4"
    )
