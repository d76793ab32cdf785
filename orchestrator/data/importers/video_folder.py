"""Importer of films as action-free episodes: one film, or a folder of them.

SRC/<name>.mp4 or SRC/<task>/.../<name>.mov            one camera, which --cameras names
SRC/<task>/<name>.<camera>.mp4                         several cameras of one scene

The pictures of an episode are taken at equal steps from the film's first frame on, each the nearest frame
within half a step.
"""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np

from orchestrator.data.importers.base import EpisodeInfo, ImportOptions, Item, RawEpisode, Source, SourceInfo
from orchestrator.data.importers.conventions import native_rate, orientation, source_info
from orchestrator.data.importers.image_ops import (
    Numbers,
    Pictures,
    VideoIndex,
    display_matrix,
    film_at,
    film_frames,
    film_index,
    kept_frames,
)
from orchestrator.data.importers.items import build_items, examined, label_of, unusable
from orchestrator.data.importers.source_files import FILM_SUFFIXES, SourceError, refuse_pointer, visible
from sim_workers.envs.tasks import TASKS

NO_CAMERA = re.compile(r"(?:v?[\d\s_.:()T+Z-]*|(?=\d)[\d\s_.:()-]+[ap]\.?m\.?[\d\s_()-]*)", re.IGNORECASE)
"""Dotted endings that are take numbers or times, not cameras: `take.1.mp4`, `take.v2.mp4`, `2024-05-01
10.22.31 PM (2).mp4`.
"""
SHORTER = 0.5
"""Seconds by which a film's pictures may end before the length in its header."""
SAME_RATE = 1e-3
"""Relative difference below which two measured rates count as equal."""
MOST_SAID = 5
"""Maximum number of problems in one error message."""


@dataclass(frozen=True)
class _Scene:
    """Films of one episode."""

    films: dict[str, Path]
    """Camera of the source -> its film."""
    rate: float
    """Frames per second of the films; of the first camera's where they differ."""
    rows: int
    """Number of steps at that rate."""
    size: tuple[int, int]
    """(H, W) of the upright pictures."""
    turns: tuple[tuple[int, ...], ...]
    """Display matrix per camera; empty where the film has none."""


@dataclass(frozen=True)
class VideoFolderReader:
    """Reader of a folder of films, or of one film."""

    scenes: dict[str, _Scene]
    """Episode -> its films."""

    def read(self, item: Item, info: SourceInfo) -> RawEpisode:
        """Return an episode, pictures upright and scaled; SourceError or ValueError if it is damaged."""
        scene, contract = self.scenes[item.name], info.contract
        frames = {
            camera: film_at(
                path,
                shown(film_index(path), scene, item.length, contract.control_hz),
                info.stored,
                contract.image_size,
            )
            for camera, path in scene.films.items()
        }
        return RawEpisode(frames=frames, rows=scene.rows, hz=scene.rate)

    def first_pictures(self, item: Item, info: SourceInfo) -> dict[str, Pictures]:
        """Return one (H, W, 3) picture per camera as stored."""
        return {camera: next(film_frames(path, [0])) for camera, path in self.scenes[item.name].films.items()}


def shown(index: VideoIndex, scene: _Scene, length: int, hz: float) -> Numbers:
    """Return the index of the film's frame at each step.

    Raises ValueError if a step has no frame within half a step, of the store's or of the film's rate,
    whichever is longer.
    """
    moments = np.arange(length) / hz
    times = index.times - index.times[0]
    nearest = np.searchsorted((times[1:] + times[:-1]) / 2, moments - 1e-9)
    off = np.abs(times[nearest] - moments)
    tolerance_s = max(1 / hz, index.period) / 2 + 1e-4
    if off.max() > tolerance_s:
        worst = int(off.argmax())
        raise ValueError(
            f"its frames come at uneven moments: the nearest to second {moments[worst]:.3f} is"
            f" {off[worst]:.3f} s away, more than half a step ({tolerance_s:.3f} s); make them even with"
            f" `ffmpeg -i FILM -vf fps={scene.rate:g} NEW`, or choose longer steps with --resample-hz"
        )
    return np.asarray(nearest, np.int64)


