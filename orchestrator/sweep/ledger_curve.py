"""Curve of a sweep from its storage: the ledger, the costs and the sweep file. MLflow is not read."""

from collections.abc import Iterator, Sequence
from typing import Any

from orchestrator.checkpoints.record import CheckpointRecord
from orchestrator.config.arms import Arm
from orchestrator.config.yaml_text import read_yaml
from orchestrator.cost import Cost, CostLedger
from orchestrator.evaluation.outcome_ledger import Ledger
from orchestrator.evaluation.video_score import VideoBenchmark
from orchestrator.redaction import redact
from orchestrator.report.held_out_curve import HeldOutCurve
from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.sweep.references import reference_scores
from orchestrator.sweep.state import SweepState
from orchestrator.sweep.status import SweepStatus
from orchestrator.sweep.tracking_publisher import COST, arm_tags, sweep_tags
from orchestrator.tracking.mlflow_reader import CLIPS, VIDEO, MeasuredArm, ScoredArm
from orchestrator.tracking.mlflow_writer import STEPS, STORE, TRAINING
from orchestrator.tracking.rollout_videos import RolloutVideo, films_of_arm
from orchestrator.tracking.stages import stages_of
from sim_workers.arithmetic import NOT_RECORDED


def curve_from_ledger(state: SweepState) -> Curve | HeldOutCurve | None:
    """Return the curve of the arms of the sweep file whose last checkpoint has a complete score; None if
    there is none. Of a sweep of held-out episodes it is that of their action errors.

    It equals `curve_from_mlflow` once everything is published, except for what only MLflow has: the ids of
    runs, arms that an earlier form of the sweep file listed, tags of earlier versions, and video scores that
    were published first and are of other clips than the current ones.
    """
    arms = state.arms()
    status = SweepStatus({arm_id: state.arm_state(arm) for arm_id, arm in arms.items()})
    status.charge(CostLedger.read_all(state.storage).by_arm())
    costs = {arm_id: arm.cost for arm_id, arm in status.arms.items()}
    tags = {
        TRAINING: state.training,
        STEPS: str(state.sweep.train.end),
        STORE: state.store,
        COST: str(CostLedger.read(state.storage, state.sweep.name).total()),
        **arm_tags(state),
        **sweep_tags(state),
    }
    sweep = read_yaml(redact(state.sweep.to_yaml()))
    if state.held_out:
        measured = sorted(_measured_arms(state, arms, costs), key=lambda one: one.arm)
        names = state.manifest.contract.action
        return HeldOutCurve(state.sweep.name, tuple(measured), sweep, tags, names) if measured else None
    scored = [*_scored_arms(state, arms, costs)]
    if not scored:
        return None
    arms_in_order = tuple(sorted(scored, key=lambda one: one.arm))
    return Curve(state.sweep.name, arms_in_order, sweep, tags, reference_scores(state))


def _scored_arms(state: SweepState, arms: dict[str, Arm], costs: dict[str, Cost]) -> Iterator[ScoredArm]:
    for arm_id, arm in arms.items():
        last, test = state.sweep.train_of(arm).end, state.possible_video_test(arm)
        checkpoints = state.checkpoints(arm_id)
        if last not in checkpoints:
            continue
        checkpoint = checkpoints[last].fingerprint
        score, outcomes = state.score(arm, checkpoint, "nominal")
        if not score.complete:
            continue
        won = {outcome.spec.episode_id: outcome.result == "success" for outcome in outcomes}
        yield ScoredArm(
            arm=arm,
            protocol=state.comparable,
            step=last,
            successes=score.successes,
            episodes=score.episodes,
            errors=score.errors,
            outcomes=dict(sorted(won.items())),
            early=score.episodes < score.listed,
            trained_on=checkpoints[last].trained_on,
            acted_on=tuple(sorted({one.acted_on or NOT_RECORDED for one in outcomes})),
            shifted=_shifted(state, arm, checkpoint),
            cost=costs[arm_id],
            imagined=_imagined(state, arm, checkpoints, test) if test else {},
            films=_film_notes(state, arm, checkpoint),
            demos=state.subset(arm).demos,
            stages=stages_of(outcomes),
        )


def _measured_arms(state: SweepState, arms: dict[str, Arm], costs: dict[str, Cost]) -> Iterator[MeasuredArm]:
    for arm_id, arm in arms.items():
        last = state.sweep.train_of(arm).end
        if checkpoint := state.checkpoints(arm_id).get(last):
            score = state.action_error(arm, checkpoint.fingerprint)
            if score.complete:
                yield MeasuredArm(
                    arm, state.comparable, last, score.errors, costs[arm_id], checkpoint.trained_on
                )


def _shifted(state: SweepState, arm: Arm, checkpoint: str) -> dict[str, dict[str, bool]]:
    """Return `ScoredArm.shifted` of a checkpoint."""
    scores = {shift: state.score(arm, checkpoint, shift) for shift in state.sweep.suite.shifts}
    return {
        shift: dict(sorted((one.spec.episode_id, one.result == "success") for one in outcomes))
        for shift, (score, outcomes) in scores.items()
        if score.complete
    }


def _film_notes(state: SweepState, arm: Arm, checkpoint: str) -> tuple[dict[str, Any], ...]:
    """Return `ScoredArm.films` of a checkpoint."""
    notes: dict[str, dict[str, Any]] = {}
    for shift in ("nominal", *state.sweep.suite.shifts):
        notes |= Ledger(state.storage, checkpoint, state.protocol_of(shift, arm)).film_notes()
    return tuple(note for _, note in sorted(notes.items()))


def _imagined(
    state: SweepState, arm: Arm, checkpoints: dict[int, CheckpointRecord], test: VideoBenchmark
) -> dict[int, dict[str, float]]:
    """Return `ScoredArm.imagined`, from checkpoints with a complete score and a score of their video."""
    found = {}
    for step, checkpoint in sorted(checkpoints.items()):
        video = test.known(state.storage, checkpoint.fingerprint)
        if video and (score := state.score(arm, checkpoint.fingerprint, "nominal")[0]).complete:
            values = {"success_rate": score.success_rate, **video.metrics}
            found[step] = {name: values[name] for name in ("success_rate", *VIDEO, CLIPS)}
    return found


def films_from_ledger(state: SweepState, arms: Sequence[ScoredArm]) -> list[RolloutVideo]:
    """Return the films of the last checkpoints of these arms, see `films_of_arm`."""
    films = list[RolloutVideo]()
    for scored in arms:
        keys = state.films(scored.arm)
        films += films_of_arm(scored, keys, state.storage.get)
    return films
