"""Training of an external policy on Ray, as `orchestrator.training.ray_train.fit` trains ours.

In the folder of a training run, in addition to its checkpoints:

    reports/step_000500.json    what was reported with a whole checkpoint, and its fingerprint
    logs/000001.log             output of each attempt's command, bounded and without credentials
"""

import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from orchestrator.checkpoints.external_card import (
    CARD,
    PROGRAMS,
    WEIGHTS,
    ExternalCard,
    StoredFile,
    files_of,
    store,
)
from orchestrator.checkpoints.node_cache import user_folder
from orchestrator.checkpoints.reader import fetch, is_complete
from orchestrator.data.episode_format import EpisodeError
from orchestrator.data.episode_store import load_manifest
from orchestrator.data.exporters.roles import shown_contract
from orchestrator.data.manifest import Manifest
from orchestrator.external.command import (
    ROUNDING_S,
    Command,
    CommandError,
    CommandRefusedError,
    Line,
    TrainingRun,
    follow,
)
from orchestrator.external.environment import prepare
from orchestrator.external.job import ExternalJob
from orchestrator.external.subset_export import Export, exported, sample_weights
from orchestrator.provenance import digest, package_versions
from orchestrator.storage.base import Storage, StorageError, open_storage
from orchestrator.storage.notes import read_json_objects
from orchestrator.training.control_channel import send
from orchestrator.training.progress import Progress
from orchestrator.training.ray_train import stop_request_poller
from orchestrator.training.train_events import Reported, Retried
from orchestrator.training.worker_usage import WorkerUsage
from policy.checkpoint_files import CheckpointError, fingerprint_of
from policy.interface import PolicyNeeds
from sim_workers.arithmetic import Arithmetic
from sim_workers.checkout import CodeChangedError, check_imported

TRAIN_VARIABLE = "DEMOSCALE_TRAIN"
"""Environment variable of a training command: path of the JSON file that describes what it is to do."""
PROTOCOL = 1
"""Version of that file and of the one for serving."""
PROGRESS_REPORTS = 20  # per run, besides those at checkpoints
TOUCH_S = 60.0
"""Seconds between touches of the exported episodes, so that the node keeps them."""
PERMANENT = (CommandRefusedError, EpisodeError, CheckpointError, CodeChangedError)
"""Errors that a retry repeats."""


def fit_external(
    job: ExternalJob, folder: str, resources: dict[str, float], channel: Any, attempts: int = 1
) -> list[Reported]:
    """Train the arm with the policy's own command in `folder`/<arm id>, where an interrupted run resumes;
    reports and retries go to the control channel.

    Return the reports of all its checkpoints in the order of steps, also of earlier runs. A failed attempt
    resumes from the last checkpoint, up to `attempts` attempts; then its error is raised, or at once if a
    retry cannot help (CommandRefusedError, EpisodeError, CheckpointError, CodeChangedError).
    """
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    check_imported(job.code)
    storage, others = open_storage(folder), {**resources}
    task = ray.remote(
        num_cpus=others.pop("CPU", 1.0),
        num_gpus=others.pop("GPU", 0.0) if job.policy.manifest.resources.gpus else 0.0,
        resources=others,
        max_retries=0,
        max_calls=1,  # its process holds a thread that waits for stop requests
        # not in the placement group of the trial that calls this
        scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=None),
    )(_train)
    for attempt in range(1, attempts + 1):
        for problem in _without_damaged(storage, job.arm_id):
            send(channel, Retried(job.arm_id, f"{problem}; it resumes from the newest whole one"))
        if _last_step(storage, job.arm_id) == job.train.end:
            break
        try:
            ray.get(task.remote(job, folder, resources, channel))
            break
        except (ray.exceptions.RayError, OSError) as error:
            cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
            if isinstance(cause, PERMANENT):
                raise cause from None
            if attempt == attempts:
                raise cause if isinstance(cause, CommandError) else error from None
            send(channel, Retried(job.arm_id, str(cause).strip() or type(cause).__name__))
            with suppress(StorageError):
                # blocks until an unavailable storage is back or its retries time out
                storage.exists(job.arm_id)
    return [*_reports(storage, job.arm_id).values()]


# -- what is stored ------------------------------------------------------------------------------------------


