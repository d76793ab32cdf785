"""Reader of a sweep in MLflow: all data of a curve."""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from orchestrator.config.arms import Arm
from orchestrator.config.yaml_text import read_yaml
from orchestrator.cost import Cost
from orchestrator.data.action_error import ActionError
from orchestrator.redaction import strip_credentials
from orchestrator.tracking.mlflow_writer import (
    ACTED_ON,
    ARM,
    BEST_STEP,
    CHECKPOINT,
    DESCRIBED,
    DESCRIPTION,
    EXPERIMENT,
    PLACE,
    PROTOCOL,
    PROTOCOL_FILE,
    SCORED_STEP,
    SIMULATED_ON,
    STEPS,
    STORAGE,
    STORE,
    SUBSET,
    SWEEP,
    TRAINED_ON,
    TRAINING,
    USER,
    TrackingError,
    action_errors_artifact,
    check_not_deleted,
    client,
    outcomes_artifact,
    rank,
    tagged,
)
from orchestrator.tracking.references import ARTIFACT, ReferenceScore, decode
from orchestrator.tracking.stages import FOLDER as STAGES
from orchestrator.tracking.stages import EpisodeStage, stages_artifact
from orchestrator.tracking.stages import decode as decode_stages
from orchestrator.tracking.tracking_errors import is_unavailable, reason, status_of
from policy.config import VIDEO_ACTION
from sim_workers.arithmetic import BETWEEN_KINDS, NOT_RECORDED, Arithmetic

AT_ONCE = 8
"""Number of parallel requests to a tracking server."""
VIDEO = ("video_psnr", "video_ssim", "video_distance")
"""Metrics of a checkpoint's generated video against the recorded one."""
CLIPS = "video_clips_id"
"""Metric: equal where the same clips were measured in the same way (`VideoScore.metrics`)."""

Checkpoint = Literal["last", "best"]
"""Which checkpoint of every arm a curve shows: the last one, or the best on the scenes of `suite.select`."""

OF_ONE_ARM = (TRAINED_ON, SIMULATED_ON, ACTED_ON, BEST_STEP)
"""Tags of an arm that are not the sweep's."""


@dataclass(frozen=True)
class ScoredArm:
    """An arm with the complete score of its last checkpoint, as MLflow or the ledger has it, or of its best
    one.
    """

    arm: Arm
    protocol: str
    step: int
    """Training step of the checkpoint."""
    successes: int
    episodes: int
    errors: int
    outcomes: Mapping[str, bool]
    """Episode id -> success."""
    early: bool = False
    """Whether scoring ended as soon as it was decided, before all listed episodes were played."""
    cost: Cost | None = None
    trained_on: tuple[Arithmetic, ...] = ()
    """Arithmetics of the training processes, one after the other; none if not recorded."""
    acted_on: tuple[str, ...] = ()
    """Arithmetics of the processes that computed the last checkpoint's actions, in words, sorted; none of
    another checkpoint.
    """
    shifted: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)
    """Shift -> episode id -> success, of complete scores under shifts."""
    run_id: str = ""
    """Id of the arm's run in MLflow; empty if the arm was read from the ledger."""
    imagined: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    """Checkpoint step -> success rate, VIDEO and CLIPS, for checkpoints that have all of them."""
    films: tuple[Mapping[str, Any], ...] = ()
    """Notes of the filmed episodes, shifted ones included, sorted by episode id: task, result, distances
    between imagined and executed video.
    """
    chosen_on: Mapping[str, bool] = field(default_factory=dict)
    """Episode id -> success on the scenes of `suite.select`, by which this checkpoint was chosen; empty if it
    is shown for being the last one.
    """
    demos: tuple[str, ...] = ()
    """Sorted ids of the demos that it learned from; none if not known."""
    stages: Mapping[str, EpisodeStage] = field(default_factory=dict)
    """Episode id -> stage and starting place, of the episodes that have them."""

    @property
    def results(self) -> tuple[object, str]:
        """What two runs of one arm must agree on, and a summary for messages."""
        return (self.outcomes, self.errors), f"{self.successes}/{self.episodes}"


