"""Publisher of a sweep to MLflow. Training and scoring never wait for it: records go to disk, a thread
delivers them (`outbox_relay.py`).

The storage has everything that is published, so `republish.py` can restore it.
"""

import getpass
import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from orchestrator.code_fingerprint import SIMULATING_CODE, code_hashes
from orchestrator.config.arms import Arm
from orchestrator.cost import Cost
from orchestrator.evaluation.action_error_score import ActionErrorScore
from orchestrator.evaluation.scores import Score
from orchestrator.evaluation.video_score import VideoScore
from orchestrator.fingerprints import Key
from orchestrator.provenance import PACKAGES, SIMULATING_PACKAGES, commit_hash, digest, git_commit
from orchestrator.redaction import redact, redacted_in, strip_credentials
from orchestrator.report.curve_metrics import curve_metrics, description
from orchestrator.report.held_out_curve import HeldOutCurve
from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.report.simulator_versions import SIMULATOR_TAG, VERSION_TAG
from orchestrator.storage.identity import claim_identity
from orchestrator.sweep.state import SweepState
from orchestrator.sweep.status import ArmStatus
from orchestrator.tracking.mlflow_writer import (
    ACTED_ON,
    BEST_STEP,
    DIMENSIONS,
    FAILED,
    FINISHED,
    GIT_COMMIT,
    KILLED,
    PROTOCOL_FILE,
    RUNNING,
    SCORE_METRICS,
    SCORED_STEP,
    SIMULATED_ON,
    SOURCE,
    SOURCE_TYPE,
    STEPS,
    STORAGE,
    SUBSET,
    TRAINED_ON,
    USER,
    MlflowWriter,
    action_errors_artifact,
    local_folder,
    outcomes_artifact,
)
from orchestrator.tracking.outbox_records import (
    Describe,
    DescribeArm,
    FinishSweep,
    LogCheckpoint,
    LogCurve,
    LogMetrics,
    SetStatus,
    SetTags,
    StoreArtifact,
)
from orchestrator.tracking.outbox_relay import DEFAULT_OUTBOX, OutboxRelay, OutboxSettings
from orchestrator.tracking.references import ARTIFACT, ReferenceScore, encode
from orchestrator.tracking.stages import encode as encode_stages
from orchestrator.tracking.stages import stages_artifact, stages_of
from orchestrator.training.loop import CONSUMED
from sim_workers.arithmetic import BETWEEN_KINDS, NOT_RECORDED, Arithmetic
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.rollout_video import RecordedVideo

COST = "demoscale.cost"
"""Tag: an arm's cost or the sweep's, in words."""
CLAIM = "demoscale.claim"
"""Tag of the sweep: what its seeds allow to say, about recipes or about trained policies."""
LOSSES = ("loss", "loss_video", "loss_action")
TIMED = ("optimiser_steps",)
"""Metrics of arms that get a budget of time, whose steps are seconds."""


