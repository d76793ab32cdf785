"""Importer of MCAP recordings (ROS 2 bags, Foxglove), one episode per recording.

    SRC/<name>.mcap                        a recording
    SRC/<name>/metadata.yaml, *.mcap       a rosbag2 folder: one recording, its files in the order that
                                           metadata.yaml lists

Topics have different rates, so messages are resampled: to `--hz` steps per second, from the first camera's
first picture after all chosen topics have begun until one of them ends. With T seconds from a step to the
next, the step at time t has

    pictures          the nearest, within T / 2, or further between two pictures that are at most 1.5 T apart
                      (a camera that drifts or jitters);
    proprioception    the last message at or before t;
    action            the first message in [t, t + T), or else the last one before t, which is still in force.

A held message is older than its topic's median distance by at most 1.5 T. A recording that breaks one of
these rules is left out. Times are header stamps where all chosen topics have one in every message and their
stamps are of one clock, and log times otherwise: never both in one recording, since two clocks may differ by
any amount. Vectors are named by topic, or by TOPIC:FIELD (`/joint_states:velocity`, `/pose:pose.position`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml

from orchestrator.data.image_scaling import resized
from orchestrator.data.importers.base import EpisodeInfo, ImportOptions, Item, RawEpisode, Source, SourceInfo
from orchestrator.data.importers.conventions import (
    chosen_cameras,
    native_rate,
    orientation,
    renamed_actions,
    source_info,
    store_rate,
)
from orchestrator.data.importers.image_ops import Numbers, Pictures, kept_frames, turned
from orchestrator.data.importers.items import build_items, examined, label_of, unusable
from orchestrator.data.importers.mcap_messages import (
    CAMERA_KINDS,
    TopicSeries,
    camera_name,
    pictures,
    places_of,
    scan,
)
from orchestrator.data.importers.source_files import MCAP_SUFFIXES, SourceError, contained, visible
from sim_workers.envs.tasks import TASKS

LONGEST_GAP = 1.5
"""Largest gap between two pictures, in steps, that allows one more than half a step off; steps that a held
message may be overdue.
"""
ROUNDING_NS = 1000
"""Nanoseconds by which an action may precede its step, since the times of steps are rounded."""
CLOCKS_APART_NS = 500_000_000
"""Nanoseconds between the median delays, from stamp to log, of two topics above which their clocks differ."""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Messages and values of one episode."""

    files: list[Path]
    topics: dict[str, str]
    """Camera of the source -> its topic."""
    pictures: dict[str, Numbers]
    """Camera -> per frame, the index of its picture among the messages of its topic."""
    sums: dict[str, Numbers]
    """Camera -> per frame, the checksum of its picture."""
    sizes: dict[str, tuple[int, int]]
    proprio: npt.NDArray[np.float32] | None
    """(N, P) values; None without proprioception."""
    action: npt.NDArray[np.float32] | None
    """(N, A) values; None without actions."""
    names: tuple[tuple[str, ...], tuple[str, ...]]
    """Names of the values of (proprioception, action)."""
    clock: str
    rows: int
    """Number of steps N at --hz."""

    def shown(self, wanted: dict[str, set[int]]) -> Iterator[tuple[str, int, Pictures]]:
        """Decode the pictures at those indices, per camera, in the order of the files."""
        sums = {
            camera: dict(zip(numbers.tolist(), self.sums[camera].tolist(), strict=True))
            for camera, numbers in self.pictures.items()
        }
        return pictures(self.files, self.topics, wanted, sums)

    def ordered(self, proprio: tuple[str, ...], action: tuple[str, ...]) -> "_Plan":
        """Return the plan with its values in the order of those names. Raises ValueError if it has others."""
        mine = self.names
        return replace(
            self,
            proprio=None if self.proprio is None else self.proprio[:, places_of(mine[0], proprio)],
            action=None if self.action is None else self.action[:, places_of(mine[1], action)],
            names=(proprio, action),
        )