@dataclass(frozen=True)
class MeasuredArm:
    """An arm with the action error of its last checkpoint on every held-out episode, as MLflow or the ledger
    has it.
    """

    arm: Arm
    protocol: str
    step: int
    errors: tuple[ActionError, ...]
    """Sorted by episode id."""
    cost: Cost | None = None
    trained_on: tuple[Arithmetic, ...] = ()
    """As for `ScoredArm`."""
    run_id: str = ""
    """As for `ScoredArm`."""

    @property
    def results(self) -> tuple[object, str]:
        """As for `ScoredArm`."""
        found = [(error.episode, error.error) for error in self.errors]
        return found, f"{len(found)} held-out episodes"


@dataclass(frozen=True)
class TrackedSweep:
    """The scored arms, the sweep file and the tags of a sweep."""

    arms: tuple[ScoredArm, ...]
    """Scored arms, sorted by arm; none if the sweep measures action errors."""
    measured: tuple[MeasuredArm, ...]
    """Measured arms, sorted by arm; none if the sweep plays episodes."""
    sweep: Mapping[str, Any]
    """The resolved sweep file."""
    tags: Mapping[str, str]
    """Tags of the sweep's run and of an arm's: origin of data and code."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """Content of PROTOCOL_FILE; empty for sweeps that earlier versions published."""
    references: tuple[ReferenceScore, ...] = ()
    """Scores of the suite's references."""


_Arm = TypeVar("_Arm", ScoredArm, MeasuredArm)


class UntrackedSweepError(TrackingError):
    """The tracking store has no sweep of that name."""

    exit_code = 2


def read_sweep(
    uri: str,
    name: str,
    store: str = "",
    storage: str = "",
    checkpoint: Checkpoint = "last",
    check: Callable[[str, Mapping[str, Any]], None] | None = None,
) -> TrackedSweep:
    """Return the scored arms of a sweep. checkpoint: which one of every arm. check: called with the name and
    the resolved sweep file before arms are read, to refuse it.

    store: identity of the sweep's storage (`SweepState.store`); empty if only the name is known. storage: URI
    of that storage, which chooses among several sweeps of the name if `store` is empty.

    Raises UntrackedSweepError if the store at `uri` has no such sweep; TrackingError if it has several, holds
    contradictory scores of one arm or cannot be reached, or if best checkpoints are asked for and one has no
    score.
    """
    if _lacks_database(uri):
        raise _untracked(uri, name, ())
    try:
        return _read(client(uri), uri, name, store, storage, checkpoint, check)
    except Exception as error:
        if not is_unavailable(error):
            raise
        raise TrackingError(
            f"MLflow at {strip_credentials(uri)} {reason(error)}; try again when it is back"
        ) from None


def logged_checkpoint(uri: str, model: str) -> tuple[str, str]:
    """Return URI and fingerprint of a model's checkpoint. model: a logged model, `models:/ID` or the id
    alone, or a registered one, `models:/NAME/VERSION`, `models:/NAME/latest` or `models:/NAME@ALIAS`.

    Raises TrackingError if the store at `uri` has no such model or is unavailable, or if the model is not a
    demoscale checkpoint.
    """
    name, place = model.removeprefix("models:").strip("/"), strip_credentials(uri)
    try:
        mlflow = client(uri)
        model_id = _registered(mlflow, place, name) if "/" in name or "@" in name else name
        tags = mlflow.get_logged_model(model_id).tags
    except Exception as error:
        if status_of(error) == 404:
            kind = "registered" if "/" in name or "@" in name else "logged"
            raise TrackingError(
                f"{place}: there is no {kind} model {name} here; name another, or the place with --mlflow"
            ) from None
        if not is_unavailable(error):
            raise
        raise TrackingError(f"MLflow at {place} {reason(error)}; try again when it is back") from None
    if PLACE not in tags or CHECKPOINT not in tags:
        raise TrackingError(
            f"{place}: the model {name} is not a demoscale checkpoint: no tags {PLACE} and {CHECKPOINT}"
        )
    return tags[PLACE], tags[CHECKPOINT]


