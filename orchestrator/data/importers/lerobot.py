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
import re
import string
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.data.episode_format import Episode
from orchestrator.data.importers.base import (
    ImportOptions,
    Item,
    Pictures,
    RawEpisode,
    SourceError,
    action_names,
    cause,
    chosen_cameras,
    contained,
    contract_of,
    finished,
    identity,
    kept_frames,
    label_of,
    leaving_out,
    names_of,
    only_sentence,
    orientation,
    origin,
    refuse_bulk,
    refuse_pointer,
    unusable,
)
from orchestrator.data.importers.image_ops import film_at, film_frames, film_index, image, images, in_blocks
from policy.interface import Contract

STATES, ACTIONS = ("observation.state", "state"), ("action", "actions")
"""Names of the state and of the action: those of LeRobot's own recorders, and those of openpi's
converters.
"""
ARM_PARTS = ("end_effector_position", "end_effector_rotation", "gripper_close")
"""Parts of RoboCasa365's action that move the arm, in the order of robosuite's controller."""
BASE_PART = "base_motion"
RATE_TOLERANCE = 0.05
"""Largest relative difference between the rows' median step and the stated rate."""
LONGEST_GAP = 1.5
"""Longest distance between two rows, in steps; a longer one means that rows are missing."""


@dataclass(frozen=True)
class _Place:
    """Location of an episode."""

    rows: tuple[tuple[str, int, int], ...]
    """Spans of Parquet files: path, first row, number of rows."""
    length: int
    films: dict[str, tuple[str, float]]
    """Video feature -> path, and the film's second at which the episode's timestamp is zero."""
    success: bool | None


@dataclass
class LeRobot:
    """Source: the folder of a dataset."""

    root: Path
    format: str
    contract: Contract
    items: list[Item]
    problems: list[str]
    questions: list[str]
    _cameras: dict[str, str]
    _features: dict[str, str]
    """Camera of the source -> its feature."""
    _films: frozenset[str]
    """Features that are videos."""
    _sizes: dict[str, tuple[int, int]]
    """(H, W) of each camera's pictures as stored."""
    _proprio: tuple[str, ...]
    _action: str
    _columns: tuple[int, ...] | None
    """Indices of the action's values to keep, in order; None for all."""
    _stored: str
    _native_hz: float
    _places: dict[str, _Place] = field(default_factory=dict)

    def read(self, item: Item) -> Episode:
        place = self._places[item.name]
        kept = kept_frames(place.length, self._native_hz, self.contract.control_hz)
        table = _rows(
            self.root,
            place,
            [*self._proprio, *([self._action] if item.labelled else []), "timestamp"],
            self._native_hz,
        )
        frames = {}
        for camera in self._cameras:
            feature = self._features[camera]
            if feature in self._films:
                numbers = self._film_numbers(place, feature, _moments(table, place.length, self._native_hz))
                path = contained(self.root, place.films[feature][0])
                frames[camera] = film_at(path, numbers[kept], self._stored, self.contract.image_size)
            else:
                frames[camera] = in_blocks(
                    self._images(place, camera), kept, self._stored, self.contract.image_size
                )
        raw = RawEpisode(
            frames=frames,
            proprio=(
                np.concatenate([_vectors(table, key) for key in self._proprio], 1) if self._proprio else None
            ),
            action=_kept(_vectors(table, self._action), self._columns) if item.labelled else None,
            success=place.success,
            rows=place.length,
        )
        return finished(item, raw, self.contract, self._cameras, self._native_hz)

    def first_pictures(self, item: Item) -> dict[str, Pictures]:
        place = self._places[item.name]
        pictures = {}
        for camera in self._cameras:
            feature = self._features[camera]
            if feature in self._films:
                moments = _moments(
                    _rows(self.root, place, ["timestamp"], self._native_hz), place.length, self._native_hz
                )
                numbers = self._film_numbers(place, feature, moments)
                pictures[camera] = next(
                    film_frames(contained(self.root, place.films[feature][0]), numbers[:1])
                )
            else:
                pictures[camera] = self._images(place, camera)(0, 1)[0]
        return pictures

    def _film_numbers(
        self, place: _Place, feature: str, moments: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.int64]:
        """Return the index of the film's frame at each row. Raises ValueError if a row has none."""
        path, start_s = place.films[feature]
        return film_index(contained(self.root, path)).nearest(moments + start_s, 0.5 / self._native_hz + 1e-4)

    def _images(self, place: _Place, camera: str) -> Any:
        """Return a function that reads the pictures of rows `first` to `last` from Parquet cells."""
        feature, size = self._features[camera], self._sizes[camera]

        def read(first: int, last: int) -> Pictures:
            cells = _span(self.root, place, [feature], first, last)[feature].to_pylist()
            return images((_image_file(self.root, cell) for cell in cells), size)

        return read


