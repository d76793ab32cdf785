"""A short benchmark of a sweep's training steps, answers and simulation, each in the sweep's own
configuration.

Training and acting run in one process and the simulator in another, as in a sweep. Nothing here needs Ray.
"""

import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence, Set
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, suppress
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

from orchestrator.config.arms import Arm
from orchestrator.config.pinned_data import PinnedData
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.data.clip_sampler import CLIPS_PER_VISIT, POOL_VISITS
from orchestrator.data.clip_stream import decode_entry
from orchestrator.data.episode_store import fetch, latest_version
from orchestrator.data.manifest import EpisodeEntry, Manifest
from orchestrator.data.merged_store import publish_merged
from orchestrator.data.subset import Labels, select_episodes
from orchestrator.planning.calibration import (
    KEPT,
    Calibration,
    Quantiles,
    Timing,
    save_calibration,
    stage_one_kind,
    step_kind,
    this_machine,
)
from orchestrator.planning.plan import make_plan
from orchestrator.storage.base import open_storage
from orchestrator.training.loop import PROGRESS_REPORTS, TrainJob, train
from orchestrator.training.train_events import Reported
from policy.config import SamplerSettings
from policy.interface import Contract, Observation

# until the first checkpoint; their clips are of episodes that are all opened for the first time
FIRST_STEPS = 4
STEPS = 20  # measured after those
PART_S = 8.0  # seconds of wall-clock time
MOST_ANSWERS, LEAST_ANSWERS = 20, 3
HELD_OUT_AT_ONCE = 8
"""Observations of held-out episodes that a policy answers at once, as `action_error_score.ASKED_AT_ONCE`."""
LOOKS, EPISODES, LEAST_EPISODES = 6, 12, 3
Say = Callable[[str], None]


def measure(sweep: SweepConfig, say: Say, part_s: float = PART_S) -> Calibration:
    """Measure a sweep on this machine and store the calibration; about a minute for `tiny` on two cores.

    say: receives the name of each part. part_s: seconds after which a part ends with fewer repeats, but not
    without any.

    Raises SweepError if the sweep's store cannot serve it, and the errors of training, policy and simulator
    if they cannot run here.
    """
    make_plan(sweep)
    pinned, version = PinnedData.read(sweep), 1
    if isinstance(sweep.data.episodes, str):
        version = pinned.version or latest_version(open_storage(sweep.data.episodes))
        pinned = replace(pinned, version=version)
    manifest = pinned.manifest(sweep)
    episodes = pinned.place(sweep, manifest)
    if manifest.parts:  # from where a training process reads it
        publish_merged(open_storage(sweep.storage), manifest)
    evaluation = pinned.evaluation(sweep, manifest)
    asked_at_once = sweep.rollout_actors if sweep.suite.held_out is None else HELD_OUT_AT_ONCE
    steps: dict[str, Timing] = {}
    answers: dict[str, Timing] = {}
    kept_clips = 0
    with tempfile.TemporaryDirectory() as folder:
        with _a_process() as process:
            jobs = _jobs(sweep, manifest, version, pinned.quarantined.keys(), evaluation, episodes)
            start, began_s = None, time.monotonic()
            process.submit(_load).result()
            process_s = time.monotonic() - began_s
            for name, job in jobs.items():
                say(f"training steps: {name}")
                began, steps[name] = process.submit(
                    _training, job, name == KEPT, Path(folder) / name, part_s
                ).result()
                start = start or began
            for line in (line for line in sweep.lines if line.own):
                name = step_kind(sweep, line)
                said = manifest[jobs[name].subset.demos[0]].instruction
                for rows in sorted({1, asked_at_once}):
                    say(f"answers: {line.name}, {rows} at once")
                    answers[f"{line.name} {rows}"] = process.submit(
                        _answering,
                        Path(folder) / name,
                        sweep.suite.rung,
                        sweep.suite.sampler,
                        said,
                        rows,
                        part_s / 2,
                    ).result()
            if KEPT in jobs:
                kept_clips = process.submit(
                    _kept_clips, Path(folder) / KEPT, sweep.train.feature_cache_mb
                ).result()
        with _a_process() as process:
            if sweep.suite.held_out is not None:
                say("reading of held-out episodes")
                entries = manifest.select(sorted(evaluation), with_stats=False)[:EPISODES]
                simulated = process.submit(
                    _reading, episodes, entries, manifest.contract, sweep.sampler.execute
                ).result()
            else:
                say(f"simulation: {sweep.suite.tasks[0]}")
                simulated = process.submit(
                    _simulating,
                    sweep.suite.tasks[0],
                    sweep.suite.contract_of(manifest.contract),
                    sweep.suite.gl,
                    sweep.sampler.execute,
                    part_s,
                ).result()
    measured_at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    calibration = Calibration(
        this_machine(),
        measured_at,
        process_s,
        start or Timing.of([(0.0, 0.0)]),
        steps,
        kept_clips,
        answers,
        **simulated,
    )
    save_calibration(sweep, calibration)
    return calibration


