"""The page's drawings: points lie at their values, and lines are distinguishable."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

import synthetic_reports
from orchestrator.report.curve_report import CurveReport
from orchestrator.report.curve_types import Series
from orchestrator.report.svg_plots import LABEL_GAP, cost_plot, curve_plot, styles


def test_line_styles_differ_in_shape_or_dash() -> None:
    ours = [Series("video_action", float(n)) for n in range(8)]
    baselines = [Series("diffusion_policy", float(n)) for n in range(2)]
    looks = [(style.shape, style.dash) for style in styles([*ours, *baselines]).values()]
    assert len(set(looks)) == len(looks)
    first = looks[:4]
    assert len({shape for shape, _ in first}) == len({dash for _, dash in first}) == 4


def test_curve_plot_points_lie_at_their_values() -> None:
    report = synthetic_reports.rich()
    plot = curve_plot(report, "curve", 740, 400)
    dots = [dot for trace in plot.traces for dot in trace.dots]
    bottom, height = plot.frame.bottom, plot.frame.bottom - plot.frame.top
    rates = [(bottom - dot.y) / height for dot in dots]
    assert rates == pytest.approx([row.point.success_rate for row in report.points])
    assert [(bottom - dot.low) / height for dot in dots] == pytest.approx(
        [row.point.interval.low for row in report.points]
    )
    ten, thirty, hundred, _ = (tick.at for tick in plot.x_ticks)
    assert (thirty - ten) / (hundred - ten) == pytest.approx(np.log(3) / np.log(10))
    assert plot.target is not None
    assert plot.target.text == "0.80"
    assert [trace.drop is not None for trace in plot.traces] == [True, True, False]
    assert [len(trace.replicates) for trace in plot.traces] == [3, 3, 3]


def test_curve_plot_denominators_do_not_overlap() -> None:
    plot = curve_plot(synthetic_reports.rich(), "curve", 740, 400)
    assert plot.labelled
    texts = sorted((dot.anchor, dot.text_x, dot.text_y) for trace in plot.traces for dot in trace.dots)
    assert len(texts) == 12
    for (side, x, y), (next_side, next_x, next_y) in itertools.pairwise(texts):
        if (side, x) == (next_side, next_x):
            assert next_y - y >= LABEL_GAP - 1e-9
    assert not curve_plot(synthetic_reports.rich(), "curve", 344, 340).labelled


def with_money(report: CurveReport, money: Callable[[int], float | None]) -> CurveReport:
    """Return the report with the money that a point of a demo count cost."""
    points = [
        replace(row, cost=row.cost and replace(row.cost, money=money(row.point.demo_count)))
        for row in report.points
    ]
    return replace(report, points=tuple(points))


def test_cost_plot_axis_is_money_where_priced_else_gpu_hours() -> None:
    report = synthetic_reports.rich()
    plot = cost_plot(report, "cost", 430, 400)
    assert plot
    assert "GPU-hours" in plot.x_label
    plot = cost_plot(with_money(report, lambda demos: 12.0 * demos), "cost", 430, 400)
    assert plot
    assert plot.x_label == "money at the sweep's prices (log scale); beside the points: demos"
    most = max(row.point.demo_count for row in report.points)
    unpriced = with_money(report, lambda demos: None if demos == most else 12.0 * demos)
    plot = cost_plot(unpriced, "cost", 430, 400)
    assert plot, "what some points used has no price; the others stand"
    assert sum(len(trace.dots) for trace in plot.traces) == len(report.points) - len(report.lines)
    unknown = replace(report, points=tuple(replace(row, cost=None) for row in report.points))
    assert cost_plot(unknown, "cost", 430, 400) is None
