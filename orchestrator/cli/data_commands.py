"""`demoscale data`: list, verify and check the episodes of a store, and show its versions.

On a terminal a table fitted to it. Piped, every row whole, without colours: tab-separated under a line of
titles, for `cut`, `sort` and `wc`.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.mistakes import report_user_errors
from orchestrator.cli.options import JSON

if TYPE_CHECKING:
    from orchestrator.data.manifest import EpisodeEntry, Manifest
    from orchestrator.data.quality.check import Checked
    from orchestrator.data.quality.findings import Finding
    from orchestrator.data.store_summary_text import Part
    from orchestrator.storage.base import Storage

SCREEN = 50  # rows shown on a terminal by default
SHEET, SHEET_COLUMNS = 60, 6  # episodes on a contact sheet
CHECK_SHEET = 30  # episodes on that of `check`


def _picture(_context: Any, _parameter: Any, value: str | None) -> Path | None:
    if value is None:
        return None
    path = Path(value)
    if path.suffix.lower() != ".png":
        raise click.BadParameter(f"{value}: the sheet is a PNG; give it a name that ends in .png")
    if not path.absolute().parent.is_dir():
        raise click.BadParameter(f"{value}: there is no folder {path.parent}")
    return path


STORE = click.argument("store")
VERSION = click.option(
    "--version", type=click.IntRange(1), metavar="N", help="Version of the store; the newest by default."
)
JSON_LINES = click.option("--json", "as_json", is_flag=True, help="Print a line of JSON per row.")


@click.group()
def data() -> None:
    """List, verify and check the episodes of a store, and show its versions.

    \b
    demoscale data ls data/lift                          its episodes
    demoscale data show data/lift --sheet sheet.png      counts, lengths, statistics, first pictures
    demoscale data verify data/lift                      reads everything and names what is damaged
    demoscale data check data/lift                       looks for odd demonstrations: frozen cameras, jumps,
                                                         duplicates
    demoscale data log data/lift                         its versions
    """


@data.command(short_help="List the episodes, one per line.")
@STORE
@VERSION
@click.option("--task", help="List only the episodes of this task.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    metavar="N",
    help=f"Print at most N rows; by default {SCREEN} on a terminal, all when piped.",
)
@JSON_LINES
@report_user_errors
def ls(store: str, version: int | None, task: str | None, limit: int | None, as_json: bool) -> None:
    """List the episodes of STORE, a folder or s3:// URI, one per line.

    \b
    demoscale data ls data/lift
    demoscale data ls data/lift --task Lift | cut -f 1,3
    demoscale data ls s3://robot-data/lift --json --limit 1
    """
    from itertools import islice

    from orchestrator.data import store_summary as report
    from orchestrator.data.episode_format import EpisodeError

    storage, _, manifest = _opened(store, version)
    total = len(manifest)
    if task is not None:
        if task not in manifest.tasks:
            mend = report.nearest(task, manifest.tasks, f"there are {', '.join(manifest.tasks)}")
            raise EpisodeError(f"{storage.uri}: there is no episode of task {task}; {mend}")
        total = len(manifest.tasks[task])
    if limit is None and sys.stdout.isatty():
        limit = SCREEN
    shown = islice(report.rows(manifest, task), limit)
    if as_json:
        for row in shown:
            click.echo(json.dumps(report.as_json(row)))
    else:
        _print_rows(
            report.CELLS,
            map(report.cells, shown),
            numbers=("frames", "seconds", "KiB"),
            shortened=("cameras", "source"),
        )
    if sys.stdout.isatty() and limit is not None and limit < total:
        click.echo(f"… and {total - limit} more; --limit {total} shows all", err=as_json)


@data.command(short_help="Counts, conventions, lengths, statistics.")
@STORE
@click.argument("episode", required=False)
@VERSION
@click.option(
    "--sheet",
    callback=_picture,
    metavar="FILE.png",
    help=f"Also write a picture of the first frames of up to {SHEET} episodes.",
)
@JSON
@report_user_errors
def show(store: str, episode: str | None, version: int | None, sheet: Path | None, as_json: bool) -> None:
    """Show counts, conventions, tasks, lengths, sources and statistics of STORE, a folder or s3:// URI, or of
    one EPISODE.

    \b
    demoscale data show data/lift
    demoscale data show data/lift --sheet sheet.png
    demoscale data show data/lift Lift-000003
    demoscale data show sweep.yaml             what the filters of a sweep file leave
    demoscale data show s3://robot-data/lift --version 2 --json | jq .tasks
    """
    from orchestrator.data import store_summary as report
    from orchestrator.data import store_summary_text as report_text
    from orchestrator.data.drawn_by import drivers_of
    from orchestrator.data.episode_store import Version, read_version

    storage, number, manifest = _opened(store, version)
    contract = manifest.contract
    if episode is None:
        summary = report.summarise(manifest)
        if manifest.parts:
            kept = "; ".join(f"{part.episodes} of {part.of} of {part.store}" for part in manifest.parts)
            made = Version(
                number, manifest.sha256, manifest.fingerprint, len(manifest), len(manifest), "", kept
            )
        else:
            made = read_version(storage, number)
        pictured = report.spread_out(manifest, SHEET)
        drivers = drivers_of(storage)
        plain = {
            "store": storage.uri,
            "drivers": list(drivers),
            "version": number,
            "created": made.created,
            "note": made.note,
            **asdict(summary),
        }
        parts = report_text.of_store(storage.uri, made, contract, summary, drivers)
    else:
        entry = report.find(manifest, episode, storage.uri)
        pictured = [entry]
        statistics = report.statistics_of(entry, contract)
        row = {name: value for name, value in vars(entry).items() if not name.endswith("_stats")}
        plain = {
            **report.as_json(row),
            "statistics": {kind: list(map(asdict, dims)) for kind, dims in statistics.items()},
        }
        parts = report_text.of_episode(entry, statistics)
    if as_json:
        click.echo(json.dumps(plain, indent=1))
    else:
        _print_parts(parts)
    if sheet and pictured:
        _write_sheet(storage, pictured, sheet)
        said = f"first frames of {report_text.amount(len(pictured), 'episode')}: {sheet}"
        click.echo(said if as_json else f"\n{said}", err=as_json)


@data.command(short_help="Read all episodes and name the damaged ones.")
@STORE
@VERSION
@report_user_errors
def verify(store: str, version: int | None) -> None:
    """Read every version and every episode of STORE, a folder or s3:// URI, and name each that is missing,
    cut short or damaged.

    Exits with 1 if there is any.

    \b
    demoscale data verify data/lift
    demoscale data verify s3://robot-data/lift --version 2
    """
    from rich.console import Console

    from orchestrator.cli.terminal import progress_bar
    from orchestrator.data.episode_format import EpisodeError
    from orchestrator.data.episode_store import check_all, load_manifest
    from orchestrator.data.store_summary_text import amount, size
    from orchestrator.storage.base import open_storage

    storage = open_storage(store)
    newest = _newest(storage, version)
    checked, manifest = 0, None
    bad_versions = bad_episodes = 0
    for number in range(1, newest + 1):
        try:
            loaded = load_manifest(storage, number)
        except EpisodeError as error:
            click.echo(str(error))
            bad_versions += 1
        else:
            if version in (None, number):
                checked, manifest = number, loaded
    if manifest is None:
        click.echo(
            f"{amount(bad_versions, 'problem')}: no episode was read, because every version that lists them"
            " is damaged"
        )
        sys.exit(1)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    nbytes = 0
    with progress_bar("reading", console, disable=not sys.stdout.isatty()) as progress:
        for entry, problem in progress.track(check_all(storage, manifest.entries), total=len(manifest)):
            nbytes += entry.nbytes
            if problem:
                bad_episodes += 1
                console.print(problem)
    what = (
        f"{amount(len(manifest), 'episode')} of version {checked}, {size(nbytes)}, and"
        f" {amount(newest, 'version')}"
    )
    if not bad_episodes + bad_versions:
        click.echo(f"read {what}: no damage found")
        return
    click.echo(f"read {what}: {amount(bad_episodes, 'bad episode')}, {amount(bad_versions, 'bad version')}")
    sys.exit(1)


def _kinds(_context: Any, _parameter: Any, values: tuple[str, ...]) -> tuple[str, ...]:
    if not values:
        return ()
    from orchestrator.data.quality.findings import KINDS
    from orchestrator.data.store_summary import nearest

    for value in values:
        if value not in KINDS:
            raise click.BadParameter(
                f"{value}: there is no such finding; {nearest(value, KINDS, 'there are ' + ', '.join(KINDS))}"
            )
    return values


@data.command(short_help="Find odd demonstrations before training on them.")
@STORE
@VERSION
@click.option(
    "--episodes",
    type=click.IntRange(1),
    metavar="N",
    help="Check only N episodes, spread evenly over the store; all by default.",
)
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Threads; one per core by default.")
@click.option(
    "--ignore",
    "ignored",
    multiple=True,
    callback=_kinds,
    metavar="FINDING",
    help="Leave out findings of this kind. Repeatable.",
)
@click.option(
    "--sheet",
    callback=_picture,
    metavar="FILE.png",
    help=f"Also write a picture of up to {CHECK_SHEET} episodes with findings.",
)
@JSON
@report_user_errors
def check(
    store: str,
    version: int | None,
    episodes: int | None,
    workers: int | None,
    ignored: tuple[str, ...],
    sheet: Path | None,
    as_json: bool,
) -> None:
    """Look for what is odd in the demonstrations of STORE, a folder or s3:// URI, before GPU-hours go into
    them.

    Decodes every episode once and names the episode, the camera or dimension, a number and what it means.
    Changes nothing in the store. Exits with 0 without findings, 1 with findings, 2 if the check cannot be
    made.

    \b
    high     unreadable, blank-camera, frozen-camera, frozen-proprio, same-camera, lag
    medium   gripper, jump, quaternion, beyond, saturated, repeated, duplicate, constant
    low      clipped, length, idle, far, instruction

    \b
    demoscale data check data/lift
    demoscale data check data/lift --sheet odd.png
    demoscale data check data/lift --ignore idle --ignore constant
    demoscale data check s3://robot-data/lift --episodes 100 --workers 8
    demoscale data check data/lift --json | jq '.findings[] | select(.severity == "high")'
    """
    import os
    import time

    from rich.console import Console

    from orchestrator.cli.terminal import progress_bar
    from orchestrator.data.episode_format import EpisodeError
    from orchestrator.data.quality.check import check as checked
    from orchestrator.data.store_summary import spread_out
    from orchestrator.storage.base import StorageError

    started = time.perf_counter()
    threads = workers or os.cpu_count() or 1
    console = Console(stderr=True)
    try:
        storage, number, manifest = _opened(store, version)
        total = len(manifest) if episodes is None else min(episodes, len(manifest))
        chosen = manifest.entries if total == len(manifest) else iter(spread_out(manifest, total))
        with progress_bar("checking", console, disable=not console.is_terminal) as progress:
            bar = progress.add_task("", total=total)
            result = checked(
                storage,
                manifest,
                chosen,
                workers=threads,
                ignored=ignored,
                done=lambda: progress.advance(bar),
            )
    except (EpisodeError, StorageError) as error:  # 1 would say that there are findings
        click.echo(str(error), err=True)
        sys.exit(2)
    seconds = time.perf_counter() - started
    if as_json:
        findings = [finding.to_json() for finding in result.findings]
        facts = {name: value for name, value in vars(result).items() if name != "findings"}
        wall = {
            "store": storage.uri,
            "version": number,
            "of": len(manifest),
            **facts,
            "seconds": round(seconds, 3),
            "workers": threads,
        }
        click.echo(json.dumps({**wall, "findings": findings}, indent=1))
    else:
        if result.findings:
            _print_findings(result.findings)
        click.echo(_summary(result, len(manifest), seconds, threads))
    if sheet:
        pictured = _write_findings(storage, manifest, result.findings, sheet) if result.findings else 0
        said = (
            f"episodes with findings, {pictured} of them: {sheet}"
            if pictured
            else f"no episode has findings: {sheet} is not written"
        )
        click.echo(said, err=as_json)
    sys.exit(1 if result.findings else 0)


@data.command(short_help="List the versions, newest first.")
@STORE
@JSON_LINES
@report_user_errors
def log(store: str, as_json: bool) -> None:
    """List the versions of STORE, a folder or s3:// URI, newest first: creation time, added episodes, writer.

    \b
    demoscale data log data/lift
    demoscale data log data/lift | cut -f 1,3
    """
    from orchestrator.data.episode_format import EpisodeError
    from orchestrator.data.episode_store import Version, read_version
    from orchestrator.data.store_summary import one_line
    from orchestrator.storage.base import open_storage

    storage = open_storage(store)
    newest = _newest(storage, None)
    bad = []

    def versions() -> Iterator[Version]:
        for number in range(newest, 0, -1):
            try:
                yield read_version(storage, number)
            except EpisodeError as error:
                bad.append(str(error))

    if as_json:
        for version in versions():
            click.echo(json.dumps(asdict(version)))
    else:
        titles = ("version", "created", "episodes", "added", "fingerprint", "note")
        rows = (
            (f"{v.number}", v.created, f"{v.episodes}", f"{v.added}", v.fingerprint, one_line(v.note))
            for v in versions()
        )
        _print_rows(titles, rows, numbers=("version", "episodes", "added"), shortened=("note",))
    for sentence in bad:
        click.echo(sentence, err=True)
    sys.exit(1 if bad else 0)


# -- opening -------------------------------------------------------------------------------------------------


def _newest(storage: "Storage", asked: int | None) -> int:
    """Return the newest version's number; raise EpisodeError without a store or a version `asked`."""
    from orchestrator.data.episode_format import EpisodeError
    from orchestrator.data.episode_store import latest_version, load_manifest

    newest = latest_version(storage)
    if not newest:
        load_manifest(storage, newest)  # says that there is no store
    if asked is not None and asked > newest:
        raise EpisodeError(f"{storage.uri}: there is no version {asked}; the newest is {newest}")
    return newest


