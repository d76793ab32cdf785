"""Recordings in other people's formats, as episodes of the store.

`open_source` looks at a file or folder and answers with what it offers, before any picture is read. One file per format beside this one;
each reads only the part of a file that belongs to the episode it is asked for.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from orchestrator.data.episodes import Episode
from orchestrator.data.sources.pictures import TURNS, resized, turned
from policy.interface import Contract
from sim_workers.env import ACTION, PROPRIO, PROPRIO_KEYS

Pictures = npt.NDArray[np.uint8]


class SourceError(Exception):
    """One sentence: which file, field or episode, what is wrong, and the mend."""


@dataclass(frozen=True)
class Reading:
    """How to read a source: what its files do not say, and what shall be made of them. Empty means: as the files say."""

    images: str | None = None
    """How pictures are stored: `upright`, `upside-down` (rows reversed) or `rotated` (by 180 degrees)."""
    cameras: dict[str, str] = field(default_factory=dict)
    """Camera of the source -> its name in the store, in the store's order; empty: all, under their own names."""
    task: str | None = None
    instruction: str | None = None
    hz: float | None = None
    """Steps per second the source was recorded at, where it does not say."""
    resample_hz: float | None = None
    """Steps per second wanted instead; the nearest frame is taken. Action-free episodes only: an action is meant for one step."""
    action_free: bool = False
    """Leave the actions behind."""
    image_size: tuple[int, int] | None = None
    """(H, W) to scale to; the aspect is not kept."""
    proprio: tuple[str, ...] | None = None
    """Which of the source's vectors make up the proprioception, in order; `()` for none."""
    render_profile: str | None = None
    simulator: str | None = None
    label: str | None = None
    """Episode ids begin with it; by default the name of the file or folder."""
    panda: bool = False
    """Actions and proprioception are laid out as those of the simulator here (`sim_workers.env.ACTION`, `PROPRIO`), and get their names."""
    arm_only: bool = False
    """Of RoboCasa's 12 action dimensions keep the arm's 7; demonstrations in which the base moves are left out."""
    mask: str | None = None
    """HDF5: only the demonstrations that `mask/<name>` lists."""


@dataclass(frozen=True)
class Item:
    """One episode of a source, known without reading its pictures."""

    name: str
    """Unique in the source."""
    episode_id: str
    """Its name in the store."""
    task: str
    instruction: str
    length: int
    """Frames it will have in the store."""
    labelled: bool
    origin: str
    """Where it comes from and what is done to its pictures; becomes the episode's `source`."""


class Source(Protocol):
    """A file or folder that holds episodes. Pickles: it keeps no file open."""

    format: str
    contract: Contract
    items: list[Item]
    problems: list[str]
    """What was left out and why, one sentence each."""
    questions: list[str]
    """What a person must say before anything can be read, one sentence each."""

    def read(self, item: Item) -> Episode:
        """The whole episode, pictures upright; SourceError if it is damaged."""
        ...

    def first_pictures(self, item: Item) -> dict[str, Pictures]:
        """One (H, W, 3) picture per camera as it is stored, neither turned nor scaled: for a person to look at."""
        ...


def open_source(path: str | Path, reading: Reading) -> Source:
    """Look at a file or folder, tell its format and list what it offers; SourceError if it is none that is understood."""
    path = Path(path)
    path = path if path.name else path.resolve()  # "." has no name to call episodes by
    if not path.exists():
        raise SourceError(f"{path}: there is no such file or folder")
    if path.suffix in (".hdf5", ".h5") or any(path.glob("*.hdf5")):
        from orchestrator.data.sources.hdf5 import open_hdf5

        return open_hdf5(path, reading)
    if (path / "meta" / "info.json").is_file():
        from orchestrator.data.sources.lerobot import open_lerobot

        return open_lerobot(path, reading)
    if path.suffix == ".zip" or (path / ".zgroup").is_file() or (path / "meta" / "episode_ends").is_dir():
        from orchestrator.data.sources.replay_buffer import open_replay_buffer

        return open_replay_buffer(path, reading)
    if any(path.glob("*.mp4")) or any(path.glob("*/*.mp4")):
        from orchestrator.data.sources.films import open_films

        return open_films(path, reading)
    raise SourceError(
        f"{path}: neither robomimic-style HDF5 (.hdf5), a LeRobot dataset (meta/info.json), a diffusion-policy zarr (.zarr, .zarr.zip) "
        "nor a folder of .mp4 films"
    )


