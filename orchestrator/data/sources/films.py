"""Films, as action-free episodes: one, or a folder of them.

SRC/<name>.mp4 or SRC/<task>/.../<name>.mov            one camera, which --cameras names
SRC/<task>/<name>.<camera>.mp4                         several cameras of one scene

The pictures of an episode are those at equal steps from the film's first frame on, each the nearest within half a step.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from orchestrator.data.episodes import Episode
from orchestrator.data.sources.pictures import FilmIndex, Numbers, film_at, film_frames, film_index
from orchestrator.data.sources.source import (
    FILM_SUFFIXES,
    Item,
    Pictures,
    Raw,
    Reading,
    SourceError,
    contract_of,
    finished,
    identity,
    kept_frames,
    label_of,
    leaving_out,
    native_rate,
    orientation,
    origin,
    refuse_bulk,
    refuse_pointer,
    unusable,
    visible,
)
from policy.interface import Contract
from sim_workers.tasks import TASKS

NO_CAMERA = re.compile(r"[\d\s_.:T-]*")
"""Dotted endings that number takes, or tell a time: `take.1.mp4`, `2024-05-01 10.22.31.mp4`."""


@dataclass(frozen=True)
class _Scene:
    """The films of one episode."""

    films: dict[str, Path]
    """Per camera of the source."""
    rate: float
    """Of the films, frames per second."""
    rows: int
    """Steps at that rate."""
    size: tuple[int, int]
    """(H, W), upright."""


@dataclass
class Films:
    """A folder, or one film."""

    root: Path
    format: str
    contract: Contract
    items: list[Item]
    problems: list[str]
    questions: list[str]
    _cameras: dict[str, str]
    _stored: str
    _scenes: dict[str, _Scene] = field(default_factory=dict)
    """By item."""

    def read(self, item: Item) -> Episode:
        scene, size = self._scenes[item.name], self.contract.image_size
        kept = kept_frames(scene.rows, scene.rate, self.contract.control_hz)
        frames = {camera: film_at(path, shown(film_index(path), scene, kept), self._stored, size) for camera, path in scene.films.items()}
        return finished(item, Raw(frames, None, None, None, scene.rows), self.contract, self._cameras, scene.rate)

    def first_pictures(self, item: Item) -> dict[str, Pictures]:
        return {camera: next(film_frames(path, [0])) for camera, path in self._scenes[item.name].films.items()}


def shown(index: FilmIndex, scene: _Scene, kept: Numbers) -> Numbers:
    """The frame of a film at each kept step; ValueError if the film shows none within half a step of one of them."""
    moments = index.times[0] + kept / scene.rate
    longest = max(1 / scene.rate, float(kept[1] - kept[0]) / scene.rate if len(kept) > 1 else 0.0)
    try:
        return index.nearest(moments, longest / 2 + 1e-4)
    except ValueError as error:
        raise ValueError(f"its frames come at uneven moments ({error}); make them even with `ffmpeg -i FILM -vf fps={scene.rate:g} NEW`") from None


def open_films(root: Path, reading: Reading) -> Films:
    """Look at every film; SourceError if nobody says which camera filmed it, or the films' rates differ."""
    grouped, cameras = _grouped(root, reading)
    stored, questions = orientation(root.name, "upright", "", reading)
    source = Films(root, "films", Contract((), (0, 0), "", (), (), 0.0, ""), [], [], questions, cameras, stored)
    for name, films in grouped.items():
        with leaving_out(f"{root.name}, {name}", source.problems):
            source._scenes[name] = _scene(root, name, films, cameras, reading)
            continue
        source.items.append(unusable(name, 0, False, source.problems[-1]))
    if not source._scenes:
        raise SourceError(f"{root}: none of its films can be used. {'; '.join(source.problems)}")
    rates = sorted({round(scene.rate, 3): name for name, scene in source._scenes.items()}.items())
    if len(rates) > 1 and not reading.resample_hz:
        some = ", ".join(f"{name} {rate:g}" for rate, name in rates[:3])
        raise SourceError(f"{root}: the films differ in frames per second ({some}); choose one rate with --resample-hz")
    native_hz = next(iter(source._scenes.values())).rate
    sizes = {size: name for name, size in ((name, scene.size) for name, scene in source._scenes.items())}
    source.contract = contract_of(str(root), cameras, {name: size for size, name in sizes.items()}, (), (), native_hz, "unknown", reading)
    ids = _ids(label_of(root, reading), list(source._scenes))
    for name, scene in list(source._scenes.items()):
        with leaving_out(f"{root.name}, {name}", source.problems):
            source.items.append(_item(source, name, scene, ids[name], reading))
            continue
        del source._scenes[name]
        source.items.append(unusable(name, scene.rows, False, source.problems[-1]))
    source.items.sort(key=lambda item: item.name)
    return source


