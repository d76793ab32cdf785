"""Metadata of a LeRobot dataset: meta/info.json, its features, tasks, splits and episodes, and the files that
hold each episode.
"""

import json
import math
import re
import string
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.data.importers.base import ImportOptions
from orchestrator.data.importers.conventions import MOST_VALUES, names_of
from orchestrator.data.importers.items import only_sentence
from orchestrator.data.importers.lerobot_rows import RATE_TOLERANCE, Spans, length_of, part_of_table
from orchestrator.data.importers.source_files import SourceError, cause, contained, refuse_pointer
from policy.interface import Contract

STATES, ACTIONS = ("observation.state", "state"), ("action", "actions")
"""Names of the state and of the action: those of LeRobot's own recorders, and those of openpi's
converters.
"""
ARM_PARTS = ("end_effector_position", "end_effector_rotation", "gripper_close")
"""Parts of RoboCasa365's action that move the arm, in the order of robosuite's controller."""
BASE_PART = "base_motion"
FilmPlaces = dict[str, tuple[str, float]]
"""Video feature -> path, and the film's second at which the episode's timestamp is zero."""


def is_v3(info: dict[str, Any]) -> bool:
    """Return whether files hold several episodes, as from version 3 on."""
    return str(info.get("codebase_version")).startswith("v3.")


def layout_of(
    root: Path, info: dict[str, Any], lines: list[dict[str, Any]]
) -> tuple[dict[int, Spans], dict[int, str]]:
    """Return episode -> location of its rows (spans of files, in order), and episode -> reason why its file
    is not read.
    """
    layout: dict[int, Spans] = {}
    unread: dict[int, str] = {}
    if is_v3(info):
        faults = []
        for path in sorted((root / "data").glob("**/*.parquet")):
            relative = path.relative_to(root).as_posix()
            if not path.name.startswith("."):
                try:
                    _add_spans(layout, root, relative, None)
                except Exception as error:  # any error of one file leaves out its episodes only
                    faults.append(f"{relative}: {cause(error)}")
        if faults:
            said = f"its rows are in no file that can be read; {'; '.join(faults)}"
            unread = {index: said for line in lines if (index := _index(line)) is not None}
            unread = {index: said for index in unread if index not in layout}
        return layout, unread
    for line in lines:
        if (index := _index(line)) is None:
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


def _index(line: dict[str, Any]) -> int | None:
    """Return the number of an episode; None if its metadata has none."""
    index = line.get("episode_index")
    return index if isinstance(index, int) else None


def _add_spans(layout: dict[int, Spans], root: Path, relative: str, alone: int | None) -> None:
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
        number = int(numbers[first])
        layout[number] = (*layout.get(number, ()), (relative, int(first), int(last - first)))


def episodes_of(root: Path, info: dict[str, Any]) -> list[tuple[dict[str, Any], FilmPlaces]]:
    """Return per episode its line of metadata and where its films are."""
    return _episodes_v3(root, info) if is_v3(info) else _episodes_v2(root, info)


def _episodes_v3(root: Path, info: dict[str, Any]) -> list[tuple[dict[str, Any], FilmPlaces]]:
    lines: list[dict[str, Any]] = []
    for path in sorted((root / "meta" / "episodes").glob("**/*.parquet")):
        lines += _table(path).to_pylist()
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


def _table(path: Path) -> pa.Table:
    """Return a table of metadata without statistics. Raises ValueError, which names the file, if it cannot be
    read.
    """
    try:
        file = pq.ParquetFile(path)
        wanted = [name for name in file.schema_arrow.names if not name.startswith("stats/")]
        return file.read(columns=wanted, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path.name}: {' '.join(str(error).split())}") from None


