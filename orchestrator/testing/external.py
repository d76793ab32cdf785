"""A trial of an external policy, without a sweep and without Ray: it trains, resumes and acts."""

from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.config.arms import Arm
from orchestrator.config.policy_manifest import load
from orchestrator.config.schema import Train
from orchestrator.data.episode_format import decode
from orchestrator.data.episode_store import fetch, latest_version, load_manifest
from orchestrator.data.subset import select_episodes
from orchestrator.external.fit import run_training
from orchestrator.external.job import ExternalJob
from orchestrator.external.serving import ServedCheckpoint
from orchestrator.storage.base import open_storage
from orchestrator.testing.episodes import make_episode_store
from orchestrator.training.train_events import Reported
from policy.interface import ActionChunk, Observation


@dataclass(frozen=True)
class Tried:
    """What a trial of a policy gave."""

    losses: tuple[float, ...]
    """Losses that it reported, in order."""
    chunk: ActionChunk
    """Answer of its last checkpoint to the first observation of an episode."""


def try_policy(folder: Path, scratch: Path, steps: int = 20, store: str = "") -> Tried:
    """Train the policy of a folder, first to half of the steps and then from that checkpoint on, serve its
    last checkpoint, and ask it once.

    scratch: an empty folder for data and checkpoints. steps: optimiser steps in all, an even number. store:
    episode store; empty: four synthetic episodes of Lift with one camera. Raises ManifestError and
    CommandError, in one sentence, if the policy does not do its part.
    """
    episodes = open_storage(store or make_episode_store(scratch / "store", 4))
    version, policy = latest_version(episodes), load(folder)
    manifest = load_manifest(episodes, version)
    arm = Arm(2, 0.0, 0, policy.name)
    keeps = open_storage(str(scratch / "runs"))
    job = ExternalJob(
        arm=arm,
        arm_id=f"{policy.name}-trial",
        episodes=episodes.uri,
        version=version,
        subset=select_episodes(manifest, arm),
        policy=policy,
        options=policy.manifest.with_options({}),
        train=Train(steps=steps, batch_size=4, checkpoint_every=steps // 2),
        storage=keeps.uri,
    )
    reports: list[Reported] = []
    checkpoints = open_storage(f"{keeps.uri}/arms")
    for last in (steps // 2, steps):
        shorter = replace(job, train=job.train.model_copy(update={"steps": last}))
        run_training(shorter, checkpoints, {"CPU": 1.0}, reports.append)
    contract = manifest.contract
    served = ServedCheckpoint(scratch / "runs" / "arms" / job.arm_id / f"step_{steps:06d}", "cpu")
    try:
        (chunk,) = served.act([_first_observation(episodes.uri, version)])
    finally:
        served.close()
    assert chunk.actions.shape[1:] == (len(contract.action),)
    return Tried(tuple(report.loss for report in reports), chunk)


def _first_observation(store: str, version: int) -> Observation:
    storage = open_storage(store)
    manifest = load_manifest(storage, version)
    entry = manifest[manifest.episode_ids[0]]
    episode = decode(fetch(storage, entry), manifest.contract.cameras, with_actions=False)
    images = {camera: frames[0] for camera, frames in episode.frames.items()}
    assert episode.proprio is not None
    return Observation(images, episode.proprio[0], entry.instruction, 0)
