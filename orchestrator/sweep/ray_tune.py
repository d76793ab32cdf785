"""Ray Tune: one trial per training run, started when the sweep has one ready. The only file with ray.tune's
Tuner.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from orchestrator.cluster.placement import ResourcePlan
from orchestrator.cluster.ray_runtime import this_node_is_alive
from orchestrator.external.fit import fit_external
from orchestrator.external.job import ExternalJob
from orchestrator.redaction import redact
from orchestrator.training import ray_train
from orchestrator.training.claimed_resources import release_claims
from orchestrator.training.control_channel import ANSWER_S, send
from orchestrator.training.loop import TrainJob
from orchestrator.training.train_events import Failed, Finished, Reported, TrainEvent

Fit = Callable[[Any, str, dict[str, float], Any, int], list[Reported]]
"""(job, folder, resources of a worker, control channel, attempts) -> reports of all checkpoints; `fit`."""
Resources = Callable[[Any], dict[str, float]]
"""Job -> resources of one of its workers."""


def fit(
    job: TrainJob | ExternalJob, folder: str, resources: dict[str, float], channel: Any, attempts: int = 1
) -> list[Reported]:
    """Train an arm with Ray Train, or with its external policy's own command."""
    if isinstance(job, ExternalJob):
        return fit_external(job, folder, resources, channel, attempts)
    return ray_train.fit(job, folder, resources, channel, attempts)


def resources_of(placement: ResourcePlan, job: TrainJob | ExternalJob) -> dict[str, float]:
    """Return the resources of one worker of a training run."""
    if not isinstance(job, ExternalJob):
        return placement.trainer
    wants = job.policy.manifest.resources
    return placement.external(wants.cpus, wants.gpus)


class _NodeDiedError(BaseException):
    """Leaves Tune's loop without its clean-up, which waits ten minutes for actors of a dead node."""


class Runs(Protocol):
    """Source of training runs, called from Tune's loop."""

    def next(self) -> str | None:
        """Return the run to start now, its job ready on the control channel; None if there is none, or no
        free slot.
        """

    @property
    def finished(self) -> bool:
        """Whether no further run will come and all have ended."""

    @property
    def lost(self) -> bool:
        """Whether the control actor is lost, so that no run can report any more."""


def run_trials(
    runs: Runs,
    on_trial_end: Callable[[str, bool], None],
    fit: Fit,
    folder: str,
    resources: Resources,
    channel: Any,
    attempts: int,
) -> None:
    """Run trials until `runs` is finished; each sends its result through the control channel.

    on_trial_end: called with the run of a trial that ended, and whether its process died in every attempt, so
    that it sent none. Raises ray.exceptions.NodeDiedError if this process' node died: no trial ends any more.
    """
    import ray
    from ray import tune

    # Tune's own state, not needed later: the storage has everything
    with tempfile.TemporaryDirectory(prefix="demoscale-tune-") as scratch:
        tuner = tune.Tuner(
            # The trial only waits for its workers: it claims a fraction of the head node and no CPU.
            tune.with_resources(
                _trainable(fit, folder, resources, channel, attempts), {"node:__internal_head__": 0.001}
            ),
            tune_config=tune.TuneConfig(
                search_alg=_searcher(runs, folder, on_trial_end), num_samples=-1, reuse_actors=True
            ),
            run_config=tune.RunConfig(
                name=f"sweep-{int(time.time())}",
                storage_path=scratch,
                failure_config=tune.FailureConfig(max_failures=attempts - 1),
                verbose=0,
                callbacks=[_node_watch(runs)],
            ),
        )
        try:
            tuner.fit()
        except _NodeDiedError:
            raise ray.exceptions.NodeDiedError("Ray's node of this process died") from None


def _trainable(
    fit: Fit, folder: str, resources: Resources, channel: Any, attempts: int
) -> Callable[[dict[str, Any]], None]:
    def train_run(config: dict[str, Any]) -> None:
        import traceback

        import ray
        from ray import tune

        run = config["run"]
        try:
            job = ray.get(channel.take_job.remote(run), timeout=ANSWER_S)
            event: TrainEvent = Finished(run, tuple(fit(job, folder, resources(job), channel, attempts)))
        except Exception:  # reported, not raised: `fit` has made all attempts, and Tune would repeat them
            # this process has other secrets than the driver
            event = Failed(run, redact(traceback.format_exc()))
        send(channel, event)
        tune.report({"run": run})  # without a result Tune prints a warning

    return train_run


def _node_watch(runs: Runs) -> Any:
    """Return a callback that ends Tune's loop once no trial can end any more."""
    from ray import tune

    class NodeWatch(tune.Callback):
        def __init__(self, runs: Runs) -> None:
            self._runs = runs  # an attribute, see _searcher

        def __getstate__(self) -> dict[str, Any]:
            return {}

        def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
            if self._runs.lost and not this_node_is_alive():
                raise _NodeDiedError

    return NodeWatch(runs)


def _searcher(runs: Runs, folder: str, on_trial_end: Callable[[str, bool], None]) -> Any:
    """Return a search algorithm that passes the sweep's runs to Tune as they become ready."""
    from ray.tune.search import Searcher

    class Passing(Searcher):
        def __init__(self, runs: Runs, on_trial_end: Callable[[str, bool], None]) -> None:
            super().__init__()
            # attributes: Tune pickles this class with the variables of its closure, and these have locks
            self._runs, self._on_trial_end = runs, on_trial_end
            self._begun: dict[str, str] = {}  # by Tune's id of the trial

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune pickles it with its own state; the sweep's runs are known from its storage

        def set_search_properties(
            self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
        ) -> bool:
            return True

        def suggest(self, trial_id: str) -> Any:
            if self._runs.finished:
                return Searcher.FINISHED
            run = self._runs.next()
            if run is None:
                return None
            self._begun[trial_id] = run
            return {"run": run}

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            run = self._begun.pop(trial_id)
            if error:  # the trial's process died in every attempt
                release_claims(folder, run)
            self._on_trial_end(run, error)

        def save(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).touch()

        def restore(self, checkpoint_path: str) -> None: ...

    return Passing(runs, on_trial_end)