def open_lerobot(root: Path, reading: ImportOptions) -> LeRobot:
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


def _understand(root: Path, info: dict[str, Any], reading: ImportOptions) -> LeRobot:
    version, features = str(info.get("codebase_version")), info["features"]
    if not version.startswith(("v2.", "v3.")):
        raise SourceError(
            f"{root}: LeRobot {version} is not read, only 2.0, 2.1 and 3.0; convert it with LeRobot's own"
            " scripts"
        )
    where = str(root)
    named = _cameras_of(features)
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
    parts = _parts(root)
    all_names = _names(action, features[action], parts.get(action, [])) if labelled else ()
    columns = _arm_columns(where, action, parts.get(action, [])) if reading.arm_only and labelled else None
    episodes = list(_episodes_v3(root, info) if version.startswith("v3.") else _episodes_v2(root, info))
    layout, unread = _layout(root, info, version, [line for line, _ in episodes])
    native_hz = _rate(root, info, layout, reading)
    stored, questions = orientation(root.name, "upright", "", reading)
    ours = _our_contract(info)
    films = frozenset(name for name in named.values() if features[name]["dtype"] == "video")
    sizes = {camera: _declared_size(features[named[camera]]) for camera in cameras}
    source = LeRobot(
        root,
        f"LeRobot {version}",
        Contract((), (0, 0), "", (), (), native_hz, ""),
        [],
        [],
        questions,
        cameras,
        named,
        films,
        sizes,
        proprio,
        action,
        columns,
        stored,
        native_hz,
    )
    candidates = _candidates(source, episodes, layout, unread, reading, info)
    if candidates:
        source._sizes = _true_sizes(source, candidates) or sizes
    contract = contract_of(
        where,
        cameras,
        source._sizes,
        tuple(name for key in proprio for name in _names(key, features[key], parts.get(key, []))),
        tuple(all_names[i] for i in columns) if columns else all_names,
        native_hz,
        ours.simulator if ours else f"unknown, robot {info.get('robot_type') or 'unknown'}",
        (
            reading
            if reading.render_profile or not ours
            else replace(reading, render_profile=ours.render_profile)
        ),
    )
    source.contract = contract
    largest = 0.0
    tasks = _tasks(root)
    for line, place in candidates:
        largest = max(largest, _take(source, line, place, tasks, reading, parts.get(action, [])))
    source.items.sort(key=lambda item: item.name)
    source.problems.sort()
    names, more = action_names(root.name, contract.action, largest, reading)
    source.contract = replace(contract, action=names)
    source.questions += more
    return source