def _registered(mlflow: Any, place: str, name: str) -> str:
    """Return the id of the logged model that a version of a registered model was made of. name:
    `NAME/VERSION`, `NAME/latest` or `NAME@ALIAS`.
    """
    if "@" in name:
        version = mlflow.get_model_version_by_alias(*name.rsplit("@", 1))
    else:
        registered, _, number = name.rpartition("/")
        if number == "latest":
            mlflow.get_registered_model(registered)  # raises if there is none
            versions = mlflow.search_model_versions(f"name = '{registered}'")
            number = str(max((int(one.version) for one in versions), default=0))
        if not number.isdigit():
            raise TrackingError(
                f"models:/{name}: {number} is no version; write models:/{registered}/1,"
                f" models:/{registered}/latest or models:/{registered}@ALIAS"
            )
        version = mlflow.get_model_version(registered, number)
    if not (model_id := _model_of(version)):
        raise TrackingError(
            f"{place}: version {version.version} of {version.name} was not made of a logged model; register"
            " one that a sweep has logged, models:/m-..."
        )
    return model_id


def _model_of(version: Any) -> str:
    """Return the id of the logged model that a version was made of; empty if it was not made of one."""
    # a database keeps the model only in the version's source
    source = re.search(r"\b(m-[0-9a-f]{32})\b", version.source or "")
    return str(version.model_id or (source[1] if source else ""))


def registered_checkpoints(uri: str) -> frozenset[str]:
    """Return the fingerprints of the checkpoints that versions of registered models were made of; none if
    the database at `uri` does not exist yet.

    Raises TrackingError if the store at `uri` is unavailable.
    """
    if _lacks_database(uri):
        return frozenset()
    found, token = set[str](), None
    try:
        mlflow = client(uri)
        while True:
            page = mlflow.search_model_versions(max_results=1000, page_token=token)
            for model_id in filter(None, map(_model_of, page)):
                try:
                    found.add(mlflow.get_logged_model(model_id).tags.get(CHECKPOINT, ""))
                except Exception as error:
                    if status_of(error) != 404:  # the logged model was deleted
                        raise
            if not (token := page.token):
                return frozenset(found - {""})
    except Exception as error:
        if not is_unavailable(error):
            raise
        raise TrackingError(
            f"MLflow at {strip_credentials(uri)} {reason(error)}, so it is not known which checkpoints are"
            " registered models; try again when it is back"
        ) from None


def _read(
    mlflow: Any,
    uri: str,
    name: str,
    store: str,
    storage: str,
    checkpoint: Checkpoint,
    check: Callable[[str, Mapping[str, Any]], None] | None,
) -> TrackedSweep:
    if experiment := mlflow.get_experiment_by_name(EXPERIMENT):
        check_not_deleted(experiment, f"MLflow at {strip_credentials(uri)} ")
    known = (
        mlflow.search_runs([experiment.experiment_id], tagged({SWEEP: name, ARM: "-"}), max_results=10_000)
        if experiment
        else []
    )
    if experiment and not known:
        everything = mlflow.search_runs([experiment.experiment_id], tagged({ARM: "-"}), max_results=10_000)
        raise _untracked(uri, name, {run.data.tags.get(SWEEP, "") for run in everything} - {""})
    parents = _parents(uri, name, known, store, storage)
    now = parents[0].data.tags
    runs = []
    for parent in parents:  # concurrent drivers may have created several
        wanted = tagged(
            {"mlflow.parentRunId": parent.info.run_id, TRAINING: now[TRAINING], PROTOCOL: now[PROTOCOL]}
        )
        found = mlflow.search_runs([experiment.experiment_id], wanted, max_results=10_000)
        runs += [run for run in found if run.data.tags.get(STORE, "") in ("", now.get(STORE, ""))]
    # The latest value of a metric is that of the largest step.
    scored = sorted(
        (run for run in runs if run.data.metrics.get(SCORED_STEP) == _last_step(run, now)), key=rank
    )
    tags = {
        name: value
        for run in (*runs[:1], parents[0])
        for name, value in run.data.tags.items()
        if name not in (DESCRIPTION, DESCRIBED, *OF_ONE_ARM)
    }
    files = _files(mlflow, parents[0])
    file = _text(mlflow, parents[0], "sweep.yaml") if "sweep.yaml" in files else "{}"
    rules = json.loads(_text(mlflow, parents[0], PROTOCOL_FILE)) if PROTOCOL_FILE in files else {}
    try:
        sweep = read_yaml(file)
    except yaml.YAMLError as error:
        raise TrackingError(
            f"{strip_credentials(uri)}: the sweep.yaml kept with {name} cannot be read"
            f" ({' '.join(str(error).split())[:200]})"
        ) from None
    if check:
        check(name, sweep)
    arms, measured = list[ScoredArm](), list[MeasuredArm]()
    with ThreadPoolExecutor(AT_ONCE) as requests:
        if holds_out(sweep):
            measured = list(requests.map(lambda run: _measured_arm(mlflow, run, now), scored))
        else:
            shifts = sweep.get("suite", {}).get("shifts") or ()
            read = _best_of_arm if checkpoint == "best" else _scored_arm
            found_arms = list(requests.map(lambda run: read(mlflow, run, now, shifts), scored))
            arms = [arm for arm in found_arms if arm]
            if lacking := len(found_arms) - len(arms):
                raise TrackingError(
                    f"{name}: {lacking} of {len(found_arms)} arms have no score of their best checkpoint on"
                    " scenes that did not choose it; `demoscale run` with `--set suite.report=best` plays"
                    " them and trains nothing again"
                )
    anchors = decode(_text(mlflow, parents[0], ARTIFACT)) if ARTIFACT in files else ()
    wanted_references = sweep.get("suite", {}).get("references") or ()
    references = tuple(score for score in anchors if score.name in wanted_references)
    return TrackedSweep(_one_each(arms, name), _one_each(measured, name), sweep, tags, rules, references)