@dataclass(frozen=True)
class McapReader:
    """Reader of a recording, or of a folder of them."""

    plans: dict[str, _Plan]
    """Episode -> its messages and values."""

    def read(self, item: Item, info: SourceInfo) -> RawEpisode:
        """Return an episode, pictures upright and scaled; SourceError or ValueError if it is damaged."""
        plan, size = self.plans[item.name], info.contract.image_size
        frames = {camera: np.empty((item.length, *size, 3), np.uint8) for camera in info.cameras}
        for camera, number, picture in plan.shown(
            {camera: set(numbers.tolist()) for camera, numbers in plan.pictures.items()}
        ):
            frames[camera][plan.pictures[camera] == number] = resized(
                turned(picture[None], info.stored), size
            )[0]
        return RawEpisode(frames=frames, rows=plan.rows, proprio=plan.proprio, action=plan.action)

    def first_pictures(self, item: Item, info: SourceInfo) -> dict[str, Pictures]:
        """Return one (H, W, 3) picture per camera as stored."""
        plan = self.plans[item.name]
        return {
            camera: picture
            for camera, _, picture in plan.shown(
                {camera: {int(numbers[0])} for camera, numbers in plan.pictures.items()}
            )
        }


def open_mcap(root: Path, reading: ImportOptions) -> Source:
    """Read every recording once without decoding pictures.

    Raises SourceError if an option or a package is missing, or no recording can be used.
    """
    try:
        import mcap  # noqa: F401
        import mcap_protobuf  # noqa: F401
        import mcap_ros2  # noqa: F401
    except ImportError:
        raise SourceError(
            f"{root}: MCAP is read with the packages mcap, mcap-ros2-support and mcap-protobuf-support; pip"
            " install 'demoscale[mcap]'"
        ) from None
    if reading.action_free:
        reading = replace(reading, action=None)
    reading = replace(
        reading,
        cameras={key: camera_name(name) if name == key else name for key, name in reading.cameras.items()},
    )
    stored, questions = orientation(root.name, reading)
    native_hz = native_rate(str(root), None, reading)
    hz = store_rate(str(root), native_hz, bool(reading.action), reading)
    recordings, files = _recordings(root), dict[str, list[Path]]()

    def scanned(name: str) -> dict[str, TopicSeries]:
        files[name] = _files(recordings[name])
        return scan(files[name], reading)

    found, left_out = examined(root.name, recordings, scanned)
    problems = list(left_out.values())
    offered = {
        key: series for bag in reversed(found.values()) for key, series in bag.items() if not series.fault
    }
    if not reading.cameras:
        faults = dict.fromkeys(
            (series.topic, series.fault)
            for bag in found.values()
            for series in bag.values()
            if series.kind in CAMERA_KINDS and series.fault
        )
        problems += [f"{root.name}, {topic}: {fault}; passed over" for topic, fault in faults]
    cameras: dict[str, str] = {}
    if found:
        cameras = _cameras(root, offered, problems, reading)
        questions += _unnamed(root, offered, reading)
    plans, unplanned = examined(
        root.name, found, lambda name: _plan(files[name], found[name], cameras, reading, hz)
    )
    problems += unplanned.values()
    left_out |= unplanned
    if not plans:
        raise SourceError(
            f"{root}: none of its recordings can be used."
            f" {'; '.join([*left_out.values()][:5]) or 'It holds none'}"
        )
    proprio, action = next(iter(plans.values())).names
    info = source_info(
        str(root),
        reading,
        format="MCAP",
        name=root.name,
        label=label_of(root, reading),
        cameras=cameras,
        sizes={
            f"{name}, {camera}": size for name, plan in plans.items() for camera, size in plan.sizes.items()
        },
        stored=stored,
        native_hz=native_hz,
        labelled=bool(reading.action),
        proprio=proprio,
        action=action,
    )
    ordered: dict[str, _Plan] = {}

    def describe(name: str) -> EpisodeInfo:
        plan = ordered[name] = plans[name].ordered(proprio, action)
        task = reading.task or ""
        instruction = reading.instruction or TASKS.get(task, "")
        return EpisodeInfo(
            rows=plan.rows,
            picture_size=next(iter(plan.sizes.values())),
            task=task,
            instruction=instruction,
            content=(
                *plan.pictures.values(),
                *plan.sums.values(),
                plan.proprio,
                plan.action,
                *info.choices,
                native_hz,
                info.contract.control_hz,
                (proprio, action),
                task,
                instruction,
            ),
            note=f"; moments by {plan.clock}",
        )

    listing = build_items(info, dict.fromkeys(plans, 0), describe)
    largest = max(
        float(np.abs(plan.action[:, :-1]).max(initial=0)) if plan.action is not None else 0.0
        for plan in plans.values()
    )
    # `--deltas` alone asks for one message per step (`_plan`)
    deltas = reading.deltas if reading.panda or not reading.deltas else None
    renamed, more = renamed_actions(info, largest, replace(reading, deltas=deltas))
    items = listing.items + [unusable(name, 0, info.labelled, problem) for name, problem in left_out.items()]
    return Source(
        info=renamed,
        reader=McapReader(ordered),
        items=sorted(items, key=lambda item: item.name),
        problems=problems + listing.problems,
        questions=questions + more,
    )