def _take(
    source: LeRobot,
    line: dict[str, Any],
    place: _Place,
    tasks: dict[int, str],
    reading: ImportOptions,
    parts: list[tuple[str, int, int]],
) -> float:
    """Add an episode to the source's items, or the reason against it to its problems; return its largest
    absolute action value.

    The last dimension, the gripper's, is not counted.
    """
    root, index = source.root, int(line["episode_index"])
    name, labelled, contract, native_hz = (
        f"episode_{index:06d}",
        not reading.action_free,
        source.contract,
        source._native_hz,
    )
    with leaving_out(f"{root.name}, {name}", source.problems):
        table = _rows(
            root,
            place,
            [
                *source._proprio,
                *([source._action] if labelled else []),
                "timestamp",
                "task_index",
                "frame_index",
            ],
            native_hz,
        )
        proprio = [_vectors(table, key) for key in source._proprio]
        actions = _vectors(table, source._action) if labelled else np.empty((place.length, 0), np.float32)
        width = sum(values.shape[1] for values in proprio)
        kept_actions = _kept(actions, source._columns)
        for what, its, others in (
            ("proprioceptive", width, len(contract.proprio)),
            ("action", kept_actions.shape[1], len(contract.action)),
        ):
            if its != others and (what == "action" or source._proprio) and (labelled or what != "action"):
                raise ValueError(f"it has {its} {what} values, the others {others}")
        if not all(np.isfinite(values).all() for values in (*proprio, kept_actions)):
            raise ValueError("it holds a value that is not a number")
        if (
            source._columns
            and np.abs(actions[:, [i for part, a, b in parts if part == BASE_PART for i in range(a, b)]]).max(
                initial=0
            )
            > 1e-6
        ):
            raise ValueError("the base moves, which --arm-only cannot express")
        moments = _moments(table, place.length, native_hz)
        shown = []
        for camera in source._cameras:
            feature = source._features[camera]
            if feature in source._films:
                path = contained(root, place.films[feature][0])
                index_of_film = film_index(path)
                if index_of_film.size != source._sizes[camera]:
                    found, usual = (
                        "{}x{}".format(*size) for size in (index_of_film.size, source._sizes[camera])
                    )
                    raise ValueError(f"its pictures of {camera} are {found}, those of the others {usual}")
                numbers = source._film_numbers(place, feature, moments)
                shown.append(index_of_film.packet_sums[numbers])
            else:
                cells = _span(root, place, [feature], 0, place.length)[feature].to_pylist()
                shown.append(np.asarray([crc32(_image_file(root, cell)) for cell in cells], np.int64))
        instruction = reading.instruction or _instruction(table, tasks, line)
        if not instruction and not any("--instruction" in question for question in source.questions):
            source.questions.append(
                f"{root.name}: episodes have no task; say in words what is done with --instruction"
            )
        task = reading.task or line.get("demoscale/task") or instruction
        length = len(kept_frames(place.length, native_hz, contract.control_hz))
        refuse_bulk(length, len(source._cameras), contract.image_size)
        content = identity(
            *proprio,
            kept_actions,
            *shown,
            list(source._cameras.items()),
            source._stored,
            contract.image_size,
            task,
            instruction,
            source._proprio,
        )
        said = origin(
            f"{root.name}, {name}",
            source._stored,
            next(iter(source._sizes.values())),
            native_hz,
            contract,
            content,
        )
        source.items.append(
            Item(name, f"{label_of(root, reading)}-{name}", task, instruction, length, labelled, said)
        )
        source._places[name] = place
        return float(np.abs(kept_actions[:, :-1]).max(initial=0))
    source.items.append(unusable(name, place.length, labelled, source.problems[-1]))
    return 0.0


# -- metadata ------------------------------------------------------------------------------------------------