def _lacks_database(uri: str) -> bool:
    """Return whether a URI names a local database that is not there. Opening it would create it."""
    return uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file()


def _untracked(uri: str, name: str, others: Collection[str]) -> UntrackedSweepError:
    """Return the error of a sweep that a store does not have. others: names of the sweeps that it has."""
    there = f" (there are {', '.join(sorted(others))})" if others else ""
    return UntrackedSweepError(
        f"{strip_credentials(uri)}: no sweep named {name} is tracked here{there}; name one that ran, or the"
        " place with --storage or --mlflow"
    )


def holds_out(sweep: Mapping[str, Any]) -> bool:
    """Return whether a resolved sweep file asks for action errors on held-out episodes."""
    return sweep.get("suite", {}).get("held_out") is not None


def _parents(uri: str, name: str, known: Sequence[Any], store: str, storage: str) -> list[Any]:
    """Return the runs, usually one, of the requested sweep among all of its name; the authoritative one comes
    first.
    """
    by_store: dict[str, list[Any]] = {}
    for run in sorted(known, key=rank):
        if TRAINING in run.data.tags:  # without it, the driver ended before it wrote anything
            by_store.setdefault(run.data.tags.get(STORE, ""), []).append(run)
    if not by_store:
        raise _untracked(uri, name, ())
    listed = "; ".join(_described(runs[0]) for runs in by_store.values())
    if store:
        # A sweep published by an earlier version has no store until a storage continues it.
        if found := by_store.get(store) or by_store.get(""):
            return found
        fix = (
            f"`demoscale status {name} --storage STORAGE --rebuild` publishes yours, --storage with one of"
            " these shows that one"
        )
        raise TrackingError(
            f"{strip_credentials(uri)}: the sweep {name} of this storage is not tracked here, those of other"
            f" storages are ({listed}); {fix}"
        )
    if len(by_store) > 1 and storage:
        by_store = {
            key: runs
            for key, runs in by_store.items()
            if runs[0].data.tags.get(STORAGE) == strip_credentials(storage)
        } or by_store
    if len(by_store) > 1:
        fix = f'choose one with --storage, or in Python with Curve.read(..., "{name}", store=ID)'
        raise TrackingError(
            f"{strip_credentials(uri)}: {len(by_store)} storages have a sweep named {name} ({listed}); {fix}"
        )
    (found,) = by_store.values()
    return found