# -- what the formats have in common --------------------------------------------------------------------------------------------------


def label_of(path: Path, reading: Reading) -> str:
    return reading.label or path.name.split(".")[0]


def chosen_cameras(where: str, available: Iterable[str], reading: Reading) -> dict[str, str]:
    """Camera of the source -> name in the store; SourceError for one that is not there or a source without any."""
    available = list(available)
    if unknown := [name for name in reading.cameras if name not in available]:
        raise SourceError(f"{where}: there is no camera {', '.join(unknown)}; --cameras can choose from {', '.join(available) or 'none'}")
    if len(set(reading.cameras.values())) < len(reading.cameras):
        raise SourceError(f"{where}: --cameras gives two cameras one name")
    return reading.cameras or {name: name for name in available}


def contract_of(
    where: str,
    cameras: dict[str, str],
    sizes: dict[str, tuple[int, int]],
    proprio: tuple[str, ...],
    action: tuple[str, ...],
    native_hz: float,
    simulator: str,
    reading: Reading,
) -> Contract:
    """The conventions of the episodes to be written. `sizes`: (H, W) of some pictures, by what they show; SourceError if they differ."""
    if len(set(sizes.values())) > 1 and not reading.image_size:
        listed = ", ".join(f"{name} {height}x{width}" for name, (height, width) in sizes.items())
        raise SourceError(f"{where}: the pictures differ in size ({listed}); choose one with --image-size, or some of them with --cameras")
    if reading.panda:
        if (action and len(action) != len(ACTION)) or (proprio and len(proprio) != len(PROPRIO)):
            raise SourceError(
                f"{where}: --panda means {len(ACTION)} action dimensions and {len(PROPRIO)} values of proprioception, "
                f"here are {len(action)} and {len(proprio)}; choose vectors with --proprio, or leave --panda out"
            )
        proprio, action = PROPRIO if proprio else (), ACTION if action else ()
    return Contract(
        cameras=tuple(cameras.values()),
        image_size=reading.image_size or next(iter(sizes.values())),
        render_profile=reading.render_profile or "imported",
        proprio=proprio,
        action=action,
        control_hz=store_rate(where, native_hz, bool(action), reading),
        simulator=reading.simulator or simulator,
    )


def native_rate(where: str, stated: float | None, reading: Reading) -> float:
    """Steps per second of the recording."""
    if stated and reading.hz and abs(stated - reading.hz) > 1e-6:
        raise SourceError(f"{where}: it was recorded at {stated:g} steps per second, not {reading.hz:g}; leave --hz out, or mean --resample-hz")
    if not (stated or reading.hz):
        raise SourceError(f"{where}: it does not say how many steps a second has; say it with --hz")
    return float(stated or reading.hz or 0)


def store_rate(where: str, native_hz: float, labelled: bool, reading: Reading) -> float:
    """Steps per second of the episodes to be written."""
    if reading.resample_hz and reading.resample_hz != native_hz and labelled:
        raise SourceError(
            f"{where}: episodes with actions are not resampled from {native_hz:g} to {reading.resample_hz:g} per second, since an action is meant "
            "for one step; leave --resample-hz out, or add --action-free"
        )
    return reading.resample_hz or native_hz


def kept_frames(length: int, native_hz: float, hz: float) -> npt.NDArray[np.int64]:
    """Which of `length` frames a recording at another rate consists of: at each of its moments the nearest one."""
    if hz == native_hz:
        return np.arange(length)
    count = int((length - 1) * hz / native_hz + 1e-9) + 1
    nearest: npt.NDArray[np.int64] = np.round(np.arange(count) * native_hz / hz).astype(np.int64)
    return nearest.clip(max=length - 1)


def cameras_by_name(keys: Iterable[str]) -> dict[str, str]:
    """Camera -> its key, among keys such as `agentview_image` and `eye_in_hand_rgb`."""
    return {re.sub(r"_(image|rgb)$", "", key): key for key in keys}