def _opened(store: str, version: int | None) -> "tuple[Storage, int, Manifest]":
    """Return the store, the number of the requested version (the newest by default) and its manifest. Of a
    sweep file with parts of several stores it is the merged one, as its filters leave it.
    """
    from orchestrator.data.episode_store import load_manifest
    from orchestrator.storage.base import open_storage

    if store.endswith((".yaml", ".yml")):
        return _opened_sweep(store)
    storage = open_storage(store)
    newest = _newest(storage, version)
    number = version or newest
    return storage, number, load_manifest(storage, number)


def _opened_sweep(path: str) -> "tuple[Storage, int, Manifest]":
    from orchestrator.config.pinned_data import PinnedData
    from orchestrator.config.sweep_config import SweepConfig
    from orchestrator.data.episode_store import latest_version
    from orchestrator.storage.base import open_storage

    sweep = SweepConfig.load(path)
    pinned = PinnedData.read(sweep)
    manifest = pinned.manifest(sweep)
    storage = open_storage(pinned.place(sweep, manifest))
    return storage, 1 if manifest.parts else pinned.version or latest_version(storage), manifest


# -- printing ------------------------------------------------------------------------------------------------


def _print_rows(
    titles: tuple[str, ...],
    rows: Iterable[tuple[str, ...]],
    numbers: tuple[str, ...],
    shortened: tuple[str, ...],
) -> None:
    """Print a table on a terminal, tab-separated lines otherwise; a narrow terminal cuts the `shortened`
    columns.
    """
    if not sys.stdout.isatty():
        click.echo("\t".join(titles))
        for row in rows:
            click.echo("\t".join(row))
        return
    from orchestrator.data.store_summary_text import aligned, fitted

    table = fitted([titles, *rows], {titles.index(name) for name in shortened}, get_terminal_size().columns)
    head, *lines = aligned(table, {titles.index(name) for name in titles if name not in numbers})
    click.secho(head, bold=True)
    for line in lines:
        click.echo(line)


