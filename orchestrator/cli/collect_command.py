"""`demoscale collect`: scripted experts play robosuite tasks in parallel on Ray, into an episode store."""

import os
import time

import click

from orchestrator.cli.mistakes import argument_error, report_user_errors
from orchestrator.cli.options import HELP
from orchestrator.cli.parameters import StorePath


@click.command(context_settings=HELP)
@click.option(
    "--task", default="Lift", show_default=True, help="Lift, Stack, PickPlaceCan, Door or NutAssemblySquare."
)
@click.option(
    "--episodes",
    type=click.IntRange(1, 1_000_000),
    required=True,
    help="How many the store shall hold of this task: seeds 0, 1, 2 ...",
)
@click.option(
    "--store",
    type=StorePath(),
    required=True,
    help="Folder or s3:// URI of the episode store; made if it is not there.",
)
@click.option(
    "--cameras",
    default="robot0_eye_in_hand",
    show_default=True,
    help="Comma-separated robosuite cameras, in the order the policy will see them.",
)
@click.option(
    "--image-size", type=click.IntRange(16, 1024), default=64, show_default=True, help="Pixels, square."
)
@click.option(
    "--render-profile", default="fast", show_default=True, help="Rendering quality; evaluation uses the same."
)
@click.option(
    "--disturbance",
    type=click.FloatRange(0, 1),
    default=0.3,
    show_default=True,
    help="How far executed actions stray from the expert's.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=os.cpu_count(),
    help="Simulator processes; one per core by default.",
)
@report_user_errors
def collect(
    task: str,
    episodes: int,
    store: str,
    cameras: str,
    image_size: int,
    render_profile: str,
    disturbance: float,
    workers: int,
) -> None:
    """Record demonstrations of TASK until the store holds EPISODES of them.

    \b
    demoscale collect --task Lift --episodes 100 --store data/lift
    demoscale collect --episodes 500 --store s3://robot-data/lift --cameras agentview,robot0_eye_in_hand
    """
    from orchestrator.cli.terminal import progress_bar
    from orchestrator.cluster.ray_runtime import connect, quiet
    from orchestrator.data.collect_demos import collect as recorded
    from orchestrator.data.collect_demos import missing
    from orchestrator.storage.base import open_storage
    from sim_workers.demos.experts import EXPERTS
    from sim_workers.demos.recorder import Demonstration
    from sim_workers.envs.registry import unknown_views
    from sim_workers.envs.robosuite import contract

    mistakes = []
    if task not in EXPERTS:
        mistakes.append(f"--task: no scripted expert does {task}; there is one for {', '.join(EXPERTS)}")
    views = tuple(cameras.split(","))
    if twice := sorted({view for view in views if views.count(view) > 1}):
        mistakes.append(f"--cameras: {', '.join(twice)} is named twice; name each camera once")
    mistakes += unknown_views(task, views, render_profile)
    if mistakes:
        raise argument_error(*mistakes)

    began = time.monotonic()
    storage = open_storage(store)
    conventions = contract(views, (image_size, image_size), render_profile, task)
    todo = missing(storage, [Demonstration(task, seed, disturbance) for seed in range(episodes)])
    if len(todo) < episodes:
        click.echo(
            f"{storage.uri} already holds {episodes - len(todo)} of {episodes} episodes of {task}"
            + ("" if todo else "; nothing to record")
        )
    if not todo:
        return
    quiet()
    click.echo("starting Ray")
    connect()
    successes = steps = 0
    with progress_bar("recording") as progress:
        for entry in progress.track(recorded(storage, conventions, todo, workers), total=len(todo)):
            successes, steps = successes + bool(entry.success), steps + entry.length
    click.echo(
        f"recorded {len(todo)} episodes of {task}, {successes} successful, {steps / len(todo):.0f} steps on"
        f" average, in {time.monotonic() - began:.0f} s, into {storage.uri}"
    )
