"""Quality checks of demonstrations before GPU-hours are spent on them: `demoscale data check`.

Each episode is fetched and decoded once, in a thread, and reduced to `Traits`: a few kilobytes, measured on
downsampled gray pictures. `judge` compares the traits of all episodes with each other and with `Limits`, and
returns findings. Nothing is written.
"""

import io
import math
import re
import textwrap
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.data.episode_format import Episode, EpisodeError, decode
from orchestrator.data.episode_store import fetch
from orchestrator.data.manifest import EpisodeEntry, Manifest, in_tuples
from orchestrator.data.store_summary import merged, one_line
from orchestrator.data.store_summary_text import amount
from orchestrator.storage.base import Storage, StorageError
from policy.feature_stats import CONSTANT, Stats

Array = npt.NDArray[Any]

KINDS = {
    "unreadable": ("high", "the episode cannot be read or decoded"),
    "blank-camera": ("high", "pictures of one even colour, black for example"),
    "frozen-camera": ("high", "the same picture for a second or more while the robot moves"),
    "frozen-proprio": ("high", "the same proprioception for a second or more while the actions change"),
    "same-camera": ("high", "two cameras show the same pictures"),
    "lag": ("high", "pictures follow the motion late or come before it"),
    "gripper": ("medium", "the gripper's action never changes"),
    "jump": ("medium", "one step of the proprioception is many times the usual step"),
    "quaternion": (
        "medium",
        "an orientation changes its sign from one step to the next, or is not of length 1",
    ),
    "beyond": ("medium", "an action that is scaled to [-1, 1] reaches further"),
    "saturated": ("medium", "an action is at its limit in most steps of an episode"),
    "repeated": ("medium", "the camera gives fewer pictures than there are steps"),
    "duplicate": ("medium", "an episode that repeats another"),
    "constant": ("medium", "a dimension that does not change, in an episode or in the whole store"),
    "clipped": ("low", "an action is cut off at one value throughout the store"),
    "length": ("low", "an episode far shorter or longer than the others of its task"),
    "idle": ("low", "the robot stands still for a large part of the episode"),
    "far": ("low", "an episode unlike the others of its task"),
    "instruction": ("low", "an episode without an instruction"),
}
"""Kind of finding -> (severity, meaning)."""
SEVERITIES = ("high", "medium", "low")
GRID = 32
"""Side of a downsampled picture, in cells."""
# times in a motion's signature; side in cells and number of frames of a film's
POINTS, HASH_SIDE, HASH_FRAMES = 16, 16, 8
SCALED = re.compile(r"_x[\d.]+(m|rad)$|minus1")
"""Names of action dimensions that are scaled to [-1, 1]."""
FINGERS = re.compile(r"gripper|finger")
QUANTILES = 33  # quantiles kept of an episode's step sizes
TOP_JUMPS = 5  # jump candidates kept per dimension and episode


