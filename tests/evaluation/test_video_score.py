"""The generated-video score: its clips, its measures, and that it measures what the policy itself
imagines.
"""

import asyncio
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator.checkpoints.ref import CheckpointRef
from orchestrator.data.episode_store import commit, load_manifest, put_episode
from orchestrator.evaluation.held_out_clips import HeldOut
from orchestrator.evaluation.image_metrics import MEASURES, Fidelity, fidelity
from orchestrator.evaluation.video_score import VideoBenchmark, VideoScore, first_look
from orchestrator.storage.base import open_storage
from orchestrator.testing.checkpoints import make_checkpoint
from orchestrator.testing.episodes import CAMERA, CONTRACT, make_episode
from policy.config import ClipShape
from policy.inference import TrainedPolicy
from policy.interface import Imagination, Observation
from policy.presets import PRESETS, policy_config

BEST = 10 * np.log10(255**2 * 12)
STILL_LIFE = Fidelity(20.0, 0.5, 0.3)


def pictures(seed: int = 0, count: int = 3, size: int = 64) -> np.ndarray:  # type: ignore[type-arg]
    return np.stack([make_episode(seed + i, 1, size=size).frames[CAMERA][0] for i in range(count)])


# -- measures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 64, 128])
def test_fidelity_of_equal_pictures_is_the_best_value(size: int) -> None:
    told = fidelity(pictures(size=size), pictures(size=size))
    assert told.psnr == pytest.approx(BEST)
    assert told.ssim == pytest.approx(1)
    assert told.distance == pytest.approx(0, abs=1e-6)


def test_psnr_equals_its_formula_averaged_over_pictures() -> None:
    real = np.full((2, 64, 64, 3), 100, np.uint8)
    shown = real + np.array([5, 20], np.uint8)[:, None, None, None]
    assert fidelity(shown, real).psnr == pytest.approx(
        np.mean(20 * np.log10(255 / np.array([5, 20]))), rel=1e-5
    )
    each = [fidelity(shown[i : i + 1], real[i : i + 1]) for i in range(2)]
    assert vars(fidelity(shown, real)) == pytest.approx(vars(Fidelity.mean(each)))


def test_fidelity_worsens_with_noise_by_every_measure() -> None:
    real, rng = pictures(), np.random.default_rng(0)
    noisy = [
        np.clip(real + rng.normal(0, sigma, real.shape), 0, 255).astype(np.uint8)
        for sigma in (2, 10, 40, 120)
    ]
    told = [fidelity(shown, real) for shown in noisy]
    assert [one.psnr for one in told] == sorted((one.psnr for one in told), reverse=True)
    assert [one.ssim for one in told] == sorted((one.ssim for one in told), reverse=True)
    assert [one.distance for one in told] == sorted(one.distance for one in told)
    assert 0 < told[0].distance < told[-1].distance < 1


# -- the clips -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a store with sixteen episodes of Lift, of 12 to 27 frames."""
    storage = open_storage(str(tmp_path_factory.mktemp("store")))
    commit(
        storage, CONTRACT, [put_episode(storage, make_episode(seed, 12 + seed), 20.0) for seed in range(16)]
    )
    return storage.uri


def held_out(
    store: str, count: int = 5, used: frozenset[str] = frozenset(), shape: ClipShape = PRESETS["tiny"].clip
) -> HeldOut:
    return HeldOut.choose(store, load_manifest(open_storage(store)), ("Lift",), count, used, shape)


def video_test(store: str, count: int = 5, rung: str = "one_pass") -> VideoBenchmark:
    return VideoBenchmark(held_out(store, count), policy_config("tiny").sampler_on(rung))


def test_held_out_clips_are_fixed_and_lie_within_their_episodes(store: str) -> None:
    for shape in (PRESETS["tiny"].clip, ClipShape(frames_per_view=3, frame_stride=5, horizon=8)):
        clips = held_out(store, shape=shape)
        assert clips == held_out(store, shape=shape)
        span = shape.frame_stride * (shape.frames_per_view - 1)
        assert all(clip.start >= 0 and clip.start + span < clip.episode.length for clip in clips.clips)
        for clip in clips.clips:
            read = clips.read(clip)
            assert read.frame_mask.all()
            assert read.actions.any() == False, "video clips need no actions"  # noqa: E712
    assert len({clip.start for clip in held_out(store, 16).clips}) > 5, "not only how episodes begin"


def test_video_benchmark_digest_depends_on_pictures_rung_and_measures(store: str, tmp_path: Path) -> None:
    test = video_test(store)
    copied = tmp_path / "copy"
    shutil.copytree(store.removeprefix("file://"), copied)
    assert video_test(str(copied)).digest == test.digest, "the pictures count, not where they lie"
    wider = replace(
        test, held_out=held_out(store, shape=ClipShape(frames_per_view=2, frame_stride=4, horizon=8))
    )
    used = frozenset(clip.episode.episode_id for clip in test.held_out.clips)
    elsewhere = replace(test, held_out=held_out(store, used=used))
    digests = {
        one.digest
        for one in (test, video_test(store, 4), video_test(store, rung="truncated"), wider, elsewhere)
    }
    assert len(digests) == 5
    assert test.digest == test.digest_with(MEASURES)
    assert test.digest_with((*MEASURES[:-1], "flip-evaluator 99")) not in digests