def open_films(root: Path, reading: ImportOptions) -> Source:
    """Open every film. Raises SourceError if the camera is not named, the films' rates differ, or no film can
    be used.
    """
    grouped, cameras, problems = _grouped(root, reading)
    stored, questions = orientation(root.name, reading)
    found, left_out = examined(
        root.name, grouped, lambda name: _scene(root, name, grouped[name], cameras, reading)
    )
    problems += left_out.values()
    if not found:
        more = f"; and {len(problems) - MOST_SAID} more" * (len(problems) > MOST_SAID)
        raise SourceError(f"{root}: none of its films can be used. {'; '.join(problems[:MOST_SAID])}{more}")
    scenes = {name: scene for name, (scene, _) in found.items()}
    native_hz = next(iter(scenes.values())).rate
    if not reading.resample_hz:
        rates = {name: scene.rate for name, scene in scenes.items()}
        if max(rates.values()) > (1 + SAME_RATE) * min(rates.values()):
            listed = sorted({round(rate, 3): name for name, rate in rates.items()}.items())
            some = ", ".join(f"{name} {rate:g}" for rate, name in (listed[0], listed[-1]))
            raise SourceError(
                f"{root}: the films differ in frames per second ({some}); choose one rate with --resample-hz"
            )
        scenes = {name: replace(scene, rate=native_hz) for name, scene in scenes.items()}
    sizes = {scene.size: name for name, scene in scenes.items()}
    info = source_info(
        str(root),
        reading,
        format="films",
        name=root.name,
        label=label_of(root, reading),
        cameras=cameras,
        sizes={name: size for size, name in sizes.items()},
        stored=stored,
        native_hz=native_hz,
        labelled=False,
    )

    def describe(name: str) -> EpisodeInfo:
        (_, indices), scene = found[name], scenes[name]
        hz = info.contract.control_hz
        length = len(kept_frames(scene.rows, scene.rate, hz))
        sums = [index.packet_sums[shown(index, scene, length, hz)] for index in indices.values()]
        task = _task(name, reading)
        instruction = reading.instruction or TASKS.get(task) or task.replace("_", " ")
        return EpisodeInfo(
            rows=scene.rows,
            hz=scene.rate,
            picture_size=scene.size,
            task=task,
            instruction=instruction,
            content=(*sums, scene.turns, *info.choices, task, instruction),
        )

    listing = build_items(info, {name: scene.rows for name, scene in scenes.items()}, describe)
    if not all(item.task for item in listing.items if not item.problem):
        questions.append(
            f"{root.name}: films outside a folder named like their task have none; say it with --task"
        )
    items = [unusable(name, 0, False, problem) for name, problem in left_out.items()] + listing.items
    return Source(
        info=info,
        reader=VideoFolderReader(scenes),
        items=sorted(items, key=lambda item: item.name),
        problems=problems + listing.problems,
        questions=questions,
    )


def _task(name: str, reading: ImportOptions) -> str:
    """Return the task of an episode: the reading's, or else the top folder, '' without one."""
    return reading.task or (name.split("/")[0] if "/" in name else "")


def _scene(
    root: Path, name: str, films: dict[str, Path], cameras: dict[str, str], reading: ImportOptions
) -> tuple[_Scene, dict[str, VideoIndex]]:
    """Return the scene of an episode and the indices of its films.

    Raises ValueError if a film is missing, unreadable, cut short, or differs from the others in length, rate
    or size.
    """
    if absent := [camera for camera in cameras if camera not in films]:
        raise ValueError(f"there is no film of camera {', '.join(absent)}")
    films = {camera: films[camera] for camera in cameras}
    for path in films.values():
        refuse_pointer(path)
    indices = {camera: film_index(path) for camera, path in films.items()}
    rates = {camera: index.rate for camera, index in indices.items()}
    durations = {camera: float(index.times[-1] - index.times[0]) for camera, index in indices.items()}
    rate = next(iter(rates.values()))
    if max(rates.values()) > (1 + SAME_RATE) * min(rates.values()) and not reading.resample_hz:
        listed = ", ".join(f"{camera} {value:g}" for camera, value in rates.items())
        raise ValueError(
            f"its cameras' films differ in frames per second ({listed}); choose one rate with --resample-hz"
        )
    step = max(1 / min(rates.values()), 1 / (reading.resample_hz or rate))
    if max(durations.values()) - min(durations.values()) > 1.5 * step:
        raise ValueError("its cameras' films differ in length or rate")
    headers = {camera: _header(path) for camera, path in films.items()}
    for camera, (announced_s, _) in headers.items():
        period = indices[camera].period
        last_s = durations[camera] + period
        # AVI has no timestamps, so that a dropped frame shifts those after it
        counted = films[camera].suffix.lower() == ".avi"
        if announced_s - last_s > (1.5 * period if counted else max(SHORTER, 3 * period)):
            raise ValueError(
                f"{films[camera].name} tells a length of {announced_s:.2f} s, but its pictures end after"
                f" {last_s:.2f} s; copy it again if it was not copied whole, otherwise write it again with"
                " `ffmpeg -i FILM -vf fps=N NEW`"
            )
    pictures = {camera: next(film_frames(path, [0])).shape[:2] for camera, path in films.items()}
    if len(set(pictures.values())) > 1 and not reading.image_size:
        listed = ", ".join(f"{camera} {height}x{width}" for camera, (height, width) in pictures.items())
        raise ValueError(f"its cameras' pictures differ in size ({listed}); choose one with --image-size")
    height, width = next(iter(pictures.values()))
    rows = int(np.floor(min(durations.values()) * rate + 0.25)) + 1
    stated = replace(reading, hz=None) if reading.hz and abs(reading.hz / rate - 1) < SAME_RATE else reading
    scene = _Scene(
        films=films,
        rate=native_rate(f"{root}, {name}", rate, stated),
        rows=rows,
        size=(int(height), int(width)),
        turns=tuple(matrix for _, matrix in headers.values()),
    )
    return scene, indices