class TrackingPublisher:
    """Publisher of one sweep. Methods return at once; `flush` and `finish` wait for a bounded time."""

    def __init__(
        self,
        state: SweepState,
        say: Callable[[str], None] = lambda _: None,
        open_tracker: Callable[..., Any] = MlflowWriter,
        settings: OutboxSettings = DEFAULT_OUTBOX,
    ) -> None:
        """Open the sweep's outbox and start its delivery. Raises TrackingError if this machine's disk cannot
        be written.

        say: called when MLflow becomes unreachable, and when it is reachable again. open_tracker: creates the
        writer to MLflow, as MlflowWriter does.
        """
        self._state = state
        sweep = state.sweep
        place = digest([state.storage.uri, strip_credentials(state.tracking_uri)])[:8]
        about = {
            "sweep": sweep.name,
            "store": state.store or claim_identity(state.storage),
            "training": state.training,
            "protocol": state.comparable,
            "steps": sweep.train.end,
            "artifacts": state.uri("mlartifacts"),
        }
        folder = local_folder(state.storage.uri) / "telling" / f"{sweep.name}-{place}"
        self._relay = OutboxRelay(state.tracking_uri, folder, about, say, open_tracker, settings)
        self._away = False
        self._ended: dict[str, str] = {}  # statuses by arm id, of the arms whose end is published
        self._arm_tags = redacted_in(arm_tags(state))
        self.artifact("sweep.yaml", redact(sweep.to_yaml()).encode())
        if not state.held_out:
            self.artifact(PROTOCOL_FILE, json.dumps(shared_protocol(state), sort_keys=True).encode())
        self.artifact(
            "quarantined.json", json.dumps(redacted_in(state.quarantined), indent=1, sort_keys=True).encode()
        )
        self.artifact("environment.json", json.dumps(redacted_in(environment()), indent=1).encode())
        self._contract = json.loads(json.dumps(state.contract.to_json()))
        self._mlflow_tags = mlflow_tags()
        self._tags(None, sweep_tags(state) | self._mlflow_tags)
        for arm in state.arms().values():
            self.arm(arm)

    @property
    def failure(self) -> BaseException | None:
        """Error that ended the delivery thread; None if there is none."""
        return self._relay.failure

    def arm(self, arm: Arm) -> None:
        """Publish an arm: its run, its facts and its episodes."""
        state, arm_id, subset = self._state, self._state.arm_id(arm), self._state.subset(arm)
        uri, manifest = strip_credentials(state.place_of(arm)), state.seen_by(arm)
        facts = {
            "demoscale.subset": subset.digest,
            STEPS: str(state.sweep.train_of(arm).end),
            **self._arm_tags,
            **self._mlflow_tags,
        }
        data = {
            "name": uri.rstrip("/").rpartition("/")[2],
            "digest": manifest.fingerprint,
            "uri": uri,
            "profile": json.dumps({"version": state.version, "episodes": len(manifest)}),
            "context": "training",
        }
        self._relay.enqueue(
            DescribeArm(arm_id=arm_id, arm=arm, facts=facts, datasets=tuple(redacted_in([data])))
        )
        self.arm_artifact(
            arm_id, SUBSET, json.dumps({**vars(subset), "digest": subset.digest}, indent=1).encode()
        )

    def training(self, arm_id: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Publish the metrics that an arm reported: losses and clips consumed."""
        self.metrics(
            arm_id,
            step,
            {name: float(metrics[name]) for name in (*LOSSES, *CONSUMED, *TIMED) if name in metrics},
        )

    def stage_one(self, arm_id: str, step: int, loss_video: float) -> None:
        """Publish the loss of the stage-1 video model that an arm waits for."""
        self.metrics(arm_id, step, {"stage1_loss_video": loss_video})

    def checkpoint(self, arm_id: str, step: int, fingerprint: str) -> None:
        """Publish a complete checkpoint as a logged model of its arm's run."""
        self._relay.enqueue(
            LogCheckpoint(
                arm_id=arm_id,
                step=step,
                fingerprint=fingerprint,
                uri=strip_credentials(self._state.checkpoint_uri(arm_id, step)),
                contract=self._contract,
                example=step == self._state.last_step(arm_id),
            )
        )

    def trained_on(self, arm_id: str, trained_on: Sequence[Arithmetic]) -> None:
        """Publish the arithmetics of an arm's training processes up to its newest checkpoint."""
        if trained_on:
            self._tags(arm_id, {TRAINED_ON: json.dumps([one.to_json() for one in trained_on])})

    def score(
        self, arm_id: str, step: int, fingerprint: str, shift: str, score: Score, outcomes: Sequence[Outcome]
    ) -> None:
        """Publish a checkpoint's complete score at its training step, and its outcomes as a file. shift:
        `select` for the episodes on which searches decide.
        """
        results = {outcome.spec.episode_id: outcome.result == "success" for outcome in outcomes}
        self.arm_artifact(
            arm_id, outcomes_artifact(step, shift), json.dumps(results, sort_keys=True).encode()
        )
        if shift == "nominal" and (stages := stages_of(outcomes)):
            self.arm_artifact(arm_id, stages_artifact(step), encode_stages(stages))
        values = (score.success_rate, score.successes, score.episodes, score.errors, *score.interval)
        metrics = dict(zip(SCORE_METRICS, map(float, values), strict=True))
        metrics |= {
            "success_once_rate": score.once / score.episodes,
            "success_at_end_rate": score.at_end / score.episodes,
        }
        if shift == "nominal":
            metrics["decided_early"] = float(score.episodes < score.listed)
        suffix = "" if shift == "nominal" else f"_{shift}"
        told = {f"{name}{suffix}": value for name, value in metrics.items()}
        if shift == "nominal":
            told[SCORED_STEP] = float(step)
        self.checkpoint(arm_id, step, fingerprint)
        if shift == "nominal" and step == self._state.last_step(arm_id):
            self._tags(
                arm_id,
                {
                    SIMULATED_ON: BETWEEN_KINDS.join(
                        sorted({one.simulated_on or NOT_RECORDED for one in outcomes})
                    ),
                    ACTED_ON: BETWEEN_KINDS.join(sorted({one.acted_on or NOT_RECORDED for one in outcomes})),
                },
            )
        self._relay.enqueue(
            LogMetrics(arm_id=arm_id, step=step, values=told, at=_now_ms(), checkpoint=fingerprint)
        )

    def best(self, arm_id: str, step: int) -> None:
        """Publish which checkpoint of an arm is best on the scenes of `suite.select`."""
        self._tags(arm_id, {BEST_STEP: str(step)})

    def action_error(self, arm_id: str, step: int, fingerprint: str, score: ActionErrorScore) -> None:
        """Publish a checkpoint's action error at its training step, and that of every held-out episode as a
        file.
        """
        rows = [error.to_json() for error in score.errors]
        self.arm_artifact(arm_id, action_errors_artifact(step), json.dumps(rows).encode())
        values = {
            "action_error": score.mean,
            "action_error_low": score.interval.low,
            "action_error_high": score.interval.high,
            "action_error_episodes": float(score.episodes),
            "action_error_constant_action": score.constant,
            SCORED_STEP: float(step),
        }
        if score.loss is not None:
            values["held_out_loss"] = score.loss
        for name, error in zip(self._state.manifest.contract.action, score.dimensions, strict=True):
            if error is not None:
                values[f"action_error_of/{metric_name(name)}"] = error
        self.checkpoint(arm_id, step, fingerprint)
        self._relay.enqueue(
            LogMetrics(arm_id=arm_id, step=step, values=values, at=_now_ms(), checkpoint=fingerprint)
        )

    def film(self, arm_id: str, step: int, episode: str, film: RecordedVideo) -> None:
        """Publish a rollout video of a checkpoint, and its policy's foresight if there is one."""
        self.arm_artifact(arm_id, f"rollouts/step_{step:06d}/{episode}.mp4", film.mp4)
        if film.foresight:
            self.arm_artifact(arm_id, f"rollouts/step_{step:06d}/{episode}.json", film.foresight)

    def video(self, arm_id: str, step: int, score: VideoScore) -> None:
        """Publish the score of a checkpoint's generated video. The first metrics are kept; scores on other
        clips become separate files.
        """
        self.metrics(arm_id, step, score.metrics)
        self.arm_artifact(
            arm_id,
            f"video/{score.digest}/step_{step:06d}.json",
            json.dumps(score.to_json(), indent=1).encode(),
        )

    def start(self, arm_ids: Iterable[str]) -> None:
        """Publish that the sweep runs, and these arms, which may have ended in an earlier run."""
        for arm_id in (None, *arm_ids):
            self._relay.enqueue(SetStatus(arm_id=arm_id, status=RUNNING, at=_now_ms()))

    def end_arm(self, arm_id: str, arm: ArmStatus, otherwise: str = "") -> None:
        """Publish how an arm ended, and a sentence about it.

        otherwise: status of one that has not ended; empty: its run is left as it is.
        """
        status = ended_as(arm, self._state.sweep.suite.shifts)
        if self._ended.get(arm_id, "") == (status or otherwise):
            return
        self._ended[arm_id] = status or otherwise
        self._relay.enqueue(SetStatus(arm_id=arm_id, status=status or otherwise, at=_now_ms()))
        if status:
            self._relay.enqueue(Describe(arm_id=arm_id, text=redact(_ending(arm)), links={}))

    def end(self, status: str) -> None:
        """Publish how the sweep ended."""
        self._relay.enqueue(SetStatus(arm_id=None, status=status, at=_now_ms()))

    def curve(self, curve: Curve | HeldOutCurve, page: str, *, complete: bool) -> None:
        """Publish the curve: as metrics of the sweep's run, whose step is the demo count, as pictures, page
        and JSON, and its answer as the run's description.

        page: the curve's HTML page. complete: whether no arm is still to come; if one is, points that lack
        seeds are not among the metrics.
        """
        for kind in ("png", "svg"):
            self.artifact(f"curve.{kind}", curve.draw(kind))
        self.artifact("curve.json", json.dumps(curve.to_json(), indent=1).encode())
        self.artifact("curve.html", page.encode())
        self._tags(None, {CLAIM: f"{curve.claim.about}; fewest seeds of a point: {curve.claim.seeds}"})
        at = _now_ms()
        for demos, values in curve_metrics(curve, complete=complete).items():
            named = {metric_name(name): value for name, value in values.items()}
            self._relay.enqueue(LogCurve(step=demos, values=named, at=at))
        links = {"page": "curve.html", "picture": "curve.png", "numbers": "curve.json"}
        links |= {"sweep file": "sweep.yaml", "cost": "cost.json"}
        self._relay.enqueue(Describe(arm_id=None, text=redact(description(curve)), links=links))

    def costs(self, by_arm: dict[str, Cost], total: Cost) -> None:
        """Publish at the end of the sweep what each arm cost, and what the sweep spent (`total`): less than
        their sum if another sweep trained or scored some of the arms.
        """
        for arm_id, cost in [*by_arm.items(), (None, total)]:
            self._artifact(arm_id, "cost.json", json.dumps(cost.to_json(), indent=1).encode())
            self._tags(arm_id, {COST: str(cost)})

    def references(self, scores: Sequence[ReferenceScore]) -> None:
        """Publish the scores of the suite's references."""
        self.artifact(ARTIFACT, encode(scores))

    def artifact(self, name: str, data: bytes) -> None:
        """Publish a file of the whole sweep; `name` may contain folders, and a later file of the same name
        replaces it.
        """
        self._artifact(None, name, data)

    def arm_artifact(self, arm_id: str, name: str, data: bytes) -> None:
        """Publish a file of an arm's run."""
        self._artifact(arm_id, name, data)

    def metrics(self, arm_id: str, step: int, values: dict[str, float]) -> None:
        """Publish an arm's metrics at a training step. The first value for a name and a step is kept."""
        self._relay.enqueue(LogMetrics(arm_id=arm_id, step=step, values=values, at=_now_ms()))

    def _tags(self, arm_id: str | None, tags: dict[str, str]) -> None:
        self._relay.enqueue(SetTags(arm_id=arm_id, tags=redacted_in(tags)))

    def _artifact(self, arm_id: str | None, name: str, data: bytes) -> None:
        digest = hashlib.sha256(data).hexdigest()
        self._relay.enqueue(StoreArtifact(arm_id=arm_id, name=name, data=data, digest=digest))

    @property
    def untold(self) -> int:
        """Number of records not yet published to MLflow."""
        return self._relay.left

    def flush(self) -> bool:
        """Wait until all records are published; False if MLflow is unavailable: the rest stays on disk for a
        later run.
        """
        self._away = not self._relay.wait(1.0 if self._away else None)
        return not self._away

    def finish(self, done: bool) -> str:
        """Flush and close; `done`: mark the sweep complete. Return a sentence on unpublished records and how
        to publish them, or nothing.
        """
        if done:
            self._relay.enqueue(FinishSweep())
        told = self.flush()
        left = self.close()
        return "" if told and not self._relay.refused else left

    def close(self) -> str:
        """Close without waiting; return the sentence that `finish` does."""
        state, relay = self._state, self._relay
        left, problem = relay.left, relay.problem or "has not taken everything in time"
        relay.close()
        said = []
        if left:
            command = f"demoscale status {state.sweep.name} --storage {state.storage.uri} --rebuild"
            where = f"MLflow at {strip_credentials(state.tracking_uri)} {problem}"
            said.append(
                f"{where}: {left} records are not told yet; they are kept, and `{command}` or the same run"
                " command tells them later"
            )
        if relay.refused:
            said.append(f"MLflow refused {relay.refused} records, which are kept")
        return "; ".join(said)


def metric_name(text: str) -> str:
    """Return a text with a `_` for every run of characters that MLflow refuses in names."""
    return re.sub(r"[^\w./ -]+", "_", text).strip("_") or "_"


def environment() -> dict[str, Any]:
    """Return the environment of a sweep: Python, platform, versions of the relevant packages."""
    packages = (*PACKAGES, "transformers", "mlflow", "optuna", "pyarrow")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in packages},
    }


