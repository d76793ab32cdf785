"""Importer of RLDS data sets as TensorFlow Datasets stores them (Open X-Embodiment, DROID, BridgeData),
without TensorFlow.

    dataset_info.json, features.json       name; names, shapes and number types of an episode's features
    *.tfrecord-00000-of-00010              an episode per record: a tf.train.Example with a list per feature
                                           over all steps

A step is (observation, action). RLDS leaves the action of a last step (`is_last`) undefined
(rlds.readthedocs, "Step format"), so that step is dropped where actions are read. The format states neither
task nor rate: `--task` and `--hz` do.
"""

import hashlib
import json
import math
import re
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.data.importers.base import EpisodeInfo, ImportOptions, Item, RawEpisode, Source, SourceInfo
from orchestrator.data.importers.conventions import (
    MOST_VALUES,
    chosen_cameras,
    chosen_proprio,
    names_of,
    native_rate,
    orientation,
    renamed_actions,
    source_info,
)
from orchestrator.data.importers.image_ops import (
    MOST_PIXELS,
    Pictures,
    image,
    images,
    in_blocks,
    passed_over,
    refuse_cut,
)
from orchestrator.data.importers.items import build_items, only_sentence
from orchestrator.data.importers.source_files import SourceError, refuse_pointer
from sim_workers.envs.tasks import TASKS

OBSERVATION = "steps/observation/"
STATES = (("state",), ("proprio",), ("robot_state",))
INSTRUCTIONS = (
    "steps/language_instruction",
    f"{OBSERVATION}natural_language_instruction",
    "steps/natural_language_instruction",
)
MOST_RECORD_BYTES = 4 << 30


@dataclass(frozen=True)
class _Feature:
    """Leaf of features.json."""

    kind: str
    """`image`, `text`, `tensor`, or `array` for one that is no vector."""
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Place:
    """Location of a record."""

    file: Path
    offset: int


