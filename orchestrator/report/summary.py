"""A curve in numbers and sentences, for the page, the JSON file and the command line. Pure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.report.arithmetic import acting_arithmetic, mixed_arithmetic, training_arithmetic
from orchestrator.report.arms_curve import NO_BAND
from orchestrator.report.best_checkpoint import bias_in_words, bias_of
from orchestrator.report.curve_report import (
    ArmReport,
    CheckpointVideo,
    CostReport,
    CurveReport,
    EpisodeVideo,
    EquivalenceReport,
    Fact,
    PointReport,
    ReachReport,
    SeriesReport,
    VideoReport,
)
from orchestrator.report.curve_types import Series, factor_in_words, factors_in_words
from orchestrator.report.reference_lines import reference_lines
from orchestrator.report.sample_efficiency_curve import Curve
from orchestrator.report.shift_differences import shift_differences
from orchestrator.report.simulator_versions import simulator_of
from orchestrator.report.surface_report import surface_in_words
from orchestrator.report.training_in_words import trained_for
from orchestrator.stats.fixed_sample import FEWEST_CLUSTERS, Correlation
from orchestrator.tracking.mlflow_reader import VIDEO, ScoredArm
from sim_workers.arithmetic import BETWEEN_KINDS, NOT_RECORDED

RATES = (0.5, 0.8, 0.9)
"""Success rates whose demo counts are reported."""
HOURS = {"gpu_hours": "GPU-hours", "cpu_hours": "CPU-hours"}
COST_AXES = {"money": "money at the sweep's prices"} | HOURS
"""Cost axes of success plots with their units, in order of preference."""


def report(curve: Curve) -> CurveReport:
    """Return a curve's report."""
    return CurveReport(
        name=curve.name,
        protocol=curve.protocol,
        caption=caption(curve),
        checkpoint=curve.checkpoint,
        selection_bias=bias_of(curve),
        match=curve.match,
        answer=tuple(answer(curve)),
        claim=curve.claim,
        lines=tuple(_line(curve, line) for line in curve.lines),
        points=tuple(PointReport(point, curve.cost_report(point.cost)) for point in curve.points),
        arms=tuple(_arm(curve, scored) for scored in curve.arms),
        comparisons=tuple(curve.comparisons),
        video=curve.video,
        protocol_facts=_protocol_facts(curve),
        provenance=_provenance(curve),
        references=reference_lines(curve),
        shifts=tuple(shift_differences(curve)),
        labels=curve.labels,
        exchange=curve.exchange,
        where=curve.where,
        demonstrations=curve.demonstrations,
    )


def answer(curve: Curve) -> list[str]:
    """Return the sweep's main results in sentences: the worth of action-free video and demos to reach a rate,
    or, with too few seeds, which trained policies differ; of a search over ranges what its surface says.
    """
    if curve.searched:
        return [*bias_in_words(curve), *surface_in_words(curve), *mixed_arithmetic(curve.arms)]
    told = [*bias_in_words(curve)]
    told += [sentence for line in curve.lines if (sentence := equivalence_in_words(curve, line))]
    told += [row.text for row in curve.exchange.named] if curve.exchange else []
    told += curve.labels.answer if curve.labels else []
    told += curve.about_policies()
    for line in curve.lines:
        points = curve.of_line(line)
        rates = [rate for rate in RATES if rate <= max(point.success_rate for point in points)]
        reached = reach_in_words(curve, line, rates[-1] if rates else RATES[0])
        counts = ", ".join(f"{p.successes}/{p.episodes} with {p.demo_count}" for p in points) + " demos."
        told.append(f"{curve.title(line)}: {reached or counts}")
    several = len(curve.seeds)
    if several > 1 and (missing := [point for point in curve.points if point.missing_seeds]):
        told.append(f"{len(missing)} of {len(curve.points)} points have fewer than {several} seeds.")
    return [*told, *curve.about_training(), *mixed_arithmetic(curve.arms)]


def equivalence_in_words(curve: Curve, line: Series) -> str:
    """Return the sentence on how many demos action-free video replaces, or that there is no evidence; empty
    for the lowest ratio, for baselines, and if the seeds are too few.
    """
    factor = curve.data_equivalence(line)
    if factor is None:
        return ""
    value, (low, high) = factor.value, factor.interval
    lowest = curve.base(line)
    base = f"{lowest.action_free_ratio:g}"
    ratio = f"An action-free ratio of {line.action_free_ratio:g}"
    if curve.named:
        ratio = f"{ratio} for {line.policy}"
    if math.isnan(value):
        return f"{ratio} cannot be told from one of {base} in demos: both lines are flat."
    times = f"{factor_in_words(value)} times the demos"
    interval = f"95 % interval {factors_in_words(factor.interval)}"
    if value in (0, math.inf):
        first, second = (line, lowest) if value else (lowest, line)
        return (
            f"{curve.title(first)} reaches more with its fewest demos than {curve.label(second)} with its"
            " most: what"
            f" demos are worth is not bounded ({interval})."
        )
    if low <= 1 <= high:
        return f"No evidence that {ratio[0].lower()}{ratio[1:]} replaces demos: {times} ({interval})."
    return f"{ratio} is worth {times} of one of {base} ({interval})."