def _described(parent: Any) -> str:
    """Return a sweep's storage, start and user, as far as its run has them."""
    tags, began = parent.data.tags, datetime.fromtimestamp(parent.info.start_time / 1000, UTC)
    identity = f"ID {tags[STORE]}" if STORE in tags else "no ID, from an earlier version"
    user = f" by {tags[USER]}" if USER in tags else ""
    return f"{tags.get(STORAGE, 'storage unknown')}, {identity}, begun {began:%Y-%m-%d %H:%M} UTC{user}"


def _one_each(scored: Sequence[_Arm], name: str) -> tuple[_Arm, ...]:
    """Return one score per arm, in the order of the arms; of several runs the first. Raises TrackingError if
    they hold different outcomes.
    """
    chosen: dict[Arm, _Arm] = {}
    for one in scored:
        first = chosen.setdefault(one.arm, one)
        (found, said), (others, said_too) = first.results, one.results
        if found != others:
            runs = f"runs {first.run_id} ({said}) and {one.run_id} ({said_too})"
            raise TrackingError(
                f"{name}: {runs} hold different outcomes of the arm {one.arm.name};"
                f" {_deleting(name, first.run_id, one.run_id)}"
            )
    return tuple(sorted(chosen.values(), key=lambda one: one.arm))


def _deleting(name: str, *run_ids: str) -> str:
    deletions = " and ".join(f"`mlflow runs delete --run-id {run_id}`" for run_id in run_ids)
    return (
        f"{deletions}, then `demoscale status {name} --storage STORAGE --rebuild` publishes what the"
        " storage has"
    )


def _scored_arm(mlflow: Any, run: Any, now: Mapping[str, str], shifts: Sequence[str]) -> ScoredArm:
    run_id, metrics, step = run.info.run_id, run.data.metrics, _last_step(run, now)
    files = _files(mlflow, run)
    if "outcomes" not in files:
        raise TrackingError(
            f"run {run_id} has a score and no outcomes; `demoscale status {now[SWEEP]} --rebuild`"
            " publishes them again"
        )
    if "demo_count" not in run.data.params:
        raise TrackingError(f"run {run_id} has a score without its arm; {_deleting(now[SWEEP], run_id)}")
    results: dict[str, bool] = json.loads(_text(mlflow, run, outcomes_artifact(step)))
    counted = int(metrics.get("successes", -1)), int(metrics.get("episodes", -1))
    if counted != (sum(results.values()), len(results)):
        said = (
            f"its metrics say {counted[0]} of {counted[1]} episodes, its outcomes {sum(results.values())} of"
            f" {len(results)}"
        )
        raise TrackingError(
            f"run {run_id} has scores of two writers: {said}; {_deleting(now[SWEEP], run_id)}"
        )
    films = f"rollouts/step_{step:06d}"
    notes = (
        [name for name in _files(mlflow, run, films) if name.endswith(".json")] if "rollouts" in files else []
    )
    return ScoredArm(
        arm=_arm(run.data.params),
        protocol=now[PROTOCOL],
        step=step,
        successes=sum(results.values()),
        episodes=len(results),
        errors=int(metrics["errors"]),
        outcomes=results,
        early=bool(metrics.get("decided_early")),
        trained_on=_trained_on(run),
        acted_on=tuple(run.data.tags.get(ACTED_ON, NOT_RECORDED).split(BETWEEN_KINDS)),
        shifted={
            shift: json.loads(_text(mlflow, run, outcomes_artifact(step, shift)))
            for shift in shifts
            if f"success_rate_{shift}" in metrics
        },
        cost=Cost.from_json(json.loads(_text(mlflow, run, "cost.json"))) if "cost.json" in files else None,
        run_id=run_id,
        imagined=_imagined(mlflow, run) if VIDEO[0] in metrics else {},
        films=tuple(json.loads(_text(mlflow, run, name)) for name in sorted(notes, key=_stem)),
        demos=tuple(json.loads(_text(mlflow, run, SUBSET))["demos"]) if SUBSET in files else (),
        stages=_stages(mlflow, run, step) if STAGES in files else {},
    )


def _stages(mlflow: Any, run: Any, step: int) -> dict[str, EpisodeStage]:
    """Return the stages of a checkpoint's episodes; none if an earlier version scored it."""
    name = stages_artifact(step)
    return decode_stages(_text(mlflow, run, name)) if name in _files(mlflow, run, STAGES) else {}


