"""Ray Tune: a trial per training run, begun when the sweep has one to give. The only file with ray.tune's Tuner."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from orchestrator.redaction import redacted
from orchestrator.training.control_channel import ANSWER_S, tell

Fit = Callable[[Any, str, dict[str, float], Any, int], list[dict[str, Any]]]
"""(job, folder, resources of a worker, desk, attempts) -> what was reported with each checkpoint; `orchestrator.training.ray_train.fit`."""


class Runs(Protocol):
    """What there is to train. Asked from Tune's loop."""

    def next(self) -> str | None:
        """The run to begin now, ready on the desk; None if there is none, or no room for it."""

    @property
    def finished(self) -> bool:
        """Whether there will be no further one and all have ended."""

    def ended(self, run: str, died: bool) -> None:
        """Its trial is over. died: its process did, as often as it may."""


def run_trials(runs: Runs, fit: Fit, folder: str, resources: dict[str, float], desk: Any, attempts: int) -> None:
    """Run trials until `runs` is finished. What becomes of each is told to the desk."""
    from ray import tune

    with tempfile.TemporaryDirectory(prefix="demoscale-tune-") as scratch:  # Tune's own notes; the storage has all that matters
        tune.Tuner(
            # The trial only waits for its workers: it takes a sliver of the head node and no CPU from them.
            tune.with_resources(_trainable(fit, folder, resources, desk, attempts), {"node:__internal_head__": 0.001}),
            tune_config=tune.TuneConfig(search_alg=_searcher(runs), num_samples=-1, reuse_actors=True),
            run_config=tune.RunConfig(
                name=f"sweep-{int(time.time())}", storage_path=scratch, failure_config=tune.FailureConfig(max_failures=attempts - 1), verbose=0
            ),
        ).fit()


def _trainable(fit: Fit, folder: str, resources: dict[str, float], desk: Any, attempts: int) -> Callable[[dict[str, Any]], None]:
    def train_run(config: dict[str, Any]) -> None:
        import traceback

        import ray
        from ray import tune

        run = config["run"]
        try:
            checkpoints = fit(ray.get(desk.job.remote(run), timeout=ANSWER_S), folder, resources, desk, attempts)
        except Exception:  # told, and not raised: `fit` has made all the attempts there are, and Tune would make them again
            news: dict[str, Any] = {"failed": redacted(traceback.format_exc())}  # this process's environment has other secrets than the driver's
        else:
            news = {"trained": checkpoints}
        tell(desk, run, news)
        tune.report({"run": run})  # without a result Tune prints that there is none

    return train_run


def _searcher(runs: Runs) -> Any:
    """Tune asks its search algorithm for trials: this one passes on what the sweep has to give, when it has it."""
    from ray.tune.search import Searcher

    class Passing(Searcher):
        runs: Runs

        def __init__(self) -> None:
            super().__init__()
            self._begun: dict[str, str] = {}  # by Tune's id of the trial

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune pickles it beside its own state; what the sweep has to give is known from its storage

        def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
            return True

        def suggest(self, trial_id: str) -> Any:
            if self.runs.finished:
                return Searcher.FINISHED
            run = self.runs.next()
            if run is None:
                return None
            self._begun[trial_id] = run
            return {"run": run}

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            self.runs.ended(self._begun.pop(trial_id), died=error)

        def save(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).touch()

        def restore(self, checkpoint_path: str) -> None: ...

    searcher = Passing()
    searcher.runs = runs
    return searcher
