"""What MLflow is told of a sweep, by a thread of its own: neither training nor scoring waits for it.

The storage has everything that is shown here, so `republish` can make it anew.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from orchestrator.arms import Arm
from orchestrator.cost import Cost
from orchestrator.loop import CONSUMED
from orchestrator.provenance import git_commit
from orchestrator.score import Score
from orchestrator.state import SweepState
from orchestrator.tracking import SCORE_METRICS, Tracker, outcomes_artifact
from sim_workers.rollout import Outcome

LOSSES = ("loss", "loss_video", "loss_action")


class Views:
    """Publishes one sweep. What goes wrong is raised by `flush` and `finish`."""

    def __init__(self, state: SweepState) -> None:
        self._state = state
        sweep = state.sweep
        self._tracker = Tracker(
            state.tracking_uri,
            sweep.name,
            training=state.training,
            protocol=state.comparable,
            steps=sweep.train.steps,
            artifacts=state.uri("mlartifacts"),
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="views")
        self._told: list[Future[None]] = []
        self.artifact("sweep.yaml", sweep.to_yaml().encode())
        self.artifact("quarantined.json", json.dumps(state.quarantined, indent=1, sort_keys=True).encode())
        for arm in state.arms().values():
            self.arm(arm)

    def _tell(self, what: Callable[..., None], *arguments: Any) -> None:
        self._told = [told for told in self._told if not told.done() or told.exception()]
        self._told.append(self._thread.submit(what, *arguments))

    def arm(self, arm: Arm) -> None:
        """There is an arm: its run, its place in the sweep, its episodes."""
        state, arm_id, subset = self._state, arm.arm_id(self._state.training), self._state.subset(arm)
        facts = {
            "demoscale.data": state.manifest.fingerprint,
            "demoscale.data_version": str(state.version),
            "demoscale.data_quarantined": str(len(state.quarantined)),
            "demoscale.subset": subset.digest,
            "demoscale.code": git_commit(),
            "demoscale.decide": json.dumps(decide.model_dump(mode="json")) if (decide := state.sweep.suite.decide) else "",
        }
        self._tell(self._tracker.arm, arm_id, arm, facts)
        self._tell(self._tracker.artifact, arm_id, "subset.json", json.dumps({**vars(subset), "digest": subset.digest}, indent=1).encode())

    def training(self, arm_id: str, step: int, metrics: dict[str, Any]) -> None:
        """What an arm reported: losses, clips consumed."""
        self._tell(self._tracker.metrics, arm_id, step, {name: float(metrics[name]) for name in (*LOSSES, *CONSUMED) if name in metrics})

    def stage_one(self, arm_id: str, step: int, loss_video: float) -> None:
        """What the video model that an arm waits for reported."""
        self._tell(self._tracker.metrics, arm_id, step, {"stage1_loss_video": loss_video})

    def score(self, arm_id: str, step: int, shift: str, score: Score, outcomes: Sequence[Outcome]) -> None:
        """A checkpoint's complete score, at its training step."""
        results = {outcome.spec.episode_id: outcome.result == "success" for outcome in outcomes}
        self._tell(self._tracker.artifact, arm_id, outcomes_artifact(step, shift), json.dumps(results, sort_keys=True).encode())
        values = (score.success_rate, score.successes, score.episodes, score.errors, *score.interval)
        metrics = dict(zip(SCORE_METRICS, map(float, values), strict=True))
        metrics |= {"success_once_rate": score.once / score.episodes, "success_at_end_rate": score.at_end / score.episodes}
        if shift == "nominal":
            metrics["decided_early"] = float(score.episodes < score.listed)
        suffix = "" if shift == "nominal" else f"_{shift}"
        self._tell(self._tracker.metrics, arm_id, step, {f"{name}{suffix}": value for name, value in metrics.items()})

    def film(self, arm_id: str, step: int, episode: str, film: bytes) -> None:
        self._tell(self._tracker.artifact, arm_id, f"rollouts/step_{step:06d}/{episode}.mp4", film)

    def cost(self, arm_id: str, cost: Cost) -> None:
        """What the arm has cost when the sweep ends."""
        self._tell(self._tracker.artifact, arm_id, "cost.json", json.dumps(cost.to_json(), indent=1).encode())

    def artifact(self, name: str, data: bytes) -> None:
        """A file of the whole sweep."""
        self._tell(self._tracker.artifact, None, name, data)

    def flush(self) -> None:
        """Wait until everything so far is told. Raises what went wrong."""
        for told in self._told:
            told.result()

    def finish(self, done: bool) -> None:
        """Tell nothing more; `done`: the sweep is complete. Waits as `flush` does."""
        if done:
            self._tell(self._tracker.finish)
        self._thread.shutdown()
        self.flush()


def republish(state: SweepState) -> int:
    """Tell MLflow all that the storage knows of a sweep; how many scores that are. What it has already is left as it is."""
    views, scores = Views(state), 0
    for arm_id, arm in state.arms().items():
        for step, checkpoint in sorted(state.checkpoints(arm_id).items()):
            views.training(arm_id, step, checkpoint)
            for shift in ("nominal", *state.sweep.suite.shifts):
                score, outcomes = state.score(arm, checkpoint["checkpoint"], shift)
                if score.complete:
                    views.score(arm_id, step, shift, score, outcomes)
                    scores += 1
    views.finish(done=False)
    return scores
