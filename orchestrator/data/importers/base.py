"""Common part of the importers, which read recordings in third-party formats as episodes of the store.

`open_source` inspects a file or folder and lists its episodes before any picture is read. Each format has a
module of its own in this package. It finds the format's conventions (`SourceInfo`) and describes every
episode (`EpisodeInfo`), from which `build_items` makes the list, and it provides the `Reader`, which reads
only the part of a file that belongs to the requested episode.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from orchestrator.data.episode_format import Episode
from orchestrator.data.importers.image_ops import RANGES
from policy.errors import DemoscaleError
from policy.interface import Contract

Pictures = npt.NDArray[np.uint8]

MOST_BYTES = 8 << 30
"""Maximum bytes of one episode's pictures in memory, as the store keeps them."""
POINTER = b"version https://git-lfs"
"""First bytes of the file that git-LFS leaves in place of one that was not downloaded."""

_T = TypeVar("_T")


class SourceError(DemoscaleError):
    """Error of a source, in one sentence: which file, field or episode, what is wrong, and the fix."""


@dataclass(frozen=True)
class ImportOptions:
    """Options for reading a source: facts that its files do not state, and conversions. An empty option
    means: as the files state.
    """

    images: str | None = None
    """Orientation of stored pictures: `upright`, `upside-down` (rows reversed) or `rotated` (by 180
    degrees).
    """
    cameras: dict[str, str] = field(default_factory=dict)
    """Camera of the source -> its name in the store, in the store's order; empty: all, under their
    own names.
    """
    task: str | None = None
    instruction: str | None = None
    hz: float | None = None
    """Steps per second of the recording, where the source does not state them."""
    resample_hz: float | None = None
    """Steps per second to resample to; the nearest frame is taken. Action-free episodes only: an action
    applies to one step.
    """
    action_free: bool = False
    """Whether actions are dropped."""
    image_size: tuple[int, int] | None = None
    """(H, W) to scale to; the aspect ratio is not kept."""
    proprio: tuple[str, ...] | None = None
    """Vectors of the source that make up the proprioception, in order; `()` for none."""
    render_profile: str | None = None
    simulator: str | None = None
    label: str | None = None
    """Prefix of episode ids; by default the name of the file or folder."""
    panda: bool = False
    """Whether actions and proprioception have the simulator's layout (`sim_workers.envs.robosuite.ACTION`,
    `PROPRIO`), and get its names.
    """
    arm_only: bool = False
    """Whether only the arm's 7 of RoboCasa's 12 action dimensions are kept; demonstrations in which the base
    moves are left out.
    """
    mask: str | None = None
    """HDF5: only the demonstrations that `mask/<name>` lists; LeRobot: only those of this split of
    meta/info.json.
    """
    action: str | None = None
    """Vector of the source that is the action, where it does not have the format's usual name."""
    picture_range: str | None = None
    """Values of black and white where pictures are not bytes: one of `image_ops.RANGES`."""
    deltas: bool | None = None
    """True: actions are displacements in [-1, 1] although some reach further. False: absolute although the
    file says displacements.
    """


@dataclass(frozen=True, kw_only=True)
class Item:
    """Description of one episode of a source, made without reading its pictures."""

    name: str
    """Name, unique in the source."""
    episode_id: str = ""
    """Id in the store."""
    task: str = ""
    instruction: str = ""
    length: int
    """Number of frames in the store."""
    labelled: bool
    origin: str = ""
    """Origin of the episode and conversions of its pictures; becomes the episode's `source`."""
    problem: str = ""
    """Reason why it is not imported, as a sentence, which is also among the source's problems; empty if it is
    imported.
    """


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """Conventions that all episodes of a source share, as recorded and as stored."""

    format: str
    """Name of the file format."""
    name: str
    """Name of the source in the origins of episodes and in the sentences about them."""
    label: str
    """Prefix of the episodes' ids in the store."""
    cameras: dict[str, str]
    """Camera of the source -> its name in the store."""
    stored: str
    """Orientation of the pictures as recorded, one of `image_ops.TURNS`."""
    native_hz: float
    """Steps per second as recorded."""
    labelled: bool
    """Whether actions are read."""
    contract: Contract
    """Conventions of the episodes as stored."""

    @property
    def choices(self) -> tuple[object, ...]:
        """Cameras and conversions of the pictures, as parts of an episode's `identity`."""
        return list(self.cameras.items()), self.stored, self.contract.image_size

    def kept(self, rows: int) -> npt.NDArray[np.int64]:
        """Return the indices of the recorded steps that the store keeps, out of `rows` steps."""
        return kept_frames(rows, self.native_hz, self.contract.control_hz)


