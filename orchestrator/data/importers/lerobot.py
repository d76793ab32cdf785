"""Importer of LeRobot datasets, version 3.0 (several episodes to a file) and 2.x (one file per episode).

    meta/info.json                                   version, fps, features, templates of the paths below
    meta/tasks.jsonl, meta/tasks.parquet             sentence of each task_index
    meta/episodes/chunk-*/file-*.parquet             3.0: per episode its length, and its first and last
                                                     second in its videos
    meta/episodes.jsonl                              2.x: per episode its length
    meta/modality.json                               GR00T, RoboCasa365: names for parts of state and action
    data/**.parquet                                  a row per frame: observation.state, action, timestamp,
                                                     images if they are not videos
    videos/**.mp4                                    a video per camera

Rows belong to the episode that their episode_index names, even if the metadata names other files. The picture
of a row is the one that its video shows at the row's timestamp. The extra metadata of `demoscale export`
(`demoscale`) is read back too.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from orchestrator.data.importers.base import EpisodeInfo, ImportOptions, Item, RawEpisode, Source, SourceInfo
from orchestrator.data.importers.conventions import (
    chosen_cameras,
    orientation,
    renamed_actions,
    source_info,
)
from orchestrator.data.importers.image_ops import (
    Pictures,
    film_at,
    film_frames,
    film_index,
    image,
    images,
    in_blocks,
    passed_over,
)
from orchestrator.data.importers.items import build_items, label_of, unusable
from orchestrator.data.importers.lerobot_metadata import (
    ACTIONS,
    BASE_PART,
    STATES,
    FilmPlaces,
    arm_columns,
    cameras_of,
    channels_of,
    declared_size,
    dimension_names,
    episodes_of,
    instruction_of,
    layout_of,
    our_contract,
    parts_of,
    rate_of,
    split_of,
    tasks_of,
)
from orchestrator.data.importers.lerobot_rows import (
    Spans,
    image_file,
    length_of,
    moments_of,
    part_of_table,
    vectors,
    whole_table,
)
from orchestrator.data.importers.source_files import SourceError, cause, contained, refuse_pointer


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Location of an episode, and what the metadata says of it."""

    spans: Spans
    films: FilmPlaces
    tasks: Any
    """Its sentence, or a list of them."""
    task: str | None
    """Task and success as this project's export writes them."""
    success: bool | None

    @property
    def length(self) -> int:
        return length_of(self.spans)


