"""A curve as one self-contained HTML page without scripts. `report.html.jinja`, `plot.html.jinja` and
`report.css` lay it out.

Pure: a function of the curve's report, the films and the sweep file.
"""

import base64
import io
import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from orchestrator.redaction import redact
from orchestrator.report.curve_report import CurveReport
from orchestrator.report.downloads import downloads
from orchestrator.report.place_plot import place_plot
from orchestrator.report.scene_grid import SceneGrid, scene_blocks
from orchestrator.report.svg_plots import (
    Plot,
    cost_plot,
    curve_plot,
    distance_plot,
    label_plot,
    label_styles,
    outcomes_plot,
    styles,
)
from orchestrator.report.where_report import KINDS
from orchestrator.stats.claims import POLICY_VERDICTS
from orchestrator.stats.fixed_sample import Interval
from orchestrator.stats.sample_efficiency import Estimate
from orchestrator.tracking.rollout_videos import RolloutVideo

if TYPE_CHECKING:
    from orchestrator.report.compared_sweeps import Beside

FILMS_BYTES = 20_000_000
"""Size limit of a page's films in bytes of base64; films beyond it are listed by name."""
COSTS = {
    "money": "money",
    "gpu_hours": "GPU-hours",
    "cpu_hours": "CPU-hours",
    "episodes": "episodes",
    "control_steps": "control steps",
}
LOOKS = {"better": ("▲", "good"), "worse": ("▼", "bad"), POLICY_VERDICTS[1]: ("≠", "plain")}
"""Sign and tone of a verdict, so that colour is never the only difference."""


def page(
    report: CurveReport,
    films: Sequence[RolloutVideo],
    sweep_yaml: str,
    films_bytes: int = FILMS_BYTES,
    surface: bytes = b"",
    scenes: SceneGrid | None = None,
    beside: "Beside | None" = None,
) -> str:
    """Render the whole page as UTF-8 text. sweep_yaml: the resolved sweep file, empty if it is not known.
    surface: PNG that is shown in place of the lines. scenes: results on every scene; None if they are not
    known. beside: what the curve has from several sweeps or from published results.
    """
    shown, left_out = _that_fit(films, films_bytes)
    tables = {"episodes": scenes.to_csv()} if scenes else {}
    points = [point.point for point in report.points]
    cost, labels = cost_plot(report, "cost-wide", 430, 392), report.labels
    tasks = sorted({task for point in points for task in point.by_task})
    return (
        environment()
        .get_template("report.html.jinja")
        .render(
            report=report,
            points=points,
            line_of={line.series: line for line in report.lines},
            style_of=styles([line.series for line in report.lines]),
            tasks=tasks,
            curve=[
                curve_plot(report, "curve-wide", 740 if cost else 1080, 392),
                curve_plot(report, "curve-narrow", 344, 340),
            ],
            cost=[cost, cost_plot(report, "cost-narrow", 344, 300)] if cost else [],
            task_plots=[
                (task, curve_plot(report, f"task-{index}", 344, 240, task))
                for index, task in enumerate(tasks)
            ],
            distance=_both(
                distance_plot(report, "distance-wide", 540, 340),
                distance_plot(report, "distance-narrow", 344, 300),
            ),
            outcomes=_both(
                outcomes_plot(report, "outcomes-wide", 540, 340),
                outcomes_plot(report, "outcomes-narrow", 344, 260),
            ),
            forest=forest([(c.result.difference, c.interval) for c in report.comparisons]),
            label_plots=[
                label_plot(labels, "labels-wide", 1080, 392),
                label_plot(labels, "labels-narrow", 344, 340),
            ]
            if labels
            else [],
            label_styles=label_styles(labels.traces) if labels else [],
            label_forest=forest(
                [
                    (one.comparison.result.difference, one.comparison.interval)
                    for one in (labels.comparisons if labels else ())
                ]
            ),
            place_plots=[
                place_plot(shown, f"place-{index}")
                for index, shown in enumerate(report.where.maps if report.where else ())
            ],
            scene_kinds=KINDS,
            looks=LOOKS,
            costs=[
                (name, words)
                for name, words in COSTS.items()
                if any(row.cost and getattr(row.cost, name) for row in report.arms)
            ],
            films=shown,
            left_out=left_out,
            films_mb=films_bytes // 1_000_000,
            early=any(arm.early for arm in report.arms),
            sweep_yaml=sweep_yaml,
            surface=_uri("image/png", surface) if surface else "",
            scenes=scenes,
            scene_blocks=scene_blocks(
                scenes,
                {line.series: line.label for line in report.lines},
                {(film["arm"], film["episode"]): number for number, film in enumerate(shown, 1)},
            )
            if scenes and scenes.drawn
            else [],
            downloads=downloads(report.name, report.to_json(), tables, sweep_yaml),
            beside=beside,
        )
    )


def environment() -> Environment:
    """Return the environment of the page's templates, with the filters of numbers."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"rate": _rate, "amount": _amount, "p": _p, "redacted": redact}
    return environment


def _both(wide: Plot | None, narrow: Plot | None) -> list[Plot]:
    return [plot for plot in (wide, narrow) if plot]


def _that_fit(
    films: Sequence[RolloutVideo], films_bytes: int
) -> tuple[list[dict[str, Any]], list[RolloutVideo]]:
    """Return the films that fit, with data: URIs, and those that do not, each in order."""
    shown, left_out, used = [], [], 0
    for film in films:
        size = (len(film["mp4"]) + 2) // 3 * 4
        if used + size > films_bytes:
            left_out.append(film)
            continue
        used += size
        shown.append({**film, "uri": _uri("video/mp4", film["mp4"]), "still": _still(film["mp4"])})
    return shown, left_out


def _still(mp4: bytes) -> str:
    """Return a film's last picture as a data: URI, for print and for players without a preview; empty if it
    cannot be decoded.
    """
    try:
        with av.open(io.BytesIO(mp4), "r") as container:
            last = deque(container.decode(video=0), maxlen=1)
    except av.error.FFmpegError:
        return ""
    picture = io.BytesIO()
    for frame in last:
        Image.fromarray(frame.to_ndarray(format="rgb24")).save(picture, "JPEG", quality=80)
    return _uri("image/jpeg", picture.getvalue()) if last else ""


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def forest(differences: Sequence[tuple[float, Interval]]) -> list[Estimate]:
    """Return every comparison's difference and interval on one common scale, 0 (left) to 1 (right); no
    difference is 0.5.
    """
    reach = max([0.1, *(abs(end) for difference, interval in differences for end in (difference, *interval))])

    def place(value: float) -> float:
        return 0.5 + value / reach / 2

    return [
        Estimate(place(difference), Interval(place(interval.low), place(interval.high)))
        for difference, interval in differences
    ]


def _rate(value: float | None, sign: bool = False) -> str:
    """Return 0.8 as 0.80; with a sign, as +0.80, or with a typographic minus."""
    if value is None or not math.isfinite(value):
        return "–"  # noqa: RUF001 - a dash where there is no number
    return f"{value:+.2f}".replace("-", "−") if sign else f"{value:.2f}"  # noqa: RUF001 - a minus that is as wide as the plus


def _amount(value: float | None) -> str:
    """Return a count with commas, a measured amount with three digits."""
    if value is None or not math.isfinite(value):
        return "–"  # noqa: RUF001 - a dash where there is no number
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"


def _p(value: float | None) -> str:
    if value is None:
        return "–"  # noqa: RUF001 - a dash where there is no number
    return "< 0.001" if value < 0.001 else f"{value:.2g}"