def _item(source: Films, name: str, scene: _Scene, episode_id: str, reading: Reading) -> Item:
    """An episode, once every one of its pictures is known to be there."""
    root, contract = source.root, source.contract
    kept = kept_frames(scene.rows, scene.rate, contract.control_hz)
    refuse_bulk(len(kept), len(source._cameras), contract.image_size)
    sums = [film_index(path).packet_sums[shown(film_index(path), scene, kept)] for path in scene.films.values()]
    task = reading.task or (name.split("/")[0] if "/" in name else "")
    instruction = reading.instruction or TASKS.get(task) or task.replace("_", " ")
    if not task and not source.questions:
        source.questions = [f"{root.name}: films outside a folder named like their task have none; say it with --task"]
    content = identity(*sums, list(source._cameras.items()), source._stored, contract.image_size, task, instruction)
    said = origin(f"{root.name}, {name}", source._stored, scene.size, scene.rate, contract, content)
    return Item(name, episode_id, task, instruction, len(kept), False, said)


def _scene(root: Path, name: str, films: dict[str, Path], cameras: dict[str, str], reading: Reading) -> _Scene:
    """Facts of an episode's films; ValueError if one is not there, cannot be read, or is longer than the others."""
    if absent := [camera for camera in cameras if camera not in films]:
        raise ValueError(f"there is no film of camera {', '.join(absent)}")
    films = {camera: films[camera] for camera in cameras}
    for path in films.values():
        refuse_pointer(path)
    indices = {camera: film_index(path) for camera, path in films.items()}
    rates = {camera: index.rate for camera, index in indices.items()}
    durations = {camera: float(index.times[-1] - index.times[0]) for camera, index in indices.items()}
    rate = next(iter(rates.values()))
    if max(rates.values()) > 1.001 * min(rates.values()) or max(durations.values()) - min(durations.values()) > 1.5 / rate:
        raise ValueError("its cameras' films differ in length or rate")
    pictures = {camera: next(film_frames(path, [0])).shape[:2] for camera, path in films.items()}
    if len(set(pictures.values())) > 1 and not reading.image_size:
        listed = ", ".join(f"{camera} {height}x{width}" for camera, (height, width) in pictures.items())
        raise ValueError(f"its cameras' pictures differ in size ({listed}); choose one with --image-size")
    height, width = next(iter(pictures.values()))
    rows = int(np.floor(min(durations.values()) * rate + 0.25)) + 1
    return _Scene(films, native_rate(f"{root}, {name}", rate, reading), rows, (int(height), int(width)))


def _ids(label: str, names: list[str]) -> dict[str, str]:
    """An id per episode: folders are written as `-`, and what would then be one id for two is told apart by a hash of the whole name."""
    plain: dict[str, list[str]] = defaultdict(list)
    for name in names:
        plain[f"{label}-{name.replace('/', '-')}"].append(name)
    return {name: episode_id if len(same) == 1 else f"{episode_id}-{identity(name)[:6]}" for episode_id, same in plain.items() for name in same}


def _grouped(root: Path, reading: Reading) -> tuple[dict[str, dict[str, Path]], dict[str, str]]:
    """Episode -> film per camera of the source; and camera of the source -> name in the store. The one camera of films that name none is ''."""
    paths = [root] if root.is_file() else list(visible(root, FILM_SUFFIXES))
    names = {path: path.name if root.is_file() else path.relative_to(root).as_posix() for path in paths}
    stems = {path: name[: -len(path.suffix)] for path, name in names.items()}
    endings = {path: _ending(stem, reading) for path, stem in stems.items()}
    found = sorted(set(endings.values()) - {""})
    by_scene: dict[str, dict[str, Path]] = defaultdict(dict)
    for path, stem in stems.items():
        by_scene[stem[: -len(endings[path]) - 1] if endings[path] else stem][endings[path]] = path
    several = bool(found) and any(len(films) > 1 for films in by_scene.values())
    if reading.cameras and (unknown := [camera for camera in reading.cameras if camera not in found]):
        if len(reading.cameras) == 1 and not (set(reading.cameras) & set(found)):
            return _one_camera(stems), {"": next(iter(reading.cameras.values()))}
        raise SourceError(f"{root}: there is no film of camera {', '.join(unknown)}; --cameras can choose from {', '.join(found) or 'none'}")
    if reading.cameras:
        return dict(by_scene), reading.cameras
    if several:
        return dict(by_scene), {camera: camera for camera in found}
    raise SourceError(f"{root}: its films do not name their camera; say what the store calls it with --cameras NAME")


def _ending(stem: str, reading: Reading) -> str:
    """The camera that a film's name ends in, or ''."""
    camera = stem.rpartition("/")[2].rpartition(".")[2] if "." in stem.rpartition("/")[2] else ""
    return "" if camera not in reading.cameras and NO_CAMERA.fullmatch(camera) else camera


def _one_camera(stems: dict[Path, str]) -> dict[str, dict[str, Path]]:
    """Each film is an episode; two that differ in their suffix alone keep it in their names."""
    same: dict[str, list[Path]] = defaultdict(list)
    for path, stem in stems.items():
        same[stem].append(path)
    return {stem if len(paths) == 1 else stem + path.suffix: {"": path} for stem, paths in same.items() for path in paths}
