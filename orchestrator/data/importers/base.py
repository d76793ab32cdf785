"""Common part of the importers, which read recordings in third-party formats as episodes of the store.

`open_source` inspects a file or folder and lists its episodes before any picture is read. Each format has a
module of its own in this package. It finds the format's conventions (`SourceInfo`) and describes every
episode (`EpisodeInfo`), from which `build_items` makes the list, and it provides the `Reader`, which reads
only the part of a file that belongs to the requested episode.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from orchestrator.data.episode_format import Episode
from orchestrator.data.importers.image_ops import RANGES, Pictures, kept_frames
from orchestrator.data.importers.source_files import (
    FILM_SUFFIXES,
    HDF5_SUFFIXES,
    MCAP_SUFFIXES,
    SourceError,
    refuse_pointer,
    visible,
)
from policy.interface import Contract


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
        """Name of the recordings' format."""
        return self.info.format

    @property
    def contract(self) -> Contract:
        """Conventions of the episodes as they will be stored."""
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


def open_source(path: str | Path, reading: ImportOptions) -> Source:
    """Detect the format of a file or folder and list its episodes.

    Raises SourceError if the format is unknown, if the reading has an option that does not apply to the
    format or contradicts another one, or if a file that all episodes need cannot be read.
    """
    path = Path(path)
    try:
        return _open(path if path.name else path.resolve(), reading)  # "." has no name for episode ids
    except PermissionError as error:
        raise SourceError(
            f"{error.filename or path}: this user may not read it; give the permission (`chmod -R u+rX`), or"
            " leave it out of the folder"
        ) from None
    except OSError as error:
        raise SourceError(
            f"{error.filename or path}: it cannot be read ({error.strerror or error}); copy it again"
        ) from None


def _open(path: Path, reading: ImportOptions) -> Source:
    if not path.exists():
        raise SourceError(f"{path}: there is no such file or folder")
    if path.is_file():
        refuse_pointer(path)
    if reading.picture_range and reading.picture_range not in RANGES:
        raise SourceError(f"--picture-range {reading.picture_range}: it is one of {', '.join(RANGES)}")
    if reading.action_free:
        refuse_options(path, reading, "episodes without actions", ("action", "arm_only", "deltas"))
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
    deeper = visible(path, HDF5_SUFFIXES) if path.is_dir() else []
    deeper += [info.parent.parent for info in sorted(path.glob("*/meta/info.json"))]
    hint = f"; is {deeper[0]} meant?" if deeper else ""
    raise SourceError(
        f"{path}: neither robomimic-style HDF5 (.hdf5, .h5), a LeRobot dataset (meta/info.json), RLDS"
        " (features.json), a diffusion-policy zarr (.zarr, .zarr.zip), MCAP recordings (.mcap) nor a film or"
        f" a folder of films ({', '.join(FILM_SUFFIXES)}){hint}"
    )


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
    asked = [OPTIONS[name] for name in without if getattr(reading, name)]
    asked += ["--absolute"] * ("deltas" in without and reading.deltas is False)
    if asked:
        raise SourceError(f"{path}: {', '.join(asked)} cannot be applied to {kind}; leave it out")