def _candidates(
    source: LeRobot,
    episodes: list[tuple[dict[str, Any], dict[str, tuple[str, float]]]],
    layout: dict[int, list[tuple[str, int, int]]],
    unread: dict[int, str],
    reading: ImportOptions,
    info: dict[str, Any],
) -> list[tuple[dict[str, Any], _Place]]:
    """Return the requested episodes, without duplicates, whose rows and films are complete.

    unread: episode -> reason why its rows are not read.
    """
    root, wanted = source.root, _split(source.root, info, reading)
    found: list[tuple[dict[str, Any], _Place]] = []
    seen: set[int] = set()
    for line, films in episodes:
        index = line.get("episode_index")
        if wanted is not None and index not in wanted:
            continue
        if index in seen:
            source.problems.append(
                f"{root.name}, episode {index}: it is listed twice; the second is left out"
            )
            continue
        with leaving_out(f"{root.name}, episode {index}", source.problems):
            number = int(line["episode_index"])
            seen.add(number)
            spans = layout.get(number, [])
            rows = sum(count for _, _, count in spans)
            if number in unread:
                raise ValueError(unread[number])
            if rows != int(line["length"]):
                raise ValueError(f"its metadata says {line['length']} rows, {rows} are there")
            for feature in [
                source._features[camera]
                for camera in source._cameras
                if source._features[camera] in source._films
            ]:
                if feature not in films:
                    raise ValueError(f"its metadata does not say where its video of {feature} is")
                path = contained(root, films[feature][0])
                if not path.is_file():
                    raise ValueError(f"there is no file {films[feature][0]}")
                refuse_pointer(path)
                span_s = line.get(f"videos/{feature}/to_timestamp")
                if (
                    span_s is not None
                    and abs((span_s - films[feature][1]) - rows / source._native_hz) > 0.5 / source._native_hz
                ):
                    raise ValueError(
                        f"its video lasts {span_s - films[feature][1]:.3f} s by its metadata, its {rows} rows"
                        f" {rows / source._native_hz:.3f} s; pictures and rows do not belong together"
                    )
            found.append((line, _Place(tuple(spans), rows, films, line.get("demoscale/success"))))
            continue
        if isinstance(index, int):
            source.items.append(
                unusable(f"episode_{index:06d}", 0, not reading.action_free, source.problems[-1])
            )
    return found


def _layout(
    root: Path, info: dict[str, Any], version: str, lines: list[dict[str, Any]]
) -> tuple[dict[int, list[tuple[str, int, int]]], dict[int, str]]:
    """Return episode -> location of its rows (spans of files, in order), and episode -> reason why its file
    is not read.
    """
    layout: dict[int, list[tuple[str, int, int]]] = {}
    unread: dict[int, str] = {}
    if version.startswith("v3."):
        for path in sorted((root / "data").glob("**/*.parquet")):
            if not path.name.startswith("."):
                _add_spans(layout, root, path.relative_to(root).as_posix(), None)
        return layout, unread
    for line in lines:
        if not isinstance(index := line.get("episode_index"), int):
            continue
        try:
            relative = _filled(
                root,
                info["data_path"],
                episode_chunk=index // int(info.get("chunks_size") or 1000),
                episode_index=index,
            )
            if not contained(root, relative).is_file():
                raise ValueError(f"there is no file {relative}")
            if index not in layout:
                _add_spans(layout, root, relative, index)
        except Exception as error:  # any error of one file leaves out its episode only
            unread[index] = cause(error)
    return layout, unread


def _add_spans(
    layout: dict[int, list[tuple[str, int, int]]], root: Path, relative: str, alone: int | None
) -> None:
    """Add the spans of a file's episodes to the layout; `alone`: the only episode that the file may hold."""
    path = contained(root, relative)
    refuse_pointer(path)
    file = pq.ParquetFile(path)
    if "episode_index" not in file.schema_arrow.names:
        raise ValueError(f"{relative} has no column episode_index")
    numbers = file.read(columns=["episode_index"], use_threads=False)["episode_index"].to_numpy()
    if alone is not None and (numbers != alone).any():
        raise ValueError(f"{relative} has rows of episode {numbers[numbers != alone][0]}")
    if not len(numbers):
        return
    starts = np.concatenate([[0], np.flatnonzero(np.diff(numbers)) + 1])
    for first, last in zip(starts, [*starts[1:], len(numbers)], strict=True):
        layout.setdefault(int(numbers[first]), []).append((relative, int(first), int(last - first)))