def _reports(storage: Storage, run: str) -> dict[int, Reported]:
    """Return the reports of a run's whole checkpoints by step, in order."""
    notes = read_json_objects(storage, f"{run}/reports/step_")
    reports = [Reported.from_metrics(run, note) for note in notes.values() if "damaged" not in note]
    return {report.step: report for report in sorted(reports, key=lambda report: report.step)}


def _last_step(storage: Storage, run: str) -> int:
    return max(_reports(storage, run), default=0)


def _without_damaged(storage: Storage, run: str) -> list[str]:
    """Note the newest checkpoints as damaged until one is whole; return the problems, one sentence each."""
    problems = []
    for step, report in reversed(_reports(storage, run).items()):
        place = f"{storage.uri}/{run}/step_{step:06d}"
        if is_complete(place, report.checkpoint):
            break
        problems.append(f"{place}: the checkpoint is damaged or missing")
        storage.put(_note(run, step), json.dumps({"damaged": True}).encode())
    return problems


def _note(run: str, step: int) -> str:
    return f"{run}/reports/step_{step:06d}.json"


# -- one attempt ---------------------------------------------------------------------------------------------


def _train(job: ExternalJob, folder: str, resources: dict[str, float], channel: Any) -> None:
    """Run the training command once; a Ray task."""
    run_training(
        job,
        open_storage(folder),
        resources,
        lambda report: send(channel, report),
        stop_request_poller(channel, job.arm_id, 1),
    )


def run_training(
    job: ExternalJob,
    storage: Storage,
    resources: dict[str, float],
    report: Any,
    stop_request: Any = lambda: None,
) -> None:
    """Run the training command once, from the newest checkpoint in the storage on.

    storage: contains the run's folder. report: called with every `Reported`. stop_request: polled. Raises
    CommandError, EpisodeError, StorageError, CheckpointError or CodeChangedError.
    """
    meter = _Meter()
    check_imported(job.code)
    episodes = open_storage(job.episodes)
    manifest = load_manifest(episodes, job.version)
    wants = job.policy.manifest
    contract = shown_contract(manifest.contract, job.proprio)
    if problems := wants.wants.problems(contract):
        raise CommandRefusedError(f"{job.policy.name}: {'; '.join(problems)}; change the line or the store")
    environment = prepare(job.policy, job.lock)
    export = exported(
        episodes,
        manifest,
        job.subset,
        wants.data,
        wants.action_free,
        open_storage(job.storage),
        proprio=job.proprio,
    )
    meter.bytes_read = export.bytes_read
    with _work_folder(f"{job.arm_id}-{digest(storage.uri)}") as work:
        before = _resumed(storage, job.arm_id, work / "resumed")
        described = _describe(job, manifest, export, work, before, resources)
        job.policy.write(work / PROGRAMS)
        (work / "train.json").write_text(json.dumps(described, indent=1))
        launch = environment.launch(
            wants.train,
            work / PROGRAMS,
            work,
            {TRAIN_VARIABLE: str(work / "train.json"), "OMP_NUM_THREADS": str(described["threads"])},
            [export.folder],
            described["device"] == "cuda",
        )
        saver = _Saver(
            job,
            manifest,
            export,
            storage,
            work,
            before,
            described["device"],
            described["threads"],
            resources,
            meter,
            report,
        )
        log = work / "command.log"
        try:
            with Command(launch, f"{job.policy.name}: its training", log) as command:
                meter.command = command
                follow(
                    command,
                    TrainingRun(
                        work / "report.jsonl",
                        work / "checkpoints",
                        before.step,
                        job.train.steps,
                        wants.limits,
                        described["seconds"],
                        described["first_second"],
                    ),
                    saver.on_line,
                    stop_request,
                    _toucher(export.folder),
                )
        finally:
            with suppress(StorageError, OSError):
                number = len(storage.list(f"{job.arm_id}/logs/")) + 1
                storage.put(f"{job.arm_id}/logs/{number:06d}.log", log.read_bytes())


@dataclass(frozen=True)
class _Resumed:
    """What the checkpoint from which a command resumes has behind it."""

    position: int = 0
    """What names the checkpoint: its step, or its second of a budget of time; 0 without one."""
    step: int = 0
    """Optimiser steps."""
    seconds: float = 0.0
    """Seconds of all devices, of a budget of time; else 0."""


def _resumed(storage: Storage, run: str, folder: Path) -> _Resumed:
    """Copy the newest whole checkpoint of a run into the folder, if there is one."""
    if not (position := _last_step(storage, run)):
        return _Resumed()
    fetch(f"{storage.uri}/{run}/step_{position:06d}", folder)
    stated = ExternalCard.read(open_storage(str(folder))).provenance
    return _Resumed(position, stated.get("optimiser_steps", position), stated.get("seconds", 0.0))


