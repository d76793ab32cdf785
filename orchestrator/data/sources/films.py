"""Folders of plain films, as action-free episodes.

SRC/<name>.mp4 or SRC/<task>/<name>.mp4                one camera, which --cameras names
SRC/<task>/<name>.<camera>.mp4                         several cameras of one scene
"""

from dataclasses import dataclass
from pathlib import Path

from orchestrator.data.episodes import Episode
from orchestrator.data.sources.pictures import film, film_facts
from orchestrator.data.sources.source import (
    Item,
    Pictures,
    Raw,
    Reading,
    SourceError,
    contract_of,
    finished,
    kept_frames,
    label_of,
    native_rate,
    orientation,
    origin,
)
from policy.interface import Contract
from sim_workers.tasks import TASKS


@dataclass
class Films:
    """A folder."""

    root: Path
    format: str
    contract: Contract
    items: list[Item]
    problems: list[str]
    questions: list[str]
    _cameras: dict[str, str]
    _stored: str
    _films: dict[str, dict[str, Path]]
    """Item -> film per camera of the source."""
    _rates: dict[str, float]
    """Item -> frames per second."""

    def read(self, item: Item) -> Episode:
        try:
            frames = {camera: film(path) for camera, path in self._films[item.name].items()}
        except ValueError as error:
            raise SourceError(f"{self.root.name}, {item.name}: {error}; repair it or leave it out") from None
        return finished(item, Raw(frames, None, None, None), self.contract, self._cameras, self._stored, self._rates[item.name])

    def first_pictures(self, item: Item) -> dict[str, Pictures]:
        return {camera: film(path, count=1)[0] for camera, path in self._films[item.name].items()}


def open_films(root: Path, reading: Reading) -> Films:
    """Look at every film of a folder; SourceError if nobody says which camera filmed it, or the films' rates differ."""
    grouped: dict[str, dict[str, Path]] = {}
    for path in sorted([*root.glob("*.mp4"), *root.glob("*/*.mp4")]):
        name, _, camera = path.stem.rpartition(".") if "." in path.stem else (path.stem, "", "")
        grouped.setdefault((path.parent / name).relative_to(root).as_posix(), {})[camera] = path
    cameras = _cameras(root, grouped, reading)
    stored, questions = orientation(root.name, "upright", "", reading)
    source = Films(root, "films", Contract((), (0, 0), "", (), (), 0.0, ""), [], [], questions, cameras, stored, {}, {})
    sizes: dict[str, tuple[int, int]] = {}
    native_sizes: dict[str, tuple[int, int]] = {}
    frames: dict[str, int] = {}
    for name, films in grouped.items():
        try:
            if absent := [camera for camera in cameras if camera not in films]:
                raise ValueError(f"there is no film of camera {', '.join(absent)}")
            facts = {camera: film_facts(films[camera]) for camera in cameras}
            if len(set(facts.values())) > 1:
                raise ValueError("its cameras' films differ in length or rate")
            pictures = {camera: film(films[camera], count=1)[0] for camera in cameras}
        except ValueError as error:
            source.problems.append(f"{root.name}, {name}: {error}; left out")
            continue
        frames[name], rate = next(iter(facts.values()))
        source._rates[name] = native_rate(f"{root}, {name}", rate, reading)
        source._films[name] = {camera: films[camera] for camera in cameras}
        native_sizes[name] = next(iter(pictures.values())).shape[:2]
        sizes |= {f"{name} {camera}".rstrip(): picture.shape[:2] for camera, picture in pictures.items()}
    if not frames:
        raise SourceError(f"{root}: none of its films can be used. {'; '.join(source.problems)}")
    rates = sorted({round(rate, 3): name for name, rate in source._rates.items()}.items())
    if len(rates) > 1 and not reading.resample_hz:
        some = ", ".join(f"{name} {rate:g}" for rate, name in rates[:3])
        raise SourceError(f"{root}: the films differ in frames per second ({some}); choose one rate with --resample-hz")
    native_hz = next(iter(source._rates.values()))
    source.contract = contract_of(str(root), cameras, _examples(sizes), (), (), native_hz, "unknown", reading)
    for name, rate in source._rates.items():
        task = reading.task or (name.split("/")[0] if "/" in name else "")
        instruction = reading.instruction or TASKS.get(task) or task.replace("_", " ")
        if not task:
            source.questions = [f"{root.name}: films outside a folder named like their task have none; say it with --task"]
        said = origin(f"{root.name}, {name}", stored, native_sizes[name], rate, source.contract)
        length = len(kept_frames(frames[name], rate, source.contract.control_hz))
        source.items.append(Item(name, f"{label_of(root, reading)}-{name.replace('/', '-')}", task, instruction, length, False, said))
    return source


def _cameras(root: Path, grouped: dict[str, dict[str, Path]], reading: Reading) -> dict[str, str]:
    """Camera in the films' names -> name in the store; the one camera of films that name none is ''."""
    found = sorted({camera for films in grouped.values() for camera in films})
    if found == [""]:
        if len(reading.cameras) != 1:
            raise SourceError(f"{root}: its films do not name their camera; say what the store calls it with --cameras NAME")
        return {"": next(iter(reading.cameras.values()))}
    named = [camera for camera in found if camera]
    if unknown := [camera for camera in reading.cameras if camera not in named]:
        raise SourceError(f"{root}: there is no film of camera {', '.join(unknown)}; --cameras can choose from {', '.join(named)}")
    return reading.cameras or {camera: camera for camera in named}


def _examples(sizes: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """One film of each size, for a sentence about them."""
    return {name: size for size, name in {size: name for name, size in sizes.items()}.items()}
