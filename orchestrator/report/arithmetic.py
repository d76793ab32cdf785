"""Processors on which the arms of a curve were trained, in words. Pure."""

from collections import Counter
from collections.abc import Sequence

from orchestrator.tracking.mlflow_reader import MeasuredArm, ScoredArm
from sim_workers.arithmetic import BETWEEN_KINDS, NOT_RECORDED, different_arithmetic


def mixed_arithmetic(arms: Sequence[ScoredArm | MeasuredArm]) -> list[str]:
    """Return the sentences that arms were trained, or their actions computed, on different kinds of
    processor; none if they were not.
    """
    told = [sentence] if (sentence := different_arithmetic(arm.trained_on for arm in arms)) else []
    if len(kinds := acting_arithmetic(arms)) > 1:
        told.append(
            f"Actions were computed by {len(kinds)} kinds of processor or numbers of threads, which round"
            f" differently: {BETWEEN_KINDS.join(kinds)}."
        )
    return told


def acting_arithmetic(arms: Sequence[ScoredArm | MeasuredArm]) -> list[str]:
    """Return the arithmetics, in words, of the processes that computed the arms' actions, where recorded."""
    found = {kind for arm in arms if isinstance(arm, ScoredArm) for kind in arm.acted_on}
    return sorted(found - {NOT_RECORDED})


def training_arithmetic(arms: Sequence[ScoredArm | MeasuredArm]) -> str:
    """Return the kinds of processor, threads and linear algebra with which arms were trained, each with its
    number of arms.
    """
    counted = Counter(" and then ".join(map(str, arm.trained_on)) or NOT_RECORDED for arm in arms)
    return "; ".join(f"{made}: {number} arms" for made, number in sorted(counted.items()))
