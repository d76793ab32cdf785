"""Writer of a sweep to MLflow: one parent run per sweep, one child per arm, scores at their checkpoint's
training step.

Runs are found or created by tags, checkpoints by their fingerprint, metrics by their step. So a record that
is published twice is stored once, and a sweep that is killed and restarted continues the same runs. One
process writes a sweep at a time (`outbox_relay.py`).
"""

import fcntl
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from orchestrator.config.arms import Arm
from orchestrator.provenance import digest
from orchestrator.redaction import strip_credentials
from orchestrator.tracking.model_files import model_files
from policy.errors import DemoscaleError

EXPERIMENT = "demoscale"
# Tags. A parent's training and scoring fingerprints select the children that belong to the current sweep.
SWEEP, ARM, TRAINING, PROTOCOL, STEPS = (
    f"demoscale.{name}" for name in ("sweep", "arm", "training", "protocol", "steps")
)
SUBSET = "subset.json"
"""File of an arm's run: ids of its demos and action-free episodes."""
PROTOCOL_FILE = "protocol.json"
"""File of a sweep's run: the parts of its scoring protocol that policies of different kinds share, which two
sweeps must have in common to be compared.
"""
STORE, STORAGE = "demoscale.store", "demoscale.storage"
"""Tags: identity of the sweep's storage, on a parent and its children; a URI of that storage, on a parent."""
USER = "mlflow.user"
"""Tag: user of the sweep's last run. MLflow's own name, shown in its list of runs."""
SOURCE, SOURCE_TYPE, GIT_COMMIT = "mlflow.source.name", "mlflow.source.type", "mlflow.source.git.commit"
"""Tags of every run: the program, LOCAL or JOB, and the commit of its code. MLflow's own names."""
DESCRIPTION = "mlflow.note.content"
"""Tag of a run or an experiment: its description, Markdown. MLflow's own name."""
DESCRIBED = "demoscale.description"
"""Tag: digest of the description that was written last. A description with another one is a user's, and is
kept.
"""
EXPERIMENT_KIND, TRAINING_KIND = "mlflow.experimentKind", "custom_model_development"
"""Tag of an experiment, and its value with which MLflow's UI opens it as model training, with runs and
charts.
"""
AS_TRAINING = "?workflowType=machine_learning"
"""End of the links in a description: MLflow's UI shows the page as one of model training."""
EXPERIMENT_DESCRIPTION = (
    "Sweeps of demoscale. A sweep is one run, whose metrics are its sample-efficiency curve, with the demo"
    " count as step; its nested runs are the trained policies, with the training step as step."
)
RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"
"""Statuses of runs, MLflow's own."""
LOADABLE = "demoscale.loadable"
"""Tag of a logged model that has the files of `model_files`, once it is ready."""
LONGEST_TAG = 5000
"""Most characters of a description; MLflow's databases hold 5000 to 8000."""
REPLICATES = "demoscale.replicates"
"""Tag: equal for arms that differ only in their seed."""
CHECKPOINT, STEP, PLACE = (f"demoscale.{name}" for name in ("checkpoint", "step", "uri"))
"""Tags of a logged model: the checkpoint's fingerprint, training step and URI."""
BEST_STEP = "demoscale.best_step"
"""Tag of an arm: training step of its best checkpoint on the scenes of `suite.select`, if asked for."""
DIMENSIONS = "demoscale.action"
"""Tag of an arm whose action error is measured: names of the action dimensions, JSON."""
TRAINED_ON, SIMULATED_ON, ACTED_ON = (
    f"demoscale.{name}" for name in ("trained_on", "simulated_on", "acted_on")
)
"""Tags of an arm: arithmetics (`sim_workers.arithmetic`) of its training, JSON; and in words those of the
simulators and policies of its last score.
"""
SCORED_STEP = "scored_step"
"""Metric: training step of every complete score on the sweep's own suite; its latest value is the last step
scored.
"""
CALL_S = 20
"""Seconds after which a request to a tracking server times out."""


class TrackingError(DemoscaleError):
    """Error of one sentence: what the tracking store lacks, or why it cannot be used."""


def local_folder(storage_uri: str) -> Path:
    """Return the folder of a storage's local files: the storage itself, or `runs` in the working directory
    for an S3 bucket.
    """
    return Path("runs" if storage_uri.startswith("s3://") else storage_uri.removeprefix("file://")).absolute()


