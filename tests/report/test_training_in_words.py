"""What the curves say of how long arms were trained, by `train.match`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.config.arms import Arm
from orchestrator.cost import Cost
from orchestrator.data.action_error import ActionError
from orchestrator.report.held_out_curve import HeldOutCurve
from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.tracking.mlflow_reader import MeasuredArm
from synthetic_curves import scored

CPU, GPU = Cost(train_cpu_s=9), Cost(train_cpu_s=9, train_gpu_s=9)


def played(sweep: dict[str, Any], cost: Cost | None) -> dict[str, Any]:
    curve = Curve("c", tuple(replace(scored(demos, 0.0, demos), cost=cost) for demos in (2, 4)), sweep)
    return curve.to_json()


def measured(sweep: dict[str, Any], cost: Cost | None) -> dict[str, Any]:
    errors = tuple(ActionError(f"e{n}", "pick", 40, 10, 0.3 + n / 9, (0.3,), 0.8) for n in range(4))
    arms = (MeasuredArm(Arm(demos, 0.0, 0), "p", 100, errors, cost) for demos in (2, 4))
    return HeldOutCurve("c", tuple(arms), sweep).to_json()


@pytest.mark.parametrize("curve", [played, measured])
@pytest.mark.parametrize(
    ("train", "cost", "caption", "answer"),
    [
        ({"steps": 1200}, CPU, "every arm trained for 1,200 steps, the last", ""),
        (
            {"steps": 1200, "match": "epochs"},
            None,
            "arms with the most demos trained for 1,200 steps, others for as many epochs",
            "as many passes over its demos.",
        ),
        (
            {"steps": 0, "seconds": 3600, "match": "gpu_seconds"},
            GPU,
            "every arm trained for 3,600 GPU-seconds, the last",
            "as many GPU-seconds.",
        ),
        (
            {"steps": 0, "seconds": 60, "match": "gpu_seconds"},
            CPU,
            "every arm trained for 60 seconds of its training process, without a GPU, the last",
            "as many seconds of its training process, without a GPU.",
        ),
        (
            {"steps": 0, "seconds": 60, "match": "gpu_seconds"},
            None,
            "60 seconds of its GPUs, or of its training process without one",
            "as many seconds of its GPUs, or of its training process without one.",
        ),
    ],
)
def test_both_curves_say_what_arms_have_in_common(
    curve: Callable[..., dict[str, Any]], train: dict[str, Any], cost: Cost | None, caption: str, answer: str
) -> None:
    written = curve({"train": {"match": "steps", **train}}, cost)
    assert caption in written["caption"]
    assert written["match"] == train.get("match", "steps")
    said = " ".join(written["answer"])
    assert (f"Between lines and demo counts, every arm is trained for {answer}" in said) is bool(answer)
