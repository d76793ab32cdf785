"""Processes that Ray Train starts beside its controller and workers, and those of them that no run needs.

Each costs about two CPU seconds per attempt, for Ray's own imports, which a run of minutes notices. It is no
file that shapes a policy: workers are started and synchronised as Ray Train does.
"""

from typing import Any


def without_idle_actors() -> None:
    """Have Ray Train in this process start two actors less per attempt: the manager of data sets, of which
    its workers get none (they fetch episodes themselves, `orchestrator/data/ray_prefetch.py`), and the
    watcher that removes a killed controller's placement group, as `release_claims` does. Idempotent.
    """
    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    default = DataParallelTrainer._create_default_callbacks
    if getattr(default, "without_idle_actors", False):
        return

    def create(self: Any) -> list[Any]:
        idle = (
            (PlacementGroupCleanerCallback,)
            if self.datasets
            else (PlacementGroupCleanerCallback, DatasetsCallback)
        )
        return [callback for callback in default(self) if not isinstance(callback, idle)]

    create.without_idle_actors = True  # type: ignore[attr-defined]
    DataParallelTrainer._create_default_callbacks = create