@dataclass(frozen=True, kw_only=True)
class RldsReader:
    """Reader of the folder of one version of a data set."""

    features: dict[str, _Feature]
    proprio: tuple[str, ...]
    action: str
    sizes: dict[str, tuple[int, int]]
    """(H, W) of each camera's pictures as stored."""
    places: dict[str, _Place]

    def describe(self, name: str, info: SourceInfo, reading: ImportOptions) -> EpisodeInfo:
        """Check a record. Raises ValueError if it is damaged or lacks a value."""
        values = _example(self.places[name])
        steps = {camera: values[OBSERVATION + camera].bytes_list.value for camera in info.cameras}
        lengths = {camera: len(cells) for camera, cells in steps.items()}
        if len(set(lengths.values())) > 1 or not all(cell for cells in steps.values() for cell in cells):
            raise ValueError(
                "pictures are missing"
                f" ({', '.join(f'{camera} {length}' for camera, length in lengths.items())} of"
                f" {max(lengths.values())})"
            )
        for cells in steps.values():
            for cell in cells:
                refuse_cut(cell)
        length, rows = max(lengths.values()), _rows(values, steps, info.labelled)
        if not rows:
            raise ValueError("it has no step with an action")
        vectors = []
        for key in (*self._proprio_features, *([self.action] if info.labelled else ())):
            vector = _vector(values, key, self.features[key])
            if len(vector) != length:
                raise ValueError(f"{key} has {len(vector)} steps, the pictures {length}")
            if not np.isfinite(vector[:rows]).all():
                raise ValueError(f"{key} holds a value that is not a number")
            vectors.append(vector[:rows])
        task = reading.task or ""
        instruction = reading.instruction or _instruction(values) or TASKS.get(task, "")
        shown = [hashlib.sha256(cells[len(cells) // 2]).digest() for cells in steps.values()]
        return EpisodeInfo(
            rows=rows,
            picture_size=next(iter(self.sizes.values())),
            task=task,
            instruction=instruction,
            content=(*vectors, *shown, *info.choices, task, instruction),
            largest_action=float(np.abs(vectors[-1][:, :-1]).max(initial=0)) if info.labelled else 0.0,
            note="; without its last step, whose action is undefined" if rows < length else "",
        )

    def read(self, item: Item, info: SourceInfo) -> RawEpisode:
        """Return an episode, pictures upright and scaled; SourceError or ValueError if it is damaged."""
        values = _example(self.places[item.name])
        steps = {camera: values[OBSERVATION + camera].bytes_list.value for camera in info.cameras}
        rows = _rows(values, steps, item.labelled)
        kept = info.kept(rows)
        frames = {
            camera: in_blocks(
                partial(_pictures, cells, self.sizes[camera]), kept, info.stored, info.contract.image_size
            )
            for camera, cells in steps.items()
        }
        return RawEpisode(
            frames=frames,
            rows=rows,
            proprio=self._vectors(values, self._proprio_features, rows) if self.proprio else None,
            action=self._vectors(values, [self.action], rows) if item.labelled else None,
        )

    def first_pictures(self, item: Item, info: SourceInfo) -> dict[str, Pictures]:
        """Return one (H, W, 3) picture per camera as stored."""
        values = _example(self.places[item.name])
        return {camera: image(values[OBSERVATION + camera].bytes_list.value[0]) for camera in info.cameras}

    @property
    def _proprio_features(self) -> list[str]:
        return [OBSERVATION + key for key in self.proprio]

    def _vectors(self, values: Any, names: list[str], rows: int) -> npt.NDArray[np.float32]:
        return np.concatenate([_vector(values, name, self.features[name])[:rows] for name in names], 1)


def is_rlds(path: Path) -> bool:
    """Return whether a folder has the metadata files of an RLDS data set."""
    return (path / "features.json").is_file() and (path / "dataset_info.json").is_file()


def open_rlds(root: Path, reading: ImportOptions) -> Source:
    """Open a data set and check every record. Raises SourceError if it is none, lacks a feature, or tfrecord
    is not installed.
    """
    try:
        from tfrecord import example_pb2  # noqa: F401
    except ImportError:
        raise SourceError(
            f"{root}: RLDS is read with the package tfrecord; pip install 'demoscale[rlds]'"
        ) from None
    try:
        features = dict(_leaves(json.loads((root / "features.json").read_text("utf-8-sig")), ""))
        facts = json.loads((root / "dataset_info.json").read_text("utf-8-sig"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{root}: features.json cannot be read ({type(error).__name__}: {error}); restore it"
        ) from None
    where = str(root)
    colour = [
        n.removeprefix(OBSERVATION)
        for n, f in features.items()
        if n.startswith(OBSERVATION) and f.kind == "image" and f.shape[-1:] == (3,)
    ]
    cameras = chosen_cameras(where, colour, reading)
    if not cameras:
        raise SourceError(f"{root}: it has no pictures among its observations ({', '.join(features)})")
    labelled = not reading.action_free
    action = f"steps/{(reading.action or 'action').removeprefix('steps/')}"
    if labelled and (action not in features or features[action].kind != "tensor"):
        vectors = [
            name.removeprefix("steps/")
            for name, f in features.items()
            if f.kind == "tensor" and name.startswith("steps/")
        ]
        raise SourceError(
            f"{root}: it has no vector {action}; say which is the action with --action"
            f" ({', '.join(vectors)}), or add --action-free"
        )
    widths = {
        n.removeprefix(OBSERVATION): int(np.prod(f.shape))
        for n, f in features.items()
        if n.startswith(OBSERVATION) and f.kind == "tensor"
    }
    proprio, proprio_names = chosen_proprio(where, "observations", widths, STATES, reading)
    native_hz = native_rate(where, None, reading)
    stored, questions = orientation(root.name, reading)
    name = str(facts.get("name") or root.parent.name)
    if not reading.task:
        questions.append(f"{name}: RLDS does not name its task; say it with --task")
    declared = {camera: _declared(where, features[OBSERVATION + camera]) for camera in cameras}
    action_dims = (
        names_of([action.removeprefix("steps/")], [int(np.prod(features[action].shape))]) if labelled else ()
    )
    problems = passed_over(name, _channels(features) if not reading.cameras else {})
    records = list(_records(root, problems))
    problems += _missing_files(root, facts, len(records))
    sizes = _true_sizes(records, cameras) or declared
    info = source_info(
        where,
        reading,
        format="RLDS",
        name=name,
        label=reading.label or name,
        cameras=cameras,
        sizes=sizes,
        stored=stored,
        native_hz=native_hz,
        labelled=labelled,
        proprio=proprio_names,
        action=action_dims,
        simulator=f"unknown, {name}",
    )
    reader = RldsReader(
        features=features,
        proprio=proprio,
        action=action,
        sizes=sizes,
        places={f"episode_{number:06d}": place for number, place in enumerate(records)},
    )
    listing = build_items(
        info, dict.fromkeys(reader.places, 0), partial(reader.describe, info=info, reading=reading)
    )
    if not listing.instructed:
        questions.append(f"{name}: it does not say in words what is done; say it with --instruction")
    info, more = renamed_actions(info, listing.largest_action, reading)
    return Source(
        info=info,
        reader=reader,
        items=listing.items,
        problems=problems + listing.problems,
        questions=questions + more,
    )


# -- files ---------------------------------------------------------------------------------------------------


def _records(root: Path, problems: list[str]) -> Iterator[_Place]:
    """Yield every record of every file, by file name; a file that is cut short is added to the problems."""
    for file in sorted(
        path for path in root.iterdir() if ".tfrecord" in path.name and not path.name.startswith(".")
    ):
        refuse_pointer(file)
        end, offset = file.stat().st_size, 0
        while offset < end:
            try:
                length = _length(file, offset)
                if offset + 16 + length > end:
                    raise ValueError(
                        f"the file ends {offset + 16 + length - end} bytes before its record does; was it"
                        " copied whole"
                    )
            except ValueError as error:
                problems.append(f"{file.name}: {error}; the rest of it is left out")
                break
            yield _Place(file, offset)
            offset += 16 + length


def _missing_files(root: Path, facts: dict[str, Any], found: int) -> list[str]:
    """Return a sentence if files, or records of them, are not there by the names of the others or by
    dataset_info.json.
    """
    numbers: dict[tuple[str, str], set[int]] = defaultdict(set)
    for path in root.iterdir():
        if match := re.fullmatch(r"([^.].*\.tfrecord)-(\d{5})-of-(\d{5})", path.name):
            numbers[match[1], match[3]].add(int(match[2]))
    absent = [
        f"{name}-{number:0{len(total)}d}-of-{total}"
        for (name, total), there in sorted(numbers.items())
        for number in sorted(set(range(int(total))) - there)
    ]
    if absent:
        more = f" and {len(absent) - 3} more" * (len(absent) > 3)
        return [f"{root.name}: it lacks {', '.join(absent[:3])}{more}; copy what is missing"]
    try:
        announced = sum(int(n) for split in facts["splits"] for n in split["shardLengths"])
    except (KeyError, TypeError, ValueError):
        return []
    if announced <= found:
        return []
    return [f"{root.name}: dataset_info.json names {announced} episodes, {found} are there; copy the others"]


def _length(file: Path, offset: int) -> int:
    with file.open("rb") as stream:
        stream.seek(offset)
        head = stream.read(12)
    if len(head) < 12 or struct.unpack("<I", head[8:])[0] != _checksum(head[:8]):
        raise ValueError(f"no record begins at byte {offset}")
    (length,) = struct.unpack("<Q", head[:8])
    if length > MOST_RECORD_BYTES:
        raise ValueError(f"a record of {length >> 30} GiB is announced at byte {offset}")
    return int(length)


def _record(place: _Place) -> bytes:
    """Return the content of a record. Raises ValueError if its checksum is wrong."""
    length = _length(place.file, place.offset)
    with place.file.open("rb") as stream:
        stream.seek(place.offset + 12)
        data, tail = stream.read(length), stream.read(4)
    if len(data) < length or len(tail) < 4 or struct.unpack("<I", tail)[0] != _checksum(data):
        raise ValueError(f"the record at byte {place.offset} of {place.file.name} is damaged")
    return data


def _checksum(data: bytes) -> int:
    """Return TFRecord's masked CRC-32C (tensorflow/core/lib/hash/crc32c.h)."""
    from crc32c import crc32c

    plain: int = crc32c(data)
    return ((plain >> 15 | plain << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _example(place: _Place) -> Any:
    """Return the features of a record, by name. Raises ValueError if it is damaged."""
    from tfrecord import example_pb2

    data, example = _record(place), example_pb2.Example()
    try:
        example.ParseFromString(data)
    except Exception as error:
        raise ValueError(f"its record is no tf.train.Example ({type(error).__name__})") from None
    return example.features.feature


def _pictures(cells: Sequence[bytes], size: tuple[int, int], first: int, last: int) -> Pictures:
    """Return the pictures of steps `first` to `last` (excluded)."""
    return images(cells[first:last], size)


# -- values --------------------------------------------------------------------------------------------------


def _leaves(node: dict[str, Any], path: str) -> Iterator[tuple[str, _Feature]]:
    """Yield the features of features.json with their names in a record."""
    if "featuresDict" in node:
        for name, child in node["featuresDict"]["features"].items():
            yield from _leaves(child, f"{path}/{name}" if path else name)
    elif "sequence" in node:
        yield from _leaves(node["sequence"]["feature"], path)
    elif "image" in node:
        yield path, _Feature("image", _shape(node["image"]))
    elif "text" in node:
        yield path, _Feature("text", ())
    elif "tensor" in node:
        shape, text = _shape(node["tensor"]), node["tensor"].get("dtype") in ("string", "object")
        kind = "text" if text else "tensor" if math.prod(shape) <= MOST_VALUES else "array"
        yield path, _Feature(kind, shape)


def _channels(features: dict[str, _Feature]) -> dict[str, int]:
    """Return observation of pictures -> its channels."""
    return {
        name: feature.shape[-1]
        for name, feature in features.items()
        if name.startswith(OBSERVATION) and feature.kind == "image" and feature.shape
    }


def _shape(node: dict[str, Any]) -> tuple[int, ...]:
    """Return a feature's shape; sides of variable length, -1 in the file, become 0."""
    return tuple(max(0, int(side)) for side in (node.get("shape") or {}).get("dimensions", ()))


def _declared(where: str, feature: _Feature) -> tuple[int, int]:
    height, width = feature.shape[:2]
    if height * width > MOST_PIXELS:
        raise SourceError(
            f"{where}: its pictures of {height}x{width} pixels, by features.json, are too large to be read"
        )
    return height, width


def _true_sizes(records: list[_Place], cameras: dict[str, str]) -> dict[str, tuple[int, int]]:
    """Return (H, W) per camera of the first episode with readable pictures; features.json may leave them
    open, or exchange them.
    """
    for record in records[:8]:
        try:
            values = _example(record)
            shapes = {
                camera: image(values[OBSERVATION + camera].bytes_list.value[0]).shape for camera in cameras
            }
            return {camera: (int(shape[0]), int(shape[1])) for camera, shape in shapes.items()}
        except (ValueError, IndexError):
            continue  # `RldsReader.describe` reports it
    return {}


def _rows(values: Any, steps: Mapping[str, Sequence[bytes]], labelled: bool) -> int:
    """Return the number of steps of an episode, without a last one whose action is undefined."""
    last = values["steps/is_last"].int64_list.value if "steps/is_last" in values else ()
    return max(map(len, steps.values())) - int(bool(labelled and last and last[-1]))


def _vector(values: Any, name: str, feature: _Feature) -> npt.NDArray[np.float32]:
    """Return a feature's values, (L, D) float32. Raises ValueError if they are missing or not rows of
    numbers.
    """
    if name not in values:
        raise ValueError(f"it has no {name}")
    kind = values[name].WhichOneof("kind")
    if kind not in ("float_list", "int64_list"):
        raise ValueError(f"{name} holds no numbers")
    numbers = np.asarray(getattr(values[name], kind).value, np.float32)
    width = int(np.prod(feature.shape)) or 1
    if len(numbers) % width:
        raise ValueError(f"{name} has {len(numbers)} values, which are no rows of {width}")
    return numbers.reshape(-1, width)


def _instruction(values: Any) -> str:
    """Return the sentence of an episode's steps, '' without one. Raises ValueError if they have several."""
    for name in INSTRUCTIONS:
        texts = values[name].bytes_list.value if name in values else ()
        if sentence := only_sentence((text.decode("utf-8", "replace") for text in texts), "steps"):
            return sentence
    return ""
