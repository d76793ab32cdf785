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
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.data.episode_format import Episode
from orchestrator.data.importers.base import (
    ImportOptions,
    Item,
    Pictures,
    RawEpisode,
    SourceError,
    action_names,
    chosen_cameras,
    chosen_proprio,
    contract_of,
    finished,
    identity,
    kept_frames,
    label_of,
    leaving_out,
    names_of,
    native_rate,
    only_sentence,
    orientation,
    origin,
    refuse_bulk,
    refuse_pointer,
    unusable,
)
from orchestrator.data.importers.image_ops import MOST_PIXELS, image, images, in_blocks
from policy.interface import Contract
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
    """`image`, `text` or `tensor`."""
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Place:
    """Location of an episode."""

    file: Path
    offset: int
    rows: int


@dataclass
class Rlds:
    """Source: the folder of one version of a data set."""

    root: Path
    format: str
    contract: Contract
    items: list[Item]
    problems: list[str]
    questions: list[str]
    _cameras: dict[str, str]
    _features: dict[str, _Feature]
    _proprio: tuple[str, ...]
    _action: str
    _stored: str
    _native_hz: float
    _size: tuple[int, int]
    _places: dict[str, _Place] = field(default_factory=dict)

    def read(self, item: Item) -> Episode:
        """Return the whole episode, pictures upright, at the contract's size and rate."""
        place = self._places[item.name]
        values = _example(_record(place.file, place.offset)[0])
        kept = kept_frames(place.rows, self._native_hz, self.contract.control_hz)
        frames = {
            camera: in_blocks(self._pictures(values, camera), kept, self._stored, self.contract.image_size)
            for camera in self._cameras
        }
        raw = RawEpisode(
            frames=frames,
            proprio=(
                self._vectors(values, tuple(OBSERVATION + key for key in self._proprio), place.rows)
                if self._proprio
                else None
            ),
            action=self._vectors(values, (self._action,), place.rows) if item.labelled else None,
            success=None,
            rows=place.rows,
        )
        return finished(item, raw, self.contract, self._cameras, self._native_hz)

    def first_pictures(self, item: Item) -> dict[str, Pictures]:
        """Return the first picture of each camera as stored, neither turned nor scaled."""
        place = self._places[item.name]
        values = _example(_record(place.file, place.offset)[0])
        return {camera: image(values[OBSERVATION + camera].bytes_list.value[0]) for camera in self._cameras}

    def _pictures(self, values: Any, camera: str) -> Any:
        cells = values[OBSERVATION + camera].bytes_list.value

        return lambda first, last: images(cells[first:last], self._size)

    def _vectors(self, values: Any, names: tuple[str, ...], rows: int) -> npt.NDArray[np.float32]:
        return np.concatenate([_vector(values, name, self._features[name])[:rows] for name in names], 1)


def is_rlds(path: Path) -> bool:
    """Return whether a folder has the metadata files of an RLDS data set."""
    return (path / "features.json").is_file() and (path / "dataset_info.json").is_file()


def open_rlds(root: Path, reading: ImportOptions) -> Rlds:
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
        info = json.loads((root / "dataset_info.json").read_text("utf-8-sig"))
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
    stored, questions = orientation(root.name, "upright", "", reading)
    name = str(info.get("name") or root.parent.name)
    if not reading.task:
        questions.append(f"{name}: RLDS does not name its task; say it with --task")
    size = tuple(features[OBSERVATION + next(iter(cameras))].shape[:2])
    sizes = {camera: _declared(features[OBSERVATION + camera]) for camera in cameras}
    names = (
        names_of([action.removeprefix("steps/")], [int(np.prod(features[action].shape))]) if labelled else ()
    )
    source = Rlds(
        root,
        "RLDS",
        Contract((), (0, 0), "", (), (), native_hz, ""),
        [],
        [],
        questions,
        cameras,
        features,
        proprio,
        action,
        stored,
        native_hz,
        (size[0] or 0, size[1] or 0) if len(size) == 2 else (0, 0),
    )
    records = list(_records(source))
    if records:
        sizes = _true_sizes(source, records) or sizes
    source._size = next(iter(sizes.values()))
    source.contract = contract_of(
        where, cameras, sizes, proprio_names, names, native_hz, f"unknown, {name}", reading
    )
    largest = 0.0
    for number, place in enumerate(records):
        largest = max(largest, _take(source, number, place, name, reading))
    names, more = action_names(name, source.contract.action, largest, reading)
    source.contract = replace(source.contract, action=names)
    source.questions += more
    return source