def _a_process() -> ProcessPoolExecutor:
    """Return an executor of one spawned process: a simulator needs a process of its own."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


# -- training and acting -------------------------------------------------------------------------------------


def _jobs(
    sweep: SweepConfig,
    manifest: Manifest,
    version: int,
    quarantined: Set[str],
    evaluation: Set[str],
    episodes: str,
) -> dict[str, TrainJob]:
    """Return the trainings to measure, by name, each as one worker of the largest arm would run it."""
    arm, jobs = sweep.largest(), dict[str, TrainJob]()
    subset = sweep.select(manifest, arm, quarantined, evaluation)
    for line in (line for line in sweep.lines if line.own):
        recipe, config = sweep.line_train(line), sweep.config_of(line)
        short = recipe.model_copy(
            update={
                "match": "steps",
                "seconds": None,
                "steps": FIRST_STEPS + STEPS,
                "checkpoint_every": FIRST_STEPS,
                "batch_size": recipe.batch_size // recipe.workers,
                "workers": 1,
            }
        )
        job = TrainJob(
            arm=arm,
            arm_id="calibration",
            episodes=episodes,
            version=version,
            subset=subset,
            config=config,
            train=short,
            objective=recipe.objective if line.imagines else "action",
            weights=sweep.weights_of(line),
            proprio=sweep.suite.proprio_of(manifest.contract),
        )
        if line.imagines and recipe.mode == "two_stage":
            jobs[stage_one_kind(line)] = replace(job, objective="video")
        jobs[step_kind(sweep, line)] = job
        if not (
            line.plain
            and line.imagines
            and job.objective == "action"
            and config.diffusion.features_at == "start"
            and recipe.feature_cache_mb
        ):
            continue
        task = (sweep.data.labelled_tasks or sweep.suite.tasks or [*manifest.tasks])[0]
        one_demo = Arm(1, 0.0, arm.seed)
        one = replace(
            job,
            arm=one_demo,
            subset=select_episodes(manifest, one_demo, quarantined, Labels((task,)), evaluation),
        )
        # the clips of an epoch are shuffled
        clips = manifest[one.subset.demos[0]].length + POOL_VISITS * CLIPS_PER_VISIT
        seen = -(-clips // short.batch_size)
        jobs[KEPT] = replace(
            one, train=short.model_copy(update={"steps": seen + STEPS, "checkpoint_every": seen})
        )
    return jobs


def _load() -> None:
    import diffusers  # noqa: F401
    import torch  # noqa: F401


class _EnoughError(Exception):
    """Ends a training after enough repeats."""


def _training(job: TrainJob, after_first: bool, folder: Path, part_s: float) -> tuple[Timing, Timing]:
    """Time a training: until the first step, and per step. Copies the first checkpoint to `folder`.
    after_first: count only later steps.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)  # as in a training worker when arms share the cores
    every = max(1, job.train.steps // PROGRESS_REPORTS)
    early: list[tuple[float, float]] = []
    late: list[tuple[float, float]] = []
    first: tuple[float, float] | None = None
    began, before = time.monotonic(), 0

    def report(event: Reported, checkpoint: Path | None) -> None:
        nonlocal before, first
        usage, taken, before = event.usage, event.step - before, event.step
        if first is None:
            first = usage.wall_s, usage.cpu_s
        elif not checkpoint:  # a report with a checkpoint includes writing it
            (late if folder.exists() else early).append((usage.wall_s / taken, usage.cpu_s / taken))
        if checkpoint and not folder.exists():
            shutil.copytree(checkpoint, folder)
        enough = late if after_first else early + late
        if folder.exists() and len(enough) * every >= FIRST_STEPS and time.monotonic() - began > part_s:
            raise _EnoughError

    with suppress(_EnoughError):
        train(job, 0, 1, None, report, device=device)
    assert first is not None
    settled = late if after_first or len(late) >= FIRST_STEPS else early + late
    step = Timing.of(settled)
    return (
        Timing.of(
            [(max(0.0, first[0] - every * step.wall.median), max(0.0, first[1] - every * step.cpu.median))]
        ),
        step,
    )


def _kept_clips(folder: Path, cache_mb: int) -> int:
    """Return the number of clips whose features fit into a cache of `cache_mb` MiB."""
    import math

    from policy.checkpoint import load
    from policy.model import VideoActionModel

    model, _ = load(folder)
    assert isinstance(model, VideoActionModel)
    floats = model.num_frames * sum(math.prod(shape) for shape in model.video.feature_shapes())
    return int(cache_mb * 2**20 // (4 * floats))


def _answering(
    folder: Path, rung: str, sampler: SamplerSettings, instruction: str, rows: int, part_s: float
) -> Timing:
    """Time a batch of `rows` queries."""
    import torch

    from policy.inference import TrainedPolicy

    policy = TrainedPolicy(folder, "cuda" if torch.cuda.is_available() else "cpu", rung, sampler)
    asked = [_observation(policy.contract, instruction, seed) for seed in range(rows)]
    policy.act(asked)
    pairs: list[tuple[float, float]] = []
    began = time.monotonic()
    while len(pairs) < LEAST_ANSWERS or (len(pairs) < MOST_ANSWERS and time.monotonic() - began < part_s):
        wall, cpu = time.perf_counter(), time.process_time()
        policy.act(asked)  # the answer is in CPU memory, so the GPU has finished too
        pairs.append((time.perf_counter() - wall, time.process_time() - cpu))
    return Timing.of(pairs)


def _observation(contract: Contract, instruction: str, seed: int) -> Observation:
    import numpy as np

    rng = np.random.default_rng(seed)
    images = {
        camera: rng.integers(0, 256, (*contract.image_size, 3), np.uint8) for camera in contract.cameras
    }
    return Observation(
        images, rng.uniform(-1, 1, len(contract.proprio)).astype(np.float32), instruction, seed
    )


# -- reading -------------------------------------------------------------------------------------------------


def _reading(
    uri: str, entries: Sequence[EpisodeEntry], contract: Contract, execute: int
) -> dict[str, Quantiles]:
    """Time the reading and decoding of held-out episodes, per observation of a policy that executes `execute`
    actions.
    """
    storage, spans = open_storage(uri), []
    for entry in entries:
        began = time.perf_counter()
        decode_entry(fetch(storage, entry), entry, contract, with_actions=True)
        spans.append((time.perf_counter() - began) / -(-entry.length // execute))
    nothing = Quantiles.of([0.0])
    return {"build": nothing, "reset": nothing, "step": nothing, "look": Quantiles.of(spans)}


# -- simulating ----------------------------------------------------------------------------------------------


def _simulating(task: str, contract: Contract, gl: str, execute: int, part_s: float) -> dict[str, Quantiles]:
    """Time build, reset, control step and observation; the latter two are means over short episodes of random
    actions.
    """
    from sim_workers.envs.render import backend_of

    os.environ |= {"MUJOCO_GL": backend_of(gl), "LP_NUM_THREADS": "0"}
    import numpy as np

    from sim_workers.envs.registry import make_env

    rng, clock = np.random.default_rng(0), time.perf_counter
    began = clock()
    with redirect_stderr(StringIO()):  # a simulator warns of missing optional parts when built
        env = make_env(task, contract)
    spans: dict[str, list[float]] = {"build": [clock() - began], "reset": [], "step": [], "look": []}
    began = clock()
    while len(spans["reset"]) < LEAST_EPISODES or (
        len(spans["reset"]) < EPISODES and clock() - began < part_s
    ):
        at = clock()
        env.reset(len(spans["reset"]))
        spans["reset"].append(clock() - at)
        looking = stepping = 0.0
        for look in range(LOOKS):
            at = clock()
            env.observe(look)
            looking += clock() - at
            at = clock()
            for action in rng.uniform(-1, 1, (execute, len(contract.action))):
                env.step(action)
                _ = env.succeeded
            stepping += clock() - at
        spans["look"].append(looking / LOOKS)
        spans["step"].append(stepping / LOOKS / execute)
    env.close()
    return {name: Quantiles.of(seconds) for name, seconds in spans.items()}