def _devices(job: ExternalJob, resources: dict[str, float]) -> float:
    """Return how many devices a command trains on: its GPUs, or 1 for one process or a part of a GPU."""
    return max(1.0, resources.get("GPU", 0.0)) if job.policy.manifest.resources.gpus else 1.0


@contextmanager
def _work_folder(name: str) -> Iterator[Path]:
    """Yield an empty folder of this node, locked against a process of the same run that is still ending."""
    root = user_folder("work")
    with FileLock(root / f"{name}.lock"):
        work = root / name
        shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
        for name in (PROGRAMS, "checkpoints"):
            (work / name).mkdir(parents=True)
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _describe(
    job: ExternalJob,
    manifest: Manifest,
    export: Export,
    work: Path,
    before: _Resumed,
    resources: dict[str, float],
) -> dict[str, Any]:
    """Return the content of the file that TRAIN_VARIABLE names; policies/README.md lists its fields."""
    train, wants = job.train, job.policy.manifest
    devices = _devices(job, resources) if train.timed else 1
    return {
        "version": PROTOCOL,
        "policy": str(work / PROGRAMS),
        "data": str(export.data),
        "format": wants.data,
        "episodes": export.episodes,
        "frames": export.frames,
        "contract": shown_contract(manifest.contract, job.proprio).to_json(),
        "weights": sample_weights(manifest, job.subset, wants.action_free),
        "checkpoints": str(work / "checkpoints"),
        "report": str(work / "report.jsonl"),
        "resume": str(work / "resumed" / WEIGHTS) if before.position else "",
        "first_step": before.step,
        "steps": train.steps,
        "seconds": train.end / devices if train.timed else 0,
        "first_second": before.seconds / devices,
        "batch_size": train.batch_size,
        "checkpoint_every": train.checkpoint_every / devices if train.timed else train.checkpoint_every,
        "seed": job.arm.seed,
        "knobs": job.knobs,
        "device": "cuda" if wants.resources.gpus and resources.get("GPU", 0) else "cpu",
        "threads": max(1, int(resources.get("CPU", 1))),
        "options": dict(job.options),
    }


def _toucher(folder: Path) -> Any:
    """Return a function that touches the folder at most every TOUCH_S seconds."""
    last = time.monotonic()

    def touch() -> None:
        nonlocal last
        if time.monotonic() - last > TOUCH_S:
            last = time.monotonic()
            os.utime(folder)

    return touch


class _Meter:
    """Usage of this process and of the command since the last `read`."""

    def __init__(self) -> None:
        self.command: Command | None = None
        self.bytes_read = 0
        self._before = self._now(0)

    def read(self, clips: int, steps: int, wall_of_steps: float) -> WorkerUsage:
        """Return the usage since the last call, in which `steps` optimiser steps took `wall_of_steps`
        seconds.
        """
        now = self._now(self.bytes_read)
        before, self._before = self._before, now
        return replace(now - before, clips=clips, steps=steps, step_s=wall_of_steps)

    def _now(self, bytes_read: int) -> WorkerUsage:
        ours = time.process_time() + (self.command.cpu_s() if self.command else 0.0)
        return WorkerUsage(cpu_s=ours, wall_s=time.perf_counter(), bytes_read=bytes_read)


