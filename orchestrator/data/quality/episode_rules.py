"""Rules of the quality checks that judge each episode by its traits and by the ranges of the whole store."""

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from orchestrator.data.quality.findings import Finding, Report
from orchestrator.data.quality.limits import Limits
from orchestrator.data.quality.outlier_rules import judge_duplicates, judge_lengths_and_distances
from orchestrator.data.quality.traits import Array, Scale, Traits, quaternions
from orchestrator.data.store_summary import one_line
from orchestrator.data.store_summary_text import amount
from policy.feature_stats import CONSTANT

SCALED = re.compile(r"_x[\d.]+(m|rad)$|minus1")
"""Names of action dimensions that are scaled to [-1, 1]."""


def judge(seen: Sequence[Traits], scales: dict[str, Scale], limits: Limits) -> list[Finding]:
    """Return findings about the measured episodes, the most severe first."""
    report = Report(limits)
    whole = [traits for traits in seen if not traits.problem]
    for traits in seen:
        if traits.problem:
            report.add("unreadable", traits.entry, "", 0, "", traits.problem)
    for traits in whole:
        _judge_pictures(report, traits)
        _judge_motion(report, traits)
        if not one_line(traits.entry.instruction).strip():
            report.add(
                "instruction", traits.entry, "", 0, "", "it has no instruction, and a policy is given one"
            )
    for kind, scale in scales.items():
        _judge_dimensions(report, whole, kind, scale)
    _judge_jumps(report, whole, scales)
    judge_duplicates(report, whole)
    judge_lengths_and_distances(report, whole, scales)
    return report.sorted(len(seen))


def _judge_pictures(report: Report, traits: Traits) -> None:
    entry, limits, hz = traits.entry, report.limits, traits.entry.hz
    for name, camera in traits.cameras.items():
        share = len(camera.blank) / entry.length
        if share >= limits.blank_share:
            colour = (
                "black"
                if camera.blank_brightness < 16
                else "white"
                if camera.blank_brightness > 239
                else "of one colour"
            )
            said = (
                f"{len(camera.blank)} of {entry.length} pictures are {colour}, the first at step"
                f" {camera.blank[0]}"
            )
            report.add("blank-camera", entry, name, 100 * share, "%", said)
        lag, best, without = camera.lag or (0, 0.0, 0.0)
        lags = (
            abs(lag) >= limits.lag_steps
            and best >= limits.lag_correlation
            and best - without >= limits.lag_gain
        )
        if lags:
            late = (
                f"{abs(lag)} steps ({abs(lag) / hz:.2f} s) {'behind' if lag > 0 else 'ahead of'} the motion"
            )
            said = (
                f"the pictures are {late}: they change with it at correlation {best:.2f}, {without:.2f}"
                " without the lag"
            )
            report.add("lag", entry, name, lag, "steps", said)
        first, last = max(camera.frozen, key=lambda run: run[1] - run[0], default=(0, 0))
        # late pictures stay while a motion begins
        if last - first >= hz * limits.frozen_s + 2 * abs(lag) * lags and last and share < 0.5:
            said = (
                f"the picture stays the same from step {first} to step {last} ({(last - first) / hz:.1f} s)"
                " while the robot moves"
            )
            report.add("frozen-camera", entry, name, last - first, "steps", said)
        elif camera.repeated >= limits.repeated_share and share < 0.5:
            said = (
                f"{100 * camera.repeated:.0f} % of the faster steps bring no new picture: the camera is"
                f" slower than {hz:g} per second"
            )
            report.add("repeated", entry, name, 100 * camera.repeated, "%", said)
    for one, other, difference in traits.same_cameras:
        said = f"it shows the same pictures as {other}, {difference:.1f} gray levels apart"
        report.add("same-camera", entry, one, difference, "levels", said)