def _episodes_v3(
    root: Path, info: dict[str, Any]
) -> list[tuple[dict[str, Any], dict[str, tuple[str, float]]]]:
    """Return per episode its line of metadata, and video feature -> (file, the second at which it begins)."""
    lines: list[dict[str, Any]] = []
    for path in sorted((root / "meta" / "episodes").glob("**/*.parquet")):
        file = pq.ParquetFile(path)
        wanted = [name for name in file.schema_arrow.names if not name.startswith("stats/")]
        lines += file.read(columns=wanted, use_threads=False).to_pylist()
    episodes = []
    for line in lines:
        films = {}
        for key in [
            key.removeprefix("videos/").removesuffix("/from_timestamp")
            for key in line
            if re.fullmatch(r"videos/.+/from_timestamp", key)
        ]:
            place: dict[str, Any] = {
                name: line.get(f"videos/{key}/{name}")
                for name in ("chunk_index", "file_index", "from_timestamp")
            }
            if None not in place.values():
                numbers = {name: int(value) for name, value in place.items() if name != "from_timestamp"}
                films[key] = (
                    _filled(root, info["video_path"], video_key=key, **numbers),
                    float(place["from_timestamp"]),
                )
        episodes.append((line, films))
    return episodes


def _episodes_v2(
    root: Path, info: dict[str, Any]
) -> list[tuple[dict[str, Any], dict[str, tuple[str, float]]]]:
    keys = [name for name, feature in info["features"].items() if feature["dtype"] == "video"]
    episodes = []
    for line in _json_lines(root / "meta" / "episodes.jsonl"):
        index = int(line["episode_index"])
        place = {"episode_chunk": index // int(info.get("chunks_size") or 1000), "episode_index": index}
        episodes.append(
            (line, {key: (_filled(root, info["video_path"], video_key=key, **place), 0.0) for key in keys})
        )
    return episodes


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file with one per line. (Not `splitlines`: a sentence may hold U+2028.)"""
    lines = [json.loads(text) for text in path.read_text("utf-8-sig").split("\n") if text.strip()]
    if not all(isinstance(line, dict) for line in lines):
        raise ValueError(f"{path.name}: every line must be an object")
    return lines


def _filled(root: Path, template: str, **values: object) -> str:
    """Fill one of the dataset's path templates. Raises SourceError if it names anything but the values."""
    for _, name, layout, conversion in string.Formatter().parse(template):
        if name is not None and (
            name not in values or conversion or not re.fullmatch(r"0?\d{0,2}d?", layout or "")
        ):
            raise SourceError(f"{root}: the path {template} in meta/info.json is not understood")
    return template.format(**values)


def _tasks(root: Path) -> dict[int, str]:
    """Return task_index -> sentence. LeRobot 3.0 keeps the sentences as the index of a pandas frame."""
    if (path := root / "meta" / "tasks.parquet").is_file():
        table = pq.ParquetFile(path).read(use_threads=False)
        words = (
            "task"
            if "task" in table.column_names
            else next((f.name for f in table.schema if pa.types.is_string(f.type)), "")
        )
        pairs = zip(table["task_index"].to_pylist(), table[words].to_pylist(), strict=True) if words else ()
        return {int(number): str(sentence) for number, sentence in pairs}
    if (path := root / "meta" / "tasks.jsonl").is_file():
        return {
            int(line["task_index"]): str(line.get("task") or "")
            for line in _json_lines(path)
            if line.get("task_index") is not None
        }
    return {}


def _instruction(table: pa.Table, tasks: dict[int, str], line: dict[str, Any]) -> str:
    """Return the sentence that the rows name, or the metadata's only one where rows name none or the table of
    tasks lacks it.

    Raises ValueError if there are several.
    """
    said = line.get("tasks") or []
    listed = sorted(
        {
            text.strip()
            for text in ([said] if isinstance(said, str) else said)
            if isinstance(text, str) and text.strip()
        }
    )
    if "task_index" in table.column_names:
        numbers = [number for number in table["task_index"].unique().to_pylist() if number is not None]
        sentence = only_sentence((tasks.get(number, "") for number in numbers), "rows")
        if sentence and (len(listed) != 1 or listed[0] in tasks.values()):
            return sentence
    if len(listed) > 1:
        raise ValueError(
            f"its metadata names {len(listed)} sentences and its rows none; say which holds with"
            " --instruction"
        )
    return listed[0] if listed else ""


def _split(root: Path, info: dict[str, Any], reading: ImportOptions) -> set[int] | None:
    """Return the episodes of the split that --mask names; None for all."""
    if not reading.mask:
        return None
    splits = info.get("splits") or {}
    match = re.fullmatch(r"(\d+):(\d+)", str(splits.get(reading.mask, "")))
    if not match:
        raise SourceError(
            f"{root}: there is no split {reading.mask} in meta/info.json; --mask can choose from"
            f" {', '.join(splits) or 'none'}"
        )
    return set(range(int(match[1]), int(match[2])))


def _rate(
    root: Path, info: dict[str, Any], layout: dict[int, list[tuple[str, int, int]]], reading: ImportOptions
) -> float:
    """Return the rows per second of meta/info.json, or --hz where the rows' timestamps agree with it.

    Raises SourceError if neither states a rate, or if the timestamps contradict --hz.
    """
    stated = float(info.get("fps") or 0)
    if reading.hz and abs(reading.hz - stated) > 1e-6:
        steps = [step for spans in list(layout.values())[:8] if (step := _median_step(root, spans))]
        if stated and not any(abs(step * reading.hz - 1) <= RATE_TOLERANCE for step in steps):
            raise SourceError(
                f"{root}: it was recorded at {stated:g} steps per second, not {reading.hz:g}; leave --hz out,"
                " or mean --resample-hz"
            )
        return reading.hz
    if not stated:
        raise SourceError(f"{root}: it does not say how many steps a second has; say it with --hz")
    return stated


def _median_step(root: Path, spans: list[tuple[str, int, int]]) -> float:
    try:
        table = _span(
            root,
            _Place(tuple(spans), sum(n for _, _, n in spans), {}, None),
            ["timestamp"],
            0,
            sum(n for _, _, n in spans),
        )
        return float(np.median(np.diff(table["timestamp"].to_numpy()))) if len(table) > 1 else 0.0
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException):
        return 0.0