def chosen_proprio(
    where: str, kind: str, widths: dict[str, int], defaults: Sequence[tuple[str, ...]], reading: Reading
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Keys of the vectors that make up the proprioception, and a name per value; SourceError if nobody says which.

    kind: what the source calls its vectors. widths: how many values each has. defaults: keys to look for, the first first.
    """
    keys = reading.proprio
    if keys is None:
        keys = next((keys for keys in defaults if set(keys) <= set(widths)), () if reading.action_free else None)
    if keys is None or not set(keys) <= set(widths) or not (keys or reading.action_free):
        raise SourceError(f"{where}: say which {kind} are the proprioception with --proprio; there are {', '.join(sorted(widths)) or 'none'}")
    names = names_of(keys, [widths[key] for key in keys])
    return keys, PROPRIO if keys == PROPRIO_KEYS and len(names) == len(PROPRIO) else names


def width_of(vectors: Any) -> int:
    """Values per row of (N, D) or (N,) vectors, of which none is read."""
    return int(np.prod(vectors.shape[1:]))


def rows_of(values: Any) -> Any:
    """(N, D) from (N, D) or (N,)."""
    return values.reshape(len(values), -1)


def names_of(keys: Sequence[str], widths: Sequence[int]) -> tuple[str, ...]:
    """A name for every value of the concatenated vectors."""
    return tuple(name for key, width in zip(keys, widths, strict=True) for name in ([key] if width == 1 else [f"{key}_{i}" for i in range(width)]))


def origin(where: str, stored: str, native_size: tuple[int, int], native_hz: float, contract: Contract) -> str:
    """The sentence an episode keeps about where it comes from."""
    parts = [where]
    if stored != "upright":
        parts.append(f"stored {stored}, turned upright")
    if native_size != contract.image_size:
        parts.append("scaled from {}x{}".format(*native_size))
    if native_hz != contract.control_hz:
        parts.append(f"resampled from {native_hz:g} per second")
    return "; ".join(parts)


@dataclass(frozen=True)
class Raw:
    """An episode as its file has it: L frames per camera of the source."""

    frames: dict[str, Pictures]
    """Per camera of the source, (L, H, W, 3) as stored."""
    proprio: npt.NDArray[Any] | None
    action: npt.NDArray[Any] | None
    success: bool | None


def finished(item: Item, raw: Raw, contract: Contract, cameras: dict[str, str], stored: str, native_hz: float) -> Episode:
    """What the store keeps of a raw episode: pictures turned upright and scaled, frames resampled; SourceError if its parts disagree."""
    lengths = {f"camera {name}": len(frames) for name, frames in raw.frames.items()}
    lengths |= {name: len(rows) for name, rows in (("proprioception", raw.proprio), ("actions", raw.action)) if rows is not None}
    if len(set(lengths.values())) > 1:
        raise SourceError(
            f"{item.origin}: its parts differ in length ({', '.join(f'{k} {v}' for k, v in lengths.items())}); repair it or leave it out"
        )
    kept = kept_frames(next(iter(lengths.values())), native_hz, contract.control_hz)
    if len(kept) != item.length:
        raise SourceError(f"{item.origin}: {len(kept)} frames were read where {item.length} were announced; repair it or leave it out")
    frames = {cameras[name]: resized(turned(pictures[kept], stored), contract.image_size) for name, pictures in raw.frames.items()}
    return Episode(
        episode_id=item.episode_id,
        task=item.task,
        instruction=item.instruction,
        frames={name: frames[name] for name in contract.cameras},
        proprio=None if raw.proprio is None else np.asarray(raw.proprio, np.float32)[kept],
        action=None if raw.action is None else np.asarray(raw.action, np.float32)[kept],
        success=raw.success,
        source=item.origin,
    )


def orientation(where: str, convention: str | None, hint: str, reading: Reading) -> tuple[str, list[str]]:
    """How the pictures are stored, and what must be asked if neither a person nor the format's convention says."""
    if reading.images and reading.images not in TURNS:
        raise SourceError(f"--images {reading.images}: pictures are {', '.join(TURNS)}")
    stored = reading.images or convention
    if stored:
        return stored, []
    return "upright", [
        f"{where}: pictures of this format are stored both ways up{hint}; look at them with --dry-run --sheet sheet.png, "
        f"then say --images {' or '.join(TURNS)}"
    ]