def user() -> str:
    """Return the user's name, empty if the system has none for the process, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def mlflow_tags() -> dict[str, str]:
    """Return MLflow's own tags of every run: user, program and commit, as far as they are known."""
    kind = "JOB" if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else "LOCAL"
    tags = {USER: user(), SOURCE: "demoscale", SOURCE_TYPE: kind, GIT_COMMIT: commit_hash()}
    return {name: value for name, value in tags.items() if value}


def ended_as(arm: ArmStatus, shifts: Iterable[str]) -> str:
    """Return the MLflow status of an arm's run: FAILED, KILLED if the search stopped the arm, FINISHED if its
    last checkpoint has all scores; empty if it has not ended.
    """
    if arm.failure:
        return FAILED
    if arm.stopped is not None:
        return KILLED
    scores = [arm.scores.get(arm.steps), *(arm.shifted.get(shift) for shift in shifts)]
    return FINISHED if arm.reported and all(score and score.complete for score in scores) else ""


def _ending(arm: ArmStatus) -> str:
    if arm.failure:
        return f"Failed: {arm.failure}"
    if arm.stopped is not None:
        return f"Stopped by the search after {arm.stopped:,} of {arm.steps:,} steps."
    return f"After {arm.steps:,} steps: {arm.report or arm.scores[arm.steps]}."