def _cameras(
    root: Path, offered: dict[str, TopicSeries], problems: list[str], reading: ImportOptions
) -> dict[str, str]:
    """Return camera of the source -> name in the store. Raises SourceError if no topic has pictures."""
    topics = {key for key, series in offered.items() if series.kind in CAMERA_KINDS}
    available = sorted(map(camera_name, topics))
    named = [key for key in reading.cameras if key in topics]
    cameras = chosen_cameras(str(root), dict.fromkeys([*available, *named]), reading)
    if not cameras:
        raise SourceError(
            f"{root}: it has no pictures among its topics;"
            f" {'; '.join(problems) or 'no topic has a type of pictures'}"
        )
    return cameras


def _unnamed(root: Path, offered: dict[str, TopicSeries], reading: ImportOptions) -> list[str]:
    """Return a question for each missing option that an import needs."""
    listed = ", ".join(
        f"{key} ({len(series.names)})"
        for key, series in sorted(offered.items())
        if series.kind not in CAMERA_KINDS
    )
    vectors = f"topics with vectors and their number of values: {listed or 'none'}"
    questions = []
    if not (reading.action or reading.action_free):
        questions.append(
            f"{root.name}: say which topic is the action with --action, or add --action-free; {vectors}"
        )
    if not (reading.proprio or reading.action_free):
        questions.append(f"{root.name}: say which topics are the proprioception with --proprio; {vectors}")
    if not reading.task:
        questions.append(f"{root.name}: MCAP does not name a task; say it with --task")
    if not (reading.instruction or TASKS.get(reading.task or "")):
        questions.append(f"{root.name}: it does not say in words what is done; say it with --instruction")
    return questions


# -- steps ---------------------------------------------------------------------------------------------------


