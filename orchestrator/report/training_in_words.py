"""What the arms of a curve have in common (`train.match`), in words. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.cost import Cost
from orchestrator.report.curve_types import OWN


def match_of(sweep: Mapping[str, Any]) -> str:
    """Return `train.match` of a resolved sweep file."""
    return str(sweep.get("train", {}).get("match", "steps"))


def in_common(sweep: Mapping[str, Any], costs: Iterable[Cost | None]) -> str:
    """Return what every arm is trained for. costs: of the arms, which say whether they used GPUs."""
    match = match_of(sweep)
    if match == "gpu_seconds":
        return f"every arm is trained for as many {_seconds(costs)}"
    if match == OWN:
        return "each sweep is trained as its own file says"
    if match == "epochs":
        return "every arm is trained for as many passes over its demos"
    return "every arm is trained for as many optimiser steps"


def trained_for(sweep: Mapping[str, Any], costs: Iterable[Cost | None]) -> str:
    """Return how long the arms were trained; empty if the sweep file is not known. costs: as for
    `in_common`.
    """
    train = sweep.get("train", {})
    if seconds := train.get("seconds"):
        return f"every arm trained for {seconds:,} {_seconds(costs)}"
    if not (steps := train.get("steps")):
        return ""
    if match_of(sweep) == "epochs":
        return f"arms with the most demos trained for {steps:,} steps, others for as many epochs"
    return f"every arm trained for {steps:,} steps"


def _seconds(costs: Iterable[Cost | None]) -> str:
    on_gpus = {bool(cost.train_gpu_s) for cost in costs if cost}
    if on_gpus == {True}:
        return "GPU-seconds"
    if on_gpus == {False}:
        return "seconds of its training process, without a GPU"
    return "seconds of its GPUs, or of its training process without one"
