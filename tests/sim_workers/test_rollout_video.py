"""Films: the imagined frames are those that the actions are read from, filming changes nothing, and outcomes
select the filmed episodes.
"""

import asyncio
import io
import json
from dataclasses import replace
from itertools import pairwise, permutations
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import run

from backbones import svd_folder, svd_policy
from grey_simulator import GreySimulator, record_film
from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.evaluation.policy_server import PolicyServer
from orchestrator.evaluation.video_selection import select_episodes_to_record
from orchestrator.testing.checkpoints import make_checkpoint, make_observation
from orchestrator.testing.episodes import CAMERA
from policy.inference import TrainedPolicy
from policy.interface import Imagination, Observation
from policy.latent_codec import to_frames
from policy.model import VideoActionModel
from policy.presets import policy_config
from sim_workers.envs.robosuite import contract
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.rollout_video import BORDER, DONE, GAP, SCENE, STRIP, RolloutRecorder, nearest
from sim_workers.rollout.suite import EpisodeSpec

SENTENCE = "lift the red cube"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("film") / "tiny")


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(
        tmp_path_factory.mktemp("film") / "baseline", policy_config("tiny", "diffusion_policy")
    )


def same(one: Imagination, other: Imagination) -> bool:
    return one.stride == other.stride and all(
        np.array_equal(one.frames[camera], other.frames[camera]) for camera in one.frames | other.frames
    )


# -- imagination ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rung", ["one_pass", "truncated"])
def test_imagined_frames_are_the_video_that_actions_are_read_from(checkpoint: Path, rung: str) -> None:
    policy = TrainedPolicy(checkpoint, rung=rung)
    looks = [make_observation(seed) for seed in range(4)]
    video, actions = policy._sample(looks)
    assert video is not None
    for i, (told, chunk) in enumerate(zip(policy.imagine(looks), policy.act(looks), strict=True)):
        assert told.stride == 8
        assert told.frames[CAMERA].shape == (1, 64, 64, 3)
        assert told.frames[CAMERA].dtype == np.uint8
        assert np.array_equal(told.frames[CAMERA], to_frames(video[i, 1:], 8).numpy())
        assert np.array_equal(chunk.actions, policy._actions.denormalize(actions)[i].numpy())


def test_imagination_depends_on_the_noise_seed_and_not_on_the_batch(
    checkpoint: Path,
) -> None:
    policy = TrainedPolicy(checkpoint, rung="truncated")
    looks = [make_observation(seed) for seed in range(5)]
    together, backwards = policy.imagine(looks), policy.imagine(looks[::-1])[::-1]
    for one, a, b in zip(looks, together, backwards, strict=True):
        assert same(a, policy.imagine([one])[0])
        assert same(a, b)
    assert not same(together[0], policy.imagine([replace(looks[0], noise_seed=99)])[0])


def test_imagination_has_all_future_frames_of_every_camera(
    tmp_path: Path,
) -> None:
    cameras = contract(("agentview", "sideview", CAMERA), (64, 64), "fast")
    folder = make_checkpoint(tmp_path / "svd", svd_policy(), cameras, svd_folder(tmp_path / "weights"))
    policy = TrainedPolicy(folder, rung="truncated")
    rng = np.random.default_rng(0)
    seen = Observation(
        {c: rng.integers(0, 256, (64, 64, 3), np.uint8) for c in cameras.cameras},
        np.zeros(9, np.float32),
        SENTENCE,
        0,
    )
    (told,) = policy.imagine([seen])
    assert list(told.frames) == list(cameras.cameras)
    assert told.stride == 4
    assert all(frames.shape == (2, 64, 64, 3) for frames in told.frames.values())
    model = policy._model
    assert isinstance(model, VideoActionModel)
    views = torch.arange(3.0 * 3)[None, :, None, None, None].unflatten(1, (3, 3))
    assert torch.equal(model.views(model._on_time_axis(views)), views)