def _our_contract(info: dict[str, Any]) -> Contract | None:
    """Return the contract that this project's export wrote; None without one."""
    try:
        return Contract.from_json(info["demoscale"]["contract"])
    except (KeyError, TypeError, ValueError):
        return None


def _cameras_of(features: dict[str, Any]) -> dict[str, str]:
    """Return camera -> its feature; by the whole name where short names are not unique."""
    pictures = [
        name
        for name, feature in features.items()
        if feature["dtype"] in ("video", "image") and _is_colour(feature)
    ]
    short = Counter(map(_camera, pictures))
    return {_camera(name) if short[_camera(name)] == 1 else name: name for name in pictures}


def _camera(feature: str) -> str:
    return feature.removeprefix("observation.images.").removeprefix("observation.")


def _is_colour(feature: dict[str, Any]) -> bool:
    """Return whether a feature is a colour picture; depth has one channel or is marked as a depth map."""
    facts = {**(feature.get("info") or {}), **(feature.get("video_info") or {})}
    shape = feature["shape"]
    return (
        len(shape) == 3
        and 3 in (shape[0], shape[-1])
        and not (facts.get("is_depth_map") or facts.get("video.is_depth_map"))
    )


def _declared_size(feature: dict[str, Any]) -> tuple[int, int]:
    """Return the declared (H, W), by the axes' names or by the position of the three channels."""
    shape, names = feature["shape"], feature.get("names")
    if isinstance(names, list) and {"height", "width"} <= set(map(str, names)):
        return int(shape[names.index("height")]), int(shape[names.index("width")])
    height, width = shape[:2] if shape[-1] == 3 else shape[1:]
    return int(height), int(width)


