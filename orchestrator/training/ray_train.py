"""Training on Ray. The only file with ray.train: a thin adapter that gives the plain loop its workers and
stores its checkpoints.
"""

import re
import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from orchestrator.checkpoints.record import read_records
from orchestrator.data.episode_format import EpisodeError
from orchestrator.storage.base import StorageError, open_storage
from orchestrator.training.control_channel import Wish, tell
from orchestrator.training.control_channel import wishes as asked_of
from orchestrator.training.loop import TrainJob, train
from orchestrator.training.train_snapshot import repair
from orchestrator.training.worker_usage import SPENT
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

    def report(step: int, metrics: dict[str, Any], folder: Path | None) -> None:
        keep = ray.train.Checkpoint.from_directory(folder) if folder else None
        ray.train.report(metrics | {"step": step}, checkpoint=keep, checkpoint_dir_name=f"step_{step:06d}")

    device = ray.train.torch.get_device()
    wrap = sharded(device) if job.train.sharding == "fsdp" else ray.train.torch.prepare_model
    last = ray.train.get_checkpoint()
    with last.as_directory() if last else nullcontext() as folder:
        resume = Path(folder) if folder else None
        train(
            job,
            context.get_world_rank(),
            world,
            resume,
            report,
            wrap,
            str(device),
            stop_request_poller(config["desk"], job.arm_id, world),
            fetcher=RayDataFetcher(),
            decoder=RayDataDecoder() if job.decode == "cluster" else None,
        )


def stop_request_poller(desk: Any, run: str, world: int) -> Callable[[], Wish]:
    """Return a function that returns the run's wish without waiting for the desk; every worker gets the same
    answer at the same step.
    """
    heard: list[Wish] = []

    def listen() -> None:
        heard.append(next(filter(None, asked_of(desk, run))))

    threading.Thread(target=listen, name="desk", daemon=True).start()
    if world == 1:
        return lambda: heard[0] if heard else ""

    import torch
    from torch import distributed

    wishes: tuple[Wish, ...] = ("", "pause", "stop")
    on_cpu = distributed.new_group(backend="gloo")  # a GPU need not wait for it

    def agreed() -> Wish:
        number = torch.tensor(wishes.index(heard[0]) if heard else 0)
        distributed.all_reduce(number, distributed.ReduceOp.MAX, group=on_cpu)
        return wishes[int(number)]

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
    job: TrainJob, folder: str, resources: dict[str, float], desk: Any, attempts: int = 1
) -> list[dict[str, Any]]:
    """Train the arm with Ray Train in `folder`/<arm id>, where an interrupted run resumes; workers' reports
    go to the `desk`.

    Return the metrics reported with each of its checkpoints, also of earlier runs. A failed attempt resumes
    from the last checkpoint, up to `attempts` attempts; then its error is raised, or at once if a retry
    cannot help (EpisodeError, WeightsError, CheckpointError, NotFiniteError, CodeChangedError).
    """
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    class Telling(ray.train.UserCallback):
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            together = {name: sum(worker[name] for worker in metrics) for name in SPENT}
            tell(desk, job.arm_id, metrics[0] | together)

    check_imported(job.code)
    trainer = TorchTrainer(
        _worker_loop,
        train_loop_config={"job": job, "threads": max(1, int(resources["CPU"])), "desk": desk},
        scaling_config=ray.train.ScalingConfig(
            num_workers=job.train.workers,
            use_gpu=resources.get("GPU", 0) > 0,
            resources_per_worker=resources,
            placement_strategy="PACK",
        ),
        # The name does not depend on the time, so that a second run finds the first one's checkpoints.
        run_config=ray.train.RunConfig(name=job.arm_id, storage_path=folder, callbacks=[Telling()]),
    )
    storage = open_storage(folder)
    for attempt in range(1, attempts + 1):
        for problem in repair(
            storage, job.arm_id, read_records(open_storage(folder.removesuffix("/arms")), job.arm_id)
        ):
            tell(desk, job.arm_id, {"retried": f"{problem}; it resumes from the newest whole one"})
        try:
            return [metrics for _, metrics in trainer.fit().best_checkpoints or ()]
        except (
            ray.train.WorkerGroupError,
            ray.train.ControllerError,
            ray.exceptions.RayError,
            OSError,
        ) as error:
            _raise_permanent(str(error))
            if attempt == attempts:
                raise
            desk.tell.remote(job.arm_id, {"retried": str(error).strip() or type(error).__name__})
            with suppress(StorageError):
                # blocks until an unavailable storage is back or its retries time out
                storage.exists(job.arm_id)
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