def tracking_uri(mlflow: str, storage_uri: str) -> str:
    """Return the sweep file's tracking URI, by default a database next to the other results. It may hold a
    password: see `shown`.
    """
    if mlflow:
        return mlflow
    return f"sqlite:///{local_folder(storage_uri) / 'mlflow.db'}"


def client(uri: str) -> Any:
    """Return an MlflowClient for a store's URI; create a local database if there is none.

    Credentials in the URI are moved to the environment variables that MLflow reads, so that no message shows
    them.
    """
    for name, value in (
        ("GIT_PYTHON_REFRESH", "quiet"),
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3"),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", str(CALL_S)),
        ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
    ):
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        if parts.username:
            os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = (
                unquote(parts.username),
                unquote(parts.password or ""),
            )
        return MlflowClient(strip_credentials(uri))
    if not uri.startswith("sqlite:///"):
        return MlflowClient(uri)
    database = Path(uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    # if several processes create its tables at once, all but one fail
    with _alone(database.with_name(f"{database.name}.lock")):
        return MlflowClient(uri)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold an exclusive file lock; none if the lock file cannot be opened: no database can be created there
    either.
    """
    try:
        file = lock.open("a")
    except OSError:
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_not_deleted(experiment: Any, server: str = "") -> None:
    """Raise TrackingError if a user deleted the experiment: MLflow shows none of its runs and takes no
    records for it. server: begins the sentence.
    """
    if experiment.lifecycle_stage == "deleted":
        raise TrackingError(
            f"{server}has deleted its experiment {experiment.name}; `mlflow experiments restore"
            f" --experiment-id {experiment.experiment_id}` brings it back with its runs"
        )


def tagged(tags: dict[str, str]) -> str:
    """Return MLflow's search filter for all of the tags."""
    return " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())


def rank(run: Any) -> tuple[bool, bool, bool, bool, int, str]:
    """Return the sort key for several runs of one sweep, or of one arm, of which the first is used.

    Runs with a score come before runs with only metrics, params or a driver's tags; ties are broken by start
    time and id, so that all drivers choose the same run.
    """
    metrics = run.data.metrics
    return (
        SCORED_STEP not in metrics,
        not metrics,
        not run.data.params,
        not _in_use(run),
        run.info.start_time,
        run.info.run_id,
    )


def _in_use(run: Any) -> bool:
    """Return whether a driver has written its tags to the run since it was created."""
    return STEPS in run.data.tags or REPLICATES in run.data.tags


def _is_empty(run: Any) -> bool:
    return not (run.data.metrics or run.data.params or _in_use(run))


class MlflowWriter:
    """Writes one sweep to MLflow. A failed call can be retried: state that it may have changed is
    read again.
    """

    def __init__(
        self,
        uri: str,
        sweep: str,
        *,
        training: str,
        protocol: str,
        steps: int,
        artifacts: str | None = None,
        store: str = "",
    ) -> None:
        """Connect to the store at `uri`.

        training, protocol: fingerprints of the arms' training and scoring. steps: training step of the last
        checkpoint. artifacts: location of the files of an experiment created here; only for a local database.
        store: identity of the sweep's storage. Runs of other storages are left alone; runs without an
        identity, written by earlier versions, are adopted. Empty: only runs without one.
        """
        self._mlflow = client(uri)
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"  # the caller retries at its own pace
        self._artifacts = artifacts if uri.startswith("sqlite:") else None
        self._experiment, self._parent, self._current = "", "", False
        self._store = store
        self._tags = {SWEEP: sweep, TRAINING: training, PROTOCOL: protocol}
        self._before: dict[str, set[str]] = {}  # names of metrics by run, as of the time it was found
        self._logged: dict[str, dict[str, dict[int, Any]]] = {}  # metrics by run, name and step
        self._inputs: dict[str, set[tuple[str, str]]] = {}  # datasets by run
        self._outputs: dict[str, set[str]] = {}  # ids of models by run, as far as known
        self._models: dict[tuple[str, str], str] = {}  # by run and fingerprint
        # run and fingerprint of checkpoints whose logged models are complete
        self._complete: set[tuple[str, str]] = set()
        # last status and its time in ms, by arm id; None: the sweep's run
        self._statuses: dict[str | None, tuple[str, int | None]] = {}
        self._children: dict[str, str] = {}  # by arm id
        # arguments of `arm` by arm id
        self._arms: dict[str, tuple[Arm, dict[str, str], Sequence[dict[str, str]]]] = {}
        # arm ids whose runs were checked for duplicates before their first score
        self._checked: set[str] = set()
        self._stored: set[tuple[str | None, str, str]] = set()  # files by arm, name and digest
        self._sweep_tags, self._steps = {SWEEP: sweep, ARM: "-"}, str(steps)

    def open(self) -> None:
        """Find or create the sweep's own run. Idempotent; every other method calls it as needed."""
        if not self._experiment:
            self._experiment = self._find_experiment()
        if not self._parent:
            self._parent = self._find_or_create(self._sweep_tags[SWEEP], self._sweep_tags)
        if not self._current:
            self._current = True
            try:
                self.tags(None, {**self._tags, STEPS: self._steps})
            except BaseException:
                self._current = False
                raise

    def _find_experiment(self) -> str:
        """Return the id of the experiment, which is created if there is none, and marked as one of training
        unless a user chose a kind. Raises TrackingError if it was deleted.
        """
        found = self._mlflow.get_experiment_by_name(EXPERIMENT)
        tags = {EXPERIMENT_KIND: TRAINING_KIND, DESCRIPTION: EXPERIMENT_DESCRIPTION}
        if not found:
            created: str = self._mlflow.create_experiment(EXPERIMENT, self._artifacts, tags)
            return created
        check_not_deleted(found)
        for name, value in tags.items():
            if found.tags.get(name, "_inferred").endswith("_inferred"):
                self._mlflow.set_experiment_tag(found.experiment_id, name, value)
        experiment: str = found.experiment_id
        return experiment

    @property
    def parent(self) -> str:
        """Id of the sweep's run."""
        self.open()
        return self._parent

    def _find_or_create(self, name: str, tags: dict[str, str], tidy: bool = True) -> str:
        """Return the id of this storage's run with these tags.

        A request that timed out, or another driver, may have created a duplicate: all drivers choose the same
        run by `rank`. tidy: delete duplicates that hold nothing.
        """
        created = ""
        found = self._of_this_store(tags)
        if not found:
            run = self._mlflow.create_run(
                self._experiment,
                run_name=name,
                tags={**tags, **({STORE: self._store} if self._store else {})},
            )
            created, tidy, found = run.info.run_id, False, [run]
            # another driver may have created one concurrently; for an arm's run, `_scored_child` checks that
            if tags[ARM] == "-":
                found = self._of_this_store(tags) or [run]
        run = min(found, key=rank)
        run_id: str = run.info.run_id
        for other in found:
            if other.info.run_id != run_id and _is_empty(other) and (tidy or other.info.run_id == created):
                self._mlflow.delete_run(other.info.run_id)
        if run_id not in self._logged or len(found) > 1:
            self._before[run_id], self._logged[run_id] = set(run.data.metrics), {}
            self._inputs[run_id] = {
                (told.dataset.name, told.dataset.digest)
                for told in (run.inputs.dataset_inputs if run.inputs else ())
            }
            self._outputs[run_id] = _output_ids(run)
        return run_id

    def _of_this_store(self, tags: dict[str, str]) -> list[Any]:
        """Return the runs with these tags that belong to this storage; if there are none, those without a
        store, the first of them now tagged.
        """
        runs = self._mlflow.search_runs([self._experiment], tagged(tags), max_results=10_000)
        own = [run for run in runs if run.data.tags.get(STORE, "") == self._store]
        untagged = sorted((run for run in runs if STORE not in run.data.tags), key=rank)
        if own or not untagged:
            return own
        self._mlflow.set_tag(untagged[0].info.run_id, STORE, self._store)
        if self._mlflow.get_run(untagged[0].info.run_id).data.tags.get(STORE) != self._store:
            return []  # another storage adopted it at the same moment
        return untagged

    def remove_duplicates(self) -> None:
        """Resolve duplicate runs and models that requests with an unknown outcome may have created."""
        self._check_parent(tidy=True)
        for arm_id in [*self._children]:
            self._check_child(arm_id, tidy=True)
        for run, fingerprint in [*self._models]:
            del self._models[run, fingerprint]
            self._model(run, fingerprint)

    def _check_parent(self, tidy: bool = False) -> None:
        """Switch to the sweep's run that all drivers choose, if it has changed."""
        before = self.parent
        self._parent = self._find_or_create(self._sweep_tags[SWEEP], self._sweep_tags, tidy)
        if self._parent != before:
            self._current = False
            self.open()
            self._repeat_status(None)

    def _check_child(self, arm_id: str, tidy: bool = False) -> None:
        """Switch to the arm's run that all drivers choose, if it has changed; delete the previous one if it
        has no score.
        """
        before = self._child(arm_id)
        now = self._find_or_create(_named(arm_id), self._child_tags(arm_id), tidy)
        if now != before:
            self._children[arm_id] = now
            if arm_id in self._arms:
                self.arm(arm_id, *self._arms[arm_id])
            self._repeat_status(arm_id)
            left = self._mlflow.get_run(before)
            if SCORED_STEP not in left.data.metrics and left.info.lifecycle_stage == "active":
                self._mlflow.delete_run(before)

    def _child_tags(self, arm_id: str) -> dict[str, str]:
        return {**self._tags, ARM: arm_id, "mlflow.parentRunId": self.parent}

    def _child(self, arm_id: str) -> str:
        if arm_id not in self._children:
            self._children[arm_id] = self._find_or_create(_named(arm_id), self._child_tags(arm_id))
        return self._children[arm_id]

    def _scored_child(self, arm_id: str) -> str:
        """Return the arm's run; before its first score, check that no other driver writes the same arm to
        another run.
        """
        if arm_id not in self._checked:
            if not self._checked:
                self._check_parent()
            self._check_child(arm_id)
            self._checked.add(arm_id)
        return self._child(arm_id)

    def arm(
        self, arm_id: str, arm: Arm, facts: dict[str, str], datasets: Sequence[dict[str, str]] = ()
    ) -> None:
        """Write an arm's run: params, `facts` as tags, `datasets` as inputs with the keys name, digest, uri,
        profile and context.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

        run = self._child(arm_id)
        self._arms[arm_id] = arm, facts, datasets
        tags = [
            RunTag(name, value)
            for name, value in {REPLICATES: arm.name.removesuffix(f"_seed-{arm.seed}"), **facts}.items()
        ]
        params = [Param(name, str(value)) for name, value in _params(arm).items()]
        self._mlflow.log_batch(run, params=params, tags=tags, synchronous=True)
        for told in datasets:
            if (told["name"], told["digest"]) not in self._inputs[run]:
                kind, source = urlsplit(told["uri"]).scheme or "local", json.dumps({"uri": told["uri"]})
                data = Dataset(told["name"], told["digest"], kind, source, profile=told["profile"])
                self._mlflow.log_inputs(
                    run, [DatasetInput(data, [InputTag("mlflow.data.context", told["context"])])]
                )
                self._inputs[run].add((told["name"], told["digest"]))

    def tags(self, arm_id: str | None, tags: dict[str, str]) -> None:
        """Set tags of an arm's run, or of the sweep's if there is no arm."""
        from mlflow.entities import RunTag

        run = self._child(arm_id) if arm_id else self.parent
        self._mlflow.log_batch(
            run, tags=[RunTag(name, value) for name, value in tags.items()], synchronous=True
        )

    def checkpoint(
        self,
        arm_id: str,
        step: int,
        fingerprint: str,
        uri: str,
        contract: Mapping[str, Any] | None = None,
        example: bool = False,
    ) -> None:
        """Log a complete checkpoint as a logged model, an output of its arm's run.

        contract: conventions of its observations and actions, with which MLflow can load the model; None: it
        can only be looked up. example: whether the model has an input example.
        """
        run = self._child(arm_id)
        if (run, fingerprint) in self._complete:
            return
        model = self._find_model(run, fingerprint)
        if not model:
            tags = {CHECKPOINT: fingerprint, STEP: str(step), PLACE: uri, **self._tags, ARM: arm_id}
            model = self._mlflow.create_logged_model(
                self._experiment,
                name=f"{_named(arm_id)}_step-{step}".replace(".", "p"),
                source_run_id=run,
                tags=tags | ({LOADABLE: "true"} if contract else {}),
                params={"step": str(step)},
                model_type="policy",
            )
        ready = str(model.status) == "READY"
        if contract and not (ready and LOADABLE in model.tags):
            reference = {"uri": model.tags[PLACE], "fingerprint": fingerprint}
            files = model_files(model.model_id, run, contract, reference, example=example)
            with tempfile.TemporaryDirectory() as folder:
                for name, data in files.items():
                    (Path(folder) / name).write_bytes(data)
                self._mlflow.log_model_artifacts(model.model_id, folder)
            if LOADABLE not in model.tags:  # an earlier version logged it
                self._mlflow.set_logged_model_tags(model.model_id, {LOADABLE: "true"})
        if not ready:
            self._mlflow.finalize_logged_model(model.model_id, "READY")
        self._log_output(run, model.model_id, step)
        self._models[run, fingerprint] = model.model_id
        self._complete.add((run, fingerprint))

    def _log_output(self, run: str, model_id: str, step: int) -> None:
        """Log a model as an output of a run, once."""
        from mlflow.entities import LoggedModelOutput

        if run not in self._outputs:
            self._outputs[run] = _output_ids(self._mlflow.get_run(run))
        if model_id in self._outputs[run]:
            return
        try:
            self._mlflow.log_outputs(run, [LoggedModelOutput(model_id, step)])
        except BaseException:  # it is unknown whether it was written
            self._outputs.pop(run)
            raise
        self._outputs[run].add(model_id)

    def _model(self, run: str, fingerprint: str) -> str | None:
        """Return the id of a checkpoint's logged model; None if there is none."""
        if (run, fingerprint) not in self._models:
            model = self._find_model(run, fingerprint)
            if not model:
                return None
            self._models[run, fingerprint] = model.model_id
        return self._models[run, fingerprint]

    def _find_model(self, run: str, fingerprint: str) -> Any:
        """Return a checkpoint's logged model, None if there is none; delete its duplicates."""
        wanted = f"{tagged({CHECKPOINT: fingerprint})} and source_run_id = '{run}'"
        models = sorted(
            self._mlflow.search_logged_models([self._experiment], wanted),
            key=lambda m: (not m.metrics, str(m.status) != "READY", m.creation_timestamp),
        )
        for twin in models[1:]:
            self._mlflow.delete_logged_model(twin.model_id)
        return models[0] if models else None

    def metrics(
        self, arm_id: str, step: int, values: dict[str, float], at: int | None = None, checkpoint: str = ""
    ) -> None:
        """Log metrics at a training step; values that the run already has at the step are left alone.

        at: Unix time of measurement in ms, by default now. checkpoint: fingerprint of the logged model to
        link them with.
        """
        from mlflow.entities import Metric

        run = self._scored_child(arm_id) if SCORED_STEP in values else self._child(arm_id)
        at = int(time.time() * 1000) if at is None else at
        logged = self._history(run, values)
        model = self._model(run, checkpoint) if checkpoint else None
        linked = (
            {(m.key, m.step) for m in self._mlflow.get_logged_model(model).metrics or ()} if model else set()
        )
        new = []
        for name, value in values.items():
            before = logged[name].get(step)
            if before is None:
                new.append(Metric(name, value, at, step, model_id=model))
            elif model and (name, step) not in linked:
                # with equal value and time the run does not store it twice
                new.append(Metric(name, before.value, before.timestamp, step, model_id=model))
        self._log_metrics(run, new)

    def curve(self, step: int, values: Mapping[str, float], at: int) -> None:
        """Log the values of a curve at a demo count, the step, as metrics of the sweep's run.

        at: Unix time in ms at which the curve was computed. A value that differs from the run's is added with
        this time, unless the run's is later: the latest value of a step counts.
        """
        from mlflow.entities import Metric

        run = self.parent
        logged = self._history(run, values)
        new = []
        for name, value in values.items():
            before = logged[name].get(step)
            if before is None or (before.value != value and before.timestamp <= at):
                new.append(Metric(name, value, at, step))
        self._log_metrics(run, new)

    def _log_metrics(self, run: str, metrics: Sequence[Any]) -> None:
        """Log metrics of a run, whose history of the same names is known, in one request."""
        if not metrics:
            return
        logged = self._logged[run]
        try:
            self._mlflow.log_batch(run, metrics=metrics, synchronous=True)
        except BaseException:  # it is unknown which metrics were written
            for metric in metrics:
                self._before[run].add(metric.key)
                logged.pop(metric.key, None)
            raise
        for metric in metrics:
            logged[metric.key][metric.step] = metric

    def _history(self, run: str, names: Iterable[str]) -> dict[str, dict[int, Any]]:
        """Return logged metrics by name and step; each is queried once, since no other process writes."""
        logged = self._logged[run]
        for name in names:
            if name not in logged:
                history = self._mlflow.get_metric_history(run, name) if name in self._before[run] else ()
                history = sorted(history, key=lambda metric: metric.timestamp)
                logged[name] = {metric.step: metric for metric in history}
        return logged

    def artifact(self, arm_id: str | None, name: str, data: bytes, digest: str = "") -> None:
        """Store a file with an arm's run, or with the sweep's if there is no arm. `name` may hold folders.

        A file that this tracker has stored under the same name and digest is skipped.
        """
        if digest and (arm_id, name, digest) in self._stored:
            return
        run = self._child(arm_id) if arm_id else self.parent
        if arm_id and name.startswith(("outcomes/", "action_errors/")):
            run = self._scored_child(arm_id)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(name).name
            path.write_bytes(data)
            self._mlflow.log_artifact(run, str(path), str(Path(name).parent) if "/" in name else None)
        self._stored.add((arm_id, name, digest))

    def describe(self, arm_id: str | None, text: str, links: Mapping[str, str]) -> None:
        """Set the description of an arm's run, or of the sweep's if there is no arm. A description that a
        user wrote or changed is kept.

        text: Markdown. links: names of files of the run by title, listed below the text.
        """
        run = self._child(arm_id) if arm_id else self.parent
        before = self._mlflow.get_run(run).data.tags
        if before.get(DESCRIPTION) and before.get(DESCRIBED) != digest(before[DESCRIPTION]):
            return
        place = f"#/experiments/{self._experiment}/runs/{run}/artifacts"
        listed = " · ".join(f"[{title}]({place}/{name}{AS_TRAINING})" for title, name in links.items())
        text = f"{text[: LONGEST_TAG - len(listed) - 2]}\n\n{listed}" if listed else text[:LONGEST_TAG]
        if text != before.get(DESCRIPTION):
            self.tags(arm_id, {DESCRIPTION: text, DESCRIBED: digest(text)})

    def status(self, arm_id: str | None, status: str, at: int | None = None) -> None:
        """Set the status of an arm's run, or of the sweep's if there is no arm.

        at: Unix time in ms at which the run ended, by default now. A run with this status keeps its end; one
        that MLflow created later, since it was away, ends when it was created.
        """
        self._statuses[arm_id] = status, at
        run = self._child(arm_id) if arm_id else self.parent
        info = self._mlflow.get_run(run).info
        if info.status == status:
            return
        if status == RUNNING:
            self._mlflow.update_run(run, status)
        else:
            ended = int(time.time() * 1000) if at is None else at
            self._mlflow.set_terminated(run, status, max(ended, info.start_time))

    def _repeat_status(self, arm_id: str | None) -> None:
        """Set the last status again, on the run that replaces the one that had it."""
        if arm_id in self._statuses:
            self.status(arm_id, *self._statuses[arm_id])

    def finish(self) -> None:
        """Mark the sweep's run as finished."""
        self.status(None, FINISHED)


def _output_ids(run: Any) -> set[str]:
    return {output.model_id for output in run.outputs.model_outputs} if run.outputs else set()


def _named(arm_id: str) -> str:
    """Return the arm's name: its id without the fingerprint of its training."""
    return arm_id.rpartition("_")[0] or arm_id


def _params(arm: Arm) -> dict[str, str | int | float]:
    """Return an arm as its run's params, with the names of the sweep file."""
    return {
        "policy": arm.kind,
        "demo_count": arm.demo_count,
        "action_free_ratio": arm.action_free_ratio,
        "seed": arm.seed,
    }


SCORE_METRICS = ("success_rate", "successes", "episodes", "errors", "success_low", "success_high")


def outcomes_artifact(step: int, shift: str = "nominal") -> str:
    """Return the name of the file with every episode's outcome at a training step."""
    return f"outcomes/step_{step:06d}{'' if shift == 'nominal' else f'_{shift}'}.json"


def action_errors_artifact(step: int) -> str:
    """Return the name of the file with the action error of every held-out episode at a training step."""
    return f"action_errors/step_{step:06d}.json"