def _true_sizes(
    source: LeRobot, candidates: list[tuple[dict[str, Any], _Place]]
) -> dict[str, tuple[int, int]]:
    """Return the stored (H, W) per camera: of most episodes' films, or of the first readable picture.

    Some datasets exchange width and height in their metadata.
    """
    sizes = dict(source._sizes)
    for camera in source._cameras:
        feature = source._features[camera]
        if feature in source._films:
            seen: Counter[tuple[int, int]] = Counter()
            for _, place in candidates:
                try:
                    seen[film_index(contained(source.root, place.films[feature][0])).size] += 1
                except (ValueError, SourceError):
                    continue  # `_take` reports it
            sizes[camera] = seen.most_common(1)[0][0] if seen else sizes[camera]
            continue
        for _, place in candidates[:8]:
            try:
                cell = _span(source.root, place, [feature], 0, 1)[feature].to_pylist()[0]
                height, width = image(_image_file(source.root, cell)).shape[:2]
            except (OSError, ValueError, KeyError, SourceError, pa.ArrowException):
                continue
            sizes[camera] = (height, width)
            break
    return sizes


# -- names ---------------------------------------------------------------------------------------------------


def _parts(root: Path) -> dict[str, list[tuple[str, int, int]]]:
    """Return feature -> its parts (name, first index, end index), from meta/modality.json if it exists."""
    path = root / "meta" / "modality.json"
    if not path.is_file():
        return {}
    parts: dict[str, list[tuple[str, int, int]]] = {}
    said = json.loads(path.read_text("utf-8-sig"))
    for kind, feature in (("state", STATES[0]), ("action", ACTIONS[0])):
        for name, place in (said.get(kind) or {}).items():
            parts.setdefault(place.get("original_key") or feature, []).append(
                (name, int(place["start"]), int(place["end"]))
            )
    return {feature: sorted(found, key=lambda part: part[1]) for feature, found in parts.items()}


def _arm_columns(where: str, action: str, parts: list[tuple[str, int, int]]) -> tuple[int, ...]:
    """Return the indices of the values that move RoboCasa365's arm. Raises SourceError if meta/modality.json
    does not name them.
    """
    places = {name: range(first, last) for name, first, last in parts}
    if not {*ARM_PARTS, BASE_PART} <= set(places):
        named = ", ".join(places) or "none"
        raise SourceError(
            f"{where}: --arm-only is for RoboCasa's actions, whose parts meta/modality.json names; here are"
            f" {named}"
        )
    return tuple(i for name in ARM_PARTS for i in places[name])


def _names(key: str, feature: dict[str, Any], parts: list[tuple[str, int, int]]) -> tuple[str, ...]:
    """Return a name per value. LeRobot has lists, lists of lists, dictionaries of lists, or nothing; GR00T
    names parts.
    """
    width = int(np.prod(feature["shape"]))
    names = feature.get("names")
    if isinstance(names, dict):
        names = [part for part in names.values() if isinstance(part, list)]
    if isinstance(names, list) and names and all(isinstance(name, list) for name in names):
        names = [name for part in names for name in part]
    if isinstance(names, list) and len(names) == width and len(set(map(str, names))) == width:
        return tuple(map(str, names))
    if parts and [i for _, first, last in parts for i in range(first, last)] == list(range(width)):
        return tuple(
            name if last - first == 1 else f"{name}_{i}"
            for name, first, last in parts
            for i in range(last - first)
        )
    return names_of([key.removeprefix("observation.")], [width])


# -- rows ----------------------------------------------------------------------------------------------------