class _Saver:
    """Reports a command's progress and stores its checkpoints."""

    def __init__(
        self,
        job: ExternalJob,
        manifest: Manifest,
        export: Export,
        storage: Storage,
        work: Path,
        before: _Resumed,
        device: str,
        threads: int,
        resources: dict[str, float],
        meter: _Meter,
        report: Any,
    ) -> None:
        self._job, self._manifest, self._export, self._storage = job, manifest, export, storage
        self._work, self._device, self._meter, self._report = work, device, meter, report
        self._progress = Progress(job.train, before.step, before.position, before.seconds)
        self._devices = _devices(job, resources)
        self._sent, self._sent_step = before.position, before.step
        self._losses, self._since = list[float](), time.perf_counter()
        self._last: Path | None = None
        # of the command's own libraries nothing is known
        self._arithmetic = replace(
            Arithmetic.here(), instruction_set="", blas="", device=device, threads=threads
        )

    def on_line(self, line: Line, folder: Path | None) -> None:
        """Report one line's progress, not every line of a command that writes one per step."""
        self._losses.append(line.loss)
        progress, train = self._progress, self._job.train
        progress.step = line.step
        if train.timed:
            progress.seconds = line.seconds * self._devices + ROUNDING_S
        position = progress.position
        if folder is None and position - self._sent < max(1, train.end // PROGRESS_REPORTS):
            return
        finite = [loss for loss in self._losses if math.isfinite(loss)]
        loss = sum(finite) / len(finite) if finite else 0.0
        steps, now = line.step - self._sent_step, time.perf_counter()
        understood = "batch_size" in self._job.policy.manifest.understands
        usage = self._meter.read(
            steps * self._job.train.batch_size if understood else 0, steps, now - self._since
        )
        report = Reported(
            run=self._job.arm_id,
            step=position,
            loss=loss,
            loss_video=0.0,
            loss_action=loss,
            optimiser_steps=line.step if train.timed else None,
            usage=usage,
            trained_on=(self._arithmetic,),
        )
        self._sent, self._sent_step, self._losses, self._since = position, line.step, [], now
        if folder is None:
            self._report(report)
            return
        for due in self._due():
            report = replace(report, step=due, checkpoint=self._store(due, folder))
            note = json.dumps(report.to_metrics()).encode()
            self._storage.put(_note(self._job.arm_id, due), note)
            self._since = time.perf_counter()
            self._report(report)
            report = replace(report, usage=WorkerUsage())

    def _due(self) -> list[int]:
        """Return the positions that a checkpoint is stored at: its step, or the seconds that were due since
        the one before; one that came between these is the newest that training can resume from.
        """
        if not self._job.train.timed:
            return [self._progress.step]
        return self._progress.due(pause=False) or self._progress.due(pause=True)

    def _store(self, step: int, folder: Path) -> str:
        """Store a checkpoint with its card; return its fingerprint."""
        job, stage = self._job, self._work / "stage"
        shutil.rmtree(stage, ignore_errors=True)
        (stage / PROGRAMS).mkdir(parents=True)
        job.policy.write(stage / PROGRAMS)
        shutil.copytree(folder, stage / WEIGHTS, copy_function=_link)
        before = {path: path.stat().st_mtime_ns for path in stage.rglob("*")}
        card = self._card(step, stage)
        card.write(stage)
        digests = {name: bytes.fromhex(stored.sha256) for name, stored in card.files.items()}
        digests[CARD] = bytes.fromhex(StoredFile.of(stage / CARD).sha256)
        expected, prefix = fingerprint_of(digests), f"{job.arm_id}/step_{step:06d}/"
        store(stage, self._storage, prefix, CARD)
        self._storage.sync(prefix)
        if any(not path.exists() or path.stat().st_mtime_ns != time for path, time in before.items()):
            raise CommandError(
                f"{job.policy.name}: its training changed the checkpoint of step {step} after it had reported"
                " it; it must report a checkpoint when it is complete"
            )
        shutil.rmtree(stage)
        if self._last and self._last != folder:
            shutil.rmtree(self._last, ignore_errors=True)
        self._last = folder
        return expected

    def _card(self, step: int, stage: Path) -> ExternalCard:
        job = self._job
        return ExternalCard(
            policy=job.policy.name,
            policy_fingerprint=job.fingerprint,
            contract=shown_contract(self._manifest.contract, job.proprio),
            options=dict(job.options),
            lock=job.lock or job.policy.lock,
            needs=PolicyNeeds(job.policy.manifest.memory, job.policy.manifest.observation_steps),
            step=step,
            provenance={
                "arm": vars(job.arm),
                "arm_id": job.arm_id,
                "subset_digest": job.subset.digest,
                "demos": list(job.subset.demos),
                "action_free": list(job.subset.action_free) if job.policy.manifest.action_free else [],
                "export": self._export.digest,
                "train": job.train.model_dump(mode="json", exclude={"keep"}),
                "knobs": job.knobs,
                "data_fingerprint": self._manifest.fingerprint,
                "data_version": job.version,
                "packages": package_versions(),
                "device": self._device,
                **(
                    {"optimiser_steps": self._progress.step, "seconds": self._progress.seconds}
                    if job.train.timed
                    else {}
                ),
            },
            files=files_of(stage),
        )


def _link(source: str, target: str) -> None:
    """Make `target` a second name of the file, or a copy where that is not possible."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)