def _plan(
    files: list[Path],
    found: dict[str, TopicSeries],
    cameras: dict[str, str],
    reading: ImportOptions,
    hz: float,
) -> _Plan:
    """Choose a message of every topic for every step. Raises ValueError if one is missing."""
    topics = {camera: _topic(found, camera) for camera in cameras}
    if len(set(topics.values())) < len(topics):
        raise ValueError("--cameras names one of its topics twice")
    vectors = [*(reading.proprio or ()), *([reading.action] if reading.action else [])]
    for key in vectors:
        if key not in found or found[key].kind in CAMERA_KINDS or found[key].fault:
            listed = ", ".join(
                k for k, s in sorted(found.items()) if s.kind not in CAMERA_KINDS and not s.fault
            )
            raise ValueError(
                f"there is no vector {key}{': ' * (key in found)}{found[key].fault if key in found else ''};"
                f" there are {listed or 'none'}"
            )
    used = {key: found[key] for key in [*topics.values(), *vectors]}
    times, clock = _clock(used)
    first = times[next(iter(topics.values()))]
    begin, end = max(moments[0] for moments in times.values()), min(moments[-1] for moments in times.values())
    # the first step is at a picture, so that a camera of the same rate is not half a step off at every step
    begin = max(begin, int(first[min(np.searchsorted(first, begin), len(first) - 1)]))
    if end < begin:
        late, early = max(times, key=lambda key: times[key][0]), min(times, key=lambda key: times[key][-1])
        raise ValueError(
            f"its topics have no moment in common: {early} has ended before {late} and a picture have come"
        )
    native_hz = float(reading.hz or 0)
    step = 1e9 / native_hz
    rows = int((end - begin) / step + 1e-6) + 1
    if (few := min(len(times[topic]) for topic in topics.values())) * 2 < rows * hz / native_hz - 1:
        raise ValueError(
            f"a camera has {few} pictures in {(end - begin) / 1e9:.1f} s, too few for {hz:g} steps per"
            " second; say fewer with --hz"
        )
    moments = begin + np.round(np.arange(rows) * step).astype(np.int64)
    shown = moments[kept_frames(rows, native_hz, hz)]
    chosen = {
        camera: _nearest(topic, times[topic], shown, 1e9 / min(hz, native_hz))
        for camera, topic in topics.items()
    }
    facts = {camera: used[topics[camera]].values[places] for camera, places in chosen.items()}
    sizes = {camera: sorted({(int(h), int(w)) for _, h, w in seen}) for camera, seen in facts.items()}
    if changing := next((camera for camera in sizes if len(sizes[camera]) > 1), ""):
        (h, w), *_, (height, width) = sizes[changing]
        raise ValueError(
            f"the pictures of {topics[changing]} change their size, from {h}x{w} to {height}x{width}"
        )
    state = [
        used[key].values[_in_force(key, times[key], moments, step, False)] for key in reading.proprio or ()
    ]
    action = None
    if reading.action:
        places = _in_force(reading.action, times[reading.action], moments, step, True)
        if reading.deltas is not False and (reading.deltas or reading.panda) and (np.diff(places) != 1).any():
            raise ValueError(
                f"{reading.action} does not have one message per step, so that displacements would be lost or"
                " made twice; say its rate with --hz"
            )
        action = used[reading.action].values[places]
    for key, values in zip(vectors, [*state, *([] if action is None else [action])], strict=True):
        if not np.isfinite(values).all():
            raise ValueError(f"{key} holds a value that is not a number")
    return _Plan(
        files=files,
        topics=topics,
        pictures={camera: used[topics[camera]].order[places] for camera, places in chosen.items()},
        sums={camera: facts[camera][:, 0] for camera in topics},
        sizes={camera: size for camera, (size,) in sizes.items()},
        proprio=np.concatenate(state, 1) if state else None,
        action=action,
        names=(
            _dimensions(found, reading.proprio or ()),
            _dimensions(found, (reading.action,) if reading.action else ()),
        ),
        clock=clock,
        rows=rows,
    )


def _clock(used: dict[str, TopicSeries]) -> tuple[dict[str, Numbers], str]:
    """Return the times of all messages, (M,) ns per key, and the name of their clock. Raises ValueError if
    header stamps go back.
    """
    delays = [float(np.median(series.logged - series.stamped)) for series in used.values()]
    if (
        not all(series.stamped.all() for series in used.values())
        or max(delays) - min(delays) > CLOCKS_APART_NS
    ):
        return {key: series.logged for key, series in used.items()}, "log time"
    for series in used.values():
        if (back := np.flatnonzero(np.diff(series.stamped) < 0)).size:
            off_s = (series.stamped[back[0]] - series.stamped[back[0] + 1]) / 1e9
            raise ValueError(
                f"the header stamps of {series.topic} go back by {off_s:.3f} s at its message {back[0] + 1}"
            )
    return {key: series.stamped for key, series in used.items()}, "header stamp"


