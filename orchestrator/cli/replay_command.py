"""`demoscale replay`: recorded demonstrations, played again in the installed simulator, into an episode store
with pictures of this machine's driver.

Episodes already there are skipped, so the same command continues a replay that was stopped. Exit code 1:
something was left out, or did not succeed as recorded; it is listed.
"""

import os
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.mistakes import report_user_errors
from orchestrator.cli.options import HELP
from orchestrator.cli.parameters import InputPath, StorePath

if TYPE_CHECKING:
    from orchestrator.data.recorded_demos import RecordedSource
    from orchestrator.data.replay_demos import Comparison

MOST_LISTED = 20


@click.command(context_settings=HELP)
@click.argument("src", type=InputPath())
@click.argument("dst", type=StorePath())
@click.option("--dry-run", is_flag=True, help="Only say what would be replayed, and how.")
@click.option(
    "--by",
    type=click.Choice(["states", "actions", "expert"]),
    help="Set the recorded states, execute the recorded actions from the first state, or let the scripted"
    " expert play the recorded seed again (stores of `demoscale collect`). By default states; of a store,"
    " expert.",
)
@click.option("--task", help="Name of the task here, where the file has another; `demoscale task list`.")
@click.option(
    "--cameras",
    help="Comma-separated cameras, in the order the policy will see them; by default the store's, or"
    " agentview and robot0_eye_in_hand.",
)
@click.option(
    "--image-size",
    type=click.IntRange(16, 1024),
    help="Pixels, square; by default the store's, 64 for a file.",
)
@click.option("--render-profile", help="Rendering quality; by default the store's, `fast` for a file.")
@click.option(
    "--controller",
    type=click.Choice(["delta_pose", "pose", "joint_position", "joint_velocity"]),
    help="What a file's actions are, where it does not say.",
)
@click.option("--mask", help="HDF5: only the demonstrations that this filter lists.")
@click.option("--label", help="Episode ids begin with it; a file's name by default.")
@click.option("--episodes", type=click.IntRange(1), help="Replay only the first episodes; all by default.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=os.cpu_count(),
    help="Simulator processes; one per core by default.",
)
@report_user_errors
def replay(src: str, dst: str, dry_run: bool, workers: int, cameras: str | None, **said: Any) -> None:
    """Replay the demonstrations SRC, an HDF5 file with states (robosuite, robomimic, MimicGen, LIBERO,
    RoboCasa), a folder of such files, or an episode store, into the episode store DST, a folder or s3:// URI;
    made if it is not there. Success and states are compared with the recording's, per episode.

    \b
    demoscale replay demo.hdf5 data/lift --dry-run                  look first
    demoscale replay demo.hdf5 data/lift --cameras agentview --image-size 128
    demoscale replay demo.hdf5 data/lift-actions --by actions       do the actions still succeed here?
    demoscale replay data/lift data/lift-256 --image-size 256 --render-profile default
    """
    from orchestrator.cli.terminal import progress_bar
    from orchestrator.cluster.ray_runtime import connect, quiet
    from orchestrator.data.drawn_by import drivers_of
    from orchestrator.data.import_episodes import LeftOut
    from orchestrator.data.recorded_demos import ReplayOptions, open_recordings
    from orchestrator.data.replay_demos import comparisons, missing, replay_all
    from orchestrator.storage.base import open_storage

    began = time.monotonic()
    storage = open_storage(dst)
    views = tuple(cameras.split(",")) if cameras else ()
    source = open_recordings(src, ReplayOptions(cameras=views, **said))
    todo = missing(source, storage)
    click.echo(_understood(src, source))
    click.echo(
        f"{'store':<14} {storage.uri}: {len(todo)} episodes to replay, {len(source.items) - len(todo)}"
        " already there"
    )
    if dry_run:
        return
    left_out: list[str] = []
    if todo:
        quiet()
        click.echo("starting Ray")
        connect()
        with progress_bar("replaying") as progress:
            replays = replay_all(storage, source, todo, workers)
            for answer in progress.track(replays, total=len(todo)):
                if isinstance(answer, LeftOut):
                    left_out.append(answer.reason)
        click.echo(
            f"replayed {len(todo) - len(left_out)} episodes in {time.monotonic() - began:.0f} s, into"
            f" {storage.uri}"
        )
    ids = {item.episode_id for item in source.items}
    compared = [one for episode, one in comparisons(storage).items() if episode in ids]
    for line in _report(compared, drivers_of(storage)):
        click.echo(line)
    problems = [*source.problems, *left_out]
    if problems:
        click.echo(f"{len(problems)} left out:", err=True)
    for reason in problems:
        click.echo(f"  - {reason.removesuffix('; left out')}", err=True)
    sys.exit(1 if problems or not all(one.agrees for one in compared) else 0)


def _understood(src: str, source: "RecordedSource") -> str:
    """Return the summary of a source as lines of text."""
    contract, items = source.contract, source.items
    ways = sorted({item.by for item in items})
    steps = [item.length for item in items]
    lines = [
        (src, source.format),
        ("episodes", f"{len(items)} of {', '.join(source.tasks)}, {min(steps)} to {max(steps)} steps"),
        ("replayed by", ", ".join(ways)),
        ("recorded on", source.simulator),
        ("replayed on", contract.simulator),
        (
            "pictures",
            "{}; {} x {}, render profile {}".format(
                ", ".join(contract.cameras), *contract.image_size, contract.render_profile
            ),
        ),
        *(("note", note) for note in source.notes),
        *(("left out", problem.removesuffix("; left out")) for problem in source.problems[:MOST_LISTED]),
    ]
    return "\n".join(f"{name:<14} {text}" for name, text in lines)


def _report(compared: "list[Comparison]", drivers: tuple[str, ...]) -> list[str]:
    """Return the comparison of all episodes as lines: those that differ first, then the others."""
    lines = [f"{'drawn by':<14} {'; '.join(drivers) or 'not known'}"]
    said = [one for one in compared if one.recorded_success is not None]
    lines.append(
        f"{'success':<14} {sum(one.success for one in compared)} of {len(compared)} replays"
        + (
            f"; {sum(one.agrees for one in said)} of {len(said)} as recorded"
            if said
            else "; the recordings do not say"
        )
    )
    ordered = sorted(compared, key=lambda one: (one.agrees, -(one.divergence.position or 0.0)))
    lines += [f"  {one}" for one in ordered[:MOST_LISTED]]
    if len(ordered) > MOST_LISTED:
        lines.append(f"  and {len(ordered) - MOST_LISTED} more, in replays/ of the store")
    return lines