@dataclass(frozen=True)
class Limits:
    """Thresholds of the findings. Shares are fractions of 1; ranges are those of a dimension over the whole
    store.
    """

    frozen_s: float = 1.0
    """Seconds without change from which a camera or a proprioception counts as frozen."""
    same_level: float = 1.0
    """Gray levels, of 255: largest change of any part of an unchanged picture."""
    coded_level: float = 5.0
    """Gray levels: the same limit where a key frame encodes an unchanged picture again, every eighth
    frame.
    """
    same_share: float = 0.6
    """Minimum share of a frozen stretch's steps that stay within `same_level`, which key frames may
    exceed.
    """
    moving_proprio: float = 0.15
    """Share of its range that a proprioceptive value covers where the robot moves; a gripper alone is hardly
    visible.
    """
    moving_action: float = 0.25
    """Share of its range that an action covers where the robot moves."""
    blank_level: float = 2.5
    """Standard deviation in gray levels below which a picture is of one colour."""
    blank_share: float = 0.05
    """Share of an episode's pictures from which pictures of one colour are a finding."""
    repeated_share: float = 0.3
    """Share of the faster half of the steps that bring no new picture, from which it is a finding."""
    same_camera_level: float = 1.0
    """Mean difference in gray levels below which two cameras show the same."""
    lag_steps: int = 2
    """Steps of delay or advance from which a lag is a finding."""
    lag_correlation: float = 0.7
    """Minimum correlation of picture change and speed at the lag."""
    lag_gain: float = 0.15
    """Minimum gain of that correlation over the one without lag."""
    lag_reach_s: float = 1.0
    """Longest lag that is tried, in seconds."""
    saturated_share: float = 0.5
    """Share of an episode's steps at a limit from which a dimension is saturated."""
    clipped_share: float = 0.25
    """Share of the store's steps at one limit from which a dimension is clipped."""
    two_valued_share: float = 0.9
    """Share of steps at either limit from which a dimension is a switch, such as a gripper, which is at its
    limits by design.
    """
    constant_elsewhere: float = 0.25
    """Share of the episodes above which a dimension's being constant is no finding in one of them."""
    gripper_share: float = 0.1
    """Minimum share of its range that a moving gripper covers."""
    jump_deviations: float = 8.0
    """Scaled median absolute deviations beyond the store's usual step from which a step is a jump."""
    jump_neighbours: float = 5.0
    """Minimum ratio of a jump to the steps around it."""
    jump_range: float = 0.05
    """Minimum share of the range that a jump covers."""
    quaternion_norm: float = 0.05
    """Largest deviation from 1 of an orientation's length."""
    duplicate_motion: float = 0.01
    """Root mean square difference, in ranges, below which two motions are the same."""
    duplicate_level: float = 1.5
    """Root mean square difference, in gray levels, below which two action-free films are the same."""
    shortest_steps: int = 8
    """Minimum steps of an episode."""
    length_ratio: float = 3.0
    """Largest ratio, either way, of an episode's length to the median of its task."""
    idle_step: float = 0.001
    """Largest share of its range that a value moves in one step where the robot stands still."""
    idle_s: float = 2.0
    """Minimum seconds of standing still that are a finding, if they are also `idle_share` of the episode."""
    idle_share: float = 0.4
    """Minimum share of the episode that is spent standing still, for a finding."""
    far_deviations: float = 8.0
    """Scaled median absolute deviations from the median of the task from which an episode is far from the
    others.
    """
    fewest: int = 8
    """Episodes of a task below which its episodes are not compared with each other."""
    systematic: float = 0.5
    """Share of the episodes above which a finding that they have in common is reported once."""