@dataclass(frozen=True, kw_only=True)
class EpisodeInfo:
    """Facts about one episode, from which `build_items` makes its item."""

    rows: int
    """Number of recorded steps."""
    picture_size: tuple[int, int]
    """(H, W) of the pictures as recorded."""
    task: str
    instruction: str
    content: tuple[object, ...]
    """Everything that tells the episode from another one: parts of its `identity`."""
    hz: float | None = None
    """Steps per second as recorded; None: those of the source."""
    labelled: bool | None = None
    """Whether it has actions; None: as the source."""
    largest_action: float = 0.0
    """Largest absolute value of its actions, the gripper's excluded."""
    note: str = ""
    """Further part of its origin."""


@dataclass(frozen=True)
class RawEpisode:
    """Episode as read from its file, pictures already upright and scaled."""

    frames: dict[str, Pictures]
    """Camera of the source -> (L, H, W, 3) pictures of the L frames that the store keeps."""
    rows: int
    """Number of recorded steps N."""
    proprio: npt.NDArray[Any] | None = None
    """(N, P) values of all N steps."""
    action: npt.NDArray[Any] | None = None
    """(N, A) values of all N steps."""
    success: bool | None = None
    hz: float | None = None
    """Steps per second as recorded; None: those of the source."""


class Reader(Protocol):
    """Access to the episodes of a source. It can be pickled: it keeps no file open."""

    def read(self, item: Item, info: SourceInfo) -> RawEpisode:
        """Return an episode, pictures upright and scaled. Raises SourceError or ValueError if it is
        damaged.
        """
        ...

    def first_pictures(self, item: Item, info: SourceInfo) -> dict[str, Pictures]:
        """Return one (H, W, 3) picture per camera as stored, neither turned nor scaled."""
        ...


@dataclass(frozen=True, kw_only=True)
class Source:
    """File or folder that holds episodes. It can be pickled."""

    info: SourceInfo
    reader: Reader
    items: list[Item]
    """Every episode, those with a problem included."""
    problems: list[str]
    """Omissions and their reasons, one sentence each."""
    questions: list[str]
    """Options that the user must give before anything can be read, one sentence each."""

    @property
    def format(self) -> str:
        return self.info.format

    @property
    def contract(self) -> Contract:
        return self.info.contract

    def read(self, item: Item) -> Episode:
        """Return the whole episode, pictures upright. Raises SourceError or ValueError if it is damaged."""
        if item.problem:
            raise SourceError(item.problem)
        return finished(item, self.reader.read(item, self.info), self.info)

    def first_pictures(self, item: Item) -> dict[str, Pictures]:
        """Return one (H, W, 3) picture per camera as stored, neither turned nor scaled, for visual
        inspection.
        """
        if item.problem:
            raise SourceError(item.problem)
        return self.reader.first_pictures(item, self.info)