def _best_of_arm(mlflow: Any, run: Any, now: Mapping[str, str], shifts: Sequence[str]) -> ScoredArm | None:
    """Return an arm with its best checkpoint; None if it has no score on scenes that did not choose it."""
    last, step = _last_step(run, now), int(run.data.tags.get(BEST_STEP, -1))
    names = [outcomes_artifact(step, part) for part in ("nominal", "select")]
    if step < 0 or not {*names} <= {*_files(mlflow, run, "outcomes")}:
        return None
    shown, chosen_on = (json.loads(_text(mlflow, run, name)) for name in names)
    arm = _scored_arm(mlflow, run, now, shifts)
    if step == last:
        return replace(arm, chosen_on=chosen_on)
    errors = {one.step: one.value for one in mlflow.get_metric_history(run.info.run_id, "errors")}
    return replace(
        arm,
        step=step,
        successes=sum(shown.values()),
        episodes=len(shown),
        errors=int(errors.get(step, 0)),
        outcomes=shown,
        chosen_on=chosen_on,
        acted_on=(),
        shifted={},
        films=(),
        stages=_stages(mlflow, run, step) if arm.stages else {},
    )


def _last_step(run: Any, now: Mapping[str, str]) -> int:
    """Return the step at which the training of an arm's run ends: its own, or that of all arms."""
    return int(run.data.tags.get(STEPS, now[STEPS]))


def _measured_arm(mlflow: Any, run: Any, now: Mapping[str, str]) -> MeasuredArm:
    run_id, step, files = run.info.run_id, _last_step(run, now), _files(mlflow, run)
    if "action_errors" not in files or "demo_count" not in run.data.params:
        raise TrackingError(
            f"run {run_id} has a score and no action errors; `demoscale status {now[SWEEP]} --rebuild`"
            " publishes them again"
        )
    rows = json.loads(_text(mlflow, run, action_errors_artifact(step)))
    return MeasuredArm(
        arm=_arm(run.data.params),
        protocol=now[PROTOCOL],
        step=step,
        errors=tuple(ActionError.from_json(row) for row in rows),
        trained_on=_trained_on(run),
        cost=Cost.from_json(json.loads(_text(mlflow, run, "cost.json"))) if "cost.json" in files else None,
        run_id=run_id,
    )


def _trained_on(run: Any) -> tuple[Arithmetic, ...]:
    return tuple(map(Arithmetic.from_json, json.loads(run.data.tags.get(TRAINED_ON, "[]"))))


def _stem(path: str) -> str:
    return Path(path).stem


def _imagined(mlflow: Any, run: Any) -> dict[int, dict[str, float]]:
    names = ("success_rate", *VIDEO, CLIPS)
    told = {
        name: {logged.step: logged.value for logged in mlflow.get_metric_history(run.info.run_id, name)}
        for name in names
    }
    steps = sorted(set.intersection(*(set(values) for values in told.values())))
    return {step: {name: told[name][step] for name in names} for step in steps}


def _files(mlflow: Any, run: Any, folder: str = "") -> list[str]:
    """Return the paths of the files and folders in a folder of a run."""
    if local := _folder(run):
        return (
            [f"{folder}/{path.name}" if folder else path.name for path in (local / folder).iterdir()]
            if (local / folder).is_dir()
            else []
        )
    return [file.path for file in mlflow.list_artifacts(run.info.run_id, folder or None)]


def _text(mlflow: Any, run: Any, name: str) -> str:
    local = _folder(run)
    return ((local / name) if local else Path(mlflow.download_artifacts(run.info.run_id, name))).read_text()


def _folder(run: Any) -> Path | None:
    """Return the folder of a run's files if it is on this machine; reading it directly saves MLflow's 15 ms
    per file.
    """
    place = Path(str(run.info.artifact_uri).removeprefix("file://"))
    return place if place.is_absolute() and place.is_dir() else None


def _arm(params: dict[str, str]) -> Arm:
    """Return the arm of a run's params. Runs without a policy are older than the baselines."""
    policy = params.get("policy", VIDEO_ACTION)
    return Arm(int(params["demo_count"]), float(params["action_free_ratio"]), int(params["seed"]), policy)