@dataclass(frozen=True, kw_only=True)
class LeRobotReader:
    """Reader of the folder of a dataset."""

    root: Path
    features: dict[str, str]
    """Camera of the source -> its feature."""
    films: frozenset[str]
    """Features that are videos."""
    sizes: dict[str, tuple[int, int]]
    """(H, W) of each camera's pictures as stored."""
    proprio: tuple[str, ...]
    action: str
    columns: tuple[int, ...] | None
    """Indices of the action's values to keep, in order; None for all."""
    base_columns: tuple[int, ...]
    """Indices of the action's values that move the base."""
    sentences: dict[int, str]
    """task_index -> sentence."""
    places: dict[str, _Place]
    ends: dict[str, float]
    """Film -> its second at which its last episode ends, by the metadata."""
    turned: frozenset[str]
    """Cameras whose films are shown with width and height exchanged."""

    def describe(self, name: str, info: SourceInfo, reading: ImportOptions) -> EpisodeInfo:
        """Check the rows and films of an episode. Raises ValueError if something is missing, or differs from
        the other episodes.
        """
        place, contract = self.places[name], info.contract
        table = self._table(place, info, ["timestamp", "task_index", "frame_index"], info.labelled)
        proprio = [vectors(table, key) for key in self.proprio]
        actions = vectors(table, self.action) if info.labelled else np.empty((place.length, 0), np.float32)
        kept_actions = self._kept(actions)
        width = sum(values.shape[1] for values in proprio)
        if self.proprio and width != len(contract.proprio):
            raise ValueError(f"it has {width} proprioceptive values, the others {len(contract.proprio)}")
        if info.labelled and kept_actions.shape[1] != len(contract.action):
            raise ValueError(
                f"it has {kept_actions.shape[1]} action values, the others {len(contract.action)}"
            )
        if not all(np.isfinite(values).all() for values in (*proprio, kept_actions)):
            raise ValueError("it holds a value that is not a number")
        if self.columns and np.abs(actions[:, self.base_columns]).max(initial=0) > 1e-6:
            raise ValueError("the base moves, which --arm-only cannot express")
        moments = moments_of(table, place.length, info.native_hz)
        shown = [self._sums(place, camera, moments, info.native_hz) for camera in info.cameras]
        instruction = reading.instruction or instruction_of(table, self.sentences, place.tasks)
        task = reading.task or place.task or instruction
        return EpisodeInfo(
            rows=place.length,
            picture_size=next(iter(self.sizes.values())),
            task=task,
            instruction=instruction,
            content=(*proprio, kept_actions, *shown, *info.choices, task, instruction, self.proprio),
            largest_action=float(np.abs(kept_actions[:, :-1]).max(initial=0)),
        )

    def read(self, item: Item, info: SourceInfo) -> RawEpisode:
        """Return an episode, pictures upright and scaled; SourceError or ValueError if it is damaged."""
        place, size = self.places[item.name], info.contract.image_size
        kept = info.kept(place.length)
        table = self._table(place, info, ["timestamp"], item.labelled)
        frames = {}
        for camera in info.cameras:
            if self.features[camera] in self.films:
                numbers = self._film_numbers(
                    place, camera, moments_of(table, place.length, info.native_hz), info.native_hz
                )
                frames[camera] = film_at(
                    self._film(place, camera), numbers[kept], info.stored, size, self.sizes[camera]
                )
            else:
                frames[camera] = in_blocks(self._images(place, camera), kept, info.stored, size)
        return RawEpisode(
            frames=frames,
            rows=place.length,
            proprio=np.concatenate([vectors(table, key) for key in self.proprio], 1)
            if self.proprio
            else None,
            action=self._kept(vectors(table, self.action)) if item.labelled else None,
            success=place.success,
        )

    def first_pictures(self, item: Item, info: SourceInfo) -> dict[str, Pictures]:
        """Return one (H, W, 3) picture per camera as stored."""
        place = self.places[item.name]
        pictures = {}
        for camera in info.cameras:
            if self.features[camera] in self.films:
                table = whole_table(self.root, place.spans, ["timestamp"], info.native_hz)
                moments = moments_of(table, place.length, info.native_hz)
                numbers = self._film_numbers(place, camera, moments, info.native_hz)
                pictures[camera] = next(film_frames(self._film(place, camera), numbers[:1]))
            else:
                pictures[camera] = self._images(place, camera)(0, 1)[0]
        return pictures

    def _table(self, place: _Place, info: SourceInfo, columns: list[str], labelled: bool) -> pa.Table:
        """Return an episode's rows of the vectors and of further columns."""
        wanted = [*self.proprio, *([self.action] if labelled else []), *columns]
        return whole_table(self.root, place.spans, wanted, info.native_hz)

    def _kept(self, actions: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return actions if self.columns is None else actions[:, self.columns]

    def _film(self, place: _Place, camera: str) -> Path:
        return contained(self.root, place.films[self.features[camera]][0])

    def _film_numbers(
        self, place: _Place, camera: str, moments: npt.NDArray[np.float64], hz: float
    ) -> npt.NDArray[np.int64]:
        """Return the index of the film's frame at each row. Raises ValueError if a row has none, or if the
        whole film is late.
        """
        relative, start_s = place.films[self.features[camera]]
        index = film_index(self._film(place, camera))
        late_s = float(index.times[0])
        if (
            late_s > 0.5 / hz
            and abs(index.times[-1] + index.period - late_s - self.ends[relative]) < 0.5 / hz
        ):
            raise ValueError(
                f"its video {relative} is as long as its rows but begins at second {late_s:.3f}; let it begin"
                " at 0 with `ffmpeg -i VIDEO -c copy NEW`"
            )
        return index.nearest(moments + start_s, 0.5 / hz + 1e-4)

    def _sums(
        self, place: _Place, camera: str, moments: npt.NDArray[np.float64], hz: float
    ) -> npt.NDArray[np.int64]:
        """Return the checksum of the picture of each row. Raises ValueError if a film has pictures of another
        size than the others.
        """
        feature = self.features[camera]
        if feature not in self.films:
            cells = part_of_table(self.root, place.spans, [feature], 0, place.length)[feature].to_pylist()
            return np.asarray([crc32(image_file(self.root, cell)) for cell in cells], np.int64)
        index = film_index(self._film(place, camera))
        expected = self.sizes[camera][::-1] if camera in self.turned else self.sizes[camera]
        if index.size != expected:
            found, usual = ("{}x{}".format(*size) for size in (index.size, expected))
            raise ValueError(f"its pictures of {camera} are {found}, those of the others {usual}")
        return index.packet_sums[self._film_numbers(place, camera, moments, hz)]

    def _images(self, place: _Place, camera: str) -> Callable[[int, int], Pictures]:
        """Return a function that reads the pictures of rows `first` to `last` from Parquet cells."""
        feature, size = self.features[camera], self.sizes[camera]

        def read(first: int, last: int) -> Pictures:
            cells = part_of_table(self.root, place.spans, [feature], first, last)[feature].to_pylist()
            return images((image_file(self.root, cell) for cell in cells), size)

        return read


def open_lerobot(root: Path, reading: ImportOptions) -> Source:
    """Open a dataset and check its metadata, rows and films. Raises SourceError for an unknown version or a
    missing feature.
    """
    refuse_pointer(root / "meta" / "info.json")
    try:
        return _understand(root, json.loads((root / "meta" / "info.json").read_text("utf-8-sig")), reading)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, pa.ArrowException) as error:
        raise SourceError(
            f"{root}: its metadata cannot be read ({type(error).__name__}: {' '.join(str(error).split())});"
            " restore meta/"
        ) from None


