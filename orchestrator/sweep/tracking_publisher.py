"""Publisher of a sweep to MLflow. Training and scoring never wait for it: records go to disk, a thread
delivers them (`outbox_relay.py`).

The storage has everything that is published, so `republish` can restore it.
"""

import getpass
import hashlib
import json
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from orchestrator.config.arms import Arm
from orchestrator.cost import Cost, added
from orchestrator.evaluation.action_error_score import ActionErrorScore
from orchestrator.evaluation.scores import Score
from orchestrator.evaluation.video_score import VideoScore
from orchestrator.provenance import PACKAGES, digest, git_commit
from orchestrator.redaction import redact, redacted_in, strip_credentials
from orchestrator.storage.identity import claim_identity
from orchestrator.sweep.state import SweepState
from orchestrator.tracking.mlflow_writer import (
    ACTED_ON,
    DIMENSIONS,
    SCORE_METRICS,
    SCORED_STEP,
    SIMULATED_ON,
    STEPS,
    STORAGE,
    TRAINED_ON,
    USER,
    MlflowWriter,
    TrackingError,
    action_errors_artifact,
    local_folder,
    outcomes_artifact,
)
from orchestrator.tracking.outbox_records import (
    DescribeArm,
    FinishSweep,
    LogCheckpoint,
    LogMetrics,
    SetTags,
    StoreArtifact,
)
from orchestrator.tracking.outbox_relay import DEFAULT_OUTBOX, OutboxRelay, OutboxSettings
from orchestrator.tracking.references import ARTIFACT, ReferenceScore, encode
from orchestrator.training.loop import CONSUMED
from sim_workers.arithmetic import BETWEEN_KINDS, NOT_RECORDED, Arithmetic
from sim_workers.rollout.episode import Outcome
from sim_workers.rollout.rollout_video import RecordedVideo

COST = "demoscale.cost"
"""Tag: an arm's cost or the sweep's, in words."""
LOSSES = ("loss", "loss_video", "loss_action")


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
            "steps": sweep.train.steps,
            "artifacts": state.uri("mlartifacts"),
        }
        folder = local_folder(state.storage.uri) / "telling" / f"{sweep.name}-{place}"
        self._relay = OutboxRelay(state.tracking_uri, folder, about, say, open_tracker, settings)
        self._away = False
        self._arm_tags = redacted_in(arm_tags(state))
        self.artifact("sweep.yaml", redact(sweep.to_yaml()).encode())
        self.artifact(
            "quarantined.json", json.dumps(redacted_in(state.quarantined), indent=1, sort_keys=True).encode()
        )
        self.artifact("environment.json", json.dumps(redacted_in(environment()), indent=1).encode())
        owner = {USER: name} if (name := user()) else {}
        self._tags(None, sweep_tags(state) | owner)
        for arm in state.arms().values():
            self.arm(arm)

    @property
    def failure(self) -> BaseException | None:
        """Error that ended the delivery thread; None if there is none."""
        return self._relay.failure

    def arm(self, arm: Arm) -> None:
        """Publish an arm: its run, its facts and its episodes."""
        state, arm_id, subset = self._state, self._state.arm_id(arm), self._state.subset(arm)
        uri = strip_credentials(state.episodes)
        facts = {
            "demoscale.subset": subset.digest,
            STEPS: str(state.sweep.train_of(arm).steps),
            **self._arm_tags,
        }
        data = {
            "name": uri.rstrip("/").rpartition("/")[2],
            "digest": state.manifest.fingerprint,
            "uri": uri,
            "profile": json.dumps({"version": state.version, "episodes": len(state.manifest)}),
            "context": "training",
        }
        self._relay.enqueue(
            DescribeArm(arm_id=arm_id, arm=arm, facts=facts, datasets=tuple(redacted_in([data])))
        )
        self.arm_artifact(
            arm_id, "subset.json", json.dumps({**vars(subset), "digest": subset.digest}, indent=1).encode()
        )

    def training(self, arm_id: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Publish the metrics that an arm reported: losses and clips consumed."""
        self.metrics(
            arm_id, step, {name: float(metrics[name]) for name in (*LOSSES, *CONSUMED) if name in metrics}
        )

    def stage_one(self, arm_id: str, step: int, loss_video: float) -> None:
        """Publish the loss of the stage-1 video model that an arm waits for."""
        self.metrics(arm_id, step, {"stage1_loss_video": loss_video})

    def checkpoint(self, arm_id: str, step: int, fingerprint: str) -> None:
        """Publish a complete checkpoint as a logged model of its arm's run."""
        uri = strip_credentials(self._state.checkpoint_uri(arm_id, step))
        self._relay.enqueue(LogCheckpoint(arm_id=arm_id, step=step, fingerprint=fingerprint, uri=uri))

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

    def costs(self, by_arm: dict[str, Cost]) -> None:
        """Publish the cost of each arm at the end of the sweep, and their sum."""
        for arm_id, cost in [*by_arm.items(), (None, added(by_arm.values()))]:
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


def sweep_tags(state: SweepState) -> dict[str, str]:
    """Return the tags of the sweep's run that say where its code runs and its results lie."""
    here = environment()
    versions = {"python": here["python"], "platform": here["platform"], **here["packages"]}
    return {
        "demoscale.code": git_commit(),
        STORAGE: strip_credentials(state.storage.uri),
        **{f"demoscale.version.{name}": redact(value) for name, value in versions.items()},
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
        "demoscale.decide": json.dumps(decide.model_dump(mode="json")) if decide else "",
    } | ({DIMENSIONS: json.dumps(state.manifest.contract.action)} if state.held_out else {})


def _now_ms() -> int:
    return int(time.time() * 1000)


def republish(state: SweepState, settings: OutboxSettings = DEFAULT_OUTBOX) -> int:
    """Publish everything in the storage of a sweep to MLflow and return the number of scores; records that
    MLflow has are left unchanged.

    Raises TrackingError if MLflow does not accept everything now.
    """
    views, scores = TrackingPublisher(state, settings=settings), 0
    for arm_id, arm in state.arms().items():
        test = state.possible_video_test(arm)
        for step, checkpoint in sorted(state.checkpoints(arm_id).items()):
            views.training(arm_id, step, checkpoint.metrics)
            views.trained_on(arm_id, checkpoint.trained_on)
            views.checkpoint(arm_id, step, checkpoint.fingerprint)
            if test and (video := test.known(state.storage, checkpoint.fingerprint)):
                views.video(arm_id, step, video)
            if state.held_out:
                measured = state.action_error(arm, checkpoint.fingerprint)
                if measured.complete:
                    views.action_error(arm_id, step, checkpoint.fingerprint, measured)
                    scores += 1
                continue
            for shift in dict.fromkeys((state.sweep.suite.decided_on, "nominal", *state.sweep.suite.shifts)):
                score, outcomes = state.score(arm, checkpoint.fingerprint, shift)
                if score.complete:
                    views.score(arm_id, step, checkpoint.fingerprint, shift, score, outcomes)
                    scores += 1
    if state.sweep.suite.references:
        from orchestrator.sweep.references import reference_scores

        views.references(reference_scores(state))
    views.costs({arm_id: arm.cost for arm_id, arm in state.board().arms.items()})
    if left := views.finish(done=False):
        raise TrackingError(left)
    return scores
