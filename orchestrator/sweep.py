"""Running a sweep: Ray Tune trains the arms, a thread scores what they save, MLflow hears of both. The only file with ray.tune.

Everything that was finished is found in the storage and not done again, so the same command starts, continues and completes a sweep.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from orchestrator.arms import Arm
from orchestrator.cluster import connect, resources
from orchestrator.curve import Curve
from orchestrator.evaluate import Evaluation
from orchestrator.ledger import Ledger
from orchestrator.loop import CONSUMED, ArmJob
from orchestrator.placement import Placement
from orchestrator.provenance import git_commit
from orchestrator.spec import Sweep, SweepError
from orchestrator.status import SweepState
from orchestrator.storage import open_storage
from orchestrator.tracking import Tracker
from orchestrator.train import fit
from policy.presets import policy_config


class SweepRun:
    """One run of a sweep, from wherever it stands to its end."""

    def __init__(self, sweep: Sweep, say: Callable[[str], None]) -> None:
        """`say` hears one line per thing worth telling."""
        self.state = SweepState.open(sweep, pin=True)
        if sweep.data.on_corrupt == "quarantine":
            self.state = self._without_damaged(say)
        self.board = self.state.board()
        self._say = say
        self._video_models: dict[str, list[str]] = {}
        """Arms by the video model they share."""
        self._finished_before = {arm_id for arm_id, arm in self.board.arms.items() if arm.step == arm.steps}
        self._tracker = Tracker(
            self.state.tracking_uri,
            sweep.name,
            training=self.state.training,
            protocol=self.state.protocol,
            steps=sweep.train.steps,
            artifacts=self.state.uri("mlartifacts"),
        )
        self._tracker.artifact(None, "sweep.yaml", sweep.to_yaml().encode())
        self._tracker.artifact(None, "quarantined.json", json.dumps(self.state.quarantined, indent=1, sort_keys=True).encode())
        for arm_id, arm in self.state.arms().items():
            subset = self.state.subset(arm)
            facts = {
                "demoscale.data": self.state.manifest.fingerprint,
                "demoscale.data_version": str(self.state.version),
                "demoscale.data_quarantined": str(len(self.state.quarantined)),
                "demoscale.subset": subset.digest,
                "demoscale.code": git_commit(),
            }
            self._tracker.arm(arm_id, arm, facts)
            self._tracker.artifact(arm_id, "subset.json", json.dumps({**vars(subset), "digest": subset.digest}, indent=1).encode())

    def _without_damaged(self, say: Callable[[str], None]) -> SweepState:
        """The sweep's state after every episode it needs was read once."""
        say("reading every episode the sweep needs, to set damaged ones aside")
        before = self.state.quarantined
        state = self.state.without_damaged(lambda done, todo: say(f"read {done} of {todo} episodes") if done % 1000 == 0 or done == todo else None)
        for episode, problem in state.quarantined.items():
            say(f"quarantined {'' if episode in before else 'now '}{episode}: {problem}")
        return state

    def run(self) -> Curve:
        """Train what is not trained, score what is not scored; the curve when all is done. Raises if an arm failed."""
        sweep, arms = self.state.sweep, self.state.arms()
        reused = [arms[arm_id].name for arm_id in self._finished_before]
        if reused:
            self._say(f"already trained, not trained again: {', '.join(sorted(reused))}")
        scored = sum(len(arm.scores) for arm in self.board.arms.values())
        if scored:
            self._say(f"already scored, not played again: {scored} checkpoints")
        connect()
        placement = Placement.fit(resources(), sweep.train.workers, sweep.rollout_actors, len(arms))
        evaluation = Evaluation(self.state, self.board, self._tracker, placement, self._say)
        try:
            for arm_id in arms:
                for step, checkpoint in self.state.checkpoints(arm_id).items():
                    evaluation.submit(arm_id, step, checkpoint["checkpoint"])
            waiting = [arm_id for arm_id in arms if arm_id not in self._finished_before]
            if waiting:
                self._train(waiting, placement, evaluation)
            evaluation.drain()
        finally:
            evaluation.close()
        if unfinished := [*self._unfinished()]:
            raise SweepError(sweep.name, unfinished)
        curve = Curve.read(self.state.tracking_uri, sweep.name)
        for kind in ("png", "svg"):
            self._tracker.artifact(None, f"curve.{kind}", curve.draw(kind))
        self._tracker.artifact(None, "curve.json", json.dumps(curve.to_json(), indent=1).encode())
        self._tracker.finish()
        return curve

    def _unfinished(self) -> Iterator[str]:
        """Why an arm has no place on the curve, one sentence each."""
        for arm in self.board.arms.values():
            if arm.failure:
                yield f"{arm.name}: {arm.failure}"
                continue
            for shift, score in {"": arm.scores[arm.steps], **arm.shifted}.items():
                if not score.complete:
                    causes = "; ".join(sorted({outcome.message for outcome in score.outcomes if outcome.result == "error"}))
                    where = f" under the {shift} shift" if shift else ""
                    yield f"{arm.name}: {score.errors} episodes{where} ended in an error ({causes}); run again to play them again"

    def films(self) -> dict[str, list[str]]:
        """Rollout videos of every arm's last checkpoint, by the arm's name."""
        state, last = self.state, self.state.sweep.train.steps
        ledgers = {
            arm.name: Ledger(state.storage, state.checkpoints(arm_id)[last]["checkpoint"], state.protocol) for arm_id, arm in state.arms().items()
        }
        return {name: [state.uri(key) for key in ledger.films().values()] for name, ledger in ledgers.items()}

    def _jobs(self) -> dict[str, ArmJob]:
        """The training of every arm, by arm id."""
        state, sweep = self.state, self.state.sweep
        largest = Arm(sweep.data.most_demos, sweep.data.highest_ratio, 0) if sweep.train.videos == "sweep" else None
        return {
            arm_id: ArmJob(
                arm=arm,
                arm_id=arm_id,
                episodes=open_storage(sweep.data.episodes).uri,
                version=state.version,
                quarantined=frozenset(state.quarantined),
                config=policy_config(sweep.policy.preset, arm.kind),
                train=sweep.train,
                objective=sweep.train.objective if arm.kind == "video_action" else "action",
                weights=sweep.policy.weights,
                labelled_tasks=sweep.data.labelled_tasks,
                videos_of=largest and replace(largest, seed=arm.seed),
            )
            for arm_id, arm in state.arms().items()
        }

    def _train(self, waiting: list[str], placement: Placement, evaluation: Evaluation) -> None:
        """The arms, after the video models that their action heads read: each of those once, however many arms share it."""
        jobs = {arm_id: job for arm_id, job in self._jobs().items() if arm_id in waiting}
        if self.state.sweep.train.mode == "two_stage":
            stage_one = {arm_id: job.stage_one(self.state.manifest) for arm_id, job in jobs.items() if job.config.video}
            videos = {job.arm_id: job for job in stage_one.values()}
            self._video_models = {video: [arm for arm, job in stage_one.items() if job.arm_id == video] for video in videos}
            todo = {video: job for video, job in videos.items() if job.train.steps not in self.state.checkpoints(video)}
            self._say(
                f"{len(videos)} video models for {len(stage_one)} arms"
                + (f", {len(videos) - len(todo)} of them trained before" if len(todo) < len(videos) else "")
            )
            if todo:
                self._tune("video", todo, placement, evaluation)
            for arm_id, video in stage_one.items():
                jobs[arm_id] = replace(jobs[arm_id], video_model=self.state.checkpoint_uri(video.arm_id, video.train.steps))
                if failure := self.board.arms[arm_id].failure:
                    del jobs[arm_id]
                    self._say(f"not trained: {self.board.arms[arm_id].name}, {failure}")
        if jobs:
            self._tune("arms", jobs, placement, evaluation)

    def _tune(self, what: str, jobs: dict[str, ArmJob], placement: Placement, evaluation: Evaluation) -> None:
        """Train them all, as many at once as there is room for."""
        from ray import tune
        from ray.tune.integration.ray_train import TuneReportCallback

        folder = self.state.uri("arms")

        def train_arm(config: dict[str, Any]) -> None:
            checkpoints = fit(jobs[config["arm"]], folder, placement.trainer, [TuneReportCallback()])
            tune.report({"trained": json.dumps(checkpoints)})

        results = tune.Tuner(
            # The trial only waits for its workers: it takes a sliver of the head node and no CPU from them.
            tune.with_resources(train_arm, {"node:__internal_head__": 0.001}),
            param_space={"arm": tune.grid_search(list(jobs))},
            tune_config=tune.TuneConfig(max_concurrent_trials=placement.concurrent_arms),
            run_config=tune.RunConfig(
                name=f"{self.state.sweep.name}-{what}-{int(time.time())}",
                storage_path=self.state.uri("tune"),
                callbacks=[_listener(partial(self._on_report, evaluation))],
                verbose=0,
            ),
        ).fit()
        for result in results:
            if result.error:
                self._on_failure(result.config["arm"], str(result.error))

    def _on_report(self, evaluation: Evaluation, arm_id: str, result: dict[str, Any]) -> None:
        if "trained" in result:
            # Checkpoints that an earlier run was killed before hearing of.
            known = self.state.checkpoints(arm_id)
            for checkpoint in json.loads(result["trained"]):
                if checkpoint["step"] not in known:
                    self._on_report(evaluation, arm_id, checkpoint)
            self._say(f"trained {self._names(arm_id)}")
            return
        step = int(result["step"])
        losses = {name: float(result[name]) for name in ("loss", "loss_video", "loss_action")}
        shared_by = self._video_models.get(arm_id)
        with self.board.lock:
            for state in [self.board.arms[arm] for arm in shared_by or [arm_id]]:
                if shared_by:
                    state.video_step = step
                else:
                    state.step = step
                state.loss = losses["loss"]
        if not shared_by:
            self._tracker.metrics(arm_id, step, losses | {name: float(result[name]) for name in CONSUMED})
        for arm in shared_by or []:
            self._tracker.metrics(arm, step, {"stage1_loss_video": losses["loss_video"]})
        if "checkpoint" in result:
            checkpoint = {**losses, "checkpoint": result["checkpoint"]}
            self.state.storage.put(f"checkpoints/{arm_id}/step_{step:06d}.json", json.dumps(checkpoint).encode())
            if not shared_by:
                evaluation.submit(arm_id, step, checkpoint["checkpoint"])

    def _names(self, arm_id: str) -> str:
        """An arm, or a video model with the arms that share it, for people."""
        if arm_id in self._video_models:
            return f"the video model of {', '.join(self.board.arms[arm].name for arm in self._video_models[arm_id])}"
        return self.board.arms[arm_id].name

    def _on_failure(self, arm_id: str, trace: str) -> None:
        key = f"failures/{arm_id}.txt"
        self.state.storage.put(key, trace.encode())
        sentence = re.sub(r"^orchestrator[\w.]+: ", "", trace.strip().splitlines()[-1])  # an error of ours speaks for itself
        failure = f"{sentence[:300]} (whole trace in {self.state.storage.uri}/{key})"
        with self.board.lock:
            for arm in self._video_models.get(arm_id, [arm_id]):
                self.board.arms[arm].failure = failure
        self._say(f"FAILED {self._names(arm_id)}: {failure}")


def _listener(on_report: Callable[[str, dict[str, Any]], None]) -> Any:
    """A Tune callback that tells (arm id, result)."""
    from ray import tune

    class Listener(tune.Callback):
        on_report: Callable[[str, dict[str, Any]], None]

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune pickles its callbacks beside its own state; what this one tells belongs to this process

        def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
            self.on_report(trial.config["arm"], result)

    listener = Listener()
    listener.on_report = on_report
    return listener