def _print_parts(parts: "list[Part]") -> None:
    for i, (title, lines) in enumerate(parts):
        if i:
            click.echo()
        if title:
            click.secho(title, bold=True)
        click.echo("\n".join(f"{'  ' if title else ''}{line}".rstrip() for line in lines))


def _write_sheet(storage: "Storage", entries: "list[EpisodeEntry]", path: Path) -> None:
    """First frames of every camera, of which only they are decoded."""
    from orchestrator.data.contact_sheet import contact_sheet
    from orchestrator.data.episode_format import decode
    from orchestrator.data.episode_store import fetch

    pictures = []
    for entry in entries:
        first = decode(fetch(storage, entry), entry.cameras, with_actions=False, wanted=[0])
        several = len(entry.cameras) > 1
        pictures += [
            (f"{entry.episode_id}\n{camera}" if several else entry.episode_id, frames[0])
            for camera, frames in first.frames.items()
        ]
    cameras = len(entries[0].cameras)
    try:
        path.write_bytes(contact_sheet(pictures, cameras * max(1, SHEET_COLUMNS // cameras)))
    except OSError as error:
        raise click.FileError(str(path), error.strerror) from None


def _print_findings(findings: "list[Finding]") -> None:
    """Print a row per finding; on a terminal sentences are wrapped, not cut."""
    from orchestrator.data.store_summary import one_line

    titles = ("severity", "finding", "episode", "where", "value", "what")
    rows = [
        tuple(
            map(
                one_line,
                (f.severity, f.kind, f.scope, f.where, f"{f.value:.4g} {f.unit}".strip(), f.sentence),
            )
        )
        for f in findings
    ]
    if not sys.stdout.isatty():
        _print_rows(titles, rows, numbers=("value",), shortened=())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    colours = {"high": "red", "medium": "yellow", "low": ""}
    for title in titles:
        table.add_column(
            title,
            justify="right" if title == "value" else "left",
            overflow="fold",
            ratio=1 if title == "what" else None,
        )
    for severity, *cells in rows:
        table.add_row(Text(severity, style=colours[severity]), *map(Text, cells))
    Console(highlight=False).print(table)


def _summary(result: "Checked", total: int, seconds: float, threads: int) -> str:
    """Return the last line of `check`: what was read, what was found, seconds."""
    from orchestrator.data.store_summary_text import amount, time_of

    some = "" if result.episodes == total else f" of {total}"
    flags = ", ".join(
        f"{count} {'without a success flag' if word == 'unknown' else word}"
        for word, count in result.successes.items()
        if count
    )
    counts = {
        severity: sum(f.severity == severity for f in result.findings)
        for severity in ("high", "medium", "low")
    }
    by_severity = ", ".join(f"{count} {severity}" for severity, count in counts.items() if count)
    found = (
        f"{amount(len(result.findings), 'finding')} ({by_severity})" if result.findings else "nothing found"
    )
    cpu = f"decoding {result.decoding_s:.1f} s, measuring {result.measuring_s:.1f} s of CPU"
    read = (
        f"checked {amount(result.episodes, 'episode')}{some}, {amount(result.frames, 'frame')}"
        f" ({flags or 'none'})"
    )
    return f"{read}: {found}; {time_of(seconds)} with {amount(threads, 'thread')}, {cpu}"


def _write_findings(storage: "Storage", manifest: "Manifest", findings: "list[Finding]", path: Path) -> int:
    """Write a picture with a row per episode with findings; return the number of rows."""
    from orchestrator.data.quality.findings import concerned
    from orchestrator.data.quality.findings_sheet import findings_sheet, pictured

    chosen = concerned(findings, CHECK_SHEET)
    if not chosen:
        return 0
    entries = manifest.select(chosen, with_stats=False)
    try:
        path.write_bytes(
            findings_sheet([pictured(storage, entry, chosen[entry.episode_id]) for entry in entries])
        )
    except OSError as error:
        raise click.FileError(str(path), error.strerror) from None
    return len(entries)