def _understand(root: Path, facts: dict[str, Any], reading: ImportOptions) -> Source:
    version, features = str(facts.get("codebase_version")), facts["features"]
    if not version.startswith(("v2.", "v3.")):
        raise SourceError(
            f"{root}: LeRobot {version} is not read, only 2.0, 2.1 and 3.0; convert it with LeRobot's own"
            " scripts"
        )
    where = str(root)
    named = cameras_of(features)
    cameras = chosen_cameras(where, named, reading)
    if not cameras:
        raise SourceError(f"{root}: it has no camera among its features ({', '.join(features)})")
    labelled = not reading.action_free
    proprio = (
        reading.proprio
        if reading.proprio is not None
        else tuple(key for key in STATES if key in features)[:1]
    )
    action = reading.action or next((key for key in ACTIONS if key in features), ACTIONS[0])
    if missing := [key for key in (*proprio, *([action] if labelled else ())) if key not in features]:
        raise SourceError(f"{root}: it has no feature {', '.join(missing)}; there are {', '.join(features)}")
    if labelled and not proprio:
        raise SourceError(
            f"{root}: it has no {STATES[0]}; say which feature is the proprioception with --proprio, or add"
            " --action-free"
        )
    parts = parts_of(root)
    action_parts = parts.get(action, [])
    all_names = dimension_names(action, features[action], action_parts) if labelled else ()
    columns = arm_columns(where, action_parts) if reading.arm_only and labelled else None
    episodes = episodes_of(root, facts)
    layout, unread = layout_of(root, facts, [line for line, _ in episodes])
    native_hz = rate_of(root, facts, layout, reading)
    stored, questions = orientation(root.name, reading)
    ours = our_contract(facts)
    films = frozenset(name for name in named.values() if features[name]["dtype"] == "video")
    declared = {camera: declared_size(features[named[camera]]) for camera in cameras}
    places, unusable_items, problems = _located(
        root,
        episodes,
        layout,
        unread,
        wanted=split_of(root, facts, reading),
        films=[named[camera] for camera in cameras if named[camera] in films],
        native_hz=native_hz,
        labelled=labelled,
    )
    if not reading.cameras:
        others = {key: feature for key, feature in features.items() if key not in named.values()}
        problems += passed_over(root.name, {key: channels_of(feature) for key, feature in others.items()})
    sizes = _true_sizes(root, declared, named, films, list(places.values()))
    turned = _turned(root, sizes, named, films, list(places.values()))
    sizes |= {camera: sizes[camera][::-1] for camera in turned}
    info = source_info(
        where,
        replace(reading, render_profile=reading.render_profile or (ours.render_profile if ours else None)),
        format=f"LeRobot {version}",
        name=root.name,
        label=label_of(root, reading),
        cameras=cameras,
        sizes=sizes,
        stored=stored,
        native_hz=native_hz,
        labelled=labelled,
        proprio=tuple(
            name for key in proprio for name in dimension_names(key, features[key], parts.get(key, []))
        ),
        action=tuple(all_names[i] for i in columns) if columns else all_names,
        simulator=ours.simulator if ours else f"unknown, robot {facts.get('robot_type') or 'unknown'}",
    )
    reader = LeRobotReader(
        root=root,
        features=named,
        films=films,
        sizes=sizes,
        proprio=proprio,
        action=action,
        columns=columns,
        base_columns=tuple(i for part, a, b in action_parts if part == BASE_PART for i in range(a, b)),
        sentences=tasks_of(root),
        places=places,
        ends=_film_ends(episodes, native_hz),
        turned=turned,
    )
    listing = build_items(
        info,
        {name: place.length for name, place in places.items()},
        partial(reader.describe, info=info, reading=reading),
    )
    if not listing.instructed:
        questions.append(f"{root.name}: episodes have no task; say in words what is done with --instruction")
    info, more = renamed_actions(info, listing.largest_action, reading)
    return Source(
        info=info,
        reader=reader,
        items=sorted([*unusable_items, *listing.items], key=lambda item: item.name),
        problems=sorted([*problems, *listing.problems, *_unlisted(root, facts, episodes, layout)]),
        questions=questions + more,
    )


