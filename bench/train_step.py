"""Does the train loop cost more than its forward and backward passes, and does keeping a frozen video model's
features pay?

    python -m bench.train_step           about ten minutes
    python -m bench.train_step --quick   within a minute: few rounds, which say little

Clips per second of the whole loop, with Ray Data, decoding, metrics and everything, against a bare loop over
batches in memory: model, AdamW, clipping, running average. In one process by turns, a block of steps each.
Where there is a GPU: `svd-256` on it, too.
"""

import itertools
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import torch

from bench import corpus, harness
from bench.harness import Cost, Pause, by_turns, ratio
from orchestrator.cluster.ray_runtime import connect, quiet
from orchestrator.config.arms import Arm
from orchestrator.config.schema import Train
from orchestrator.data import clip_stream as stream
from orchestrator.data.clip_sampler import CLIPS_PER_VISIT, POOL_VISITS
from orchestrator.data.episode_format import Episode
from orchestrator.data.episode_store import commit, load_manifest, put_episode
from orchestrator.data.manifest import EpisodeEntry
from orchestrator.data.subset import select_episodes
from orchestrator.storage.base import open_storage
from orchestrator.training.loop import PROGRESS_REPORTS, TrainJob, train
from orchestrator.training.train_events import Reported
from policy.batch import Batch, Counts
from policy.config import Objective, PolicyConfig, Recipe
from policy.interface import Contract
from policy.model import FeatureCache, VideoActionModel
from policy.presets import PRESETS
from policy.trainer import Trainer
from sim_workers.envs.robosuite import contract

BATCH = 16  # clips
IN_MEMORY = 8  # batches
LENGTH = 45  # frames of an episode, as long as the expert takes for Lift
CONTRACT = contract(("robot0_eye_in_hand",), (64, 64), "fast")
TINY = PRESETS["tiny"]
CACHE_MB = 256
SENTENCE = "lift the cube"
BARE, MEMORY, WHOLE = (
    "bare loop, batches in memory",
    "Trainer, batches in memory",
    "whole loop, clips through Ray Data",
)


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    episodes: int
    """Half of them demos."""
    rounds: int
    block: int
    """Steps."""


FULL = Size(40, 16, 20)
QUICK = Size(4, 8, 2)


# -- a store of short episodes -------------------------------------------------------------------------------


def _shrunk(episode: Episode) -> Episode:
    """One camera, 64 x 64, LENGTH frames."""
    assert episode.proprio is not None
    assert episode.action is not None
    frames = {}
    for camera in CONTRACT.cameras:
        squares = episode.frames[camera][:LENGTH].reshape(LENGTH, 64, 2, 64, 2, 3)
        frames[camera] = squares.mean((2, 4)).round().astype(np.uint8)
    return replace(episode, frames=frames, proprio=episode.proprio[:LENGTH], action=episode.action[:LENGTH])


def _put(uri: str, episode: Episode) -> EpisodeEntry:
    return put_episode(open_storage(uri), episode, CONTRACT.control_hz)


