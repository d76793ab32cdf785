"""Training of one arm, or of a video model that several arms share: a plain loop, without Ray."""

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.checkpoints.pretrained_weights import fetch_weights
from orchestrator.checkpoints.reader import fetch
from orchestrator.code_fingerprint import TRAINING_CODE, code_fingerprint
from orchestrator.config.arms import Arm
from orchestrator.config.schema import Train
from orchestrator.data import clip_stream as stream
from orchestrator.data.clip_sampler import ClipSampler
from orchestrator.data.clips import ClipBatch
from orchestrator.data.episode_store import load_manifest
from orchestrator.data.latent_cache import latent_entries, read_sentences, why_pictures
from orchestrator.data.manifest import Manifest
from orchestrator.data.merged_store import weights_of
from orchestrator.data.subset import Subset
from orchestrator.provenance import PACKAGES, TRAINING_PACKAGES, digest, package_versions, weights_label
from orchestrator.storage.base import Storage, open_storage
from orchestrator.training.control_channel import StopRequest
from orchestrator.training.progress import Progress
from orchestrator.training.train_events import Reported
from orchestrator.training.worker_usage import Meter
from policy.config import ClipShape, Objective, PolicyConfig
from policy.interface import derived_seed
from policy.presets import has_unet, weights_source
from sim_workers.arithmetic import Arithmetic
from sim_workers.checkout import check_imported

if TYPE_CHECKING:
    import torch

    from policy.checkpoint import Card
    from policy.learner import Learner
    from policy.model import VideoActionModel

_log = logging.getLogger(__name__)

PROGRESS_REPORTS = 20  # per run, besides those at checkpoints
STRETCH = 500  # optimiser steps that are planned at a time at least, where training ends by time
CONSUMED = ("clips_with_actions", "clips_action_free", "action_free_ratio_consumed")
"""Metrics: clips with and without actions that a worker trained on since step 0, and their ratio, to compare
with the requested one.
"""
TRAINED_ON = "trained_on"
"""Entry of a checkpoint's provenance: the arithmetics of the first worker, one after the other."""

Report = Callable[[Reported, Path | None], None]
"""Called at intervals with the worker's progress, and in the first worker with the folder of a checkpoint,
None if there is none.
"""

STAGE_ONE = "video-"
"""Prefix of the names of runs that train a video model for several arms."""
# Fields of Train that do not affect stage 1: arms that differ in nothing else share its run.
NOT_OF_THE_VIDEO = {
    "mode",
    "steps",
    "video_steps",
    "videos",
    "checkpoint_every",
    "match",
    "seconds",
    "head_learning_rate",
    "loss_weights",
    "feature_cache_mb",
}