@dataclass(frozen=True)
class Finding:
    """One problem found by a check."""

    severity: str
    kind: str
    episodes: tuple[str, ...]
    """Ids of the episodes concerned; empty for the whole store."""
    where: str
    """Name of the camera or dimension, or empty."""
    value: float
    unit: str
    sentence: str

    @property
    def scope(self) -> str:
        """Id of the only episode, or the number of episodes."""
        return (
            self.episodes[0]
            if len(self.episodes) == 1
            else amount(len(self.episodes), "episode")
            if self.episodes
            else "whole store"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields and `episode`, the id if exactly one is affected, else None; JSON-safe."""
        return asdict(self) | {"episode": self.episodes[0] if len(self.episodes) == 1 else None}


# -- measuring one episode -----------------------------------------------------------------------------------


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


def _quaternions(names: Sequence[str]) -> list[list[int]]:
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
        for places in _quaternions(known["proprio"].names):
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


# -- a whole store -------------------------------------------------------------------------------------------


def scales_of(manifest: Manifest) -> dict[str, Scale]:
    """Return the ranges of actions and proprioception over the whole store, from the manifest alone."""
    contract = manifest.contract
    found = {
        name: Scale.of(merged(manifest, name), getattr(contract, name)) for name in ("action", "proprio")
    }
    return {name: scale for name, scale in found.items() if scale is not None}


def look(
    storage: Storage, entries: Iterable[EpisodeEntry], scales: dict[str, Scale], limits: Limits, workers: int
) -> Iterator[Traits]:
    """Fetch, decode and measure every episode once, in threads, and yield its traits in order.

    An episode that cannot be read or decoded yields traits with a `problem`. Raises StorageError.
    """

    def one(entry: EpisodeEntry) -> Traits:
        started = time.thread_time()
        try:
            episode = decode(fetch(storage, entry), entry.cameras, with_actions=entry.labelled)
            decoded = time.thread_time()
            traits = examine(episode, entry, scales, limits)
        except EpisodeError as error:
            return Traits(entry, problem=str(error))
        except StorageError:  # it concerns all episodes
            raise
        except Exception as error:  # any error of a decoder concerns this episode alone
            return Traits(
                entry,
                problem=(
                    f"episode {entry.episode_id} cannot be decoded ({type(error).__name__}:"
                    f" {one_line(str(error))})"
                ),
            )
        traits.seconds = decoded - started, time.thread_time() - decoded
        return traits

    with ThreadPoolExecutor(workers) as pool:
        for some in in_tuples(entries, 16 * workers):  # in batches: a store may be larger than memory
            yield from pool.map(one, some)


@dataclass
class _Report:
    """Collector of findings."""

    limits: Limits
    found: list[Finding] = field(default_factory=list)

    def add(
        self,
        kind: str,
        entry: EpisodeEntry | None,
        where: str,
        value: float,
        unit: str,
        sentence: str,
        severity: str = "",
    ) -> None:
        episodes = () if entry is None else (entry.episode_id,)
        self.found.append(
            Finding(severity or KINDS[kind][0], kind, episodes, where, round(float(value), 4), unit, sentence)
        )

    def sorted(self, episodes: int) -> list[Finding]:
        """Return the findings by severity; one that most episodes share is reported once."""
        groups: dict[tuple[str, str, bool], list[Finding]] = defaultdict(list)
        for finding in self.found:
            groups[finding.kind, finding.where, not finding.episodes].append(finding)
        said = []
        for (*_, whole), some in groups.items():
            if whole or len(some) <= max(3, self.limits.systematic * episodes):
                said += some
                continue
            worst = max(some, key=lambda finding: abs(finding.value))
            ids = tuple(dict.fromkeys(episode for finding in some for episode in finding.episodes))
            sentence = (
                f"in {len(ids)} of {amount(episodes, 'episode')}; in {worst.episodes[0]}: {worst.sentence}"
            )
            said.append(replace(worst, episodes=ids, sentence=sentence))
        order = list(KINDS)
        return sorted(
            said, key=lambda f: (SEVERITIES.index(f.severity), order.index(f.kind), f.episodes[:1], f.where)
        )


def judge(seen: Sequence[Traits], scales: dict[str, Scale], limits: Limits) -> list[Finding]:
    """Return findings about the measured episodes, the most severe first."""
    report = _Report(limits)
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
    _judge_duplicates(report, whole)
    _judge_lengths_and_distances(report, whole, scales)
    return report.sorted(len(seen))


def _judge_pictures(report: _Report, traits: Traits) -> None:
    entry, limits, hz = traits.entry, report.limits, traits.entry.hz
    for name, camera in traits.cameras.items():
        share = len(camera.blank) / entry.length
        if share >= limits.blank_share:
            look = (
                "black"
                if camera.blank_brightness < 16
                else "white"
                if camera.blank_brightness > 239
                else "of one colour"
            )
            said = (
                f"{len(camera.blank)} of {entry.length} pictures are {look}, the first at step"
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


def _judge_motion(report: _Report, traits: Traits) -> None:
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


def _judge_dimensions(report: _Report, whole: list[Traits], kind: str, scale: Scale) -> None:
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


def _judge_gripper(report: _Report, having: list[Traits], scale: Scale, d: int, extent: Array) -> None:
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


def _judge_jumps(report: _Report, whole: list[Traits], scales: dict[str, Scale]) -> None:
    having = [traits for traits in whole if "proprio" in traits.vectors]
    if not having:
        return
    limits, scale = report.limits, scales["proprio"]
    steps = np.concatenate([traits.vectors["proprio"].steps for traits in having])
    turned = {d for places in _quaternions(scale.names) for d in places}
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


# -- comparing episodes --------------------------------------------------------------------------------------


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


def _judge_duplicates(report: _Report, whole: list[Traits]) -> None:
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


def _judge_lengths_and_distances(report: _Report, whole: list[Traits], scales: dict[str, Scale]) -> None:
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


# -- a check -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checked:
    """Findings and cost of a check."""

    findings: list[Finding]
    episodes: int
    frames: int
    successes: dict[str, int]
    """Number of episodes by success flag: `succeeded`, `failed`, `unknown`."""
    decoding_s: float
    """CPU seconds of decoding."""
    looking_s: float
    """CPU seconds of measuring and comparing, in addition to decoding."""


def check(
    storage: Storage,
    manifest: Manifest,
    entries: Iterable[EpisodeEntry],
    limits: Limits | None = None,
    workers: int = 1,
    ignored: Iterable[str] = (),
    done: Callable[[], None] = lambda: None,
) -> Checked:
    """Check some episodes of a store for problems.

    Args:
        storage: storage of the episodes; it is only read.
        manifest: version of the store that the episodes belong to; ranges of dimensions are those of all its
            episodes.
        entries: episodes to check.
        limits: thresholds of the findings; None for the defaults.
        workers: number of threads.
        ignored: kinds of findings, of `KINDS`, that are left out.
        done: called after each episode.

    Raises StorageError if the storage fails.
    """
    limits, scales, seen = limits or Limits(), scales_of(manifest), []
    for traits in look(storage, entries, scales, limits, workers):
        seen.append(traits)
        done()
    started = time.thread_time()
    hidden = set(ignored)
    findings = [finding for finding in judge(seen, scales, limits) if finding.kind not in hidden]
    judged = time.thread_time() - started
    words = {True: "succeeded", False: "failed", None: "unknown"}
    flags = Counter(words[traits.entry.success] for traits in seen)
    decoding, looking = (sum(traits.seconds[i] for traits in seen) for i in (0, 1))
    frames = sum(traits.entry.length for traits in seen)
    return Checked(
        findings,
        len(seen),
        frames,
        {word: flags[word] for word in words.values()},
        decoding,
        looking + judged,
    )


def concerned(findings: Sequence[Finding], most: int) -> dict[str, list[Finding]]:
    """Return the first `most` episodes with findings, the most severe first, and their findings.

    A finding in many episodes counts for its first three.
    """
    chosen: dict[str, list[Finding]] = {}
    for finding in findings:
        for episode in finding.episodes[:3]:
            if episode in chosen or len(chosen) < most:
                chosen.setdefault(episode, []).append(finding)
    return chosen


def findings_sheet(rows: Sequence[tuple[str, list[Array], str]], columns: int = 2) -> bytes:
    """Return a PNG with a panel per (title, pictures, text): the pictures side by side, the text
    under them.
    """
    from matplotlib.figure import Figure

    columns = min(columns, len(rows))
    lines = [textwrap.fill(text, 76, replace_whitespace=False).splitlines()[:4] for _, _, text in rows]
    deep = math.ceil(len(rows) / columns)
    figure = Figure(figsize=(5.2 * columns, 2.7 * deep), dpi=100, layout="constrained")
    parts = np.asarray(figure.subfigures(deep, columns, squeeze=False)).ravel()
    for part, (title, pictures, _), text in zip(parts, rows, lines, strict=False):
        part.suptitle(title, fontsize=8)
        part.supxlabel("\n".join(text).replace("$", r"\$"), fontsize=7)
        for place, picture in zip(part.subplots(1, len(pictures), squeeze=False).flat, pictures, strict=True):
            place.axis("off")
            place.imshow(picture, interpolation="nearest", vmin=0, vmax=255)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def pictured(
    storage: Storage, entry: EpisodeEntry, findings: Sequence[Finding]
) -> tuple[str, list[Array], str]:
    """Return an episode's first, middle and last frame as a row of the sheet, of the camera that its most
    severe finding is about.
    """
    camera = next((finding.where for finding in findings if finding.where in entry.cameras), entry.cameras[0])
    try:
        frames = decode(
            fetch(storage, entry),
            (camera,),
            with_actions=False,
            wanted=sorted({0, entry.length // 2, entry.length - 1}),
        ).frames[camera]
    except Exception:  # an unreadable episode has a finding of its own
        frames = np.zeros((1, *entry.image_size, 3), np.uint8)
    text = "\n".join(f"{finding.kind} {finding.where}: {finding.sentence}" for finding in findings)
    return f"{entry.episode_id}, {camera}", list(frames), text
