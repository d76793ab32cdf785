"""Measurements of one episode for the quality checks.

An episode is reduced to `Traits`: a few kilobytes, measured on downsampled gray pictures.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.data.episode_format import Episode
from orchestrator.data.manifest import EpisodeEntry
from orchestrator.data.quality.limits import Limits
from policy.feature_stats import CONSTANT, Stats

Array = npt.NDArray[Any]

GRID = 32
"""Side of a downsampled picture, in cells."""
POINTS = 16
"""Number of times in the signature of a motion."""
HASH_FRAMES = 8
"""Number of frames in the signature of a film."""
FINGERS = re.compile(r"gripper|finger")
QUANTILES = 33
"""Number of quantiles kept of an episode's step sizes."""
TOP_JUMPS = 5
"""Number of jump candidates kept per dimension and episode."""


@dataclass(frozen=True)
class Scale:
    """Ranges of one kind of vector over the whole store, from the manifest, before any episode is read."""

    names: tuple[str, ...]
    low: Array
    high: Array
    span: Array
    """high - low; 0 where a dimension is constant."""

    @classmethod
    def of(cls, stats: Stats | None, names: tuple[str, ...]) -> "Scale | None":
        """Return the ranges of merged statistics; None without statistics. Names of another number are
        replaced by numbers.
        """
        if stats is None:
            return None
        low, high = np.array(stats.low), np.array(stats.high)
        span = np.where(high - low < 2 * CONSTANT, 0.0, high - low)
        fits = len(names) == len(low)
        return cls(names if fits else tuple(f"dimension {i}" for i in range(len(low))), low, high, span)

    @property
    def arm(self) -> list[int]:
        """Indices of all dimensions but the gripper's."""
        return [i for i, name in enumerate(self.names) if not FINGERS.search(name.lower())]

    def ranges(self, values: Array) -> Array:
        """Return vectors in units of the span; constant dimensions become 0."""
        return np.divide(values, self.span, out=np.zeros(values.shape), where=self.span > 0)


@dataclass
class Camera:
    """Measurements of one camera over one episode."""

    brightness: float
    blank: Array
    """Indices of the frames of one colour."""
    blank_brightness: float
    frozen: list[tuple[int, int]]
    """(first, last) frame of each stretch in which nothing changes."""
    repeated: float
    """Share of the faster half of the steps without a new picture; 0 where the repeats do not alternate with
    new pictures.
    """
    lag: tuple[int, float, float] | None
    """(best lag in steps, its correlation, correlation without lag); None where it cannot be measured."""
    picture: Array
    """Mean picture of the episode, at half the grid's resolution."""
    film: Array
    """HASH_FRAMES such pictures spread over the episode, uint8."""


@dataclass
class Vectors:
    """Measurements of the actions or the proprioception of one episode, one number per dimension."""

    low: Array
    high: Array
    mean: Array
    std: Array
    at_low: Array
    """Number of steps at the store's lowest value."""
    at_high: Array
    """Number of steps at the store's highest value."""
    path: float
    """Sum of all steps, in ranges."""
    steps: Array
    """(QUANTILES, D): quantiles of each dimension's step sizes, without those that are noise."""
    jumps: list[tuple[int, int, float]]
    """(dimension, step, size) of steps many times larger than those around them."""
    signature: Array
    """(POINTS, D): values spread over the episode, in ranges."""


@dataclass
class Traits:
    """Measurements kept of one episode."""

    entry: EpisodeEntry
    problem: str = ""
    cameras: dict[str, Camera] = field(default_factory=dict)
    vectors: dict[str, Vectors] = field(default_factory=dict)
    """`action` and `proprio` -> measurements, where recorded in the store's layout."""
    same_cameras: list[tuple[str, str, float]] = field(default_factory=list)
    frozen_proprio: list[tuple[int, int]] = field(default_factory=list)
    idle: tuple[int, int] | None = None
    """(first, last) step of the longest stretch in which nothing moves."""
    sign_changes: Array = field(default_factory=lambda: np.zeros(0, int))
    quaternion_norm: float = 1.0
    """Length of the orientation that is furthest from 1."""
    seconds: tuple[float, float] = (0.0, 0.0)
    """CPU seconds of (decoding, measuring)."""


