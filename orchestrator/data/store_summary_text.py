"""Text output of the summary of a store or an episode."""

import math
from collections.abc import Collection, Iterable, Sequence

from orchestrator.data.episode_store import Version
from orchestrator.data.manifest import EpisodeEntry
from orchestrator.data.store_summary import CELLS, Dimension, Lengths, Summary, cells, one_line
from policy.interface import Contract

SPREAD = ("low", "q01", "mean", "std", "q99", "high")
BAR_WIDTH = 40  # characters
GROUPS = 12  # maximum number of groups of sources shown
Part = tuple[str, list[str]]
"""(title, lines)."""


def amount(count: int, noun: str) -> str:
    """Return a count with its noun: `1 episode`, `2 episodes`."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def size(nbytes: float) -> str:
    """Return bytes as text, in KiB to TiB."""
    units = ("KiB", "MiB", "GiB", "TiB")
    power = max(1, min(len(units), int(math.log2(max(nbytes, 1)) // 10)))
    return f"{nbytes / 1024**power:.1f} {units[power - 1]}"


def time_of(seconds: float) -> str:
    """Return seconds as text, in s, min or h."""
    return (
        f"{seconds:.1f} s"
        if seconds < 120
        else f"{seconds / 60:.1f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def aligned(table: Sequence[tuple[str, ...]], left: Collection[int] = (0,)) -> list[str]:
    """Return the lines of a table with aligned columns: those in `left` to the left, the others to
    the right.
    """
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    padded = (
        [
            cell.ljust(w) if i in left else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        for row in table
    )
    return ["  ".join(row).rstrip() for row in padded]


def fitted(table: list[tuple[str, ...]], shortened: Collection[int], width: int) -> list[tuple[str, ...]]:
    """Cut cells of the `shortened` columns, the widest first, until aligned lines are at most `width` long,
    if possible.
    """
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    while sum(widths) + 2 * (len(widths) - 1) > width:
        widest = max(shortened, key=lambda i: widths[i])
        if widths[widest] <= len(table[0][widest]):
            break
        widths[widest] -= 1
    return [
        tuple(cell if len(cell) <= w else f"{cell[: w - 1]}…" for cell, w in zip(row, widths, strict=True))
        for row in table
    ]


def fields(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Return a line for each (name, value)."""
    return [f"{name:<12} {one_line(text)}" for name, text in pairs]


def contract_lines(contract: Contract) -> list[str]:
    """Return the lines of the conventions that all episodes share."""
    height, width = contract.image_size
    return fields(
        [
            (
                "cameras",
                f"{', '.join(contract.cameras)}; {height}x{width} pixels, {contract.control_hz:g} per second",
            ),
            ("rendered", f"profile {contract.render_profile}"),
            ("simulator", contract.simulator),
            (
                "action",
                (
                    f"{amount(len(contract.action), 'dimension')}: {', '.join(contract.action)}"
                    if contract.action
                    else "none"
                ),
            ),
            (
                "proprio",
                (
                    f"{amount(len(contract.proprio), 'value')}: {', '.join(contract.proprio)}"
                    if contract.proprio
                    else "none"
                ),
            ),
        ]
    )


def task_lines(summary: Summary) -> list[str]:
    """Return a table of tasks, each with its instruction and counts."""
    table: list[tuple[str, ...]] = [
        (
            "task",
            "instruction",
            "episodes",
            "labelled",
            "action-free",
            "succeeded",
            "failed",
            "unknown",
            "frames",
        )
    ]
    for t in summary.tasks:
        said = one_line(t.instruction) + (
            f" (and {amount(t.instructions - 1, 'other')})" if t.instructions > 1 else ""
        )
        counts = (t.episodes, t.labelled, t.action_free, t.succeeded, t.failed, t.unknown, t.frames)
        table.append((one_line(t.task), said, *map(str, counts)))
    return aligned(table, left=(0, 1))


def length_lines(lengths: Lengths, hz: float) -> list[str]:
    """Return quartiles in frames and seconds, and a histogram."""
    names = (
        ("shortest", lengths.low),
        ("25 %", lengths.q25),
        ("median", lengths.median),
        ("75 %", lengths.q75),
        ("longest", lengths.high),
    )
    lines = aligned(
        [
            ("length", "frames", "seconds"),
            *((name, f"{frames:g}", f"{frames / hz:.2f}") for name, frames in names),
        ]
    )
    most = max(count for _, _, count in lengths.histogram)
    bars = [(f"{first}", f"{last}", f"{count}") for first, last, count in lengths.histogram]
    drawn = ["#" * math.ceil(BAR_WIDTH * count / most) for _, _, count in lengths.histogram]
    table = aligned([("from", "to", "episodes"), *bars], left=())
    return [
        *lines,
        "",
        table[0],
        *(f"{line}  {bar}".rstrip() for line, bar in zip(table[1:], drawn, strict=True)),
    ]


def source_lines(summary: Summary) -> list[str]:
    """Return the sources of the episodes and their counts."""
    shown, rest = summary.sources[:GROUPS], summary.sources[GROUPS:]
    lines = [
        f"{line}  {one_line(name)}"
        for line, (name, _) in zip(aligned([(str(n),) for _, n in shown], left=()), shown, strict=True)
    ]
    return (
        [*lines, f"and {sum(n for _, n in rest)} from {amount(len(rest), 'other source')}"] if rest else lines
    )


def statistics_lines(dims: list[Dimension]) -> list[str]:
    """Return a table of dimensions; constant ones are marked."""
    rows = [
        (d.name, *(_number(getattr(d, name)) for name in SPREAD), "constant" if d.constant else "")
        for d in dims
    ]
    return aligned([("", *SPREAD, ""), *rows])


def _number(value: float) -> str:
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.2e}"


# -- parts ---------------------------------------------------------------------------------------------------


def of_store(
    uri: str, version: Version, contract: Contract, summary: Summary, drivers: Sequence[str] = ()
) -> list[Part]:
    """Return the parts of the text about a version of a store. drivers: that drew its pictures, if known."""
    lengths, count = summary.lengths, summary.episodes
    facts = [
        ("store", uri),
        (
            "version",
            f"{version.number}"
            + (f", made {version.created}" if version.created else "")
            + (f": {version.note}" if version.note else ""),
        ),
        ("fingerprint", summary.fingerprint),
        ("episodes", f"{count}: {summary.labelled} labelled, {summary.action_free} action-free"),
        ("frames", f"{lengths.total}, {time_of(lengths.total / contract.control_hz)}" if lengths else "none"),
        ("size", f"{size(summary.nbytes)}, {size(summary.nbytes / max(1, count))} per episode"),
        *(("drawn by", one_line(driver)) for driver in drivers),
    ]
    parts = [("", fields(facts)), ("conventions", contract_lines(contract))]
    if lengths:
        parts += [
            ("tasks", task_lines(summary)),
            ("lengths", length_lines(lengths, contract.control_hz)),
            ("sources", source_lines(summary)),
        ]
    title = "{} of the labelled episodes (q01 and q99: averaged over episodes)"
    return parts + [
        (title.format(kind), statistics_lines(dims)) for kind, dims in summary.statistics.items() if dims
    ]


def of_episode(entry: EpisodeEntry, statistics: dict[str, list[Dimension]]) -> list[Part]:
    """Return the parts of the text about one episode."""
    facts = [
        *zip(CELLS, cells(vars(entry)), strict=True),
        ("instruction", entry.instruction),
        ("object", entry.key),
    ]
    return [
        ("", fields(facts)),
        *((kind, statistics_lines(dims)) for kind, dims in statistics.items() if dims),
    ]