def _episodes_v2(root: Path, info: dict[str, Any]) -> list[tuple[dict[str, Any], FilmPlaces]]:
    keys = [name for name, feature in info["features"].items() if feature["dtype"] == "video"]
    episodes = []
    for line in _json_lines(root / "meta" / "episodes.jsonl"):
        index = int(line["episode_index"])
        if isinstance(line["episode_index"], str) or index == line["episode_index"]:
            line["episode_index"] = index  # some writers have 3.0 or "3" for 3
        place = {"episode_chunk": index // int(info.get("chunks_size") or 1000), "episode_index": index}
        episodes.append(
            (line, {key: (_filled(root, info["video_path"], video_key=key, **place), 0.0) for key in keys})
        )
    return episodes


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file with one per line."""
    # not `splitlines`: a sentence may hold U+2028
    texts = path.read_text("utf-8-sig").split("\n")
    lines = []
    for number, text in enumerate(texts, 1):
        if text.strip():
            try:
                lines.append(json.loads(text))
            except ValueError as error:
                raise ValueError(f"{path.name}, line {number}: {error}") from None
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


def tasks_of(root: Path) -> dict[int, str]:
    """Return task_index -> sentence, '' where the metadata have two for one. LeRobot 3.0 keeps the sentences
    as the index of a pandas frame.
    """
    pairs: list[tuple[Any, Any]] = []
    if (path := root / "meta" / "tasks.parquet").is_file():
        table = _table(path)
        pairs = list(
            zip(table["task_index"].to_pylist(), table[_words_column(table)].to_pylist(), strict=True)
        )
    elif (path := root / "meta" / "tasks.jsonl").is_file():
        pairs = [(line.get("task_index"), line.get("task")) for line in _json_lines(path)]
    sentences: dict[int, str] = {}
    for number, said in pairs:
        if number is not None:
            sentence = _sentence(said)
            same = sentences.setdefault(int(number), sentence) == sentence
            sentences[int(number)] = sentence if same else ""
    return sentences


def _sentence(said: Any) -> str:
    """Return a sentence, or the only one of a list; '' for anything else."""
    if isinstance(said, list) and len(said) == 1:
        said = said[0]
    return said.strip() if isinstance(said, str) else ""


def _words_column(table: pa.Table) -> str:
    """Return the column with the sentences: `task`, else the frame's index, else the only column of words.
    Raises ValueError without one.
    """
    words = []
    for field in table.schema:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            words.append(field.name)
    index = json.loads((table.schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns") or []
    named = [name for name in ("task", *index, "__index_level_0__") if name in words]
    if not named and len(words) != 1:
        listed = ", ".join(table.column_names)
        raise ValueError(f"meta/tasks.parquet has no column `task` with the sentences, only {listed}")
    return str((named or words)[0])


def instruction_of(table: pa.Table, tasks: dict[int, str], said: Any) -> str:
    """Return the sentence that the rows name, or the metadata's only one where rows name none or the table of
    tasks lacks it.

    said: what the episode's metadata names as `tasks`. Raises ValueError if there are several.
    """
    said = said or []
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


def split_of(root: Path, info: dict[str, Any], reading: ImportOptions) -> range | None:
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
    return range(int(match[1]), int(match[2]))


def rate_of(root: Path, info: dict[str, Any], layout: dict[int, Spans], reading: ImportOptions) -> float:
    """Return the rows per second of meta/info.json, or --hz where the rows' timestamps agree with it.

    Raises SourceError if neither states a rate, or if the timestamps contradict --hz.
    """
    try:
        stated = float(info.get("fps") or 0)
    except (TypeError, ValueError, OverflowError):
        stated = math.nan
    if not 0 <= stated < math.inf:
        if not reading.hz:
            raise SourceError(
                f"{root}: meta/info.json says {str(info['fps'])[:20]} where frames per second are meant;"
                " correct it, or say the rate with --hz"
            )
        stated = 0.0
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


def _median_step(root: Path, spans: Spans) -> float:
    """Return the median seconds from a row to the next; 0 where they cannot be read."""
    try:
        table = part_of_table(root, spans, ["timestamp"], 0, length_of(spans))
        return float(np.median(np.diff(table["timestamp"].to_numpy()))) if len(table) > 1 else 0.0
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowException):
        return 0.0


def our_contract(info: dict[str, Any]) -> Contract | None:
    """Return the contract that this project's export wrote; None without one."""
    try:
        return Contract.from_json(info["demoscale"]["contract"])
    except (KeyError, TypeError, ValueError):
        return None


def cameras_of(features: dict[str, Any]) -> dict[str, str]:
    """Return camera -> its feature; by the whole name where short names are not unique."""
    pictures = [name for name, feature in features.items() if channels_of(feature) == 3]
    short = Counter(map(_camera, pictures))
    return {_camera(name) if short[_camera(name)] == 1 else name: name for name in pictures}


def _camera(feature: str) -> str:
    return feature.removeprefix("observation.images.").removeprefix("observation.")


def channels_of(feature: dict[str, Any]) -> int:
    """Return the number of channels of a feature of pictures; 0 for any other, and for depth maps."""
    if feature["dtype"] not in ("video", "image") or len(shape := feature["shape"]) != 3:
        return 0
    facts = {**(feature.get("info") or {}), **(feature.get("video_info") or {})}
    if facts.get("is_depth_map") or facts.get("video.is_depth_map"):
        return 0
    return next((count for count in (3, 4, 1) if count in (shape[0], shape[-1])), 0)


def declared_size(feature: dict[str, Any]) -> tuple[int, int]:
    """Return the declared (H, W), by the axes' names or by the position of the three channels."""
    shape, names = feature["shape"], feature.get("names")
    if isinstance(names, list) and {"height", "width"} <= set(map(str, names)):
        return int(shape[names.index("height")]), int(shape[names.index("width")])
    height, width = shape[:2] if shape[-1] == 3 else shape[1:]
    return int(height), int(width)


def parts_of(root: Path) -> dict[str, list[tuple[str, int, int]]]:
    """Return feature -> its parts (name, first index, end index), from meta/modality.json if it exists."""
    path = root / "meta" / "modality.json"
    if not path.is_file():
        return {}
    parts: dict[str, list[tuple[str, int, int]]] = {}
    said = json.loads(path.read_text("utf-8-sig"))
    for kind, feature in (("state", STATES[0]), ("action", ACTIONS[0])):
        for name, place in (said.get(kind) or {}).items():
            first, last = int(place["start"]), int(place["end"])
            if not 0 <= first <= last <= MOST_VALUES:
                raise ValueError(f"modality.json: {kind} {name} goes from value {first} to {last}")
            parts.setdefault(place.get("original_key") or feature, []).append((name, first, last))
    return {feature: sorted(found, key=lambda part: part[1]) for feature, found in parts.items()}


def arm_columns(where: str, parts: list[tuple[str, int, int]]) -> tuple[int, ...]:
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


def dimension_names(key: str, feature: dict[str, Any], parts: list[tuple[str, int, int]]) -> tuple[str, ...]:
    """Return a name per value. LeRobot has lists, lists of lists, dictionaries of lists, dictionaries of
    indices, or nothing; GR00T names parts.
    """
    width = math.prod(int(side) for side in np.ravel(feature["shape"]))
    if width > MOST_VALUES:
        raise ValueError(f"{key} has {width} values per step")
    names = feature.get("names")
    if isinstance(names, dict) and sorted(map(repr, names.values())) == sorted(map(repr, range(len(names)))):
        indices: dict[str, int] = names
        names = sorted(indices, key=indices.__getitem__)
    elif isinstance(names, dict):
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