def sweep_tags(state: SweepState) -> dict[str, str]:
    """Return the tags of the sweep's run that say where its code runs and its results lie."""
    here = environment()
    versions = {"python": here["python"], "platform": here["platform"], **here["packages"]}
    return {
        "demoscale.code": git_commit(),
        STORAGE: strip_credentials(state.storage.uri),
        **{f"{VERSION_TAG}{name}": redact(value) for name, value in versions.items()},
    }


def arm_tags(state: SweepState) -> dict[str, str]:
    """Return the tags that the runs of all arms share: their data, code and scoring rule."""
    decide = state.sweep.suite.decide
    return {
        "demoscale.data": state.manifest.fingerprint,
        "demoscale.data_version": str(state.version),
        "demoscale.data_quarantined": str(len(state.quarantined)),
        "demoscale.code": git_commit(),
        "demoscale.environment": digest(redacted_in(environment())),
        **({} if state.held_out else {SIMULATOR_TAG: state.manifest.contract.simulator}),
        "demoscale.decide": json.dumps(decide.model_dump(mode="json")) if decide else "",
    } | ({DIMENSIONS: json.dumps(state.manifest.contract.action)} if state.held_out else {})


def shared_protocol(state: SweepState) -> dict[str, Any]:
    """Return the parts of the sweep's scoring protocol that do not depend on a policy: scenes, rules, physics
    and the rule that ends scoring; JSON-safe.
    """
    # the stored key names the code that played the episodes, which may be an earlier version's
    key = Key.kept(state.storage, state.protocol) or state.protocol_key("nominal")
    parts, decide = json.loads(json.dumps(key.parts)), state.sweep.suite.decide
    simulating = code_hashes(SIMULATING_CODE)
    shared = {name: parts[name] for name in ("suite", "episode list", "GL", "plug-ins") if name in parts}
    shared["packages"] = {name: parts.get("packages", {}).get(name) for name in SIMULATING_PACKAGES}
    shared["code"] = {name: value for name, value in parts.get("code", {}).items() if name in simulating}
    for name in ("simulator", "robot", "control_hz", "action"):
        shared[name] = parts.get("contract", {}).get(name)
    decides = decide if not state.sweep.suite.select else None
    return shared | {"decide": decides.model_dump(mode="json") if decides else None}


def _now_ms() -> int:
    return int(time.time() * 1000)
