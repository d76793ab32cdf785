"""Training on Ray. The only file with ray.train: a thin skin that gives the plain loop its workers and keeps its checkpoints."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from orchestrator.data.episodes import EpisodeError
from orchestrator.loop import ArmJob, train

ATTEMPTS = 3  # at a training run, should its workers fail; each goes on from the last checkpoint


def _worker_loop(config: dict[str, Any]) -> None:
    """What every Ray Train worker runs."""
    import ray.train
    import ray.train.torch
    import torch

    job: ArmJob = config["job"]
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
        train(job, context.get_world_rank(), world, Path(folder) if folder else None, report, wrap, str(device))


def sharded(device: Any) -> Any:
    """A wrap that leaves each worker a part of every weight (FSDP2), block by block, so that one block at a time is whole."""
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


@contextmanager
def telling(on_step: Callable[[int, float], None]) -> Iterator[Any]:
    """A Ray Train callback; while it is open, `on_step` hears (optimiser step, loss) of the first worker, in a thread of this process."""
    import ray.train
    from ray.util.queue import Queue

    told = Queue(actor_options={"num_cpus": 0})

    class Telling(ray.train.UserCallback):
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            told.put((int(metrics[0]["step"]), float(metrics[0]["loss"])))

    def listen() -> None:
        while news := told.get():
            on_step(*news)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield Telling()
    finally:
        told.put(None)
        thread.join()
        told.shutdown()


def fit(job: ArmJob, folder: str, resources: dict[str, float], callbacks: list[Any]) -> list[dict[str, Any]]:
    """Train the arm with Ray Train into `folder`/<arm id>; continues there if it was interrupted. Raises if training fails for good.

    Returns what was reported with each of its checkpoints, those of earlier runs too.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        _worker_loop,
        train_loop_config={"job": job, "threads": max(1, int(resources["CPU"]))},
        scaling_config=ray.train.ScalingConfig(
            num_workers=job.train.workers, use_gpu=resources.get("GPU", 0) > 0, resources_per_worker=resources, placement_strategy="PACK"
        ),
        # The name has nothing of the moment in it: that is what lets a second run find the first one's checkpoints.
        run_config=ray.train.RunConfig(name=job.arm_id, storage_path=folder, callbacks=callbacks),
    )
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return [metrics for _, metrics in trainer.fit().best_checkpoints or ()]
        except ray.train.WorkerGroupError as error:
            _raise_what_trying_again_would_not_mend(str(error))
            if attempt == ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def _raise_what_trying_again_would_not_mend(trace: str) -> None:
    """Raise a worker's error here, if it was one of a person's to mend: damaged episodes, weights that are not there or do not fit."""
    from policy.checkpoint import CheckpointError
    from policy.weights import WeightsError

    for kind in (EpisodeError, WeightsError, CheckpointError):
        if told := re.search(rf"^[\w.]*\b{kind.__name__}: (.*)$", trace, re.MULTILINE):
            raise kind(told[1]) from None
