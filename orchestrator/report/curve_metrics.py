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
    policy's name before the ratio. Its bounds are `success_rate_bounds/ratio-1_low` and `_high`, over the
    pooled episodes, and with enough seeds `_band_low` and `_band_high`, which include their spread; its
    denominators are `success_rate_counts/ratio-1_episodes`, `_successes` and `_seeds`. Of a search over
    ranges the metrics are those of its surface.

    complete: whether no arm is still to come; if one is, points without all seeds of the sweep file are left
    out.
    """
    if isinstance(curve, Curve) and curve.searched:
        return surface_metrics(curve)
    planned = len(curve.sweep.get("seeds", ()))
    found: dict[int, dict[str, float]] = {}
    for point in curve.points:
        if complete or point.seeds >= planned:
            line = f"ratio-{point.action_free_ratio:g}"
            if point.policy != VIDEO_ACTION:
                line = f"{point.policy}_{line}"
            found.setdefault(point.demo_count, {}).update(_values(point, line))
    return found


def _values(point: Point | ErrorPoint, line: str) -> Iterator[tuple[str, float]]:
    """Yield names and values of a point's metrics. The part before the slash is a section of MLflow's charts:
    the rates come first, then their bounds, then the denominators. Bounds without
    `band` are over the pooled episodes, those with it also over training seeds, if there are enough of them.
    """
    if isinstance(point, Point):
        name, value = "success_rate", point.success_rate
        yield f"{name}_counts/{line}_successes", float(point.successes)
    else:
        name, value = "action_error", point.error
    yield f"{name}/{line}", value
    yield f"{name}_bounds/{line}_low", point.interval.low
    yield f"{name}_bounds/{line}_high", point.interval.high
    if point.band:
        yield f"{name}_bounds/{line}_band_low", point.band.low
        yield f"{name}_bounds/{line}_band_high", point.band.high
    yield f"{name}_counts/{line}_episodes", float(point.episodes)
    yield f"{name}_counts/{line}_seeds", float(point.seeds)


def description(curve: Curve | HeldOutCurve) -> str:
    """Return the curve's answer and caption as Markdown."""
    if isinstance(curve, HeldOutCurve):
        sentences, below = curve.answer(), curve.caption()
    else:
        sentences, below = answer(curve), caption(curve)
    return "\n".join([*(f"- {sentence}" for sentence in sentences), "", below])