@dataclass(frozen=True)
class TrainJob:
    """Complete description of one training run, small enough to send to every worker."""

    arm: Arm
    arm_id: str
    """Id of the arm, or of the video model if `objective` is `video`."""
    episodes: str
    """URI of the episode store."""
    version: int
    """Version of the episode store: a sweep keeps the one it started with."""
    subset: Subset = field(repr=False)
    """Episodes to learn from, as the driver selected them; a video model reads all without actions."""
    config: PolicyConfig
    train: Train
    objective: Objective
    weights: str
    """Initial weights of the video model, as in a sweep file: empty for the preset's own, `none`, a hub id, a
    folder or an s3:// URI.
    """
    video_model: str = ""
    """URI of the stage-1 checkpoint that the video model starts from instead; empty if there is none."""
    views_apart: bool = False
    """Whether every camera of a clip becomes a separate clip."""
    label: str = ""
    """`weights_label` of `weights`; empty if not known yet."""
    code: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Content hashes of the driver's files (`sim_workers.checkout`), which a training process must have
    imported; empty: not compared.
    """
    decode: Literal["trainer", "cluster"] = "trainer"
    """Where episodes are decoded (`data.decode`); every batch is the same."""
    proprio: tuple[int, ...] | None = None
    """Indices of the store's proprioceptive values that the policy gets; None: all."""

    def order(self, manifest: Manifest, rank: int, world: int) -> ClipSampler:
        """Return the worker's order of clips. A video model learns from all its episodes alike, a head on a
        frozen one from demos alone.
        """
        demos, action_free = self.subset.demos, self.subset.action_free
        if self.objective == "video":
            demos, action_free = (), self.subset.episodes
        elif self.objective == "action":
            action_free = ()
        return ClipSampler(
            tuple(manifest.select(demos, with_stats=False)),
            tuple(manifest.select(action_free, with_stats=False)),
            manifest.fingerprint,
            self.arm.seed,
            rank,
            world,
            self.train.batch_size // world,
            weights_of(manifest),
        )

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        """Folders of a checkpoint with weights that this run leaves as they are."""
        return ("vae", "text_encoder", *(("unet",) if self.objective == "action" else ()))

    @property
    def start(self) -> str:
        """Source of the video model's initial weights on this machine; empty for random weights."""
        return weights_source(self.config.preset, self.weights) if self.config.video else ""

    @property
    def starts_from(self) -> str:
        """Label of those weights in fingerprints; empty for random weights."""
        return (self.label or weights_label(self.start)) if self.start else ""

    @property
    def clip(self) -> ClipShape:
        """Shape of the clips to read: the present frame alone if training uses no later frame."""
        shape, diffusion = self.config.clip, self.config.diffusion
        present = self.config.video is None or (
            self.objective == "action" and diffusion.features_at == "start"
        )
        return shape.model_copy(update={"frames_per_view": 1}) if present else shape

    def stage_one(self, manifest: Manifest, videos: Subset) -> "TrainJob":
        """Return the training job of the video model that this arm's head reads, on the episodes `videos`;
        its id is a digest of exactly the inputs that affect it.
        """
        steps = self.train.video_steps or self.train.steps
        train = self.train.model_copy(update={"steps": steps})
        config = self.config.model_dump(mode="json", include={"clip", "video", "diffusion"})
        shaped_by = [
            videos.episodes,
            manifest.fingerprint,
            self.arm.seed,
            config,
            steps,
            train.recorded(NOT_OF_THE_VIDEO),
            self.starts_from,
            code_fingerprint(TRAINING_CODE),
            package_versions(TRAINING_PACKAGES),
        ]
        return replace(
            self, arm_id=f"{STAGE_ONE}{digest(shaped_by)}", subset=videos, train=train, objective="video"
        )


def card_of(job: TrainJob, manifest: Manifest, here: Arithmetic) -> "Card":
    """Return the run's card before its first step, with statistics of the arm's own demos only. here:
    arithmetic of the training process.
    """
    from policy.checkpoint import Card
    from policy.feature_stats import Stats

    demos = manifest.select(job.subset.demos)
    videos_only = job.objective == "video"
    contract = replace(manifest.contract, cameras=("any",)) if job.views_apart else manifest.contract
    if job.proprio is not None:
        contract = replace(contract, proprio=tuple(contract.proprio[i] for i in job.proprio))
    proprio_stats = None
    if not videos_only:
        proprio_stats = Stats.merge(entry.proprio_stats for entry in demos if entry.proprio_stats)
        if job.proprio is not None:
            proprio_stats = proprio_stats.only(job.proprio)
    chosen: dict[str, Any]
    if videos_only:
        chosen = {"seed": job.arm.seed, "videos": list(job.subset.episodes)}
    else:
        chosen = {
            "arm": vars(job.arm),
            "subset_digest": job.subset.digest,
            "demos": list(job.subset.demos),
            "action_free": list(job.subset.action_free),
        }
    return Card(
        config=job.config,
        contract=contract,
        action_stats=(
            None if videos_only else Stats.merge(entry.action_stats for entry in demos if entry.action_stats)
        ),
        proprio_stats=proprio_stats,
        provenance={
            **chosen,
            "arm_id": job.arm_id,
            "objective": job.objective,
            "starts_from": job.video_model.rpartition("/arms/")[2] or job.starts_from,
            "step": 0,
            **dict.fromkeys(CONSUMED, 0),
            "train": job.train.recorded(set() if job.train.timed else {"match"}),
            "data_fingerprint": manifest.fingerprint,
            "data_version": job.version,
            "code": code_fingerprint(TRAINING_CODE),
            "packages": package_versions(tuple(sorted({*PACKAGES, *TRAINING_PACKAGES}))),
            "device": here.device,
            TRAINED_ON: [here.to_json()],
        },
    )


