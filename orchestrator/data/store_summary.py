"""Summary of the episodes of a store, from its manifest alone: rows, counts, lengths, statistics."""

import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np

from orchestrator.data.episode_format import EpisodeError
from orchestrator.data.manifest import EpisodeEntry, Manifest
from policy.feature_stats import CONSTANT, Stats
from policy.interface import Contract

ROW = ("episode_id", "task", "length", "hz", "labelled", "success", "nbytes", "cameras", "source")
"""Columns of the manifest that a listing shows."""
CELLS = ("episode", "task", "frames", "seconds", "kind", "success", "KiB", "cameras", "source")
"""Titles of the listing's columns."""
BARS = 10  # maximum bars of the histogram of lengths
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)")


# -- rows ----------------------------------------------------------------------------------------------------


def rows(manifest: Manifest, task: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield a row per episode, of one task or all, in the order of their ids, without reading all
    rows first.
    """
    for table in manifest.groups(ROW):
        yield from (row for row in table.to_pylist() if task in (None, row["task"]))


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Return a row as texts, one per `CELLS`, without tabs, line breaks or other control characters."""
    texts = (
        row["episode_id"],
        row["task"],
        str(row["length"]),
        f"{row['length'] / row['hz']:.2f}",
        "labelled" if row["labelled"] else "action-free",
        _success(row["success"]),
        f"{row['nbytes'] / 1024:.1f}",
        ",".join(row["cameras"]),
        row["source"],
    )
    return tuple(map(one_line, texts))


def as_json(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with exact values, for JSON output."""
    return {**row, "seconds": row["length"] / row["hz"]}


def one_line(text: str) -> str:
    """Return the text with a space for every unprintable character, such as line breaks and terminal
    escapes.
    """
    return (
        text
        if text.isprintable()
        else "".join(character if character.isprintable() else " " for character in text)
    )


def _success(success: bool | None) -> str:
    return "unknown" if success is None else "yes" if success else "no"


def nearest(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return a question that suggests similar known names; `otherwise` if none is similar."""
    close = get_close_matches(name, known, 3)
    return f"did you mean {' or '.join(close)}?" if close else otherwise


def find(manifest: Manifest, episode_id: str, where: str) -> EpisodeEntry:
    """Return one episode. Raises EpisodeError, which suggests similar ids, if it does not exist."""
    ids = manifest.episode_ids
    place = bisect_left(ids, episode_id)
    if ids[place : place + 1] == [episode_id]:
        return manifest[episode_id]
    neighbours = ids[max(0, place - 1000) : place + 1000]  # not all, since comparisons are slow
    raise EpisodeError(
        f"{where}: there is no episode {episode_id};"
        f" {nearest(episode_id, neighbours, f'`demoscale data ls {where}` lists them')}"
    )


def spread_out(manifest: Manifest, count: int) -> list[EpisodeEntry]:
    """Return at most `count` episodes, evenly spaced over the store's ids."""
    total = len(manifest)
    return manifest.select(
        manifest.episode_ids[i * total // min(count, total)] for i in range(min(count, total))
    )


# -- a whole store -------------------------------------------------------------------------------------------


@dataclass
class Task:
    """Counts of the episodes of one task."""

    task: str
    instruction: str
    """Instruction of its first episode."""
    instructions: int = 0
    """Number of distinct instructions."""
    episodes: int = 0
    labelled: int = 0
    action_free: int = 0
    succeeded: int = 0
    failed: int = 0
    unknown: int = 0
    """Number of episodes without a success flag."""
    frames: int = 0


@dataclass(frozen=True)
class Lengths:
    """Distribution of the lengths of episodes, in frames."""

    low: int
    q25: float
    median: float
    q75: float
    high: int
    total: int
    histogram: list[tuple[int, int, int]]
    """(lowest length, highest length, episodes) of each bar."""


@dataclass(frozen=True)
class Dimension:
    """Statistics of one dimension of action or proprioception, over all frames."""

    name: str
    low: float
    q01: float
    mean: float
    std: float
    q99: float
    high: float
    constant: bool


@dataclass(frozen=True)
class Summary:
    """Summary of a version of a store."""

    fingerprint: str
    contract: dict[str, Any]
    episodes: int
    labelled: int
    action_free: int
    nbytes: int
    tasks: list[Task]
    lengths: Lengths | None
    sources: list[tuple[str, int]]
    """(source, number of episodes), the most frequent first; sources that differ only in numbers count as
    one.
    """
    statistics: dict[str, list[Dimension]]
    """`action` and `proprio` -> statistics over the labelled episodes."""


def summarise(manifest: Manifest) -> Summary:
    """Return the summary of a manifest."""
    tasks: dict[str, Task] = {}
    instructions: dict[str, set[str]] = {}
    sources: Counter[str] = Counter()
    for table in manifest.groups(("task", "instruction", "labelled", "success", "length", "source")):
        for row in table.to_pylist():
            task = tasks.setdefault(row["task"], Task(row["task"], row["instruction"]))
            instructions.setdefault(row["task"], set()).add(row["instruction"])
            sources[row["source"]] += 1
            task.episodes += 1
            task.frames += row["length"]
            task.labelled += row["labelled"]
            task.action_free += not row["labelled"]
            task.succeeded += row["success"] is True
            task.failed += row["success"] is False
            task.unknown += row["success"] is None
    for name, task in tasks.items():
        task.instructions = len(instructions[name])
    contract = manifest.contract
    return Summary(
        fingerprint=manifest.fingerprint,
        contract=contract.to_json(),
        episodes=len(manifest),
        labelled=sum(task.labelled for task in tasks.values()),
        action_free=sum(task.action_free for task in tasks.values()),
        nbytes=int(manifest.column("nbytes").to_numpy().sum()),
        tasks=[tasks[name] for name in sorted(tasks)],
        lengths=_lengths(manifest.column("length").to_numpy()),
        sources=grouped(sources),
        statistics={
            kind: dimensions(merged(manifest, kind), getattr(contract, kind))
            for kind in ("action", "proprio")
        },
    )


def _lengths(lengths: Any) -> Lengths | None:
    if not len(lengths):
        return None
    low, q25, median, q75, high = np.quantile(lengths, (0, 0.25, 0.5, 0.75, 1))
    width = math.ceil((high - low + 1) / BARS)
    counts = np.bincount((lengths - int(low)) // width)
    first = [int(low) + i * width for i in range(len(counts))]
    histogram = [
        (start, min(start + width - 1, int(high)), int(count))
        for start, count in zip(first, counts, strict=True)
    ]
    return Lengths(int(low), float(q25), float(median), float(q75), int(high), int(lengths.sum()), histogram)


def grouped(sources: dict[str, int]) -> list[tuple[str, int]]:
    """Merge sources that differ only in numbers, and write each number as its range: `seed 0..99`; the most
    frequent first.
    """
    groups: dict[tuple[str, ...], tuple[int, list[tuple[str, str]]]] = {}
    for source, count in sources.items():
        words, numbers = tuple(_NUMBER.split(source)[::2]), _NUMBER.findall(source)
        before, ranges = groups.get(words, (0, [(number, number) for number in numbers]))
        both = [
            (min(low, number, key=float), max(high, number, key=float))
            for (low, high), number in zip(ranges, numbers, strict=True)
        ]
        groups[words] = (before + count, both)
    named = []
    for words, (count, ranges) in groups.items():
        numbers = [low if float(low) == float(high) else f"{low}..{high}" for low, high in ranges]
        named.append(
            ("".join(part for pair in zip(words, [*numbers, ""], strict=True) for part in pair), count)
        )
    return sorted(named, key=lambda item: (-item[1], item[0]))


def merged(manifest: Manifest, kind: str) -> Stats | None:
    """Return the merged statistics of all labelled episodes; None without any."""
    parts = []
    for table in manifest.groups(("labelled", f"{kind}_stats")):
        if stats := table.filter(table["labelled"])[f"{kind}_stats"].drop_null().to_pylist():
            parts.append(Stats.merge(map(Stats.from_json, stats)))
    return Stats.merge(parts) if parts else None


def dimensions(stats: Stats | None, names: tuple[str, ...]) -> list[Dimension]:
    """Return the statistics of each dimension, with its name in the contract."""
    if stats is None:
        return []
    if len(names) != len(stats.mean):  # an action-free episode may have a proprioception of its own
        names = tuple(f"dimension {i}" for i in range(len(stats.mean)))
    std = [math.sqrt(m2 / stats.count) for m2 in stats.m2]
    columns = (stats.low, stats.q01, stats.mean, std, stats.q99, stats.high)
    constant = [high - low < 2 * CONSTANT for low, high in zip(stats.low, stats.high, strict=True)]
    return list(map(Dimension, names, *columns, constant))


def statistics_of(entry: EpisodeEntry, contract: Contract) -> dict[str, list[Dimension]]:
    """Return the statistics of one episode's action and proprioception."""
    return {
        "action": dimensions(entry.action_stats, contract.action),
        "proprio": dimensions(entry.proprio_stats, contract.proprio),
    }
