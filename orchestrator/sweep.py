"""Running a sweep: Ray Tune trains the arms, a thread scores what they save, MLflow hears of both. The only file with ray.tune.

Everything that was finished is found in the storage and not done again, so the same command starts, continues and completes a sweep.

    sweeps/<name>.json                        the resolved sweep and the data version it keeps to
    arms/<arm id>/step_000100/                checkpoints, written by Ray Train
    checkpoints/<arm id>/step_000100.json     a checkpoint that is whole: its losses and fingerprint
    outcomes/<checkpoint>/<protocol>/         the ledger, orchestrator/score.py
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from orchestrator.arms import Arm
from orchestrator.cluster import connect
from orchestrator.curve import Curve
from orchestrator.data.episodes import Manifest, latest_version, load_manifest
from orchestrator.data.stream import FETCH_CPUS
from orchestrator.data.subset import Subset, SubsetError, choose
from orchestrator.provenance import TRAINING_CODE, code_fingerprint, git_commit
from orchestrator.score import Ledger, PolicyServer, Score, Scorer, ScoringJob, protocol_fingerprint
from orchestrator.spec import Sweep, SweepError
from orchestrator.status import ArmState, Board
from orchestrator.storage import Storage, open_storage
from orchestrator.tracking import SCORE_METRICS, Tracker, outcomes_artifact, tracking_uri
from orchestrator.train import ArmJob, fit

FILMED_EPISODES = 1  # of each arm's last checkpoint


@dataclass(frozen=True)
class Placement:
    """Who gets how much of the cluster. On a machine smaller than the sweep, claims shrink and the processes share its cores."""

    concurrent_arms: int
    trainer: dict[str, float]
    """Logical resources of one training worker."""
    rollout_cpus: float
    server_gpus: float

    @classmethod
    def fit(cls, cluster: dict[str, float], workers: int, rollout_actors: int, arms: int) -> "Placement":
        """SweepError, with the numbers, if one arm's workers can never run at once."""
        cpus, gpus = cluster.get("CPU", 0.0), cluster.get("GPU", 0.0)
        server_gpus = min(1.0, gpus / 4)
        places = gpus - server_gpus if gpus >= 2 else (1 if gpus else cpus)
        if workers > places:
            kind = f"{gpus:g} GPUs, one of them for the policy server" if gpus else f"{cpus:g} CPUs"
            raise SweepError("train.workers", [f"one arm asks for {workers} workers at once, the cluster has {kind}"])
        concurrent = max(1, min(arms, int(places // workers)))
        trainers = concurrent * workers
        # What the trainers' streams leave, a rollout actor gets half as much of as a trainer.
        share = min(1.0, (cpus - FETCH_CPUS * trainers) / (trainers + rollout_actors / 2))
        trainer = {"CPU": math.floor(100 * share) / 100} | ({"GPU": 1.0 if gpus >= 2 else 1 - server_gpus} if gpus else {})
        return cls(concurrent, trainer, math.floor(50 * share) / 100, server_gpus)


@dataclass(frozen=True)
class SweepState:
    """A sweep tied to one version of its data: what `run`, `status` and `curve` agree on."""

    sweep: Sweep
    storage: Storage
    manifest: Manifest
    version: int

    @classmethod
    def open(cls, sweep: Sweep, pin: bool = False) -> "SweepState":
        """The data version is the newest one when the sweep first runs (`pin`), and that one ever after."""
        storage = open_storage(sweep.storage)
        key = f"sweeps/{sweep.name}.json"
        before = json.loads(storage.get(key)) if storage.exists(key) else {}
        same_data = before.get("sweep", {}).get("data", {}).get("episodes") == sweep.data.episodes
        episodes = open_storage(sweep.data.episodes)
        version = before["version"] if same_data else latest_version(episodes)
        if pin:
            storage.put(key, json.dumps({"sweep": sweep.model_dump(mode="json"), "version": version}, indent=1).encode())
        return cls(sweep, storage, load_manifest(episodes, version), version)

    @classmethod
    def named(cls, name: str, storage_uri: str) -> "SweepState":
        """A sweep that ran before; SweepError if none of that name did."""
        storage = open_storage(storage_uri)
        if not storage.exists(f"sweeps/{name}.json"):
            known = [key.removeprefix("sweeps/").removesuffix(".json") for key in storage.list("sweeps/")]
            raise SweepError(storage.uri, [f"no sweep named {name} ran here; " + (f"there are {', '.join(known)}" if known else "none did")])
        return cls.open(Sweep.model_validate(json.loads(storage.get(f"sweeps/{name}.json"))["sweep"]))

    @property
    def training(self) -> str:
        return self.sweep.training_fingerprint(self.manifest.fingerprint, code_fingerprint(TRAINING_CODE))

    @property
    def protocol(self) -> str:
        return protocol_fingerprint(self.sweep.to_suite(), self.manifest.contract)

    @property
    def tracking_uri(self) -> str:
        return tracking_uri(self.sweep.mlflow, self.storage.uri)

    def arms(self) -> dict[str, Arm]:
        """By arm id."""
        return {arm.arm_id(self.training): arm for arm in self.sweep.arms()}

    def subset(self, arm: Arm) -> Subset:
        """The arm's episodes; SweepError if the version the sweep keeps to has too few."""
        try:
            return choose(self.manifest.entries, arm.demo_count, arm.action_free_ratio, arm.seed)
        except SubsetError as error:
            mend = "give the sweep another name to use the store as it is now"
            raise SweepError(self.sweep.name, [f"it keeps to version {self.version} of {self.sweep.data.episodes}; {error}; {mend}"]) from None

    def checkpoints(self, arm_id: str) -> dict[int, dict[str, Any]]:
        """Whole checkpoints of an arm by step: {loss, loss_video, loss_action, checkpoint (fingerprint)}."""
        prefix = f"checkpoints/{arm_id}/"
        keys = self.storage.list(prefix)
        return {int(key.removeprefix(prefix + "step_").removesuffix(".json")): json.loads(self.storage.get(key)) for key in keys}

    def checkpoint_uri(self, arm_id: str, step: int) -> str:
        return f"{self.storage.uri}/arms/{arm_id}/step_{step:06d}"

    def board(self) -> Board:
        """The state of every arm as the storage has it."""
        board = Board({arm_id: ArmState(arm.name, self.sweep.train.steps) for arm_id, arm in self.arms().items()})
        listed = [spec.episode_id for spec in self.sweep.to_suite().episode_list()]
        for arm_id, state in board.arms.items():
            for step, checkpoint in sorted(self.checkpoints(arm_id).items()):
                state.step, state.loss = step, checkpoint["loss"]
                known = Ledger(self.storage, checkpoint["checkpoint"], self.protocol).read()
                outcomes = tuple(known[episode] for episode in listed if episode in known)
                state.scoring[step] = len(outcomes), len(listed)
                if len(outcomes) == len(listed):
                    state.scores[step] = Score(outcomes, len(listed))
        return board


class SweepRun:
    """One run of a sweep, from wherever it stands to its end."""

    def __init__(self, sweep: Sweep, say: Callable[[str], None]) -> None:
        """`say` hears one line per thing worth telling."""
        self.state = SweepState.open(sweep, pin=True)
        self.board = self.state.board()
        self._say = say
        self._finished_before = {arm_id for arm_id, arm in self.board.arms.items() if arm.step == arm.steps}
        self._tracker = Tracker(
            self.state.tracking_uri,
            sweep.name,
            training=self.state.training,
            protocol=self.state.protocol,
            steps=sweep.train.steps,
            artifacts=_uri_of(self.state.storage, "mlartifacts"),
        )
        self._tracker.artifact(None, "sweep.yaml", sweep.to_yaml().encode())
        for arm_id, arm in self.state.arms().items():
            subset = self.state.subset(arm)
            facts = {
                "demoscale.data": self.state.manifest.fingerprint,
                "demoscale.data_version": str(self.state.version),
                "demoscale.subset": subset.digest,
                "demoscale.code": git_commit(),
            }
            self._tracker.arm(arm_id, arm, facts)

    def run(self) -> Curve:
        """Train what is not trained, score what is not scored; the curve when all is done. Raises if an arm failed."""
        import ray

        sweep, arms = self.state.sweep, self.state.arms()
        reused = [arms[arm_id].name for arm_id in self._finished_before]
        if reused:
            self._say(f"already trained, not trained again: {', '.join(sorted(reused))}")
        scored = sum(len(arm.scores) for arm in self.board.arms.values())
        if scored:
            self._say(f"already scored, not played again: {scored} checkpoints")
        connect()
        placement = Placement.fit(ray.cluster_resources(), sweep.train.workers, sweep.rollout_actors, len(arms))
        scorer = self._scorer(placement)
        try:
            for arm_id in arms:
                for step, checkpoint in self.state.checkpoints(arm_id).items():
                    self._score(scorer, arm_id, step, checkpoint)
            waiting = [arm_id for arm_id in arms if arm_id not in self._finished_before]
            if waiting:
                self._train(waiting, placement, scorer)
            scorer.drain()
        finally:
            scorer.close()
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
            elif not (score := arm.scores[arm.steps]).complete:
                messages = {outcome.message for outcome in score.outcomes if outcome.result == "error"}
                yield f"{arm.name}: {score.errors} episodes ended in an error ({'; '.join(sorted(messages))}); run again to play them again"

    def films(self) -> dict[str, list[str]]:
        """Rollout videos of every arm's last checkpoint, by the arm's name."""
        state, last = self.state, self.state.sweep.train.steps
        return {
            arm.name: [
                _uri_of(state.storage, key) for key in Ledger(state.storage, state.checkpoints(arm_id)[last]["checkpoint"], state.protocol).films()
            ]
            for arm_id, arm in state.arms().items()
        }

    def _scorer(self, placement: Placement) -> Scorer:
        import ray

        from sim_workers.pool import RolloutPool

        device = "cuda" if placement.server_gpus else "cpu"
        server = (
            ray.remote(PolicyServer)
            .options(
                num_cpus=0,
                num_gpus=placement.server_gpus,
                max_restarts=-1,
                max_concurrency=1000,
                runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
            )
            .remote(1, device)
        )
        pool = RolloutPool(self.state.sweep.rollout_actors, placement.rollout_cpus)
        return Scorer(self.state.storage, self.state.sweep.to_suite(), self.state.manifest.contract, pool, server, self._on_progress, self._on_score)

    def _train(self, waiting: list[str], placement: Placement, scorer: Scorer) -> None:
        from ray import tune
        from ray.tune.integration.ray_train import TuneReportCallback

        state, sweep = self.state, self.state.sweep
        folder, resources = _uri_of(state.storage, "arms"), placement.trainer
        jobs = {
            arm_id: ArmJob(arm, arm_id, open_storage(sweep.data.episodes).uri, state.version, sweep.policy.preset, sweep.train)
            for arm_id, arm in state.arms().items()
        }

        def train_arm(config: dict[str, Any]) -> None:
            checkpoints = fit(jobs[config["arm"]], folder, resources, [TuneReportCallback()])
            tune.report({"trained": json.dumps(checkpoints)})

        results = tune.Tuner(
            # The trial only waits for its workers: it takes a sliver of the head node and no CPU from them.
            tune.with_resources(train_arm, {"node:__internal_head__": 0.001}),
            param_space={"arm": tune.grid_search(waiting)},
            tune_config=tune.TuneConfig(max_concurrent_trials=placement.concurrent_arms),
            run_config=tune.RunConfig(
                name=f"{sweep.name}-{int(time.time())}",
                storage_path=_uri_of(state.storage, "tune"),
                callbacks=[_listener(partial(self._on_report, scorer))],
                verbose=0,
            ),
        ).fit()
        for result in results:
            if result.error:
                self._on_failure(result.config["arm"], str(result.error))

    def _on_report(self, scorer: Scorer, arm_id: str, result: dict[str, Any]) -> None:
        arm = self.board.arms[arm_id]
        if "trained" in result:
            # Checkpoints that an earlier run was killed before hearing of.
            known = self.state.checkpoints(arm_id)
            for checkpoint in json.loads(result["trained"]):
                if checkpoint["step"] not in known:
                    self._on_report(scorer, arm_id, checkpoint)
            self._say(f"trained {arm.name}")
            return
        step = int(result["step"])
        losses = {name: float(result[name]) for name in ("loss", "loss_video", "loss_action")}
        with self.board.lock:
            arm.step, arm.loss = step, losses["loss"]
        self._tracker.metrics(arm_id, step, losses)
        if "checkpoint" in result:
            checkpoint = {**losses, "checkpoint": result["checkpoint"]}
            self.state.storage.put(f"checkpoints/{arm_id}/step_{step:06d}.json", json.dumps(checkpoint).encode())
            self._score(scorer, arm_id, step, checkpoint)

    def _on_failure(self, arm_id: str, trace: str) -> None:
        arm, key = self.board.arms[arm_id], f"failures/{arm_id}.txt"
        self.state.storage.put(key, trace.encode())
        with self.board.lock:
            arm.failure = f"{trace.strip().splitlines()[-1][:300]} (whole trace in {self.state.storage.uri}/{key})"
        self._say(f"FAILED {arm.name}: {arm.failure}")

    def _score(self, scorer: Scorer, arm_id: str, step: int, checkpoint: dict[str, Any]) -> None:
        last = step == self.state.sweep.train.steps
        job = ScoringJob(arm_id, step, self.state.checkpoint_uri(arm_id, step), checkpoint["checkpoint"], FILMED_EPISODES if last else 0)
        scorer.submit(job)

    def _on_progress(self, job: ScoringJob, done: int, listed: int) -> None:
        with self.board.lock:
            self.board.arms[job.arm_id].scoring[job.step] = done, listed

    def _on_score(self, job: ScoringJob, score: Score) -> None:
        arm = self.board.arms[job.arm_id]
        with self.board.lock:
            arm.scores[job.step] = score
        self._say(f"score {arm.name} after {job.step} steps: {score}")
        if not score.complete:
            return
        outcomes = {outcome.spec.episode_id: outcome.result == "success" for outcome in score.outcomes}
        self._tracker.artifact(job.arm_id, outcomes_artifact(job.step), json.dumps(outcomes, sort_keys=True).encode())
        ledger = Ledger(self.state.storage, job.fingerprint, self.state.protocol)
        for key in ledger.films():
            self._tracker.artifact(job.arm_id, f"rollouts/step_{job.step:06d}/{key.rpartition('/')[2]}", self.state.storage.get(key))
        values = (score.success_rate, score.successes, score.episodes, score.errors, *score.interval)
        self._tracker.metrics(job.arm_id, job.step, dict(zip(SCORE_METRICS, map(float, values), strict=True)))
        if job.step == self.state.sweep.train.steps:
            self._tracker.finish(job.arm_id)


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


def _uri_of(storage: Storage, folder: str) -> str:
    return f"{storage.uri}/{folder}"
