"""Processors on which the arms of a curve were trained, in words. Pure."""

from collections import Counter
from collections.abc import Sequence

from orchestrator.tracking.mlflow_reader import MeasuredArm, ScoredArm
from sim_workers.arithmetic import NOT_RECORDED, different_arithmetic


def mixed_arithmetic(arms: Sequence[ScoredArm | MeasuredArm]) -> list[str]:
    """Return the sentence that arms were trained on different kinds of processor; none if they were not."""
    return [sentence] if (sentence := different_arithmetic(arm.trained_on for arm in arms)) else []


def training_arithmetic(arms: Sequence[ScoredArm | MeasuredArm]) -> str:
    """Return the kinds of processor, threads and linear algebra with which arms were trained, each with its
    number of arms.
    """
    counted = Counter(" and then ".join(map(str, arm.trained_on)) or NOT_RECORDED for arm in arms)
    return "; ".join(f"{made}: {number} arms" for made, number in sorted(counted.items()))