def open_source(path: str | Path, reading: ImportOptions) -> Source:
    """Detect the format of a file or folder and list its episodes.

    Raises SourceError if the format is unknown, or if the reading has an option that does not apply to the
    format.
    """
    path = Path(path)
    path = path if path.name else path.resolve()  # "." has no name for episode ids
    if not path.exists():
        raise SourceError(f"{path}: there is no such file or folder")
    if path.is_file():
        refuse_pointer(path)
    if reading.picture_range and reading.picture_range not in RANGES:
        raise SourceError(f"--picture-range {reading.picture_range}: it is one of {', '.join(RANGES)}")
    if path.suffix.lower() in HDF5_SUFFIXES or (path.is_dir() and any(visible(path, HDF5_SUFFIXES, depth=1))):
        from orchestrator.data.importers.robomimic_hdf5 import open_hdf5

        refuse_options(path, reading, "HDF5", ())
        return open_hdf5(path, reading)
    if (path / "meta" / "info.json").is_file():
        from orchestrator.data.importers.lerobot import open_lerobot

        refuse_options(path, reading, "LeRobot data", ("picture_range",))
        return open_lerobot(path, reading)
    from orchestrator.data.importers.rlds import is_rlds, open_rlds

    if is_rlds(path):
        refuse_options(path, reading, "RLDS", ("mask", "arm_only", "picture_range"))
        return open_rlds(path, reading)
    buffer = zarr_folder(path)
    if buffer or path.suffix.lower() == ".zip":
        from orchestrator.data.importers.diffusion_policy_zarr import open_replay_buffer

        refuse_options(path, reading, "a zarr replay buffer", ("mask", "arm_only"))
        return open_replay_buffer(buffer or path, reading)
    if path.suffix.lower() in MCAP_SUFFIXES or (path.is_dir() and any(visible(path, MCAP_SUFFIXES))):
        from orchestrator.data.importers.mcap import open_mcap

        refuse_options(path, reading, "MCAP", ("mask", "arm_only", "picture_range"))
        return open_mcap(path, reading)
    if path.suffix.lower() in FILM_SUFFIXES or (path.is_dir() and any(visible(path, FILM_SUFFIXES))):
        from orchestrator.data.importers.video_folder import open_films

        refuse_options(
            path,
            reading,
            "films",
            ("mask", "arm_only", "proprio", "panda", "action", "picture_range", "deltas"),
        )
        return open_films(path, reading)
    raise SourceError(
        f"{path}: neither robomimic-style HDF5 (.hdf5, .h5), a LeRobot dataset (meta/info.json), RLDS"
        " (features.json), a diffusion-policy zarr (.zarr, .zarr.zip), MCAP recordings (.mcap) nor a film or"
        f" a folder of films ({', '.join(FILM_SUFFIXES)})"
    )


HDF5_SUFFIXES = (".hdf5", ".h5")
MCAP_SUFFIXES = (".mcap",)
FILM_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".avi", ".webm")