def test_video_score_round_trips_and_the_first_one_is_kept(store: str, tmp_path: Path) -> None:
    storage, test = open_storage(str(tmp_path)), video_test(store)
    assert test.known(storage, "weights") is None
    first = VideoScore(Fidelity(21.0, 0.6, 0.2), STILL_LIFE, 5, test.digest)
    test.keep(storage, "weights", first)
    test.keep(storage, "weights", replace(first, clips=6))
    assert test.known(storage, "weights") == first
    assert storage.list("video/") == [f"video/weights/{test.digest}.json"]
    assert video_test(store, 4).known(storage, "weights") is None, "a score on other clips is another one"


# -- measuring -----------------------------------------------------------------------------------------------


def true_future(store: str, error: int = 0) -> Callable[[Observation], Imagination]:
    """Return a policy that imagines the true future of every held-out clip, off by `error` grey levels."""
    clips = held_out(store)
    futures = {clip.seed: clip for clip in map(clips.read, clips.clips)}

    def imagine(look: Observation) -> Imagination:
        clip = futures[look.noise_seed]
        assert np.array_equal(look.images[CAMERA], clip.frames[0, 0]), "it is shown the first frame"
        assert look.instruction == "lift the red cube"
        future = np.clip(clip.frames[0, 1:].astype(int) + error, 0, 255).astype(np.uint8)
        return Imagination({CAMERA: future}, clips.shape.frame_stride)

    return imagine


def frozen(look: Observation) -> Imagination:
    return Imagination({camera: picture[None] for camera, picture in look.images.items()}, 8)


def test_video_score_is_best_for_the_truth_and_still_for_no_motion(store: str) -> None:
    test = video_test(store)
    perfect, off, still = (
        test.measure(imagine) for imagine in (true_future(store), true_future(store, 9), frozen)
    )
    assert perfect.generated.psnr == pytest.approx(BEST)
    assert perfect.generated.ssim == pytest.approx(1)
    assert perfect.generated.distance == pytest.approx(0, abs=1e-6)
    assert still.generated == still.still
    assert perfect.still == off.still == still.still, "the reference is a function of the clips alone"
    assert perfect.generated.psnr > off.generated.psnr > 20 * np.log10(255 / 9) - 0.1
    assert perfect.generated.distance < off.generated.distance
    assert off.generated.psnr != still.generated.psnr
    assert {score.clips for score in (perfect, off, still)} == {5}
    assert perfect.metrics["video_clips_id"] == int(test.digest[:12], 16) < 2**53


def test_video_score_through_the_server_equals_direct_imagination(store: str, tmp_path: Path) -> None:
    """Through the server, asked one clip at a time by several threads, or directly in whole batches: the same
    numbers.
    """
    from orchestrator.evaluation.policy_server import PolicyServer

    folder, test = make_checkpoint(tmp_path / "tiny"), video_test(store)
    policy, clips = (
        TrainedPolicy(folder, rung="one_pass"),
        [test.held_out.read(clip) for clip in test.held_out.clips],
    )
    together = policy.imagine([first_look(clip, (CAMERA,)) for clip in clips])
    expected = [
        fidelity(told.frames[CAMERA], clip.frames[0, 1:]) for told, clip in zip(together, clips, strict=True)
    ]
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    server, checkpoint = PolicyServer(1, "cpu", "one_pass"), CheckpointRef(str(folder))

    def ask(look: Observation) -> Imagination:
        told = asyncio.run_coroutine_threadsafe(server.imagine(checkpoint, look), loop).result()
        assert told
        return told

    score = test.measure(ask)
    assert score.generated == Fidelity.mean(expected)
    done = asyncio.run_coroutine_threadsafe(server.answered(checkpoint), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    assert done.imagined_s > 0
    assert (done.batches, done.busy_s) == (
        0,
        0.0,
    ), "imagining does not count as an answer in the load balance"


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_video_score_of_a_cluster_equals_direct_imagination(store: str, tmp_path: Path) -> None:
    import ray

    from orchestrator.evaluation.ray_actors import held_out_actor, policy_servers
    from sim_workers.rollout.ray_policy_client import RayServedPolicy

    folder, test = make_checkpoint(tmp_path / "tiny"), video_test(store)
    source, judge = (
        RayServedPolicy(policy_servers(2, 0, "one_pass"), CheckpointRef(str(folder)), imagines=True),
        held_out_actor(),
    )
    score, cpu_s = ray.get(judge.measure.remote(test, source), timeout=300)
    policy, turn = TrainedPolicy(folder, rung="one_pass"), threading.Lock()

    def imagine(look: Observation) -> Imagination:
        with turn:
            return policy.imagine([look])[0]

    assert score == test.measure(imagine)
    assert cpu_s > 0
    assert source.measure(source.key).imagined_s > 0
    for actor in (judge, *source.servers):
        ray.kill(actor)