def _header(path: Path) -> tuple[float, tuple[int, ...]]:
    """Return the length in seconds that a film's header states, 0 without one, and the display matrix that
    players apply.

    The matrix is part of a film's identity: a rotation by the matrix alone leaves the packets unchanged.
    """
    with av.open(str(path), "r") as container:
        stream: Any = container.streams.video[0]
        stream.codec_context.thread_count = 1
        announced_s = float(stream.duration * stream.time_base) if stream.duration else 0.0
        # Matroska; of several streams another may be the longer one
        if not announced_s and len(container.streams) == 1:
            announced_s = (container.duration or 0) / av.time_base
        return announced_s, display_matrix(next(container.decode(stream))) or ()


def _grouped(
    root: Path, reading: ImportOptions
) -> tuple[dict[str, dict[str, Path]], dict[str, str], list[str]]:
    """Return episode -> film per camera of the source, camera of the source -> name in the store, and
    problems, one sentence each.

    The camera of films that name none is ''. Raises SourceError if --cameras is needed, or names an unknown
    camera.
    """
    paths = [root] if root.is_file() else list(visible(root, FILM_SUFFIXES))
    names = {path: path.name if root.is_file() else path.relative_to(root).as_posix() for path in paths}
    stems = {path: name[: -len(path.suffix)] for path, name in names.items()}
    endings = {path: _ending(stem, reading) for path, stem in stems.items()}
    found = sorted(set(endings.values()) - {""})
    by_scene: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path, stem in stems.items():
        by_scene[stem[: -len(endings[path]) - 1] if endings[path] else stem][endings[path]].append(path)
    sets = Counter(frozenset(films) - {""} for films in by_scene.values())
    several = max(
        (s for s in sets if len(s) > 1), key=lambda s: (sets[s], len(s), sorted(s)), default=frozenset[str]()
    )
    if reading.cameras and (unknown := [camera for camera in reading.cameras if camera not in found]):
        # not a coincidence of names
        sure = len(several) > 1 and sets[several] > 1 and 2 * sets[several] > len(by_scene)
        if len(reading.cameras) == 1 and not sure:
            looks = (
                f"{root.name}: its films look like one scene filmed by {', '.join(sorted(several))}, which"
                " --cameras does not name"
            )
            said = [f"{looks}; each is an episode of its own"] if several else []
            return _one_camera(stems), {"": next(iter(reading.cameras.values()))}, said
        raise SourceError(
            f"{root}: there is no film of camera {', '.join(unknown)}; --cameras can choose from"
            f" {', '.join(found) or 'none'}"
        )
    cameras = reading.cameras or {camera: camera for camera in sorted(several)}
    if not cameras:
        raise SourceError(
            f"{root}: its films do not name their camera; say what the store calls it with --cameras NAME"
        )
    problems, grouped = [], dict[str, dict[str, Path]]()
    for name, films in by_scene.items():
        for camera, same in films.items():
            if len(same) > 1 and camera in cameras:
                listed = ", ".join(path.name for path in same)
                problems.append(
                    f"{root.name}, {name}: camera {camera} has several films ({listed}), remove all but one;"
                    " left out"
                )
            elif camera not in cameras and set(films) & set(cameras) and (not camera or not reading.cameras):
                problems.append(
                    f"{root.name}, {names[same[0]]}: it names none of the cameras {', '.join(cameras)};"
                    " left out"
                )
        grouped[name] = {camera: same[0] for camera, same in films.items() if len(same) == 1}
    return grouped, cameras, problems


def _ending(stem: str, reading: ImportOptions) -> str:
    """Return the camera that a film's name ends in, or ''."""
    before, dot, camera = stem.rpartition("/")[2].rpartition(".")
    if not (dot and before):
        return ""
    return "" if camera not in reading.cameras and NO_CAMERA.fullmatch(camera) else camera


def _one_camera(stems: dict[Path, str]) -> dict[str, dict[str, Path]]:
    """Return an episode per film; films that differ only in their suffix keep it in their names."""
    same: dict[str, list[Path]] = defaultdict(list)
    for path, stem in stems.items():
        same[stem].append(path)
    return {
        stem if len(paths) == 1 else stem + path.suffix: {"": path}
        for stem, paths in same.items()
        for path in paths
    }