def _located(
    root: Path,
    episodes: list[tuple[dict[str, Any], FilmPlaces]],
    layout: dict[int, Spans],
    unread: dict[int, str],
    *,
    wanted: range | None,
    films: list[str],
    native_hz: float,
    labelled: bool,
) -> tuple[dict[str, _Place], list[Item], list[str]]:
    """Return the requested episodes, without duplicates, whose rows and films are complete; the items of the
    others; and a sentence for each that is left out.

    unread: episode -> reason why its rows are not read. wanted: the requested ones, None for all. films:
    video features that are read.
    """
    places: dict[str, _Place] = {}
    items: list[Item] = []
    problems: list[str] = []
    seen: set[int] = set()
    for line, film_places in episodes:
        index = line.get("episode_index")
        if wanted is not None and index not in wanted:
            continue
        if index in seen:
            problems.append(f"{root.name}, episode {index}: it is listed twice; the second is left out")
            continue
        try:
            number = int(line["episode_index"])
            seen.add(number)
            if number in unread:
                raise ValueError(unread[number])
            place = _Place(
                spans=layout.get(number, ()),
                films=film_places,
                tasks=line.get("tasks"),
                task=line.get("demoscale/task"),
                success=line.get("demoscale/success"),
            )
            _refuse_incomplete(root, line, place, films, native_hz)
            places[f"episode_{number:06d}"] = place
        except Exception as error:  # any error of one episode leaves out this one only
            problems.append(f"{root.name}, episode {index}: {cause(error)}; left out")
            if isinstance(index, int):
                items.append(unusable(f"episode_{index:06d}", 0, labelled, problems[-1]))
    return places, items, problems


