"""A curve as metrics whose step is the demo count, and its answer as a description, for MLflow's own charts
and lists. Pure.
"""

from collections.abc import Iterator

from orchestrator.report.curve_types import ErrorPoint, Point
from orchestrator.report.held_out_curve import HeldOutCurve
from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.report.summary import answer, caption
from orchestrator.report.surface_report import surface_metrics
from policy.config import VIDEO_ACTION


def curve_metrics(curve: Curve | HeldOutCurve, *, complete: bool) -> dict[int, dict[str, float]]:
    """Return the metrics by demo count.

    A metric is called `success_rate/ratio-1`, for a line of another policy than `video_action` with the
    policy's name before the ratio; so are its bounds and denominators. complete: whether no arm is still to
    come; if one is, points without all seeds of the sweep file are left out. Of a search over ranges the
    metrics are those of its surface.
    """
    if isinstance(curve, Curve) and curve.searched:
        return surface_metrics(curve)
    planned = len(curve.sweep.get("seeds", ()))
    found: dict[int, dict[str, float]] = {}
    for point in curve.points:
        if complete or point.seeds >= planned:
            values = dict(_values(point))
            line = f"ratio-{point.action_free_ratio:g}"
            if point.policy != VIDEO_ACTION:
                line = f"{point.policy}_{line}"
            found.setdefault(point.demo_count, {}).update(
                {f"{name}/{line}": value for name, value in values.items()}
            )
    return found


def _values(point: Point | ErrorPoint) -> Iterator[tuple[str, float]]:
    """Yield names and values of a point's metrics. The bounds without `band` are over the pooled episodes,
    those with it also over training seeds, if there are enough of them.
    """
    if isinstance(point, Point):
        name, rate = "success", point.success_rate
        yield "success_rate", rate
        yield "successes", float(point.successes)
    else:
        name = "action_error"
        yield "action_error", point.error
    yield f"{name}_low", point.interval.low
    yield f"{name}_high", point.interval.high
    if point.band:
        yield f"{name}_band_low", point.band.low
        yield f"{name}_band_high", point.band.high
    yield "episodes", float(point.episodes)
    yield "seeds", float(point.seeds)


def description(curve: Curve | HeldOutCurve) -> str:
    """Return the curve's answer and caption as Markdown."""
    if isinstance(curve, HeldOutCurve):
        sentences, below = curve.answer(), curve.caption()
    else:
        sentences, below = answer(curve), caption(curve)
    return "\n".join([*(f"- {sentence}" for sentence in sentences), "", below])
