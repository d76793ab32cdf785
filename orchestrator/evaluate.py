"""A sweep's checkpoints on their way to scores: which suites each meets, who answers, who plays, and who hears of it."""

import json
from collections.abc import Callable
from typing import Any

from orchestrator.ledger import Portraits
from orchestrator.placement import Placement
from orchestrator.score import Score, Scorer, ScoringJob
from orchestrator.server import PolicyServer
from orchestrator.status import Board, SweepState
from orchestrator.tracking import SCORE_METRICS, Tracker, outcomes_artifact


def policy_servers(number: int, gpus: float, rung: str) -> tuple[Any, ...]:
    """Handles of so many policy servers of a connected Ray, each with its share of a GPU; one that dies starts again and is asked again."""
    import ray

    options = {"num_cpus": 0, "num_gpus": gpus, "max_restarts": -1, "max_task_retries": -1, "max_concurrency": 1000}
    server = ray.remote(PolicyServer).options(**options, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})
    return tuple(server.remote(1, "cuda" if gpus else "cpu", rung) for _ in range(number))


class Evaluation:
    """Scores every checkpoint it is told of on the sweep's suite, and every arm's last one on the shifted suites too. Needs a connected Ray."""

    def __init__(self, state: SweepState, board: Board, tracker: Tracker, placement: Placement, say: Callable[[str], None]) -> None:
        from sim_workers.pool import RolloutPool
        from sim_workers.served import Served

        self._state, self._board, self._tracker, self._say = state, board, tracker, say
        servers = policy_servers(placement.servers, placement.server_gpus, state.sweep.suite.rung)
        self._source: Callable[[str, bool], Served] = lambda uri, imagines: Served(servers, uri, imagines)
        self._portraits = Portraits(state.storage, state.simulation)
        pool = RolloutPool(state.sweep.rollout_actors, placement.rollout_cpus, state.sweep.suite.gl, self._portraits)
        self._scorer = Scorer(state.storage, state.manifest.contract, pool, self._on_progress, self._on_score, self._on_film, say)

    def submit(self, arm_id: str, step: int, fingerprint: str) -> None:
        """Score the arm's checkpoint of this step, known by its fingerprint."""
        state, uri = self._state, self._state.checkpoint_uri(arm_id, step)
        last = step == state.sweep.train.steps
        source = self._source(uri, state.arms()[arm_id].kind == "video_action")
        for shift in ("nominal", *(state.sweep.suite.shifts if last else ())):
            suite = state.sweep.to_suite(shift)
            self._scorer.submit(ScoringJob(arm_id, step, uri, fingerprint, suite, state.protocol_of(shift), source, films=last))

    def drain(self) -> None:
        """Wait until everything is scored and filmed."""
        self._scorer.drain()
        self._tracker.artifact(None, "portraits.json", json.dumps(self._portraits.all(), indent=1).encode())

    def close(self) -> None:
        """Stop at once."""
        self._scorer.close()

    def _on_progress(self, job: ScoringJob, done: int, listed: int) -> None:
        if job.suite.shift == "nominal":
            with self._board.lock:
                self._board.arms[job.arm_id].scoring[job.step] = done, listed

    def _on_score(self, job: ScoringJob, score: Score) -> None:
        arm, shift = self._board.arms[job.arm_id], job.suite.shift
        with self._board.lock:
            if shift == "nominal":
                arm.scores[job.step] = score
            else:
                arm.shifted[shift] = score
        self._say(f"score {arm.name} after {job.step} steps{'' if shift == 'nominal' else f', {shift} shifted'}: {score}")
        for outcome in score.outcomes:
            if outcome.result == "error":
                self._say(f"quarantined {outcome.spec.episode_id}: {outcome.message}")
        if not score.complete:
            return
        outcomes = {outcome.spec.episode_id: outcome.result == "success" for outcome in score.outcomes}
        self._tracker.artifact(job.arm_id, outcomes_artifact(job.step, shift), json.dumps(outcomes, sort_keys=True).encode())
        values = (score.success_rate, score.successes, score.episodes, score.errors, *score.interval)
        metrics = dict(zip(SCORE_METRICS, map(float, values), strict=True))
        metrics["success_once_rate"] = sum(outcome.success_once for outcome in score.outcomes) / score.episodes
        metrics["success_at_end_rate"] = sum(outcome.success_at_end for outcome in score.outcomes) / score.episodes
        suffix = "" if shift == "nominal" else f"_{shift}"
        self._tracker.metrics(job.arm_id, job.step, {f"{name}{suffix}": value for name, value in metrics.items()})

    def _on_film(self, job: ScoringJob, episode: str, film: bytes) -> None:
        self._tracker.artifact(job.arm_id, f"rollouts/step_{job.step:06d}/{episode}.mp4", film)
