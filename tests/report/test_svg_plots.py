"""The page's drawings: points lie at their values, and lines are distinguishable."""

import itertools

import numpy as np
import pytest

import curve_json
from orchestrator.report.svg_plots import LABEL_GAP, cost_plot, curve_plot, styles


def test_line_styles_differ_in_shape_or_dash() -> None:
    ours = [{"policy": "video_action", "action_free_ratio": float(n), "dashed": False} for n in range(8)]
    baselines = [{"policy": f"baseline {n}", "action_free_ratio": 0.0, "dashed": True} for n in range(2)]
    looks = [(style.shape, style.dash) for style in styles([*ours, *baselines]).values()]
    assert len(set(looks)) == len(looks)
    first = looks[:4]
    assert len({shape for shape, _ in first}) == len({dash for _, dash in first}) == 4


def test_curve_plot_points_lie_at_their_values() -> None:
    data = curve_json.rich()
    plot = curve_plot(data, "curve", 740, 400)
    dots = [dot for trace in plot.traces for dot in trace.dots]
    bottom, height = plot.frame.bottom, plot.frame.bottom - plot.frame.top
    rates = [(bottom - dot.y) / height for dot in dots]
    assert rates == pytest.approx([point["success_rate"] for point in data["points"]])
    assert [(bottom - dot.low) / height for dot in dots] == pytest.approx(
        [point["low"] for point in data["points"]]
    )
    ten, thirty, hundred, _ = (tick.at for tick in plot.x_ticks)
    assert (thirty - ten) / (hundred - ten) == pytest.approx(np.log(3) / np.log(10))
    assert plot.target is not None
    assert plot.target.text == "0.80"
    assert [trace.drop is not None for trace in plot.traces] == [True, True, False]
    assert [len(trace.replicates) for trace in plot.traces] == [3, 3, 3]


def test_curve_plot_denominators_do_not_overlap() -> None:
    plot = curve_plot(curve_json.rich(), "curve", 740, 400)
    assert plot.labelled
    texts = sorted((dot.anchor, dot.text_x, dot.text_y) for trace in plot.traces for dot in trace.dots)
    assert len(texts) == 12
    for (side, x, y), (next_side, next_x, next_y) in itertools.pairwise(texts):
        if (side, x) == (next_side, next_x):
            assert next_y - y >= LABEL_GAP - 1e-9
    assert not curve_plot(curve_json.rich(), "curve", 344, 340).labelled


def test_cost_plot_axis_is_money_where_priced_else_gpu_hours() -> None:
    data = curve_json.rich()
    assert "GPU-hours" in cost_plot(data, "cost", 430, 400).x_label  # type: ignore[union-attr]
    for point in data["points"]:
        point["cost"]["money"] = 12.0 * point["demo_count"]
    assert (
        cost_plot(data, "cost", 430, 400).x_label
        == "money at the sweep's prices (log scale); beside the points: demos"
    )  # type: ignore[union-attr]
    data["points"][0]["cost"]["money"] = None
    plot = cost_plot(data, "cost", 430, 400)
    assert plot, "what one point used has no price; the others stand"
    assert sum(len(trace.dots) for trace in plot.traces) == len(data["points"]) - 1
    for point in data["points"]:
        point["cost"] = None
    assert cost_plot(data, "cost", 430, 400) is None