def reach_in_words(curve: Curve, line: Series, rate: float) -> str:
    """Return the sentence on the number of demos with which a line reaches a rate; empty if the seeds are too
    few.
    """
    found, counts = curve.reach(line, rate), [point.demo_count for point in curve.of_line(line)]
    if not found:
        return ""
    low, high = found.interval
    if not found.reached:
        least = "" if low == math.inf else f"; at best {_demos(low, counts)} demos"
        return f"{rate:g} is not reached with up to {counts[-1]} demos{least}."
    interval = f"{_demos(low, counts)} to {_demos(high, counts)}"
    if high == 0:
        return f"{rate:g} is reached with {_demos(0, counts)} demos (95 % interval)."
    if not found.bounded:
        return (
            f"{rate:g} is reached with {interval} demos: these counts do not bound the number (95 %"
            " interval)."
        )
    return f"{rate:g} is reached with {_demos(found.value, counts)} demos (95 % interval {interval})."


def caption(curve: Curve) -> str:
    """Return the figure's caption: policy, tasks, episodes, training, seeds, errors and the kind of
    intervals.
    """
    sweep, suite = curve.sweep, curve.sweep.get("suite", {})
    counted = sorted({scored.episodes for scored in curve.arms})
    each = f"{counted[0]}" if len(counted) == 1 else f"{counted[0]} to {counted[-1]}"
    tasks = sorted({task for point in curve.points for task in point.by_task})
    said = [
        f"Success of {_policies(curve)} on {', '.join(tasks) if len(tasks) < 4 else f'{len(tasks)} tasks'}"
    ]
    said.append(
        f"{each} held-out episodes per arm, the same for all"
        + (f", at most {_horizon(suite['horizon'])} control steps each" if suite else "")
    )
    if suite:
        said.append(f"success counted {'at the end' if suite['success'] == 'at_end' else 'at any step'}")
    if played_on := simulator_of(curve.tags):
        said.append(f"played on {played_on}")
    if suite.get("select"):
        said.append(f"{_decisions(curve)} on {suite['select']} other episodes per task")
    if trained := trained_for(sweep, curve.costs):
        said.append(f"{trained}, the {curve.checkpoint} checkpoint scored")
    several = len(curve.seeds) > 1
    said.append(f"seeds {', '.join(map(str, curve.seeds))}" + (", one thin line each" if several else ""))
    said.append(f"{curve.errors} errors, none of them counted as a failure" if curve.errors else "no errors")
    if curve.looked_at:
        early = sum(scored.early for scored in curve.arms)
        said.append(
            f"scored until {_words(suite['decide'])} was decided, {early} of {len(curve.arms)} arms (*)"
            " before the end of the list"
        )
    kind = "anytime-valid" if curve.looked_at else "exact"
    bars = f"bars: {kind} 95 % intervals of the pooled episodes"
    said.append(
        bars
        + (
            "; shaded: 95 % with the spread between seeds"
            if any(point.band for point in curve.points)
            else f", {NO_BAND}"
        )
    )
    return "; ".join(said) + f". Protocol {curve.protocol}."


def cost_axis(costs: Sequence[CostReport | None], among: Mapping[str, str] = COST_AXES) -> tuple[str, str]:
    """Return the first kind of cost that any point has spent, with its unit; empty strings if none."""
    return next(
        ((kind, unit) for kind, unit in among.items() if any(cost and getattr(cost, kind) for cost in costs)),
        ("", ""),
    )


# -- parts ---------------------------------------------------------------------------------------------------


def _decisions(curve: Curve) -> str:
    return "decisions" if curve.checkpoint == "last" else "best checkpoints chosen"


def _line(curve: Curve, line: Series) -> SeriesReport:
    factor = curve.data_equivalence(line)
    return SeriesReport(
        series=line,
        label=curve.label(line),
        area=curve.area(line) if len(curve.of_line(line)) > 1 else None,
        reach=tuple(
            ReachReport(found, reach_in_words(curve, line, rate))
            for rate in RATES
            if (found := curve.reach(line, rate))
        ),
        equivalence=EquivalenceReport(factor, equivalence_in_words(curve, line)) if factor else None,
        claim=curve.claim_of(line),
    )


def _arm(curve: Curve, scored: ScoredArm) -> ArmReport:
    return ArmReport(
        arm=scored.arm.name,
        policy=scored.arm.kind,
        demo_count=scored.arm.demo_count,
        action_free_ratio=scored.arm.action_free_ratio,
        seed=scored.arm.seed,
        step=scored.step,
        successes=scored.successes,
        episodes=scored.episodes,
        errors=scored.errors,
        interval=curve.interval(scored.successes, scored.episodes),
        cost=curve.cost_report(scored.cost),
        run_id=scored.run_id,
        early=scored.early,
    )