def train(
    job: TrainJob,
    rank: int,
    world: int,
    resume: Path | None,
    report: Report,
    wrap: Callable[["Learner"], Any] | None = None,
    device: str = "cpu",
    stop_request: Callable[[], StopRequest | None] = lambda: None,
    fetcher: stream.EpisodeFetcher | None = None,
    decoder: stream.VisitDecoder | None = None,
    agree: Callable[[float], float] = float,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Train from the checkpoint `resume` (None: from step 0) to the last step or the end of the budget of
    time, or until `stop_request`, polled after every step, returns a request.

    Every random draw is a function of (seed, step, rank), so stopping and resuming changes nothing, except
    for the number of steps that a budget of time allows. `wrap` prepares the model for several workers;
    `fetcher` and `decoder`: as for `clip_stream.batches`; `agree` and `clock`: as for `Progress`.

    Raises NotFiniteError if a loss, a gradient or a weight is not finite; no checkpoint is written then, and
    a retry fails likewise. Raises CodeChangedError if this process imported other code than the job's driver;
    no checkpoint is written from then on.
    """
    meter = Meter()  # created first, so that loading the model counts
    import torch

    from policy.augmentation import color_jitter
    from policy.checkpoint import fingerprint, load_card, load_trainer, load_weights, save
    from policy.finite import NotFiniteError, not_finite
    from policy.model import VideoActionModel
    from policy.normalize import ClipNormalizer, Normalizer
    from policy.trainer import Trainer

    check_imported(job.code)
    storage = open_storage(job.episodes)
    manifest = load_manifest(storage, job.version)
    here = Arithmetic.here(device)
    card = card_of(job, manifest, here)
    before = load_card(resume).provenance if resume else card.provenance
    progress = Progress(
        job.train,
        before.get("optimiser_steps", before["step"]),
        before["step"],
        before.get("seconds", 0.0),
        world,
        agree,
        clock,
    )
    if progress.saved == job.train.end:
        return
    first_step = progress.step
    consumed = {name: before[name] for name in CONSUMED}
    trained_on = tuple(map(Arithmetic.from_json, before.get(TRAINED_ON, ())))
    if here not in trained_on:  # resumed on another machine
        trained_on += (here,)
    card = replace(
        card, provenance=card.provenance | {TRAINED_ON: [arithmetic.to_json() for arithmetic in trained_on]}
    )
    torch.manual_seed(job.arm.seed)
    with tempfile.TemporaryDirectory() as name:
        model = _first_model(job, card, resume, read_sentences(storage, manifest), Path(name))
        if isinstance(model, VideoActionModel) and _has_tower(job):
            _load_sentences(model, job, manifest, resume, rank)
    check_imported(job.code)  # again, for the package of a Learner
    card = replace(card, needs=model.needs)
    shape = job.clip.model_copy(update={"history": model.needs.observation_steps - 1})
    model.learn(job.objective)
    model.to(device)
    if not resume and (which := not_finite(model.state_dict())):
        raise NotFiniteError(
            f"the weights in {job.video_model or job.start} are not finite ({which}); start training from"
            " others"
        )
    trainer = Trainer(model, job.train, job.train.end, wrap)
    if resume:
        acting, kept = load_weights(resume), load_trainer(resume)
        if which := not_finite(acting) or not_finite(kept):
            raise NotFiniteError(
                f"the checkpoint of step {progress.saved} is not finite ({which}); remove"
                f" arms/{job.arm_id} to train it again"
            )
        trainer.restore(acting, kept)
    normalizer = None
    if card.proprio_stats and card.action_stats:
        normalizer = ClipNormalizer(
            Normalizer(card.proprio_stats, "minmax"),
            Normalizer(card.action_stats, card.config.action_normalization),
        )
    generator = torch.Generator()
    sums = dict.fromkeys(("loss", "loss_video", "loss_action"), torch.zeros((), device=trainer.device))
    since = first_step
    order = job.order(manifest, rank, world)
    # cached latents were encoded without jitter
    if isinstance(model, VideoActionModel) and not job.train.color_jitter:
        order = _kept(order, storage, manifest, model)

    def between(first: int, last: int) -> Iterator[ClipBatch]:
        return stream.batches(
            job.episodes,
            manifest.contract,
            order,
            shape,
            first_step=first,
            num_steps=last,
            fetcher=fetcher,
            decoder=decoder,
            on_fetched=meter.fetched,
        )

    batches = _endless(between, first_step) if job.train.timed else between(first_step, job.train.steps)
    for step, clips in enumerate(meter.steps_of(batches, order.batch_size), first_step + 1):
        progress.run_clock()
        generator.manual_seed(derived_seed(job.arm.seed, step, rank))
        if job.proprio is not None:
            clips = replace(clips, proprio=clips.proprio[..., list(job.proprio)])
        batch = clips.to(trainer.device, normalizer)
        if job.views_apart:
            batch = batch.views_apart()
        if job.train.jitter and not batch.frames.is_floating_point():
            batch = replace(batch, frames=color_jitter(batch.frames, generator, job.train.jitter))
        losses = trainer.step(batch, step - 1, generator, progress.share)
        for name, value in (
            ("loss", losses.total),
            ("loss_video", losses.video),
            ("loss_action", losses.action),
        ):
            # stays on the device: reading it at every step would make the device wait
            sums[name] = sums[name] + value
        consumed = _count(consumed, clips)
        progress.stepped()
        request = stop_request()
        checkpoints = progress.due(request is StopRequest.PAUSE)
        if not checkpoints and not request and not progress.passed(max(1, job.train.end // PROGRESS_REPORTS)):
            continue
        trainer.check()
        check_imported(job.code)  # again, for modules that training imported meanwhile
        means = {name: total.item() / (step - since) for name, total in sums.items()} | consumed
        if job.train.timed:
            means["optimiser_steps"] = step
        meter.stepped(order.batch_size)
        sums, since = dict.fromkeys(sums, torch.zeros((), device=trainer.device)), step
        if checkpoints:
            progress.stop_clock()
            # by every worker: sharded weights are gathered
            weights, state = trainer.acting_weights(), trainer.state()
        if not checkpoints or rank > 0:
            for position in checkpoints or [progress.position]:
                report(_reported(job, position, means, meter, trained_on), None)
        for position in checkpoints if rank == 0 else ():
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                where = {"step": position} | consumed
                if job.train.timed:
                    where |= {"optimiser_steps": step, "seconds": progress.seconds}
                now = replace(card, provenance=card.provenance | where)
                if job.objective == "video":
                    weights = {name: tensor for name, tensor in weights.items() if name.startswith("video.")}
                if which := not_finite(weights) or not_finite(state):
                    raise NotFiniteError(
                        f"weights are not finite at step {step} ({which}), though its losses are; lower"
                        " train.learning_rate"
                    )
                save(folder, now, model, weights, state)
                report(_reported(job, position, means, meter, trained_on, fingerprint(folder)), folder)
        if request or progress.ended:
            batches.close()  # type: ignore[attr-defined]
            return


def _endless(between: Callable[[int, int], Iterator[ClipBatch]], first_step: int) -> Iterator[ClipBatch]:
    """Yield the batches from a step on, without end, where the number of steps is not known: in stretches
    that become longer, since each reads the episodes again.
    """
    while True:
        last = max(first_step + STRETCH, 2 * first_step)
        yield from between(first_step, last)
        first_step = last


def _reported(
    job: TrainJob,
    step: int,
    means: Mapping[str, Any],
    meter: Meter,
    trained_on: tuple[Arithmetic, ...],
    checkpoint: str = "",
) -> Reported:
    """Return a report. means: mean losses, CONSUMED and optimiser steps by name."""
    return Reported(
        run=job.arm_id,
        step=step,
        **means,
        usage=meter.read(),
        checkpoint=checkpoint,
        trained_on=trained_on,
    )


def _kept(order: ClipSampler, storage: Storage, manifest: Manifest, model: "VideoActionModel") -> ClipSampler:
    """Return the same clips read from cached latents, if `demoscale encode` stored those of this model's
    autoencoder next to the episodes; of several stores, in each of them.
    """
    if model.codec.stored_channels == model.codec.channels:  # folded pixels: nothing to cache
        return order
    fingerprint = model.codec.fingerprint(manifest.contract.image_size)
    if why := why_pictures(storage, manifest, fingerprint, (*order.demos, *order.action_free)):
        if manifest.parts:
            _log.warning("pictures are encoded while training: %s", why)
        return order
    demos, action_free = (
        tuple(latent_entries(storage, manifest, fingerprint, entries))
        for entries in (order.demos, order.action_free)
    )
    return replace(order, demos=demos, action_free=action_free)


def _first_model(
    job: TrainJob, card: "Card", resume: Path | None, sentences: dict[str, "torch.Tensor"], folder: Path
) -> "Learner":
    """Return the initial network, its video model from the checkpoint to resume, from stage 1, or from the
    weights that the sweep names.
    """
    from policy.checkpoint import known_sentences, new_model
    from policy.model import FeatureCache, VideoActionModel
    from policy.weights import load_unet

    source: str | Path = ""
    text = list[str | Path]()
    from_start = not resume and not job.video_model
    if job.config.video:
        if resume:
            source = resume
        elif job.video_model:
            fetch(job.video_model, folder)
            source = folder
        elif job.start:
            source = fetch_weights(job.start, folder)
        # a checkpoint of an earlier version has no text tower: that of the weights it started from
        if _has_tower(job) and not from_start and not (Path(source) / "text_encoder").is_dir() and job.start:
            text = [fetch_weights(job.start, folder / "start")]
    if isinstance(source, Path) and source.is_dir():
        sentences = known_sentences(source) | sentences
    model = new_model(card.config, card.contract, source or None, sentences, text)
    if isinstance(model, VideoActionModel):
        model.feature_cache = FeatureCache(job.train.feature_cache_mb * 2**20)
        model.loss_weights = job.train.loss_weights
        if source and not (from_start and not has_unet(job.config.preset, job.weights)):
            load_unet(source, model.video.unet)
    return model


def _has_tower(job: TrainJob) -> bool:
    """Return whether a text tower embeds the job's sentences."""
    return job.config.video is not None and job.config.video.text == "openclip"


def _load_sentences(
    model: "VideoActionModel", job: TrainJob, manifest: Manifest, resume: Path | None, rank: int
) -> None:
    """Load the text tower where it is needed: for sentences that are not stored beside the episodes, and in
    the first worker for its checkpoints, which then understand sentences of no episode.

    Raises WeightsError if sentences need it and it cannot be loaded, OtherTowerError if it is not the one of
    the stored sentences. A run that needs it for its checkpoints alone goes on without it.
    """
    from policy.text_encoder import OtherTowerError
    from policy.weights import WeightsError

    entries = manifest.select(job.subset.episodes, with_stats=False)
    unknown = {entry.instruction for entry in entries} - model.sentences.known.keys()
    if not unknown and rank > 0:
        return
    try:
        model.sentences.load()
    except WeightsError as error:
        if unknown or (isinstance(error, OtherTowerError) and not resume):
            raise
        model.sentences.unload()
        _log.warning("checkpoints go without a text tower, for sentences of the episodes alone: %s", error)


def _count(consumed: dict[str, float], clips: ClipBatch) -> dict[str, float]:
    """Return CONSUMED after one more batch."""
    labelled = int(clips.action_mask.any(1).sum())
    with_actions, without = (
        consumed["clips_with_actions"] + labelled,
        consumed["clips_action_free"] + len(clips.seeds) - labelled,
    )
    return dict(zip(CONSUMED, (with_actions, without, without / max(1, with_actions)), strict=True))