def visible(root: Path, suffixes: Sequence[str], depth: int = 8) -> Iterator[Path]:
    """Yield the files below a folder that end in one of the suffixes (in capitals too), sorted, without
    hidden files and folders.
    """
    for path in sorted(root.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and depth > 1:
            yield from visible(path, suffixes, depth - 1)
        elif path.suffix.lower() in suffixes and path.is_file():
            yield path


def zarr_folder(path: Path) -> Path | None:
    """Return the folder, or the one in it, that is a zarr replay buffer; None without one. Raises SourceError
    if it holds several.
    """
    folders = [path, *sorted(path.glob("*.zarr"))] if path.is_dir() else []
    found = [
        folder
        for folder in folders
        if (folder / ".zgroup").is_file() or (folder / "meta" / "episode_ends").is_dir()
    ]
    if len(found) > 1 and found[0] != path:
        raise SourceError(
            f"{path}: it holds {len(found)} replay buffers ({', '.join(folder.name for folder in found)});"
            " import them one by one"
        )
    return found[0] if found else None


OPTIONS = {
    name: f"--{name.replace('_', '-')}"
    for name in ("mask", "arm_only", "proprio", "panda", "action", "picture_range", "deltas")
}


def refuse_options(path: Path, reading: ImportOptions, kind: str, without: Iterable[str]) -> None:
    """Raise SourceError for an option that does not apply to a format and would be ignored. `--proprio none`
    is allowed.
    """
    if asked := [OPTIONS[name] for name in without if getattr(reading, name)]:
        raise SourceError(f"{path}: {', '.join(asked)} cannot be applied to {kind}; leave it out")


def refuse_pointer(path: Path) -> None:
    """Raise SourceError for a file whose content git-LFS did not download."""
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise SourceError(
                f"{path}: it is a git-LFS pointer, not the file itself; run `git lfs pull` where it was"
                " cloned"
            )


def contained(root: Path, relative: str) -> Path:
    """Return the path of a file that a data set names. Raises SourceError if it leads out of the data set's
    folder.

    Links into `blobs` next to `snapshots` are allowed: Hugging Face keeps a snapshot's files so.
    """
    named = PurePosixPath(relative)
    if named.is_absolute() or ".." in named.parts:
        raise SourceError(f"{root}: it names the file {relative}, which is not inside its folder")
    path = root / named
    allowed = [
        root.resolve(),
        *([root.resolve().parent.parent / "blobs"] if root.resolve().parent.name == "snapshots" else []),
    ]
    if path.exists() and not any(path.resolve().is_relative_to(folder) for folder in allowed):
        raise SourceError(f"{root}: {relative} is a link to a file outside its folder")
    return path


def examined(
    where: str, names: Iterable[str], examine: Callable[[str], _T]
) -> tuple[dict[str, _T], dict[str, str]]:
    """Return name -> result of `examine`, and name -> problem, as a sentence, of those for which it raises.

    Any error concerns one episode, so that only this one is left out.
    """
    found: dict[str, _T] = {}
    problems: dict[str, str] = {}
    for name in names:
        try:
            found[name] = examine(name)
        except Exception as error:
            problems[name] = f"{where}, {name}: {cause(error)}; left out"
    return found, problems


def cause(error: BaseException) -> str:
    """Return the description of an error, as part of a sentence."""
    said = " ".join(str(error).split())
    return (
        said
        if isinstance(error, (SourceError, ValueError)) and said
        else f"it cannot be read ({type(error).__name__}{f': {said}' * bool(said)})"
    )


def identity(*parts: object) -> str:
    """Return a short hash of an episode's content (numbers, bytes, words), independent of its file's name."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(repr((part.dtype.str, part.shape)).encode() + np.ascontiguousarray(part).tobytes())
        else:
            digest.update(part if isinstance(part, bytes) else repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:12]


def refuse_bulk(length: int, cameras: int, size: tuple[int, int]) -> None:
    """Raise ValueError for an episode whose pictures would not fit into memory."""
    if (nbytes := length * cameras * size[0] * size[1] * 3) > MOST_BYTES:
        raise ValueError(
            f"its pictures would take {nbytes / 2**30:.0f} GiB of memory, more than {MOST_BYTES >> 30}; scale"
            " them with --image-size, or divide it"
        )


def only_sentence(sentences: Iterable[str], parts: str) -> str:
    """Return the one sentence that an episode's parts (rows, steps) name, '' if none. Raises ValueError if
    they name several.
    """
    named = sorted({sentence.strip() for sentence in sentences} - {""})
    if len(named) > 1:
        raise ValueError(
            f"its {parts} name {len(named)} sentences ({'; '.join(named)}); say which holds with"
            " --instruction"
        )
    return named[0] if named else ""


# -- common to several formats -------------------------------------------------------------------------------


def label_of(path: Path, reading: ImportOptions) -> str:
    """Return the prefix of episode ids: the reading's label, or the path's name up to its first dot."""
    return reading.label or path.name.split(".")[0]


def episode_ids(label: str, names: list[str]) -> dict[str, str]:
    """Return an id per name: `-` replaces the separator of folders, and a hash of the whole name tells apart
    two that would then be equal.
    """
    plain: dict[str, list[str]] = defaultdict(list)
    for name in names:
        plain[f"{label}-{name.replace('/', '-')}"].append(name)
    return {
        name: episode_id if len(same) == 1 else f"{episode_id}-{identity(name)[:6]}"
        for episode_id, same in plain.items()
        for name in same
    }


def kept_frames(length: int, native_hz: float, hz: float) -> npt.NDArray[np.int64]:
    """Return the indices of the frames nearest to the steps of another rate, out of `length` frames."""
    if hz == native_hz:
        return np.arange(length)
    count = int((length - 1) * hz / native_hz + 1e-9) + 1
    nearest: npt.NDArray[np.int64] = np.round(np.arange(count) * native_hz / hz).astype(np.int64)
    return nearest.clip(max=length - 1)


@dataclass(frozen=True)
class Listing:
    """Episodes of a source."""

    items: list[Item]
    largest_action: float
    """Largest absolute value of the actions of all usable episodes, the gripper's excluded."""

    @property
    def problems(self) -> list[str]:
        """Reason why each unusable episode is left out, one sentence each."""
        return [item.problem for item in self.items if item.problem]


def build_items(info: SourceInfo, rows: Mapping[str, int], describe: Callable[[str], EpisodeInfo]) -> Listing:
    """Return an item per episode, with a problem where `describe` raises or the pictures would not fit into
    memory.

    rows: episode -> number of recorded steps that an item with a problem states. describe: called once per
    episode.
    """
    ids = episode_ids(info.label, list(rows))
    largest: dict[str, float] = {}

    def item_of(name: str) -> Item:
        episode = describe(name)
        hz, contract = episode.hz or info.native_hz, info.contract
        length = len(kept_frames(episode.rows, hz, contract.control_hz))
        refuse_bulk(length, len(info.cameras), contract.image_size)
        largest[name] = episode.largest_action
        return Item(
            name=name,
            episode_id=ids[name],
            task=episode.task,
            instruction=episode.instruction,
            length=length,
            labelled=info.labelled if episode.labelled is None else episode.labelled,
            origin=_origin(f"{info.name}, {name}{episode.note}", info, episode, hz),
        )

    items, problems = examined(info.name, rows, item_of)
    return Listing(
        [
            items.get(name) or unusable(name, count, info.labelled, problems[name])
            for name, count in rows.items()
        ],
        max(largest.values(), default=0.0),
    )


def unusable(name: str, length: int, labelled: bool, problem: str) -> Item:
    """Return the item of an episode that cannot be imported."""
    return Item(name=name, length=length, labelled=labelled, problem=problem)


def _origin(where: str, info: SourceInfo, episode: EpisodeInfo, hz: float) -> str:
    """Return the sentence that an episode keeps about its origin. It ends in the episode's `identity`, by
    which a later import recognises it.
    """
    parts = [where]
    if info.stored != "upright":
        parts.append(f"stored {info.stored}, turned upright")
    if episode.picture_size != info.contract.image_size:
        parts.append("scaled from {}x{}".format(*episode.picture_size))
    if hz != info.contract.control_hz:
        parts.append(f"resampled from {hz:g} per second")
    parts.append(f"content {identity(*episode.content)}")
    return "; ".join(parts)


def finished(item: Item, raw: RawEpisode, info: SourceInfo) -> Episode:
    """Return the episode to store: vectors resampled, cameras by their new names. Raises SourceError if its
    parts disagree.
    """
    contract = info.contract
    kept = kept_frames(raw.rows, raw.hz or info.native_hz, contract.control_hz)
    lengths = {f"camera {name}": len(frames) for name, frames in raw.frames.items()}
    if len({*lengths.values(), len(kept), item.length}) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise SourceError(
            f"{item.origin}: it has other frames than announced ({listed}, announced {item.length}); repair"
            " it or leave it out"
        )
    vectors: dict[str, npt.NDArray[np.float32] | None] = {}
    for name, values, width in (
        ("proprioception", raw.proprio, len(contract.proprio)),
        ("actions", raw.action, len(contract.action)),
    ):
        vectors[name] = None
        if values is None:
            continue
        if len(values) != raw.rows:
            raise SourceError(
                f"{item.origin}: its parts differ in length ({raw.rows} frames, {name} {len(values)}); repair"
                " it or leave it out"
            )
        if values.shape[1:] != (width,):
            raise SourceError(
                f"{item.origin}: its {name} have {values.shape[-1]} values, those of the others {width};"
                " leave it out"
            )
        vectors[name] = np.asarray(values, np.float32)[kept]
    frames = {info.cameras[name]: pictures for name, pictures in raw.frames.items()}
    return Episode(
        episode_id=item.episode_id,
        task=item.task,
        instruction=item.instruction,
        frames={name: frames[name] for name in contract.cameras},
        proprio=vectors["proprioception"],
        action=vectors["actions"],
        success=raw.success,
        source=item.origin,
    )
