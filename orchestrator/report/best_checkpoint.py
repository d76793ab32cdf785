"""A curve of the arms' best checkpoints: when it may be shown, and what choosing them did."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from orchestrator.stats.selection import SelectionBias, selection_bias
from orchestrator.tracking.mlflow_reader import holds_out
from policy.errors import DemoscaleError

if TYPE_CHECKING:
    from orchestrator.report.sample_efficiency_curve import Curve


class NoSelectionError(DemoscaleError):
    """Error of one sentence: the sweep has no scenes that choose checkpoints and are not reported."""

    exit_code: ClassVar[int] = 2


def check_selection(name: str, sweep: Mapping[str, Any]) -> None:
    """Raise NoSelectionError unless a sweep chooses checkpoints on scenes of their own. sweep: its resolved
    file.
    """
    if holds_out(sweep):
        raise NoSelectionError(
            f"{name}: it measures action errors on one list of held-out episodes, which would choose the best"
            " checkpoint and report it, too; leave out --checkpoint best"
        )
    if not sweep.get("suite", {}).get("select"):
        raise NoSelectionError(
            f"{name}: all of its scenes are reported, and on the scenes that chose it the best checkpoint"
            " looks better than it is; set suite.select (such as 20) and suite.report: best and run it again,"
            " or leave out --checkpoint best"
        )


def bias_of(curve: "Curve") -> SelectionBias | None:
    """Return the selection bias of a curve of best checkpoints; None if it shows the last ones."""
    if curve.checkpoint == "last":
        return None
    return selection_bias([arm.chosen_on for arm in curve.arms], [arm.outcomes for arm in curve.arms])


def bias_in_words(curve: "Curve") -> list[str]:
    """Return the sentence on what choosing did; none if the curve shows the last checkpoints."""
    bias = bias_of(curve)
    if not bias:
        return []
    low, high = bias.interval
    select = curve.sweep["suite"]["select"]
    return [
        f"Each arm is shown with its best checkpoint, chosen on {select} scenes per task and scored on"
        f" others. On the scenes that chose them these checkpoints succeed in {bias.chosen_on:.2f}, on the"
        f" others in {bias.reported:.2f}: the scenes that chose them flatter them by {bias.difference:+.2f}"
        f" (95 % interval {low:+.2f} to {high:+.2f})."
    ]