def _nearest(topic: str, times: Numbers, moments: Numbers, step: float) -> Numbers:
    """Return the index of the picture nearest to each moment. Times are in ns. Raises ValueError for a moment
    without one.
    """
    before = np.searchsorted(times, moments, side="right") - 1
    after = (before + 1).clip(max=len(times) - 1)
    chosen = np.where(moments - times[before] <= np.abs(times[after] - moments), before, after)
    off, gap = np.abs(times[chosen] - moments), times[after] - times[before]
    if (bad := np.flatnonzero((off > step / 2 + ROUNDING_NS) & (gap > LONGEST_GAP * step))).size:
        at = bad[0]
        raise ValueError(
            f"no picture of {topic} at second {(moments[at] - moments[0]) / 1e9:.3f}: the nearest is"
            f" {off[at] / 1e9:.3f} s away, in a gap of {gap[at] / 1e9:.3f} s; half a step is"
            f" {step / 2e9:.3f} s"
        )
    return np.asarray(chosen, np.int64)


def _in_force(key: str, times: Numbers, moments: Numbers, step: float, ahead: bool) -> Numbers:
    """Return the index of the message in force at each moment. Times are in ns. Raises ValueError if the next
    message is overdue there.

    ahead: prefer the first message within the step that begins at the moment. A command from before the
    picture was based on an earlier picture; a policy that learns it as the response to this one would repeat
    the command that is already in force.
    """
    places = np.searchsorted(times, moments, side="right") - 1
    if ahead:
        following = np.searchsorted(times, moments - ROUNDING_NS)
        near = (following < len(times)) & (
            times[following.clip(max=len(times) - 1)] < moments + int(step) - ROUNDING_NS
        )
        places = np.where(near, following, places)
    age, usual = moments - times[places], float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    if (bad := np.flatnonzero(age > usual + LONGEST_GAP * step)).size:
        at = bad[0]
        raise ValueError(
            f"no message of {key} for {age[at] / 1e9:.3f} s before second"
            f" {(moments[at] - moments[0]) / 1e9:.3f}; usually one comes every {usual / 1e9:.3f} s"
        )
    return np.asarray(places, np.int64)


def _dimensions(found: dict[str, TopicSeries], keys: Sequence[str]) -> tuple[str, ...]:
    """Return a name for every value of the concatenated vectors."""
    return tuple(f"{key}_{name}" if name else key for key in keys for name in found[key].names)


def _topic(found: dict[str, TopicSeries], camera: str) -> str:
    """Return the topic of a camera. Raises ValueError if none or several have its name."""
    topics = [
        key
        for key, s in found.items()
        if s.kind in CAMERA_KINDS and not s.fault and camera in (key, camera_name(key))
    ]
    if len(topics) == 1 or camera in topics:
        return camera if camera in topics else topics[0]
    if topics:
        raise ValueError(
            f"{' and '.join(topics)} would both be camera {camera}; choose with --cameras"
            f" {topics[0]}={camera}"
        )
    raise ValueError(
        "it has no pictures of camera"
        f" {camera}{''.join(f'; {s.topic}: {s.fault}' for s in found.values() if s.fault)}"
    )


def _recordings(root: Path) -> dict[str, Path]:
    """Return the recordings: name -> file, or rosbag2 folder."""
    if root.is_file():
        return {root.stem: root}
    found: dict[str, Path] = {}
    for path in visible(root, MCAP_SUFFIXES):
        path = path.parent if (path.parent / "metadata.yaml").is_file() else path
        name = path.relative_to(root).as_posix() if path != root else root.name
        stem = name.removesuffix(path.suffix) if path.is_file() else name
        found[stem if found.get(stem, path) == path else name] = path
    return found


def _files(path: Path) -> list[Path]:
    """Return the files of a recording in order. Raises ValueError or SourceError if they differ from those in
    metadata.yaml.
    """
    if path.is_file():
        return [path]
    facts = yaml.safe_load((path / "metadata.yaml").read_text("utf-8"))["rosbag2_bagfile_information"]
    if facts.get("compression_mode"):
        raise ValueError(
            f"its messages or files are compressed by rosbag2 (mode {facts['compression_mode']}); write it"
            " again with `ros2 bag convert`"
        )
    files = [contained(path, str(name)) for name in facts["relative_file_paths"]]
    named, there = (
        sorted(file.name for file in files),
        [file.name for file in visible(path, MCAP_SUFFIXES, depth=1)],
    )
    if named != there:
        raise ValueError(f"metadata.yaml names the files {', '.join(named)}, there are {', '.join(there)}")
    return files
