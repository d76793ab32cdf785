"""`demoscale import`: recordings in HDF5 (robomimic, MimicGen, RoboCasa, LIBERO), LeRobot, RLDS, MCAP,
diffusion-policy zarr, or films, into an episode store.

Episodes already there are skipped, so the same command continues an import that was stopped. Exit code 1:
something was left out; it is listed.
"""

import math
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.mistakes import report_user_errors
from orchestrator.cli.options import HELP
from orchestrator.cli.parameters import InputPath, OutputPath, StorePath

if TYPE_CHECKING:
    from orchestrator.data.importers.base import Item, Source

SHEET = 24  # episodes whose first pictures are shown


def _names(value: str) -> list[str]:
    """Return the names in a list with commas. Raises BadParameter for an empty one, or for one that comes
    twice.
    """
    names = [name.strip() for name in value.split(",")]
    keys = [name.partition("=")[0] for name in names]
    if not all(keys):
        raise click.BadParameter("a name is missing between the commas")
    if twice := [key for key, count in Counter(keys).items() if count > 1]:
        raise click.BadParameter(f"it names {', '.join(twice)} twice")
    return names


def _pairs(_context: Any, _parameter: Any, value: str | None) -> dict[str, str]:
    parts = [name.partition("=") for name in _names(value)] if value else []
    return {name: renamed or name for name, _, renamed in parts}


def _size(_context: Any, _parameter: Any, value: str | None) -> tuple[int, int] | None:
    sides = value.lower().split("x") if value else []
    if not all(side.isdecimal() and int(side) for side in sides) or len(sides) > 2:
        raise click.BadParameter("write it as 64, or as HEIGHTxWIDTH")
    return (int(sides[0]), int(sides[-1])) if sides else None


