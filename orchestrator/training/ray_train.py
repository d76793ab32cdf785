"""Training on Ray. The only file with ray.train: a thin adapter that gives the plain loop its workers and
stores its checkpoints.
"""

import re
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.checkpoints.reader import keep_frozen, to_resume
from orchestrator.checkpoints.record import read_records
from orchestrator.data.episode_format import EpisodeError
from orchestrator.storage.base import StorageError, open_storage
from orchestrator.training.claimed_resources import release_claims, tagged
from orchestrator.training.control_channel import StopRequest, send, stop_requests
from orchestrator.training.loop import TrainJob, train
from orchestrator.training.train_events import Reported, Retried
from orchestrator.training.train_snapshot import repair
from orchestrator.training.worker_usage import WorkerUsage
from sim_workers.checkout import CodeChangedError, check_imported


def _worker_loop(config: dict[str, Any]) -> None:
    """Train on one Ray Train worker."""
    import ray.train
    import ray.train.torch
    import torch

    from orchestrator.data.ray_prefetch import RayDataDecoder, RayDataFetcher

    job: TrainJob = config["job"]
    context = ray.train.get_context()
    world = context.get_world_size()
    if not torch.cuda.is_available():
        torch.set_num_threads(config["threads"])

    storage = open_storage(config["storage"])

    def report(event: Reported, folder: Path | None) -> None:
        if folder:
            keep_frozen(folder, storage, job.frozen_parts)
        keep = ray.train.Checkpoint.from_directory(folder) if folder else None
        ray.train.report(event.to_metrics(), checkpoint=keep, checkpoint_dir_name=f"step_{event.step:06d}")

    device = ray.train.torch.get_device()
    wrap = sharded(device) if job.train.shards else ray.train.torch.prepare_model
    last = ray.train.get_checkpoint()
    with ExitStack() as opened:
        resume = None
        if last:
            folder = Path(opened.enter_context(last.as_directory()))
            # the last three parts of its URI, by which its storage is found
            place = f"{storage.uri}/arms/{job.arm_id}/{Path(last.path).name}"
            resume = opened.enter_context(to_resume(folder, place))
        train(
            job,
            context.get_world_rank(),
            world,
            resume,
            report,
            wrap,
            str(device),
            stop_request_poller(config["channel"], job.arm_id, world),
            fetcher=RayDataFetcher(),
            decoder=RayDataDecoder() if job.decode == "cluster" else None,
            agree=_longest(world) if job.train.timed else float,
        )


def _longest(world: int) -> Callable[[float], float]:
    """Return a function that returns the largest of the workers' numbers, so that all end at one step."""
    if world == 1:
        return float

    import torch
    from torch import distributed

    on_cpu = distributed.new_group(backend="gloo")  # a GPU need not wait for it

    def agree(seconds: float) -> float:
        number = torch.tensor(seconds, dtype=torch.float64)
        distributed.all_reduce(number, distributed.ReduceOp.MAX, group=on_cpu)
        return float(number)

    return agree


def stop_request_poller(channel: Any, run: str, world: int) -> Callable[[], StopRequest | None]:
    """Return a function that returns the run's stop request, None if there is none, without waiting for the
    control channel; every worker gets the same answer at the same step.
    """
    received: list[StopRequest] = []

    def poll() -> None:
        received.append(next(filter(None, stop_requests(channel, run))))

    threading.Thread(target=poll, name="stop-requests", daemon=True).start()
    if world == 1:
        return lambda: received[0] if received else None

    import torch
    from torch import distributed

    requests = (None, StopRequest.PAUSE, StopRequest.STOP)
    on_cpu = distributed.new_group(backend="gloo")  # a GPU need not wait for it

    def agreed() -> StopRequest | None:
        number = torch.tensor(requests.index(received[0]) if received else 0)
        distributed.all_reduce(number, distributed.ReduceOp.MAX, group=on_cpu)
        return requests[int(number)]

    return agreed


def sharded(device: Any) -> Any:
    """Return a wrap that shards every weight across the workers (FSDP2), block by block, so that one block at
    a time is gathered.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    def wrap(model: Any) -> Any:
        import torch

        mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        for name, module in model.named_modules():
            if re.fullmatch(r"video\.unet\.(down_blocks\.\d+|mid_block|up_blocks\.\d+)", name):
                fully_shard(module, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    return wrap


def fit(
    job: TrainJob, folder: str, resources: dict[str, float], channel: Any, attempts: int = 1
) -> list[Reported]:
    """Train the arm with Ray Train in `folder`/<arm id>, where an interrupted run resumes; reports and
    retries go to the control channel.

    Return the reports of all its checkpoints in the order of steps, also of earlier runs. A failed attempt
    resumes from the last checkpoint, up to `attempts` attempts; then its error is raised, or at once if a
    retry cannot help (EpisodeError, WeightsError, CheckpointError, NotFiniteError, CodeChangedError).
    """
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    run = job.arm_id

    class SendReports(ray.train.UserCallback):
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            usage = WorkerUsage.total(map(WorkerUsage.from_metrics, metrics))
            send(channel, replace(Reported.from_metrics(run, metrics[0]), usage=usage))

    check_imported(job.code)
    trainer = TorchTrainer(
        _worker_loop,
        train_loop_config={
            "job": job,
            "threads": max(1, int(resources["CPU"])),
            "channel": channel,
            "storage": folder.removesuffix("/arms"),
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=job.train.workers,
            use_gpu=resources.get("GPU", 0) > 0,
            resources_per_worker=tagged(resources, folder, run),
            placement_strategy="PACK",
        ),
        # The name does not depend on the time, so that a second run finds the first one's checkpoints.
        run_config=ray.train.RunConfig(name=run, storage_path=folder, callbacks=[SendReports()]),
    )
    storage = open_storage(folder)
    for attempt in range(1, attempts + 1):
        release_claims(folder, run)
        for problem in repair(storage, run, read_records(open_storage(folder.removesuffix("/arms")), run)):
            send(channel, Retried(run, f"{problem}; it resumes from the newest whole one"))
        try:
            return [
                Reported.from_metrics(run, metrics) for _, metrics in trainer.fit().best_checkpoints or ()
            ]
        except (
            ray.train.WorkerGroupError,
            ray.train.ControllerError,
            ray.exceptions.RayError,
            OSError,
        ) as error:
            with suppress(ray.exceptions.RayError):
                release_claims(folder, run)
            _raise_permanent(str(error))
            if attempt == attempts:
                raise
            channel.send.remote(Retried(run, str(error).strip() or type(error).__name__))
            with suppress(StorageError):
                # blocks until an unavailable storage is back or its retries time out
                storage.exists(run)
    raise AssertionError("unreachable")


def _raise_permanent(trace: str) -> None:
    """Raise a worker's error if only the user can fix it: damaged episodes, weights that do not fit, diverged
    training, edited code.
    """
    from policy.checkpoint import CheckpointError
    from policy.finite import NotFiniteError
    from policy.weights import WeightsError

    for kind in (EpisodeError, WeightsError, CheckpointError, NotFiniteError, CodeChangedError):
        if told := re.search(rf"^[\w.]*\b{kind.__name__}: (.*)$", trace, re.MULTILINE):
            raise kind(told[1]) from None