def _rows(root: Path, place: _Place, columns: list[str], hz: float) -> pa.Table:
    """Return all rows of an episode, without columns that do not exist.

    Raises ValueError if rows are out of order, missing, or not spaced by the rate.
    """
    table = _span(root, place, columns, 0, place.length)
    if "timestamp" in table.column_names and len(table) > 1:
        steps = np.diff(table["timestamp"].to_numpy().astype(np.float64))
        if not (steps > 0).all():
            raise ValueError(f"its timestamps do not rise at row {int(np.argmin(steps > 0)) + 1}")
        if abs(float(np.median(steps)) * hz - 1) > RATE_TOLERANCE:
            raise ValueError(
                f"its rows are {np.median(steps):.3f} s apart, meta/info.json says {hz:g} a second; say the"
                " right rate with --hz"
            )
        if (steps * hz > LONGEST_GAP).any():
            row = int(np.argmax(steps))
            raise ValueError(f"rows are missing: between rows {row} and {row + 1} pass {steps[row]:.3f} s")
    return table


def _span(root: Path, place: _Place, columns: list[str], first: int, last: int) -> pa.Table:
    """Return rows `first` to `last` of an episode, from the row groups that hold them."""
    tables, passed = [], 0
    for relative, start, count in place.rows:
        a, b = max(first - passed, 0), min(last - passed, count)
        passed += count
        if a >= b:
            continue
        file = pq.ParquetFile(contained(root, relative))
        ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
        starts = ends - [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        groups = [i for i in range(file.num_row_groups) if starts[i] < start + b and ends[i] > start + a]
        there = [name for name in columns if name in file.schema_arrow.names]
        if not groups:
            raise ValueError(f"{relative} ends before row {start + a}")
        tables.append(
            file.read_row_groups(groups, columns=there, use_threads=False).slice(
                start + a - starts[groups[0]], b - a
            )
        )
    return pa.concat_tables(tables) if tables else pa.table({})


def _moments(table: pa.Table, length: int, hz: float) -> npt.NDArray[np.float64]:
    """Return the second of each row, (L,), by its timestamp, or by its index and the rate where rows have
    none.
    """
    if "timestamp" not in table.column_names:
        return np.arange(length) / hz
    return np.asarray(table["timestamp"].to_numpy(), np.float64)


def _vectors(table: pa.Table, key: str) -> npt.NDArray[np.float32]:
    """Return (L, D) values of a column of lists or numbers. Raises ValueError for a row that is missing or of
    another width.
    """
    if key not in table.column_names:
        raise ValueError(f"it has no column {key}")
    column = table[key].combine_chunks()
    if column.null_count:
        raise ValueError(f"a row of {key} is missing")
    if not (
        pa.types.is_list(column.type)
        or pa.types.is_large_list(column.type)
        or pa.types.is_fixed_size_list(column.type)
    ):
        return _numbers(key, column).reshape(-1, 1)
    widths = (
        set(np.unique(column.value_lengths().to_numpy()))
        if not pa.types.is_fixed_size_list(column.type)
        else {column.type.list_size}
    )
    if len(widths) > 1:
        raise ValueError(f"rows of {key} have {min(widths)} to {max(widths)} values")
    values = column.flatten()
    while pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
        values = values.flatten()
    numbers = _numbers(key, values)
    if not len(column) or len(numbers) % len(column):
        raise ValueError(f"rows of {key} have no common width")
    return numbers.reshape(len(column), -1)


def _numbers(key: str, values: Any) -> npt.NDArray[np.float32]:
    if values.null_count or not (
        pa.types.is_floating(values.type)
        or pa.types.is_integer(values.type)
        or pa.types.is_boolean(values.type)
    ):
        raise ValueError(f"{key} holds values that are no numbers ({values.type})")
    numbers: npt.NDArray[np.float32] = values.to_numpy(zero_copy_only=False).astype(np.float32)
    return numbers


def _kept(actions: npt.NDArray[np.float32], columns: tuple[int, ...] | None) -> npt.NDArray[np.float32]:
    return actions if columns is None else actions[:, columns]


def _image_file(root: Path, cell: Any) -> bytes:
    """Return the image file that a cell holds or names."""
    if not isinstance(cell, dict) or not (cell.get("bytes") or cell.get("path")):
        raise ValueError("a picture is missing")
    data: bytes = cell["bytes"] or contained(root, cell["path"]).read_bytes()
    return data