def gray(frames_LHW3: Array) -> Array:
    """Return the mean of each part of each picture, (L, h, w) float32 with h, w <= GRID.

    Only four pixels of each part of a large picture are read, so that measuring does not cost more than
    decoding.
    """
    height, width = frames_LHW3.shape[1:3]
    rows, columns = min(GRID, height), min(GRID, width)
    part = height // rows, width // columns
    total = np.zeros((len(frames_LHW3), rows, columns), np.uint16)
    picked = [sorted({0, size // 2}) if size > 2 else range(size) for size in part]
    for y in picked[0]:
        for x in picked[1]:
            pixels = frames_LHW3[:, y : rows * part[0] : part[0], x : columns * part[1] : part[1]]
            for channel in range(3):
                total += pixels[..., channel]
    return total.astype(np.float32) / (3 * len(picked[0]) * len(picked[1]))


def _runs(flags: Array) -> list[tuple[int, int]]:
    """Return (first, last) of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(first), int(last) - 1) for first, last in zip(edges[::2], edges[1::2], strict=True)]


def _unchanged(pictures: Array, change: Array, window: int, limits: Limits) -> list[tuple[int, int]]:
    """Return the stretches of at least `window` steps in which each picture equals the one before, without
    drift over a window.
    """
    stretches = []
    # change[i] is the change from frame i to frame i + 1
    for first, last in _runs(change < limits.coded_level):
        if last + 1 - first < window:
            continue
        drift = np.abs(pictures[first + window : last + 2] - pictures[first : last + 2 - window]).max((1, 2))
        exact = np.concatenate([[0], np.cumsum(change[first : last + 1] < limits.same_level)])
        same = (drift < limits.coded_level) & (exact[window:] - exact[:-window] >= limits.same_share * window)
        stretches += [(first + start, first + end + window) for start, end in _runs(same)]
    return stretches


def _coherent(values: Array, scale: Scale) -> float:
    """Return how far the values move, in ranges of the dimension that moves most; noise about one value is no
    motion.
    """
    extent = np.ptp(values, axis=0)
    path = np.abs(np.diff(values, axis=0)).sum(0)
    smooth = path < max(2.0, len(values) / 5) * extent
    return float((scale.ranges(extent) * smooth)[scale.arm].max(initial=0))


def _moves(episode: Episode, scales: dict[str, Scale], limits: Limits, first: int, last: int) -> bool:
    """Return whether the robot moves between frames `first` and `last`."""
    proprio, action = episode.proprio, episode.action
    if proprio is not None and "proprio" in scales and np.ptp(proprio[first : last + 1], axis=0).any():
        return _coherent(proprio[first : last + 1], scales["proprio"]) >= limits.moving_proprio
    # Actions are the fallback where the proprioception is missing or constant; they are weaker evidence: a
    # hand that brakes or grasps has them too.
    return (
        action is not None
        and "action" in scales
        and _coherent(action[first : last + 1], scales["action"]) >= limits.moving_action
    )


def _speed(episode: Episode, scales: dict[str, Scale]) -> Array | None:
    """Return the robot's speed in each step, (L - 1,), from the proprioception, or else the size of the
    actions; None without either.

    Dimensions are weighted by how smoothly they move, so that one that only holds noise does not dominate.
    """
    values = episode.proprio
    if values is None or len(values) < 2:
        action = episode.action
        if action is None or len(action) < 2 or "action" not in scales:
            return None
        scale = scales["action"]
        return np.asarray(np.sqrt((scale.ranges(action)[1:, scale.arm] ** 2).sum(1)))
    steps = np.abs(np.diff(values.astype(np.float64), axis=0))
    path, extent = steps.sum(0), np.ptp(values, axis=0).astype(np.float64)
    used = extent > 2 * CONSTANT
    if "proprio" in scales:
        seen = np.zeros(len(used), bool)
        seen[scales["proprio"].arm] = True
        used &= seen & (scales["proprio"].ranges(extent) > 0.02)
    if not used.any():
        return None
    return np.asarray((steps[:, used] * (extent[used] / path[used] ** 2)).sum(1))


def best_lag(change: Array, speed: Array, reach: int) -> tuple[int, float, float] | None:
    """Return (lag in steps at which picture change follows speed best, its correlation, correlation without
    lag).

    A positive lag means that pictures are late. None for fewer than 24 steps, a reach below one step, or
    pictures or a speed that do not vary.
    """
    reach = min(reach, len(speed) // 3)
    if len(speed) < 24 or reach < 1:
        return None
    if change.std() < 1e-6 or speed.std() < 1e-12:
        return None
    lags, length = np.arange(-reach, reach + 1), len(speed)
    pictures, motion = (
        np.asarray((values - values.mean()) / values.std(), np.float64) for values in (change, speed)
    )
    overlap = length - np.abs(lags)

    def moments(values: Array, first: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation of the overlapping part, per lag."""
        sums, squares = (np.concatenate([[0.0], np.cumsum(values**power)]) for power in (1, 2))
        mean = (sums[first + overlap] - sums[first]) / overlap
        return mean, np.sqrt(
            np.maximum((squares[first + overlap] - squares[first]) / overlap - mean**2, 1e-12)
        )

    (mean, deviation), (mean_motion, deviation_motion) = (
        moments(pictures, np.maximum(lags, 0)),
        moments(motion, np.maximum(-lags, 0)),
    )
    products = np.correlate(pictures, motion, "full")[length - 1 + lags] / overlap
    correlations = (products - mean * mean_motion) / (deviation * deviation_motion)
    best = int(np.lexsort((np.abs(lags), -correlations.round(6)))[0])
    return int(lags[best]), float(correlations[best]), float(correlations[reach])


def _camera(pictures: Array, speed: Array | None, hz: float, limits: Limits) -> Camera:
    steps = np.abs(np.diff(pictures, axis=0))
    largest = steps.max((1, 2), initial=0)
    # every eighth frame is a key frame, which changes all parts a little
    change = np.maximum(steps - 2 * limits.same_level, 0).mean((1, 2))
    means = pictures.mean((1, 2))
    blank = np.flatnonzero(pictures.std((1, 2)) < limits.blank_level)
    repeated = 0.0
    if speed is not None and len(steps) > 1:
        fast = speed > np.median(speed)  # in slow motion two pictures may be equal
        still = largest < limits.same_level
        if fast.any() and (fast & still).any() and (fast & ~still).any():
            as_fast = speed[fast & still].mean() > 0.5 * speed[fast & ~still].mean()
            often = float(still[fast].mean())
            alternating = len(_runs(still & fast)) > 0.1 * len(still)  # a frozen camera is another finding
            repeated = often if as_fast and alternating else 0.0
    spread = np.linspace(0, len(pictures) - 1, HASH_FRAMES).round().astype(int)
    coarse = pictures[:, : len(pictures[0]) // 2 * 2 or 1, : pictures.shape[2] // 2 * 2 or 1]
    if min(coarse.shape[1:]) > 1:
        coarse = (
            coarse[:, ::2, ::2] + coarse[:, 1::2, ::2] + coarse[:, ::2, 1::2] + coarse[:, 1::2, 1::2]
        ) / 4
    return Camera(
        brightness=float(means.mean()),
        blank=blank,
        blank_brightness=float(means[blank].mean()) if len(blank) else 0.0,
        frozen=_unchanged(pictures, largest, max(2, round(hz * limits.frozen_s)), limits),
        repeated=repeated,
        lag=None if speed is None else best_lag(change, speed, round(hz * limits.lag_reach_s)),
        picture=coarse.mean(0),
        film=coarse[spread].round().astype(np.uint8),
    )


def _vectors(values: Array, scale: Scale, limits: Limits, jumpy: bool) -> Vectors:
    values = values.astype(np.float64)
    near = np.maximum(1e-6 * np.maximum(np.abs(scale.low), np.abs(scale.high)), 1e-4 * scale.span)
    steps = np.abs(np.diff(values, axis=0))
    quantiles = np.full((QUANTILES, values.shape[1]), np.nan)
    jumps: list[tuple[int, int, float]] = []
    if jumpy and len(steps):
        padded = np.concatenate([steps[:1].repeat(3, 0), steps, steps[-1:].repeat(3, 0)])
        # the median: a spike is two steps
        around = np.sort(np.lib.stride_tricks.sliding_window_view(padded, 7, axis=0), axis=2)[:, :, 3]
        sudden = (
            (steps > limits.jump_range * scale.span)
            & (steps > limits.jump_neighbours * around)
            & (scale.span > 0)
        )
        ordered = np.sort(steps, axis=0)
        for d in np.flatnonzero(scale.span):
            moved = ordered[
                np.searchsorted(ordered[:, d], limits.idle_step * scale.span[d], side="right") :, d
            ]
            if len(moved):
                quantiles[:, d] = moved[np.linspace(0, len(moved) - 1, QUANTILES).astype(int)]
            largest = np.flatnonzero(sudden[:, d])
            largest = largest[np.argsort(-steps[largest, d], kind="stable")][:TOP_JUMPS]
            jumps += [(int(d), int(t), float(steps[t, d])) for t in largest]
    times = np.linspace(0, len(values) - 1, POINTS).round().astype(int)
    return Vectors(
        low=values.min(0),
        high=values.max(0),
        mean=values.mean(0),
        std=values.std(0),
        at_low=(values <= scale.low + near).sum(0),
        at_high=(values >= scale.high - near).sum(0),
        path=float(scale.ranges(steps).sum()),
        steps=quantiles,
        jumps=jumps,
        signature=scale.ranges(values[times]).astype(np.float32),
    )


def quaternions(names: Sequence[str]) -> list[list[int]]:
    """Return the indices of each group of four successive values whose names contain "quat"."""
    places = [i for i, name in enumerate(names) if "quat" in name.lower()]
    return [places[i : i + 4] for i in range(0, len(places) - 3, 4)] if len(places) % 4 == 0 else []


def examine(episode: Episode, entry: EpisodeEntry, scales: dict[str, Scale], limits: Limits) -> Traits:
    """Measure one decoded episode."""
    given = {name: getattr(episode, name) for name in scales}
    recorded = {
        name: values
        for name, values in given.items()
        if values is not None and values.shape[1:] == scales[name].low.shape
    }
    known = {name: scales[name] for name in recorded}
    traits = Traits(entry)
    traits.vectors = {
        name: _vectors(values, scales[name], limits, name == "proprio") for name, values in recorded.items()
    }
    speed = _speed(episode, known)
    window = max(2, round(entry.hz * limits.frozen_s))
    grids = {name: gray(frames) for name, frames in episode.frames.items()}
    for name, pictures in grids.items():
        camera = _camera(pictures, speed, entry.hz, limits)
        camera.frozen = [
            (first, last) for first, last in camera.frozen if _moves(episode, known, limits, first, last)
        ]
        traits.cameras[name] = camera
    names = list(grids)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            difference = float(np.abs(grids[one] - grids[other]).mean())
            if difference < limits.same_camera_level and len(traits.cameras[one].blank) < episode.length:
                traits.same_cameras.append((one, other, difference))
    proprio, action = recorded.get("proprio"), recorded.get("action")
    if proprio is not None and len(proprio) > 1:
        steps = np.abs(np.diff(proprio.astype(np.float64), axis=0))
        if action is not None:
            for first, last in _runs((steps == 0).all(1)):
                moved = _coherent(action[first : last + 1], known["action"])
                if last + 1 - first >= window and moved >= limits.moving_action:
                    traits.frozen_proprio.append((first, last + 1))
        still = _runs((known["proprio"].ranges(steps) < limits.idle_step).all(1))
        traits.idle = max(still, key=lambda run: run[1] - run[0], default=None)
        for places in quaternions(known["proprio"].names):
            turns = proprio[:, places].astype(np.float64)
            norms = np.linalg.norm(turns, axis=1)
            worst = float(norms[np.abs(norms - 1).argmax()])
            if abs(worst - 1) > abs(traits.quaternion_norm - 1):
                traits.quaternion_norm = worst
            flipped = np.linalg.norm(turns[1:] + turns[:-1], axis=1) < 0.3 * np.linalg.norm(
                turns[1:] - turns[:-1], axis=1
            )
            traits.sign_changes = np.union1d(traits.sign_changes, np.flatnonzero(flipped) + 1)
    return traits
