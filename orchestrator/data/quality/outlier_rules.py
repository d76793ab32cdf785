"""Rules of the quality checks that compare episodes with each other: duplicates, and episodes unlike the
others of their task.
"""

import math
from collections import defaultdict
from typing import Any

import numpy as np

from orchestrator.data.quality.findings import Report
from orchestrator.data.quality.traits import Array, Scale, Traits
from orchestrator.data.store_summary import one_line
from orchestrator.data.store_summary_text import amount


def _close(points: Array, tolerance: float) -> list[tuple[int, int]]:
    """Return the pairs of rows whose root mean square difference is at most the tolerance."""
    from scipy.spatial import cKDTree

    if len(points) < 2:
        return []
    width = points.shape[1]
    # a projection never increases a distance
    few = np.linalg.qr(np.random.default_rng(0).normal(size=(width, min(8, width))))[0]
    radius = tolerance * math.sqrt(width)
    pairs = cKDTree(points @ few).query_pairs(radius)
    return sorted((i, j) for i, j in pairs if np.linalg.norm(points[i] - points[j]) <= radius)


def judge_duplicates(report: Report, whole: list[Traits]) -> None:
    """Report near-equal motions of labelled episodes and near-equal films of the others, each once, with the
    first episode like it.
    """
    limits = report.limits
    groups: dict[Any, list[tuple[Traits, Array]]] = defaultdict(list)
    for traits in whole:
        if traits.entry.labelled and traits.vectors:
            both = [vectors.signature.ravel() for _, vectors in sorted(traits.vectors.items())]
            groups["motion", sum(map(len, both))].append((traits, np.concatenate(both)))
        elif not traits.entry.labelled:
            films = [camera.film.ravel() for _, camera in sorted(traits.cameras.items())]
            groups["film", sum(map(len, films))].append((traits, np.concatenate(films)))
    for (kind, _), members in groups.items():
        unit, tolerance = (
            ("ranges", limits.duplicate_motion) if kind == "motion" else ("levels", limits.duplicate_level)
        )
        points = np.array([point for _, point in members], np.float32)
        original: dict[int, int] = {}
        for i, j in _close(points, tolerance):
            one, other = members[i][0].entry, members[j][0].entry
            if abs(one.length - other.length) > max(1, 0.02 * one.length) or i in original or j in original:
                continue
            original[j] = i
            apart = float(np.sqrt(np.mean((points[i] - points[j]) ** 2)))
            what = "actions and proprioception are those" if kind == "motion" else "pictures are those"
            report.add(
                "duplicate",
                other,
                "",
                apart,
                unit,
                f"its {what} of {one.episode_id}, {apart:.2g} {unit} apart",
            )


def judge_lengths_and_distances(report: Report, whole: list[Traits], scales: dict[str, Scale]) -> None:
    """Report episodes whose length or distance from the others of their task is unusual."""
    limits = report.limits
    tasks: dict[str, list[Traits]] = defaultdict(list)
    for traits in whole:
        tasks[traits.entry.task].append(traits)
    for task, members in tasks.items():
        median = float(np.median([traits.entry.length for traits in members]))
        compared = len(members) >= limits.fewest
        unusual = set()
        for traits in members:
            length, said = traits.entry.length, ""
            if compared and length * limits.length_ratio < median:
                said = (
                    f"it has {amount(length, 'step')}, {median / length:.1f} times fewer than the median of"
                    f" {one_line(task)}, {median:g}"
                )
            elif compared and length > limits.length_ratio * median:
                said = (
                    f"it has {amount(length, 'step')}, {length / median:.1f} times the median of"
                    f" {one_line(task)}, {median:g}"
                )
            elif length < limits.shortest_steps:
                said = f"it has {amount(length, 'step')}, {length / traits.entry.hz:.2f} s"
            if said:
                unusual.add(traits.entry.episode_id)
                report.add("length", traits.entry, "", length, "steps", said)
        if not compared:
            continue
        far: dict[int, list[tuple[float, str, float, float]]] = defaultdict(list)
        for name, (values, floor) in _features(members, scales).items():
            places = np.flatnonzero(~np.isnan(values))
            if len(places) < limits.fewest:
                continue
            middle = float(np.median(values[places]))
            deviations = np.abs(values - middle)
            usual = max(
                1.4826 * float(np.median(deviations[places])),
                floor if floor > 0 else -floor * abs(middle),
                1e-9,
            )
            for i in places[deviations[places] > limits.far_deviations * usual]:
                far[int(i)].append((float(deviations[i] / usual), name, float(values[i]), middle))
        for i, reasons in far.items():
            if members[i].entry.episode_id in unusual and all(
                name in ("length", "path") for _, name, _, _ in reasons
            ):
                continue
            reasons.sort(reverse=True)
            distance = reasons[0][0]
            said = "; ".join(
                f"{name} is {value:.3g}, usually {middle:.3g}" for _, name, value, middle in reasons[:2]
            )
            more = f"; and {len(reasons) - 2} more" if len(reasons) > 2 else ""
            said = (
                f"it is {distance:.0f} deviations from the other episodes of {one_line(task)}: {said}{more}"
            )
            report.add("far", members[i].entry, reasons[0][1], distance, "deviations", said)


def _features(members: list[Traits], scales: dict[str, Scale]) -> dict[str, tuple[Array, float]]:
    """Return feature -> (value per episode, NaN where missing; least deviation that counts, negative: as a
    share of the median).
    """
    features: dict[str, tuple[Array, float]] = {
        "length": (np.array([float(traits.entry.length) for traits in members]), -0.1)
    }
    if "action" in scales:
        scale = scales["action"]
        for statistic in ("mean", "std"):
            rows = [
                (
                    getattr(t.vectors["action"], statistic)
                    if "action" in t.vectors
                    else np.full(len(scale.names), np.nan)
                )
                for t in members
            ]
            for d, name in enumerate(scale.names):
                if scale.span[d]:
                    features[f"{statistic} of {name}"] = np.array(rows)[:, d], 0.05 * float(scale.span[d])
    if "proprio" in scales:
        features["path"] = (
            np.array([t.vectors["proprio"].path if "proprio" in t.vectors else np.nan for t in members]),
            -0.1,
        )
    for name in members[0].cameras:
        cameras = [traits.cameras.get(name) for traits in members]
        features[f"brightness of {name}"] = (
            np.array([camera.brightness if camera else np.nan for camera in cameras]),
            5.0,
        )
        pictures = [camera.picture for camera in cameras if camera]
        if len(pictures) == len(members):
            usual = np.median(pictures, axis=0)
            features[f"picture of {name}"] = (
                np.array([float(np.abs(picture - usual).mean()) for picture in pictures]),
                4.0,
            )
    return features