def test_policy_server_imagines_and_acts_in_one_queue(checkpoint: Path, baseline: Path) -> None:
    looks = [make_observation(seed) for seed in range(3)]

    async def ask() -> tuple[list[object], list[object], object]:
        server = PolicyServer(1, "cpu", "truncated")
        acts, imaginations = (
            [server.act(CheckpointRef(str(checkpoint)), one) for one in looks],
            [server.imagine(CheckpointRef(str(checkpoint)), one) for one in looks],
        )
        done = await asyncio.gather(
            *(one for pair in zip(acts, imaginations, strict=True) for one in pair),
            server.imagine(CheckpointRef(str(baseline)), looks[0]),
        )
        assert len(server._policies) == 2
        return list(done[:-1:2]), list(done[1:-1:2]), done[-1]

    chunks, imagined, nothing = asyncio.run(ask())
    policy = TrainedPolicy(checkpoint, rung="truncated")
    assert all(np.array_equal(a.actions, b.actions) for a, b in zip(chunks, policy.act(looks), strict=True))  # type: ignore[attr-defined]
    assert all(same(a, b) for a, b in zip(imagined, policy.imagine(looks), strict=True))  # type: ignore[arg-type]
    assert nothing is None
    assert not TrainedPolicy(baseline).imagines


# -- films ---------------------------------------------------------------------------------------------------


def decoded(film: bytes) -> tuple[list[np.ndarray], float]:  # type: ignore[type-arg]
    """Return its frames and its frame rate."""
    with av.open(io.BytesIO(film)) as container:
        rate = container.streams.video[0].average_rate
        assert rate is not None
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)], float(rate)


def futures(cameras: int, stride: int = 4, count: int = 2) -> Imagination:
    frames = np.arange(1, count + 1, dtype=np.uint8)[:, None, None, None] * np.ones((64, 64, 3), np.uint8)
    return Imagination({f"camera{i}": frames + np.uint8(200 + 10 * i) for i in range(cameras)}, stride)


