"""Publication of a sweep from its storage: the curve at the end of a run, and everything for an MLflow that
lacks it.
"""

from orchestrator.cost import CostLedger
from orchestrator.report.held_out_curve import HeldOutCurve
from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.sweep.ledger_curve import curve_from_ledger, films_from_ledger
from orchestrator.sweep.references import reference_scores
from orchestrator.sweep.state import SweepState
from orchestrator.sweep.tracking_publisher import TrackingPublisher, ended_as
from orchestrator.tracking.mlflow_writer import FAILED, FINISHED, KILLED, TrackingError
from orchestrator.tracking.outbox_relay import DEFAULT_OUTBOX, OutboxSettings


def publish_curve(
    publisher: TrackingPublisher, state: SweepState, *, complete: bool
) -> Curve | HeldOutCurve | None:
    """Publish and return the curve that the ledger has; None if no arm has a place on it. complete: see
    `TrackingPublisher.curve`.
    """
    curve = curve_from_ledger(state)
    if state.sweep.suite.references:
        publisher.references(reference_scores(state))
    if isinstance(curve, HeldOutCurve):
        publisher.curve(curve, curve.page(), complete=complete)
    elif curve:
        publisher.curve(curve, curve.page(films_from_ledger(state, curve.arms)), complete=complete)
    return curve


def republish(state: SweepState, settings: OutboxSettings = DEFAULT_OUTBOX, *, may_run: bool = True) -> int:
    """Publish everything in the storage of a sweep to MLflow and return the number of scores; records that
    MLflow has are left unchanged.

    may_run: whether the sweep may be running now; if not, arms without an end, and then the sweep, are marked
    as killed. Raises TrackingError if MLflow does not accept everything now.
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
    board, shifts = state.board(), state.sweep.suite.shifts
    board.charge(CostLedger.read_all(state.storage).by_arm())
    spent = CostLedger.read(state.storage, state.sweep.name).total()
    views.costs({arm_id: arm.cost for arm_id, arm in board.arms.items()}, spent)
    ends = {ended_as(arm, shifts) for arm in board.arms.values()}
    if scores:
        publish_curve(views, state, complete="" not in ends)
    for arm_id, status in board.arms.items():
        if status.best is not None:
            views.best(arm_id, status.best)
        views.end_arm(arm_id, status, "" if may_run else KILLED)
    if ends and (not may_run or not ends & {"", FAILED}):
        views.end(KILLED if "" in ends else FAILED if FAILED in ends else FINISHED)
    if left := views.finish(done=False):
        raise TrackingError(left)
    return scores
