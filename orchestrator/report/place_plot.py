"""A map of success over the object's starting place as geometry, which `where.html.jinja` draws. Lengths are
SVG user units; x of the world to the right, y upwards, on one scale unless the area is very flat or high.
Pure.
"""

from dataclasses import dataclass
from math import sqrt

from orchestrator.config.arms import in_demos
from orchestrator.report.svg_axes import Tick, linear
from orchestrator.report.where_report import PlaceMap

WIDTH, LEFT, RIGHT, TOP, BELOW = 344.0, 52.0, 330.0, 14.0, 46.0
LOWEST, HIGHEST = 120.0, 320.0
"""Smallest and largest height of the plot area."""
RADIUS = 7.0
EDGE = 12.0
"""Distance of the outermost scenes from the plot area's edge."""


@dataclass(frozen=True)
class Disc:
    """A scene: a ring, and a disc whose area is the share of arms that solved it."""

    x: float
    y: float
    radius: float
    """0 if no arm solved it, RADIUS if every arm did."""
    words: str


@dataclass(frozen=True)
class PlacePlot:
    """One map: axes, discs, and a text alternative."""

    name: str
    title: str
    words: str
    height: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    discs: tuple[Disc, ...]


def place_plot(shown: PlaceMap, name: str) -> PlacePlot:
    """Return the geometry of a map. name: prefix of its ids on the page."""
    xs, ys = [one.x for one in shown.scenes], [one.y for one in shown.scenes]
    span = max(max(xs) - min(xs), 1e-3)
    area = (RIGHT - LEFT - 2 * EDGE) * (max(ys) - min(ys)) / span + 2 * EDGE
    bottom = TOP + min(max(area, LOWEST), HIGHEST)
    x, x_ticks = linear(xs, LEFT + EDGE, RIGHT - EDGE)
    rise, rises = linear(ys, 0.0, bottom - TOP - 2 * EDGE)
    foot = bottom - EDGE
    return PlacePlot(
        name=name,
        title=f"{shown.task}, {in_demos(shown.demo_count)}",
        words="; ".join(
            f"{one.name}: success {one.success:.2f} on {one.scenes} scene{'s' if one.scenes > 1 else ''}"
            for one in shown.quarters
        ),
        height=bottom + BELOW,
        bottom=bottom,
        x_ticks=x_ticks,
        y_ticks=tuple(Tick(foot - tick.at, tick.text) for tick in rises),
        discs=tuple(
            Disc(
                x(one.x),
                foot - rise(one.y),
                RADIUS * sqrt(one.share),
                f"{one.scene}: solved by {one.solved} of {one.arms} arms; x {one.x:.3f} m, y {one.y:.3f} m",
            )
            for one in shown.scenes
        ),
    )