def video_report(curve: Curve) -> VideoReport | None:
    """Return the imagined videos of a curve and whether success goes with them; None without any."""
    points = tuple(
        CheckpointVideo(scored.arm.name, step, measures)
        for scored in curve.arms
        for step, measures in scored.imagined.items()
    )
    episodes = tuple(
        EpisodeVideo(scored.arm.name, note["episode"], note["task"], note["result"], note["mean_distance"])
        for scored in curve.arms
        for note in scored.films
        if note["mean_distance"] is not None
    )
    if not points and not episodes:
        return None
    found, partial = curve.video_and_success(), curve.video_and_success(given_steps=True)
    text = f"{len(points)} checkpoints: too few, of fewer than {FEWEST_CLUSTERS} arms, or too much alike,"
    text += " for a correlation with success."
    if not points:
        text = (
            "No checkpoint's video was measured on held-out clips (`suite.video_clips`): no correlation with"
        )
        text += " success."
    if found:
        text = (
            f"Better imagined video and more success: rank correlation {_correlated(curve, found)}, over"
            f" {found.number} checkpoints; its interval takes only the {found.clusters} arms as independent."
        )
        text += (
            f" Given training steps: partial rank correlation {_correlated(curve, partial)}."
            if partial
            else " Given training steps: undefined, since steps, success or video do not vary beyond them."
        )
    return VideoReport(VIDEO[2], points, episodes, found, partial, text)


def _correlated(curve: Curve, found: Correlation) -> str:
    """Return a correlation with its interval and verdict, without a full stop."""
    low, high = found.interval
    shown = "they go together" if found.rho > 0 else "they go against each other"
    if low <= 0 <= high:
        shown = "no evidence that they go together"
    if not curve.claim.of_recipe:
        shown += " in these trained policies"
    return f"{found.rho:+.2f} [{low:+.2f}, {high:+.2f}] ({shown})"


def _horizon(horizon: Any) -> str:
    """Return a suite's horizon in words: one number, one per task, or `auto`."""
    if isinstance(horizon, dict):
        numbers = sorted(horizon.values())
        return f"{numbers[0]}" if numbers[0] == numbers[-1] else f"{numbers[0]} to {numbers[-1]}"
    return "the task's own" if horizon == "auto" else f"{horizon}"


def _protocol_facts(curve: Curve) -> tuple[Fact, ...]:
    sweep = curve.sweep
    facts = [("protocol", curve.protocol)]
    for section, names in {
        "suite": ("tasks", "episodes", "horizon", "settle", "success", "gl", "rung", "decide"),
        "train": ("match", "mode", "seconds", "steps", "video_steps", "batch_size", "checkpoint_every"),
    }.items():
        facts += [
            (f"{section}.{name}", _words(sweep[section][name]))
            for name in names
            if sweep.get(section, {}).get(name) not in (None, "", [])
            and not (name == "steps" and sweep[section].get("seconds"))
        ]
    facts += [(name, _words(sweep[name])) for name in ("seeds", "search") if name in sweep]
    facts += [(f"line {line['name']}", _own_settings(line)) for line in curve.policy_lines]
    return tuple(facts)


def _provenance(curve: Curve) -> tuple[Fact, ...]:
    kept = {
        name.removeprefix("demoscale."): value
        for name, value in curve.tags.items()
        if name.startswith("demoscale.")
    }
    own = [
        (name.replace("_", " "), value)
        for name, value in sorted(kept.items())
        if name not in ("arm", "sweep", "subset", "replicates", "protocol", "claim")
    ]
    data = curve.sweep.get("data", {})
    return (
        *([("episodes", data["episodes"])] if "episodes" in data else []),
        *own,
        ("trained on", training_arithmetic(curve.arms)),
        ("acted on", BETWEEN_KINDS.join(acting_arithmetic(curve.arms)) or NOT_RECORDED),
    )


# -- in words ------------------------------------------------------------------------------------------------


def _policies(curve: Curve) -> str:
    """Return the name of the preset, or of several lines."""
    if curve.named:
        return ", ".join(dict.fromkeys(line.policy for line in curve.lines))
    return str(curve.sweep.get("policy", {}).get("preset", "one policy"))


def _own_settings(line: Mapping[str, Any]) -> str:
    """Return a line's policy, and its settings that are not those of the sweep."""
    own = {name: value for name, value in line.items() if name not in ("name", "policy") and value}
    return "; ".join([line["policy"], *(f"{name}: {_words(value)}" for name, value in own.items())])


def _demos(value: float, counts: list[int]) -> str:
    """Return a demo count in words, or on which side of the counts tried it lies."""
    return (
        f"{counts[0]} or fewer"
        if value == 0
        else f"more than {counts[-1]}"
        if value == math.inf
        else f"{value:.0f}"
    )


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(own)}" for name, own in value.items() if own is not None) or "none"
    return ", ".join(map(_words, value)) if isinstance(value, list) else str(value)