@pytest.mark.parametrize(("cameras", "side"), [(1, SCENE), (2, SCENE // 2), (3, SCENE // 2)])
def test_film_frame_has_scene_cameras_and_imagined_frames(cameras: int, side: int) -> None:
    film = record_film(GreySimulator(cameras), lambda _: futures(cameras), 7, won_at=6)
    frames = film._frames
    assert len(frames) == 4  # at the first look, and after 2, 4 and 6 steps
    assert all(len(frame) % 2 == 0 and frame.shape[1] % 2 == 0 for frame in frames)
    assert frames[0].shape[:2] == (STRIP + max(SCENE, cameras * (side + GAP) - GAP), SCENE + 2 * (GAP + side))
    x, y = SCENE + GAP + side // 2, STRIP + side // 2
    for steps, frame in zip((0, 2, 4, 6), frames, strict=True):
        assert (frame[STRIP + SCENE // 2, SCENE // 2] == 10 + steps).all()
        for i in range(cameras):
            assert (frame[y + i * (side + GAP), x] == 50 + 50 * i + steps).all()
            # no look is more than four steps ago
            assert (frame[y + i * (side + GAP), x + side + GAP] == 201 + 10 * i).all()
    assert tuple(frames[-1][STRIP + BORDER // 2, SCENE // 2]) == DONE
    assert tuple(frames[-2][STRIP + BORDER // 2, SCENE // 2]) != DONE
    shown, rate = decoded(film.mp4())
    assert (len(shown), rate) == (4, 10)
    assert shown[0].shape == frames[0].shape


def test_film_shows_the_imagined_frame_nearest_in_time() -> None:
    imagined = futures(1, stride=4, count=3)
    shown = {steps: nearest(imagined, steps) for steps in (0, 4, 5, 7, 8, 12, 30)}
    assert {steps: int(pictures["camera0"][0, 0, 0]) - 200 for steps, (pictures, _) in shown.items()} == {
        0: 1,
        4: 1,
        5: 1,
        7: 2,
        8: 2,
        12: 3,
        30: 3,
    }
    assert {steps: ahead for steps, (_, ahead) in shown.items()} == {
        0: 4,
        4: 0,
        5: -1,
        7: 1,
        8: 0,
        12: 0,
        30: -18,
    }


@pytest.mark.parametrize("imagine", [None, lambda _: None])
def test_film_without_imagination_shows_the_scene_alone(imagine: object) -> None:
    (first, *_), _ = decoded(record_film(GreySimulator(2), imagine, 3).mp4())
    assert first.shape == (STRIP + SCENE, SCENE, 3)


def test_film_of_an_episode_without_a_step_has_one_frame() -> None:
    assert len(decoded(RolloutRecorder(GreySimulator(1)).mp4())[0]) == 1  # type: ignore[arg-type]


# One environment per process: this one plays an episode of each policy without camera, with, without, on the
# same context.
FILMED = """
import hashlib, json, sys
from dataclasses import asdict
from pathlib import Path
from policy.inference import TrainedPolicy
from sim_workers.envs.robosuite import SimEnv
from sim_workers.rollout.episode import Stepped, episode
from sim_workers.rollout.suite import EpisodeSpec, EpisodeRules
from sim_workers.rollout.rollout_video import RolloutRecorder

def play(policy, out):
    film = RolloutRecorder(env) if out else None
    digest = hashlib.sha256()
    playing = episode(env, EpisodeSpec("Lift", 1_000_003, 1_000_003), EpisodeRules(13))
    try:
        said = next(playing)
        while True:
            chunk = None
            if isinstance(said, Stepped):
                digest.update(env.physics.tobytes() + env.proprio.tobytes())
                if film:
                    film.stepped(*said)
            else:
                digest.update(b"".join(picture.tobytes() for picture in said.images.values()))
                chunk = policy.act([said])[0]
                if film:
                    film.observed(policy.imagine([said])[0] if policy.imagines else None)
            said = playing.send(chunk)
    except StopIteration as over:
        if film:
            out.write_bytes(film.mp4())
        return [digest.hexdigest(), {name: value for name, value in asdict(over.value).items() if not name.endswith("_s")}]

policies = [TrainedPolicy(Path(folder)) for folder in sys.argv[2:]]
env = SimEnv("Lift", policies[0].contract)
played = [[play(policy, out) for out in (None, Path(sys.argv[1]) / f"{i}.mp4", None)] for i, policy in enumerate(policies)]
env.close()
print(json.dumps(played))
"""


@pytest.mark.full
@pytest.mark.sim
def test_filming_changes_no_outcome(checkpoint: Path, baseline: Path, tmp_path: Path) -> None:
    done = run("-W", "ignore", "-c", FILMED, str(tmp_path), str(checkpoint), str(baseline))
    assert done.returncode == 0, done.stderr
    widths = (3 * SCENE + 2 * GAP, SCENE)  # one that imagines, and the scene alone
    for i, (before, with_camera, after) in enumerate(json.loads(done.stdout.splitlines()[-1])):
        assert before == with_camera == after
        assert before[1]["steps"] == 13
        frames, rate = decoded((tmp_path / f"{i}.mp4").read_bytes())
        assert (len(frames), rate) == (1 + 13 // 2, 10)
        assert frames[0].shape == (STRIP + SCENE, widths[i], 3)
        assert np.mean([abs(a.astype(int) - b).mean() for a, b in pairwise(frames)]) > 0.1


# -- selection -----------------------------------------------------------------------------------------------


def outcome(task: str, seed: int, result: str) -> Outcome:
    return Outcome(EpisodeSpec(task, seed, seed), result, 1, 1, 0.0, 0.0)  # type: ignore[arg-type]


def test_select_episodes_to_record_takes_first_success_and_failure_per_task() -> None:
    told = [
        outcome("Lift", 1, "error"),
        outcome("Lift", 2, "failure"),
        outcome("Lift", 3, "failure"),
        outcome("Lift", 10, "success"),
        outcome("Door", 1, "success"),
        outcome("Door", 2, "success"),
    ]
    wanted = [("Door", 1), ("Lift", 2), ("Lift", 10)]
    for order in permutations(told):
        assert [(spec.task, spec.scene_seed) for spec in select_episodes_to_record(order)] == wanted
    assert select_episodes_to_record([outcome("Lift", 1, "error")]) == []