def _judge_motion(report: Report, traits: Traits) -> None:
    entry, limits = traits.entry, report.limits
    if traits.frozen_proprio:
        first, last = max(traits.frozen_proprio, key=lambda run: run[1] - run[0])
        said = (
            f"no value changes from step {first} to step {last} ({(last - first) / entry.hz:.1f} s) while the"
            " actions do"
        )
        report.add("frozen-proprio", entry, "", last - first, "steps", said)
    elif traits.idle:
        still = traits.idle[1] - traits.idle[0] + 1
        if still >= limits.idle_s * entry.hz and still >= limits.idle_share * entry.length:
            said = (
                f"nothing moves from step {traits.idle[0]} for {still / entry.hz:.1f} s,"
                f" {100 * still / entry.length:.0f} % of the episode"
            )
            report.add("idle", entry, "", still, "steps", said)
    if len(traits.sign_changes):
        count, first = len(traits.sign_changes), traits.sign_changes[0]
        said = (
            f"the orientation changes its sign {amount(count, 'time')}, first at step {first}: the same pose"
            " in other numbers"
        )
        report.add("quaternion", entry, "quaternion sign", count, "times", said)
    if abs(traits.quaternion_norm - 1) > limits.quaternion_norm:
        said = f"an orientation has length {traits.quaternion_norm:.3g} where a quaternion has 1"
        report.add("quaternion", entry, "quaternion length", traits.quaternion_norm, "", said)


def _judge_dimensions(report: Report, whole: list[Traits], kind: str, scale: Scale) -> None:
    """Report dimensions that are constant, saturated, clipped or out of range."""
    limits, having = report.limits, [traits for traits in whole if kind in traits.vectors]
    if not having:
        return
    vectors = [traits.vectors[kind] for traits in having]
    lengths = np.array([traits.entry.length for traits in having])
    low, high = (np.array([getattr(one, name) for one in vectors]) for name in ("low", "high"))
    at_low, at_high = (np.array([getattr(one, name) for one in vectors]) for name in ("at_low", "at_high"))
    still = high - low <= np.maximum(2 * CONSTANT, 1e-4 * scale.span)
    word = "action" if kind == "action" else "proprioceptive"
    fixed = [
        d for d in range(len(scale.names)) if not scale.span[d] and not _is_gripper(kind, scale.names[d])
    ]
    if fixed:
        names = ", ".join(scale.names[d] for d in fixed)
        verb = "changes" if len(fixed) == 1 else "change"
        said = f"{amount(len(fixed), f'{word} dimension')} never {verb} in the whole store: {names}"
        report.add("constant", None, names, len(fixed), "dimensions", said, severity="low")
    for d, name in enumerate(scale.names):
        if _is_gripper(kind, name):
            _judge_gripper(report, having, scale, d, high[:, d] - low[:, d])
        elif scale.span[d] and len(having) >= 4 and 0 < still[:, d].mean() <= limits.constant_elsewhere:
            for i in np.flatnonzero(still[:, d]):
                said = (
                    f"it stays at {low[i, d]:.4g} in all steps; in other episodes it goes from"
                    f" {scale.low[d]:.4g} to {scale.high[d]:.4g}"
                )
                report.add("constant", having[i].entry, name, low[i, d], "", said)
        if kind != "action":
            continue
        if SCALED.search(name):
            reach = np.maximum(np.abs(low[:, d]), np.abs(high[:, d]))
            for i in np.flatnonzero(reach > 1.001):
                said = (
                    f"it reaches {reach[i]:.3g}, and its name says that it is scaled to [-1, 1]; the"
                    " simulator cuts it off there"
                )
                report.add("beyond", having[i].entry, name, reach[i], "", said)
        if not scale.span[d]:
            continue
        ends = [
            (bound, at)
            for bound, at in ((scale.low[d], at_low[:, d]), (scale.high[d], at_high[:, d]))
            if abs(bound) > 1e-9
        ]
        total = (at_low[:, d] + at_high[:, d]).sum() / lengths.sum()
        if total >= limits.two_valued_share and at_low[:, d].any() and at_high[:, d].any():
            continue  # a switch, at its limits by design
        at_end: Array = (
            np.sum([at for _, at in ends], axis=0) * ~still[:, d] if ends else np.zeros(len(having))
        )
        share = at_end / lengths
        for i in np.flatnonzero(share >= limits.saturated_share):
            bound = max(ends, key=lambda end: int(end[1][i]))[0]
            said = f"it is at its limit, mostly {bound:.4g}, in {100 * share[i]:.0f} % of the steps"
            report.add("saturated", having[i].entry, name, 100 * share[i], "%", said)
        for bound, at in ends:
            often, reached = at.sum() / lengths.sum(), int((at > 0).sum())
            if often >= limits.clipped_share and len(having) >= 4 and 2 * reached >= len(having):
                where = f"in {reached} of {amount(len(having), 'episode')}, {100 * often:.0f} % of all steps"
                said = f"it ends at exactly {bound:.4g} {where}: it was cut off there"
                report.add("clipped", None, name, 100 * often, "%", said)