def _take(source: Rlds, number: int, place: "_Found", name: str, reading: ImportOptions) -> float:
    """Add an episode to the source's items, or the reason against it to its problems; return its largest
    absolute action value.

    The last dimension, the gripper's, is not counted.
    """
    episode, labelled = f"episode_{number:06d}", not reading.action_free
    with leaving_out(f"{name}, {episode}", source.problems):
        values = _example(_record(place.file, place.offset)[0])
        steps = {camera: values[OBSERVATION + camera].bytes_list.value for camera in source._cameras}
        lengths = {camera: len(cells) for camera, cells in steps.items()}
        rows = max(lengths.values())
        if len(set(lengths.values())) > 1 or not all(cell for cells in steps.values() for cell in cells):
            raise ValueError(
                "pictures are missing"
                f" ({', '.join(f'{camera} {length}' for camera, length in lengths.items())} of {rows})"
            )
        last = values["steps/is_last"].int64_list.value if "steps/is_last" in values else ()
        if labelled and last and last[-1]:
            rows -= 1
        if not rows:
            raise ValueError("it has no step with an action")
        vectors = []
        for key in (*(OBSERVATION + key for key in source._proprio), *([source._action] if labelled else ())):
            vector = _vector(values, key, source._features[key])
            if len(vector) != max(lengths.values()):
                raise ValueError(f"{key} has {len(vector)} steps, the pictures {max(lengths.values())}")
            if not np.isfinite(vector[:rows]).all():
                raise ValueError(f"{key} holds a value that is not a number")
            vectors.append(vector[:rows])
        instruction = reading.instruction or _instruction(values) or TASKS.get(reading.task or "", "")
        if not instruction and not any("--instruction" in question for question in source.questions):
            source.questions.append(
                f"{name}: it does not say in words what is done; say it with --instruction"
            )
        length = len(kept_frames(rows, source._native_hz, source.contract.control_hz))
        refuse_bulk(length, len(source._cameras), source.contract.image_size)
        shown = [hashlib.sha256(cells[len(cells) // 2]).digest() for cells in steps.values()]
        task = reading.task or ""
        content = identity(
            *vectors,
            *shown,
            list(source._cameras.items()),
            source._stored,
            source.contract.image_size,
            task,
            instruction,
        )
        where = f"{name}, {episode}" + (
            "; without its last step, whose action is undefined" if rows < max(lengths.values()) else ""
        )
        said = origin(where, source._stored, source._size, source._native_hz, source.contract, content)
        source.items.append(
            Item(
                episode,
                f"{label_of(source.root, reading) if reading.label else name}-{episode}",
                task,
                instruction,
                length,
                labelled,
                said,
            )
        )
        source._places[episode] = _Place(place.file, place.offset, rows)
        return float(np.abs(vectors[-1][:, :-1]).max(initial=0)) if labelled else 0.0
    source.items.append(unusable(episode, 0, labelled, source.problems[-1]))
    return 0.0


# -- files ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """Location of a record."""

    file: Path
    offset: int


def _records(source: Rlds) -> Iterator[_Found]:
    """Yield every record of every file, by file name; a file that is cut short is added to the problems."""
    for file in sorted(
        path for path in source.root.iterdir() if ".tfrecord" in path.name and not path.name.startswith(".")
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
                source.problems.append(f"{file.name}: {error}; the rest of it is left out")
                break
            yield _Found(file, offset)
            offset += 16 + length


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


def _record(file: Path, offset: int) -> tuple[bytes, int]:
    """Return the content of the record at an offset, and its length. Raises ValueError if its checksum is
    wrong.
    """
    length = _length(file, offset)
    with file.open("rb") as stream:
        stream.seek(offset + 12)
        data, tail = stream.read(length), stream.read(4)
    if len(data) < length or len(tail) < 4 or struct.unpack("<I", tail)[0] != _checksum(data):
        raise ValueError(f"the record at byte {offset} of {file.name} is damaged")
    return data, length


def _checksum(data: bytes) -> int:
    """Return TFRecord's masked CRC-32C (tensorflow/core/lib/hash/crc32c.h)."""
    from crc32c import crc32c

    plain: int = crc32c(data)
    return ((plain >> 15 | plain << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _example(data: bytes) -> Any:
    from tfrecord import example_pb2

    example = example_pb2.Example()
    try:
        example.ParseFromString(data)
    except Exception as error:
        raise ValueError(f"its record is no tf.train.Example ({type(error).__name__})") from None
    return example.features.feature


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
        kind = "text" if node["tensor"].get("dtype") in ("string", "object") else "tensor"
        yield path, _Feature(kind, _shape(node["tensor"]))


def _shape(node: dict[str, Any]) -> tuple[int, ...]:
    """Return a feature's shape; sides of variable length, -1 in the file, become 0."""
    return tuple(max(0, int(side)) for side in (node.get("shape") or {}).get("dimensions", ()))


def _declared(feature: _Feature) -> tuple[int, int]:
    height, width = feature.shape[:2]
    if height * width > MOST_PIXELS:
        raise SourceError(f"its pictures of {height}x{width} pixels are too large to be read")
    return height, width


def _true_sizes(source: Rlds, records: list[_Found]) -> dict[str, tuple[int, int]]:
    """Return (H, W) per camera of the first episode with readable pictures; features.json may leave them
    open, or exchange them.
    """
    for record in records[:8]:
        try:
            values = _example(_record(record.file, record.offset)[0])
            shapes = {
                camera: image(values[OBSERVATION + camera].bytes_list.value[0]).shape
                for camera in source._cameras
            }
            return {camera: (int(shape[0]), int(shape[1])) for camera, shape in shapes.items()}
        except (ValueError, IndexError):
            continue  # `_take` reports it
    return {}


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