def write_store(root: Path, episodes: int) -> str:
    """Genuine recordings of Lift, varied."""
    (root / "recorded").mkdir()
    recorded = corpus.recorded(root / "recorded", min(corpus.RECORDED, episodes // 2))
    made = [_shrunk(corpus.variant(recorded, number)) for number in range(episodes)]
    uri = str(root / "store")
    with ProcessPoolExecutor(2) as executor:
        entries = list(executor.map(_put, [uri] * episodes, made))
    commit(open_storage(uri), CONTRACT, entries)
    return uri


# -- the loops -----------------------------------------------------------------------------------------------


def job_of(uri: str, size: Size, objective: Objective = "joint", cache_mb: int = 0) -> TrainJob:
    """An arm that reports at the end of every block, without a checkpoint before its last step."""
    steps = PROGRESS_REPORTS * size.block
    settings = Train(steps=steps, batch_size=BATCH, checkpoint_every=steps, feature_cache_mb=cache_mb)
    arm = Arm(size.episodes // 2, 1.0, 0)
    return TrainJob(
        arm,
        f"bench-{objective}-{cache_mb}",
        uri,
        1,
        select_episodes(load_manifest(open_storage(uri)), arm),
        TINY,
        settings,
        objective,
        weights="none",
    )


def warm_up(size: Size, objective: Objective) -> int:
    """Blocks until nothing is new: Ray Data has brought every episode, and of a frozen video model every clip
    was seen.
    """
    clips = size.episodes // 2 * LENGTH + POOL_VISITS * CLIPS_PER_VISIT  # those of an epoch come in disorder
    return 2 if objective == "joint" else -(-clips // (BATCH * size.block))


def whole(job: TrainJob, warm_up: int) -> Callable[[Pause], None]:
    """What trains an arm."""
    from orchestrator.data.ray_prefetch import RayDataFetcher

    def loop(pause: Pause) -> None:
        blocks = itertools.count(1)

        def report(event: Reported, checkpoint: Path | None) -> None:
            if next(blocks) >= warm_up:
                pause()

        train(job, 0, 1, None, report, fetcher=RayDataFetcher())

    return loop


def in_memory(job: TrainJob) -> list[Batch]:
    """Batches of the job, as tensors. They are not normalised: time does not depend on it."""
    manifest = load_manifest(open_storage(job.episodes), job.version)
    clips = stream.batches(
        job.episodes,
        manifest.contract,
        job.order(manifest, 0, 1),
        job.clip,
        first_step=0,
        num_steps=IN_MEMORY,
    )
    return [batch.to(torch.device("cpu")) for batch in clips]


def bare(job: TrainJob, batches: list[Batch]) -> Callable[[Pause], None]:
    """The least that training takes."""

    def loop(pause: Pause) -> None:
        recipe, generator = job.train, torch.Generator()
        model = VideoActionModel(job.config, CONTRACT)
        model.learn(job.objective)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, recipe.learning_rate, (0.9, 0.95), weight_decay=recipe.weight_decay, fused=True
        )
        average = [parameter.detach().clone() for parameter in parameters]
        for step, batch in enumerate(itertools.cycle(batches), 1):
            losses = model(batch, generator, Counts.of(batch))
            optimizer.zero_grad()
            losses.total.backward()
            torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(average, list[torch.Tensor](parameters), 1 - recipe.ema_decay)
            if step % (job.train.steps // PROGRESS_REPORTS) == 0:
                pause()

    return loop


def trainer_alone(job: TrainJob, batches: list[Batch]) -> Callable[[Pause], None]:
    """The loop's steps without what brings the clips."""

    def loop(pause: Pause) -> None:
        model, generator = VideoActionModel(job.config, CONTRACT), torch.Generator()
        model.feature_cache = FeatureCache(job.train.feature_cache_mb * 2**20)
        model.learn(job.objective)
        trainer = Trainer(model, job.train, job.train.steps)
        block = job.train.steps // PROGRESS_REPORTS
        for step, batch in enumerate(itertools.cycle(batches)):
            trainer.step(batch, min(step, job.train.steps - 1), generator)
            if step + 1 >= IN_MEMORY and (step + 1) % block == 0:
                pause()

    return loop


def show(title: str, size: Size, costs: dict[str, list[Cost]]) -> None:
    """Medians over rounds."""
    clips = size.block * BATCH
    print(f"{title:<48} clips/s  CPU ms/clip")
    for name, rounds in costs.items():
        wall, cpu = (median(getattr(each, what) for each in rounds) for what in ("wall", "cpu"))
        print(f"{name:<48} {clips / wall:7.1f}  {1000 * cpu / clips:11.2f}")
    print()


# -- on a GPU ------------------------------------------------------------------------------------------------


def svd_clips(config: PolicyConfig, cameras: Contract, clips: int, device: str) -> Batch:
    """Clips out of kept latents: no autoencoder is needed."""
    views, frames, horizon = len(cameras.cameras), config.clip.frames_per_view, config.clip.horizon
    rows, columns = (side // 8 for side in cameras.image_size)
    with torch.device(device):
        latents = torch.randn(clips, views, frames, 12, rows, columns).half()
        proprio, actions = (
            torch.randn(clips, len(cameras.proprio)),
            torch.randn(clips, horizon, len(cameras.action)),
        )
        masks = torch.ones(clips, horizon), torch.ones(clips, frames)
    return Batch(latents, proprio, actions, *masks, [SENTENCE] * clips, list(range(clips)))


def _on_gpu(model: VideoActionModel, recipe: Recipe, batch: Batch, steps: int) -> tuple[float, float]:
    """Clips per second, and the peak of the GPU's memory in GiB: weights, moments, average and gradients
    included.
    """
    trainer, generator, warm_up = Trainer(model, recipe, 100), torch.Generator(), 2
    torch.cuda.reset_peak_memory_stats()
    for step in range(warm_up + steps):
        if step == warm_up:
            torch.cuda.synchronize()
            began = time.perf_counter()
        trainer.step(batch, step, generator)
    torch.cuda.synchronize()
    return steps * len(batch.seeds) / (time.perf_counter() - began), torch.cuda.max_memory_allocated() / 2**30


def on_gpu(config: PolicyConfig, side: int, steps: int, device: str = "cuda") -> dict[str, float]:
    """Training from random weights with three cameras, in every way that fits the GPU."""
    cameras = contract(("agentview", "sideview", "robot0_eye_in_hand"), (side, side), "fast")
    assert config.video
    model = VideoActionModel(
        config, cameras, known_sentences={SENTENCE: torch.randn(config.video.cross_attention_dim)}
    ).to(device)
    objectives: tuple[Objective, ...] = "video", "action"
    precisions: tuple[Literal["fp16", "bf16"], ...] = "fp16", "bf16"
    answers: dict[str, float] = {}
    title = f"{torch.cuda.get_device_name()}: {config.preset}, gradient checkpointing"
    print(f"{title:<60} clips/s  peak GiB")
    for objective, precision, clips in itertools.product(objectives, precisions, (1, 4)):
        model.learn(objective)
        model.zero_grad()
        torch.cuda.empty_cache()
        name, batch = f"{objective}, {precision}, batch of {clips}", svd_clips(config, cameras, clips, device)
        try:
            speed, gib = _on_gpu(
                model, Recipe(precision=precision, gradient_checkpointing=True), batch, steps
            )
        except torch.OutOfMemoryError:
            print(f"{name:<60} does not fit")
            continue
        print(f"{name:<60} {speed:7.2f}  {gib:8.1f}")
        answers |= {
            f"svd_{objective}_{precision}_{clips}_clips_per_s": speed,
            f"svd_{objective}_{precision}_{clips}_gib": gib,
        }
    print()
    return answers


@harness.command("train_step")
def main(quick: bool) -> Mapping[str, object]:
    """Print the tables; return the values of the last line."""
    size = QUICK if quick else FULL
    torch.set_num_threads(1)
    quiet()
    logging.disable(logging.WARNING)  # Ray Data says anew what it does
    with tempfile.TemporaryDirectory() as folder:
        uri = write_store(Path(folder), size.episodes)
        connect()
        joint = job_of(uri, size)
        batches = in_memory(joint)
        print(
            f"tiny, batches of {BATCH}; {size.episodes} episodes of {LENGTH} frames, 1 camera of 64x64;"
            f" {os.cpu_count()} cores, 1 torch thread;"
        )
        print(f"{size.rounds} rounds by turns of {size.block} steps, medians\n")
        loops = {
            WHOLE: whole(joint, warm_up(size, "joint")),
            BARE: bare(joint, batches),
            MEMORY: trainer_alone(joint, batches),
        }
        costs = by_turns(loops, size.rounds)
        show("joint", size, costs)
        stage2 = {
            "kept": job_of(uri, size, "action", CACHE_MB),
            "recomputed": job_of(uri, size, "action", 0),
        }
        batches = in_memory(stage2["kept"])
        loops = {f"{WHOLE}, {how}": whole(job, warm_up(size, "action")) for how, job in stage2.items()}
        loops |= {f"{MEMORY}, {how}": trainer_alone(job, batches) for how, job in stage2.items()}
        frozen = by_turns(loops, size.rounds)
        show("action head on a frozen video model, features", size, frozen)
    answers = {
        "ratio_to_bare_loop": ratio(costs, WHOLE, BARE),
        "cpu_ratio_to_bare_loop": ratio(costs, WHOLE, BARE, "cpu"),
        "trainer_ratio_to_bare_loop": ratio(costs, MEMORY, BARE),
        "ratio_cached_to_uncached": ratio(frozen, f"{WHOLE}, kept", f"{WHOLE}, recomputed"),
        "trainer_ratio_cached_to_uncached": ratio(frozen, f"{MEMORY}, kept", f"{MEMORY}, recomputed"),
    }
    if torch.cuda.is_available():
        answers |= on_gpu(PRESETS["svd-256"], 256, 2 if quick else 10)
    return answers


if __name__ == "__main__":
    harness.run(main)
