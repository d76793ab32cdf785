"""List of a source's episodes, from a description of each: ids, lengths, origins, and why some are left
out.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from orchestrator.data.importers.base import EpisodeInfo, ImportOptions, Item, SourceInfo
from orchestrator.data.importers.image_ops import kept_frames
from orchestrator.data.importers.source_files import cause

MOST_BYTES = 8 << 30
"""Maximum bytes of one episode's pictures in memory, as the store keeps them."""
_T = TypeVar("_T")


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

    @property
    def instructed(self) -> bool:
        """Whether every usable episode has an instruction."""
        return all(item.instruction for item in self.items if not item.problem)


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