def _is_gripper(kind: str, name: str) -> bool:
    return kind == "action" and "gripper" in name.lower()


def _judge_gripper(report: Report, having: list[Traits], scale: Scale, d: int, extent: Array) -> None:
    name = scale.names[d]
    if not scale.span[d]:
        report.add(
            "gripper",
            None,
            name,
            scale.low[d],
            "",
            f"the gripper's action is {scale.low[d]:.4g} in every step of the whole store",
        )
        return
    for i in np.flatnonzero(extent < report.limits.gripper_share * scale.span[d]):
        value = having[i].vectors["action"].mean[d]
        report.add(
            "gripper",
            having[i].entry,
            name,
            value,
            "",
            f"the gripper never moves: its action stays at {value:.3g}",
        )


def _judge_jumps(report: Report, whole: list[Traits], scales: dict[str, Scale]) -> None:
    having = [traits for traits in whole if "proprio" in traits.vectors]
    if not having:
        return
    limits, scale = report.limits, scales["proprio"]
    steps = np.concatenate([traits.vectors["proprio"].steps for traits in having])
    turned = {d for places in quaternions(scale.names) for d in places}
    # (place of the episode, step) -> dimensions
    jumps: dict[tuple[int, int], list[tuple[float, str, float]]] = defaultdict(list)
    for d, name in enumerate(scale.names):
        sizes = steps[~np.isnan(steps[:, d]), d]
        if not len(sizes):
            continue
        usual = float(np.median(sizes))
        beyond = usual + limits.jump_deviations * 1.4826 * float(np.median(np.abs(sizes - usual)))
        for i, traits in enumerate(having):
            for at, t, size in traits.vectors["proprio"].jumps:
                if at == d and size > beyond and not (d in turned and t + 1 in traits.sign_changes):
                    jumps[i, t].append((size / usual, name, size))
    for i, of_episode in _by_episode(jumps).items():
        t, dimensions = max(of_episode, key=lambda jump: max(jump[1]))
        times, name, size = max(dimensions)
        more = f"; {amount(len(of_episode), 'such step')} in all" if len(of_episode) > 1 else ""
        said = (
            f"from step {t} to step {t + 1} {name} jumps by {size:.3g}, {times:.0f} times the usual"
            f" step{more}"
        )
        report.add(
            "jump", having[i].entry, ", ".join(name for _, name, _ in dimensions), times, "times", said
        )


def _by_episode(
    jumps: dict[tuple[int, int], list[tuple[float, str, float]]],
) -> dict[int, list[tuple[int, list[tuple[float, str, float]]]]]:
    grouped: dict[int, list[tuple[int, list[tuple[float, str, float]]]]] = defaultdict(list)
    for (i, t), dimensions in sorted(jumps.items()):
        grouped[i].append((t, dimensions))
    return grouped