def _keys(_context: Any, _parameter: Any, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else () if value == "none" else tuple(_names(value))


def _rate(_context: Any, _parameter: Any, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter("it is no number of steps per second")
    return value


def _words(_context: Any, _parameter: Any, value: str | None) -> str | None:
    return None if value is None else value.strip()


@click.command("import", context_settings=HELP)
@click.argument("src", type=InputPath())
@click.argument("dst", type=StorePath())
@click.option(
    "--dry-run",
    is_flag=True,
    help="Only say what is understood: tasks, cameras, lengths, conventions, problems.",
)
@click.option(
    "--sheet",
    type=OutputPath(dir_okay=False),
    help="With --dry-run: write a PNG of first pictures, as they are stored.",
)
@click.option(
    "--images",
    type=click.Choice(["upright", "upside-down", "rotated"]),
    help="How pictures are stored; HDF5 does not say.",
)
@click.option(
    "--cameras",
    callback=_pairs,
    metavar="A=B,C",
    help="Which cameras, in the store's order; A=B calls A B. All by default.",
)
@click.option("--task", help="Name of the task, where the source has none or another than the simulator's.")
@click.option("--instruction", callback=_words, help="What is done, in words.")
@click.option(
    "--hz",
    type=click.FloatRange(0, min_open=True),
    callback=_rate,
    help="Steps per second of the recording, where it does not say.",
)
@click.option(
    "--resample-hz",
    type=click.FloatRange(0, min_open=True),
    callback=_rate,
    help="Steps per second wanted; only without actions.",
)
@click.option("--image-size", callback=_size, metavar="N or HxW", help="Scale pictures to it.")
@click.option(
    "--proprio",
    callback=_keys,
    metavar="KEY,KEY",
    help="Which vectors are the proprioception, in order; `none` for none.",
)
@click.option("--action-free", is_flag=True, help="Leave the actions behind.")
@click.option(
    "--panda",
    is_flag=True,
    help=(
        "Actions and proprioception are laid out as the simulator's here: 7 OSC_POSE deltas, hand pose,"
        " fingers."
    ),
)
@click.option(
    "--arm-only",
    is_flag=True,
    help="RoboCasa: keep the arm's 7 action dimensions, leave out episodes in which the base moves.",
)
@click.option(
    "--mask",
    help="HDF5: only the demonstrations that this filter lists. LeRobot: only this split of meta/info.json.",
)
@click.option(
    "--action",
    help="Which vector is the action, where the format's usual name is another; `actions_abs`, for example.",
)
@click.option(
    "--deltas/--absolute",
    default=None,
    help="Whether actions are displacements in [-1, 1] or poses, where a file and its values contradict.",
)
@click.option(
    "--picture-range",
    help="What black and white are where pictures are no bytes: 0..1, 0..255, -1..1, 0..65535, 0..1023 or"
    " 0..4095.",
)
@click.option(
    "--render-profile", help="How pictures were rendered, if they match a profile of the simulator here."
)
@click.option("--simulator", help="Versions of what recorded them, if the source does not say.")
@click.option("--label", help="Episode ids begin with it; the source's name by default.")
@click.option(
    "--workers", type=click.IntRange(1), default=os.cpu_count(), help="Processes; one per core by default."
)
@report_user_errors
def import_(src: str, dst: str, dry_run: bool, sheet: str | None, workers: int, **said: Any) -> None:
    """Import the recordings SRC into the episode store DST, a folder or s3:// URI; made if it is not there.

    \b
    demoscale import demo.hdf5 data/lift --dry-run --sheet sheet.png       look first
    demoscale import demo.hdf5 data/lift --images upside-down
    demoscale import lerobot/pick data/pick --cameras top=agentview,wrist --image-size 64
    demoscale import pusht.zarr data/pusht --hz 10 --task PushT --instruction "push the T" --proprio state
    demoscale import bags data/pick --hz 10 --task pick --proprio /joint_states --action /command
    demoscale import films data/lift --cameras agentview --resample-hz 20  action-free, beside demonstrations
    """
    from orchestrator.cli.terminal import progress_bar
    from orchestrator.cluster.ray_runtime import connect, quiet
    from orchestrator.data.import_episodes import (
        LeftOut,
        import_episodes,
        memory_mib,
        missing,
        reconcile_contract,
    )
    from orchestrator.data.importers.base import ImportOptions, open_source
    from orchestrator.data.importers.source_files import SourceError
    from orchestrator.storage.base import open_storage

    began = time.monotonic()
    storage = open_storage(dst)
    source = open_source(src, ImportOptions(**said))
    if sheet:
        _write_sheet(source, Path(sheet))
    click.echo(_understood(src, source))
    if source.questions:
        click.echo(
            "\n".join(["to be answered first", *(f"  - {question}" for question in source.questions)]),
            err=not dry_run,
        )
        if not dry_run:
            sys.exit(2)
    usable = [item for item in source.items if not item.problem]
    if not usable:
        why = f"all {len(source.items)} are left out" if source.items else "it has none"
        raise SourceError(f"{src}: no episode can be imported: {why}")
    source = reconcile_contract(source, storage)
    todo = missing(source, storage)
    click.echo(
        f"{'store':<14} {storage.uri}: {len(todo)} episodes to import, {len(usable) - len(todo)} already"
        " there"
    )
    click.echo(
        f"{'memory':<14} {memory_mib(source):.0f} MiB in each of {workers} processes, for the longest episode"
    )
    if todo and not source.contract.action:
        click.echo(
            "this store will hold episodes without actions only; if demonstrations shall stand beside them,"
            " import those first"
        )
    if dry_run:
        return
    if not todo:
        sys.exit(1 if source.problems else 0)
    quiet()
    click.echo("starting Ray")
    connect()
    left_out: list[str] = []
    steps = 0
    imported = import_episodes(storage, source, todo, workers, f"import of {source.format} {Path(src).name}")
    with progress_bar("importing") as progress:
        for answer in progress.track(imported, total=len(todo)):
            if isinstance(answer, LeftOut):
                left_out.append(answer.reason)
            else:
                steps += answer.length
    click.echo(
        f"imported {len(todo) - len(left_out)} episodes, {steps} steps, in {time.monotonic() - began:.0f} s,"
        f" into {storage.uri}"
        + (f"; {len(source.problems) + len(left_out)} left out:" if source.problems or left_out else "")
    )
    for reason in [*source.problems, *left_out]:
        click.echo(f"  - {reason.removesuffix('; left out')}", err=True)
    sys.exit(1 if source.problems or left_out else 0)


def _understood(src: str, source: "Source") -> str:
    """Return the summary of a source as lines of text."""
    from orchestrator.data.store_summary import one_line

    contract, items = source.contract, [item for item in source.items if not item.problem]
    lines = [(src, source.format)]
    labelled = sum(item.labelled for item in items)
    lines.append(("episodes", f"{labelled} with actions, {len(items) - labelled} without; {_lengths(items)}"))
    for task, count in sorted(Counter(item.task for item in items).items()):
        said = sorted({item.instruction for item in items if item.task == task})
        words = f"{len(said)} instructions, such as {said[0]}" if said[1:] else said[0] or "?"
        lines.append(("task", f"{task or '?'}: {count} {'episode' if count == 1 else 'episodes'}, {words}"))
    lines += [
        (
            "cameras",
            f"{', '.join(contract.cameras)}, {contract.image_size[0]}x{contract.image_size[1]} pixels",
        ),
        (
            "proprio",
            f"{len(contract.proprio)} values: {', '.join(contract.proprio)}" if contract.proprio else "none",
        ),
        (
            "action",
            f"{len(contract.action)} dimensions: {', '.join(contract.action)}" if contract.action else "none",
        ),
        ("rate", f"{contract.control_hz:g} steps per second"),
        ("simulator", f"{contract.simulator}; pictures: {contract.render_profile}"),
    ]
    if items:
        lines.append(("first", f"{items[0].episode_id}: {items[0].origin}"))
    lines += [("left out", problem) for problem in source.problems]
    return "\n".join(f"{name:<14} {one_line(text)}" for name, text in lines)


def _lengths(items: "list[Item]") -> str:
    if not items:
        return "no steps"
    lengths = [item.length for item in items]
    return f"{min(lengths)} to {max(lengths)} steps, {sum(lengths)} in all"


def _write_sheet(source: "Source", path: Path) -> None:
    from orchestrator.data.contact_sheet import contact_sheet

    usable = [item for item in source.items if not item.problem]
    pictures = [
        (f"{item.name}, {camera or 'film'}", p)
        for item in usable[:SHEET]
        for camera, p in source.first_pictures(item).items()
    ]
    if pictures:
        path.write_bytes(contact_sheet(pictures))
        click.echo(f"first pictures, as they are stored: {path}")
