"""Ray Tune: one trial per training run, started when the sweep has one ready. The only file with ray.tune's
Tuner.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from orchestrator.redaction import redact
from orchestrator.training.control_channel import ANSWER_S, tell

Fit = Callable[[Any, str, dict[str, float], Any, int], list[dict[str, Any]]]
"""(job, folder, resources of a worker, desk, attempts) -> metrics reported with each checkpoint;
`orchestrator.training.ray_train.fit`.
"""


class Runs(Protocol):
    """Source of training runs, called from Tune's loop."""

    def next(self) -> str | None:
        """Return the run to start now, its job ready on the desk; None if there is none, or no free slot."""

    @property
    def finished(self) -> bool:
        """Whether no further run will come and all have ended."""

    def ended(self, run: str, died: bool) -> None:
        """Record that the run's trial ended. died: its process died in every attempt."""


def run_trials(
    runs: Runs, fit: Fit, folder: str, resources: dict[str, float], desk: Any, attempts: int
) -> None:
    """Run trials until `runs` is finished; the desk receives the result of each."""
    from ray import tune

    # Tune's own state, not needed later: the storage has everything
    with tempfile.TemporaryDirectory(prefix="demoscale-tune-") as scratch:
        tune.Tuner(
            # The trial only waits for its workers: it claims a fraction of the head node and no CPU.
            tune.with_resources(
                _trainable(fit, folder, resources, desk, attempts), {"node:__internal_head__": 0.001}
            ),
            tune_config=tune.TuneConfig(search_alg=_searcher(runs), num_samples=-1, reuse_actors=True),
            run_config=tune.RunConfig(
                name=f"sweep-{int(time.time())}",
                storage_path=scratch,
                failure_config=tune.FailureConfig(max_failures=attempts - 1),
                verbose=0,
            ),
        ).fit()


def _trainable(
    fit: Fit, folder: str, resources: dict[str, float], desk: Any, attempts: int
) -> Callable[[dict[str, Any]], None]:
    def train_run(config: dict[str, Any]) -> None:
        import traceback

        import ray
        from ray import tune

        run = config["run"]
        try:
            checkpoints = fit(
                ray.get(desk.job.remote(run), timeout=ANSWER_S), folder, resources, desk, attempts
            )
        except Exception:  # reported, not raised: `fit` has made all attempts, and Tune would repeat them
            # this process has other secrets than the driver
            news: dict[str, Any] = {"failed": redact(traceback.format_exc())}
        else:
            news = {"trained": checkpoints}
        tell(desk, run, news)
        tune.report({"run": run})  # without a result Tune prints a warning

    return train_run


def _searcher(runs: Runs) -> Any:
    """Return a search algorithm that passes the sweep's runs to Tune as they become ready."""
    from ray.tune.search import Searcher

    class Passing(Searcher):
        runs: Runs

        def __init__(self) -> None:
            super().__init__()
            self._begun: dict[str, str] = {}  # by Tune's id of the trial

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune pickles it with its own state; the sweep's runs are known from its storage

        def set_search_properties(
            self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
        ) -> bool:
            return True

        def suggest(self, trial_id: str) -> Any:
            if self.runs.finished:
                return Searcher.FINISHED
            run = self.runs.next()
            if run is None:
                return None
            self._begun[trial_id] = run
            return {"run": run}

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            self.runs.ended(self._begun.pop(trial_id), died=error)

        def save(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).touch()

        def restore(self, checkpoint_path: str) -> None: ...

    searcher = Passing()
    searcher.runs = runs
    return searcher