def _refuse_incomplete(
    root: Path, line: dict[str, Any], place: _Place, films: list[str], native_hz: float
) -> None:
    """Raise ValueError or SourceError if rows or films are not as the metadata says."""
    rows = place.length
    if rows != int(line["length"]):
        raise ValueError(f"its metadata says {line['length']} rows, {rows} are there")
    for feature in films:
        if feature not in place.films:
            raise ValueError(f"its metadata does not say where its video of {feature} is")
        relative, start_s = place.films[feature]
        path = contained(root, relative)
        if not path.is_file():
            raise ValueError(f"there is no file {relative}")
        refuse_pointer(path)
        end_s = line.get(f"videos/{feature}/to_timestamp")
        if end_s is not None and abs((end_s - start_s) - rows / native_hz) > 0.5 / native_hz:
            raise ValueError(
                f"its video lasts {end_s - start_s:.3f} s by its metadata, its {rows} rows"
                f" {rows / native_hz:.3f} s; pictures and rows do not belong together"
            )


def _true_sizes(
    root: Path,
    declared: dict[str, tuple[int, int]],
    features: dict[str, str],
    films: frozenset[str],
    places: list[_Place],
) -> dict[str, tuple[int, int]]:
    """Return the stored (H, W) per camera: of most episodes' films, or of the first readable picture; as
    declared without either.

    Some datasets exchange width and height in their metadata.
    """
    sizes = dict(declared)
    for camera in declared:
        feature = features[camera]
        if feature in films:
            seen: Counter[tuple[int, int]] = Counter()
            for place in places:
                try:
                    seen[film_index(contained(root, place.films[feature][0])).size] += 1
                except (ValueError, SourceError):
                    continue  # `LeRobotReader.describe` reports it
            sizes[camera] = seen.most_common(1)[0][0] if seen else sizes[camera]
            continue
        for place in places[:8]:
            try:
                cell = part_of_table(root, place.spans, [feature], 0, 1)[feature].to_pylist()[0]
                height, width = image(image_file(root, cell)).shape[:2]
            except (OSError, ValueError, KeyError, SourceError, pa.ArrowException):
                continue
            sizes[camera] = (height, width)
            break
    return sizes


def _turned(
    root: Path,
    sizes: dict[str, tuple[int, int]],
    features: dict[str, str],
    films: frozenset[str],
    places: list[_Place],
) -> frozenset[str]:
    """Return the cameras whose films are shown with width and height exchanged, by their first readable film;
    `LeRobotReader.read` refuses others.
    """
    turned = set()
    for camera in (camera for camera in sizes if features[camera] in films):
        for place in places[:8]:
            try:
                path = contained(root, place.films[features[camera]][0])
                shown = next(film_frames(path, [0])).shape[:2]
            except (ValueError, SourceError):
                continue  # `LeRobotReader.describe` reports it
            if shown != film_index(path).size:
                turned.add(camera)
            break
    return frozenset(turned)


def _film_ends(episodes: list[tuple[dict[str, Any], FilmPlaces]], hz: float) -> dict[str, float]:
    """Return film -> its second at which its last episode ends, by the metadata."""
    ends: dict[str, float] = {}
    for line, films in episodes:
        for relative, start_s in films.values():
            length = line.get("length")
            end_s = start_s + (length / hz if isinstance(length, (int, float)) else 0.0)
            ends[relative] = max(ends.get(relative, 0.0), end_s)
    return ends


def _unlisted(
    root: Path,
    facts: dict[str, Any],
    episodes: list[tuple[dict[str, Any], FilmPlaces]],
    layout: dict[int, Spans],
) -> list[str]:
    """Return a sentence if there are episodes, by the rows or by meta/info.json, that meta/episodes does not
    list.
    """
    listed = {line.get("episode_index") for line, _ in episodes}
    if rest := sorted(set(layout) - listed):
        some = ", ".join(map(str, rest[:5])) + f" and {len(rest) - 5} more" * (len(rest) > 5)
        return [f"{root.name}: meta/episodes does not list episodes {some}, whose rows are there; left out"]
    total = facts.get("total_episodes")
    if isinstance(total, int) and total > len(listed):
        return [
            f"{root.name}: meta/info.json says {total} episodes, meta/episodes lists {len(listed)}; copy what"
            " is missing"
        ]
    return []
