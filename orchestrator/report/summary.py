"""A curve in numbers and sentences, for the page, the JSON file and the command line. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from orchestrator.config.schema import Prices
from orchestrator.cost import Cost
from orchestrator.report.curve_types import Point, Series
from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.stats.sample_efficiency import Interval
from orchestrator.tracking.mlflow_reader import VIDEO, ScoredArm

RATES = (0.5, 0.8, 0.9)
"""Success rates whose demo counts are reported."""
HOURS = {"gpu_hours": "GPU-hours", "cpu_hours": "CPU-hours"}
COST_AXES = {"money": "money at the sweep's prices"} | HOURS
"""Cost axes of success plots with their units, in order of preference."""


def report(curve: Curve) -> dict[str, Any]:
    """Return the report as JSON: unbounded numbers are null, and the text next to them says so."""
    return {
        "name": curve.name,
        "protocol": curve.protocol,
        "caption": caption(curve),
        "answer": answer(curve),
        "lines": [_line(curve, line) for line in curve.lines],
        "points": [_point(curve, point) for point in curve.points],
        "arms": [_arm(curve, scored) for scored in curve.arms],
        "comparisons": _comparisons(curve),
        "video": _video(curve),
        "protocol_facts": _protocol_facts(curve),
        "provenance": _provenance(curve),
    }


def answer(curve: Curve) -> list[str]:
    """Return the sweep's main results in sentences: the worth of action-free video, demos to reach a rate,
    seeds.
    """
    told = [sentence for line in curve.lines if (sentence := equivalence_in_words(curve, line))]
    for line in curve.lines:
        rates = [rate for rate in RATES if rate <= max(point.success_rate for point in curve.of_line(line))]
        told.append(f"{_title(line)}: {reach_in_words(curve, line, rates[-1] if rates else RATES[0])}")
    if (several := len(curve.seeds)) == 1:
        told.append(
            "One seed: what is said holds for these trained policies; another training of each could come out"
            " differently."
        )
    elif missing := [point for point in curve.points if point.missing_seeds]:
        told.append(f"{len(missing)} of {len(curve.points)} points have fewer than {several} seeds.")
    return told


def equivalence_in_words(curve: Curve, line: Series) -> str:
    """Return the sentence on how many demos action-free video replaces, or that there is no evidence; empty
    for lines without `worth`.
    """
    worth = curve.data_equivalence(line)
    if worth is None:
        return ""
    base = f"{curve.lines[0].action_free_ratio:g}"
    ratio = f"An action-free ratio of {line.action_free_ratio:g}"
    if math.isnan(worth.value):
        return f"{ratio} cannot be told from one of {base} in demos: both lines are flat."
    interval = f"95 % interval {_factor(worth.low)} to {_factor(worth.high)}"
    if worth.value in (0, math.inf):
        first, second = (line, curve.lines[0]) if worth.value else (curve.lines[0], line)
        return (
            f"{_title(first)} reaches more with its fewest demos than {second.label} with its most: what"
            f" demos are worth is not bounded ({interval})."
        )
    if worth.low <= 1 <= worth.high:
        return (
            f"No evidence that {ratio[0].lower()}{ratio[1:]} replaces demos: {_times(worth.value)} the demos"
            f" ({interval})."
        )
    return f"{ratio} is worth {_times(worth.value)} the demos of one of {base} ({interval})."


def reach_in_words(curve: Curve, line: Series, rate: float) -> str:
    """Return the sentence on the number of demos with which a line reaches a rate."""
    told, counts = curve.reach(line, rate), [point.demo_count for point in curve.of_line(line)]
    if told.value == math.inf:
        least = "" if told.low == math.inf else f"; at best {_demos(told.low, counts)} demos"
        return f"{rate:g} is not reached with up to {counts[-1]} demos{least}."
    return (
        f"{rate:g} is reached with {_demos(told.value, counts)} demos (95 % interval"
        f" {_demos(told.low, counts)} to {_demos(told.high, counts)})."
    )


def caption(curve: Curve) -> str:
    """Return the figure's caption: policy, tasks, episodes, training, seeds, errors and the kind of
    intervals.
    """
    sweep, suite = curve.sweep, curve.sweep.get("suite", {})
    counted = sorted({scored.episodes for scored in curve.arms})
    each = f"{counted[0]}" if len(counted) == 1 else f"{counted[0]} to {counted[-1]}"
    tasks = sorted({task for point in curve.points for task in point.by_task})
    said = [
        f"Success of {sweep.get('policy', {}).get('preset', 'one policy')} on"
        f" {', '.join(tasks) if len(tasks) < 4 else f'{len(tasks)} tasks'}"
    ]
    said.append(
        f"{each} held-out episodes per arm, the same for all"
        + (f", at most {suite['horizon']} control steps each" if suite else "")
    )
    if suite:
        said.append(f"success counted {'at the end' if suite['success'] == 'at_end' else 'at any step'}")
    if steps := sweep.get("train", {}).get("steps"):
        said.append(f"every arm trained for {steps:,} steps, the last checkpoint scored")
    several = len(curve.seeds) > 1
    said.append(f"seeds {', '.join(map(str, curve.seeds))}" + (", one thin line each" if several else ""))
    said.append(f"{curve.errors} errors, none of them counted as a failure" if curve.errors else "no errors")
    if curve.looked_at:
        early = sum(scored.early for scored in curve.arms)
        said.append(
            f"scored until {_words(suite['decide'])} was decided, {early} of {len(curve.arms)} arms (*)"
            " before the end of the list"
        )
    bars = f"bars: {'anytime-valid' if curve.looked_at else 'Wilson'} 95 % intervals of the pooled episodes"
    said.append(
        bars
        + (
            "; shaded: 95 % with the spread between seeds"
            if several
            else ", without the spread that other seeds would show"
        )
    )
    return "; ".join(said) + f". Protocol {curve.protocol}."


def cost_in_numbers(curve: Curve, cost: Cost | None) -> dict[str, Any] | None:
    """Return a cost as hours, counts, and money; money is None without prices."""
    if cost is None:
        return None
    money = cost.money(Prices(**curve.sweep.get("prices", {})))
    return {
        "gpu_hours": cost.gpu_s / 3600,
        "cpu_hours": cost.cpu_s / 3600,
        "episodes": cost.episodes,
        "control_steps": cost.control_steps,
        "money": money or None,
        "text": str(cost),
    }


def cost_axis(
    costs: Sequence[Mapping[str, Any] | None], among: Mapping[str, str] = COST_AXES
) -> tuple[str, str]:
    """Return the first kind of cost that any point has spent, with its unit; empty strings if none."""
    return next(
        ((kind, unit) for kind, unit in among.items() if any(cost and cost.get(kind) for cost in costs)),
        ("", ""),
    )


# -- parts ---------------------------------------------------------------------------------------------------


def _line(curve: Curve, line: Series) -> dict[str, Any]:
    worth = curve.data_equivalence(line)
    area = curve.area(line)
    reach = []
    for rate in RATES:
        demos, low, high = (_bounded(value) for value in asdict(curve.reach(line, rate)).values())
        reach.append(
            {
                "rate": rate,
                "demos": demos,
                "low": low,
                "high": high,
                "text": reach_in_words(curve, line, rate),
            }
        )
    return {
        "policy": line.policy,
        "action_free_ratio": line.action_free_ratio,
        "label": line.label,
        "dashed": line.baseline,
        "area": asdict(area) if len(curve.of_line(line)) > 1 else None,
        "reach": reach,
        "worth": {**_finite(worth), "text": equivalence_in_words(curve, line)} if worth else None,
    }


def _point(curve: Curve, point: Point) -> dict[str, Any]:
    tasks = {
        task: {
            "successes": won,
            "episodes": played,
            **dict(zip(("low", "high"), curve.interval(won, played), strict=True)),
        }
        for task, (won, played) in point.by_task.items()
    }
    return vars(point) | {
        "missing_seeds": list(point.missing_seeds),
        "by_task": tasks,
        "cost": cost_in_numbers(curve, point.cost),
    }


def _arm(curve: Curve, scored: ScoredArm) -> dict[str, Any]:
    low, high = curve.interval(scored.successes, scored.episodes)
    return {
        "arm": scored.arm.name,
        "policy": scored.arm.kind,
        "demo_count": scored.arm.demo_count,
        "action_free_ratio": scored.arm.action_free_ratio,
        "seed": scored.arm.seed,
        "step": scored.step,
        "successes": scored.successes,
        "episodes": scored.episodes,
        "errors": scored.errors,
        "low": low,
        "high": high,
        "cost": cost_in_numbers(curve, scored.cost),
        "run_id": scored.run_id,
        "early": scored.early,
    }


def _comparisons(curve: Curve) -> list[dict[str, Any]]:
    return [
        {
            **{name: value for name, value in vars(c).items() if name != "result"},
            "difference": c.result.difference,
            **asdict(c.result),
            "verdict": c.verdict,
            "text": str(c),
        }
        for c in curve.comparisons
    ]


def _video(curve: Curve) -> dict[str, Any] | None:
    """Return the distances between imagined and executed video, and their correlation with success; None
    without any.
    """
    points = [
        {"arm": s.arm.name, "step": step, **told} for s in curve.arms for step, told in s.imagined.items()
    ]
    episodes = [
        {
            "arm": s.arm.name,
            "episode": note["episode"],
            "task": note["task"],
            "result": note["result"],
            "distance": note["mean_distance"],
        }
        for s in curve.arms
        for note in s.films
        if note["mean_distance"] is not None
    ]
    if not points and not episodes:
        return None
    found = curve.video_and_success()
    text = f"{len(points)} checkpoints: too few, or too much alike, for a correlation with success."
    if found:
        together = "they go together" if found.rho > 0 else "they go against each other"
        shown = "no evidence that they go together" if found.low <= 0 <= found.high else together
        between = f"{found.rho:+.2f} [{found.low:+.2f}, {found.high:+.2f}] over {found.number} checkpoints"
        text = f"Better imagined video and more success: rank correlation {between}: {shown}."
    correlation = asdict(found) | {"text": text} if found else None
    return {
        "measure": VIDEO[2],
        "points": points,
        "episodes": episodes,
        "correlation": correlation,
        "text": text,
    }


def _protocol_facts(curve: Curve) -> list[list[str]]:
    sweep = curve.sweep
    facts = [["protocol", curve.protocol]]
    for section, names in {
        "suite": ("tasks", "episodes", "horizon", "settle", "success", "gl", "rung", "decide"),
        "train": ("mode", "steps", "video_steps", "batch_size", "checkpoint_every"),
    }.items():
        facts += [
            [f"{section}.{name}", _words(sweep[section][name])]
            for name in names
            if sweep.get(section, {}).get(name) not in (None, "", [])
        ]
    facts += [[name, _words(sweep[name])] for name in ("seeds", "search") if name in sweep]
    return facts


def _provenance(curve: Curve) -> list[list[str]]:
    kept = {
        name.removeprefix("demoscale."): value
        for name, value in curve.tags.items()
        if name.startswith("demoscale.")
    }
    own = [
        [name.replace("_", " "), value]
        for name, value in sorted(kept.items())
        if name not in ("arm", "sweep", "subset", "replicates", "protocol")
    ]
    data = curve.sweep.get("data", {})
    return ([["episodes", data["episodes"]]] if "episodes" in data else []) + own


# -- in words ------------------------------------------------------------------------------------------------


def _title(line: Series) -> str:
    return line.label[0].upper() + line.label[1:]


def _times(value: float) -> str:
    return f"{_factor(value)} times"


def _factor(value: float) -> str:
    """Return a factor with two digits, or `unbounded`."""
    return "unbounded" if value == math.inf else f"{value:.2g}"


def _demos(value: float, counts: list[int]) -> str:
    """Return a demo count in words, or on which side of the counts tried it lies."""
    return (
        f"{counts[0]} or fewer"
        if value == 0
        else f"more than {counts[-1]}"
        if value == math.inf
        else f"{value:.0f}"
    )


def _bounded(value: float) -> float | None:
    return value if 0 < value < math.inf else None


def _finite(told: Interval) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in asdict(told).items()}


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(own)}" for name, own in value.items() if own is not None) or "none"
    return ", ".join(map(_words, value)) if isinstance(value, list) else str(value)
