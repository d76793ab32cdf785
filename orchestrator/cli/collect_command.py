"""`demoscale collect`: scripted experts or a policy play tasks in parallel on Ray, into an episode store."""

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.collect_policy import collect_rollouts, misplaced, policy_options
from orchestrator.cli.mistakes import argument_error, report_user_errors
from orchestrator.cli.options import HELP, foreign_options, given_options
from orchestrator.cli.parameters import InputPath, StorePath

if TYPE_CHECKING:
    from sim_workers.envs.embodiment import Embodiment


@click.command(context_settings=HELP)
@click.option(
    "--task",
    default="Lift",
    show_default=True,
    help="Lift, Stack, PickPlaceCan, Door, NutAssemblySquare, or a plug-in's task with an expert; with"
    " --policy any task of the policy, and with --sweep its own by default.",
)
@click.option(
    "--episodes",
    type=click.IntRange(1, 1_000_000),
    required=True,
    help="Episodes of the task, or rollouts of the policy, in the store at the end: seeds 0, 1, 2 ...",
)
@click.option(
    "--store",
    type=StorePath(),
    required=True,
    help="Folder or s3:// URI of the episode store; made if it is not there.",
)
@click.option(
    "--suite",
    "suite_file",
    type=InputPath(),
    help="Sweep file whose suite says robot, controller, rate, proprioception and cameras with poses.",
)
@click.option("--robot", help="Robot of robosuite's tasks; Panda by default.")
@click.option("--controller", help="What actions are: delta_pose or pose; delta_pose by default.")
@click.option(
    "--proprio",
    help="Comma-separated keys: eef_pos, eef_quat, gripper_qpos, gripper_qvel, joint_pos, joint_vel; `none`.",
)
@click.option("--control-hz", type=float, help="Control steps per second; 20 by default.")
@click.option(
    "--cameras",
    help=(
        "Comma-separated cameras, in the order the policy will see them; by default robot0_eye_in_hand, or"
        " those of --suite, or a plug-in's first."
    ),
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
@policy_options
@foreign_options
@report_user_errors
def collect(
    task: str,
    episodes: int,
    store: str,
    suite_file: str | None,
    robot: str | None,
    controller: str | None,
    proprio: str | None,
    control_hz: float | None,
    cameras: str | None,
    image_size: int,
    render_profile: str,
    disturbance: float,
    workers: int,
    policy: str,
    **_of_policy: Any,
) -> None:
    """Record demonstrations of TASK until the store holds EPISODES of them.

    With --policy, record what a policy does instead, in scenes that no score plays. Such episodes hold
    pictures and proprioception but no actions, for they are no demonstrations: a sweep takes them as
    action-free episodes. `success` says how each ended, and its source names the policy, the horizon and the
    scene. Cameras, size, rate and robot are the policy's own. A scene is played once; the same command
    resumes.

    \b
    demoscale collect --task Lift --episodes 100 --store data/lift
    demoscale collect --episodes 500 --store s3://robot-data/lift --cameras agentview,robot0_eye_in_hand
    demoscale collect --episodes 100 --store data/sawyer --robot Sawyer --controller pose --proprio none
    demoscale collect --policy path/to/checkpoint --task Lift --episodes 40 --store data/lift_rollouts
    demoscale collect --policy ARM --sweep NAME --outcome failed --episodes 40 --store data/lift_failed
    """
    context = click.get_current_context()
    given = given_options(context)
    if wrong := misplaced(policy, given):
        raise argument_error(*wrong)
    if policy:
        collect_rollouts(dict(context.params), given)
        return
    from orchestrator.cli.terminal import progress_bar
    from orchestrator.cluster.ray_runtime import connect, quiet
    from orchestrator.data.collect_demos import collect as recorded
    from orchestrator.data.collect_demos import missing
    from orchestrator.storage.base import open_storage
    from sim_workers.demos.recorder import Demonstration, refusal
    from sim_workers.envs.embodiment import DEFAULT
    from sim_workers.envs.registry import cameras_of as cameras_of_task
    from sim_workers.envs.registry import contract_of, environment_of, is_plugin, unknown_views

    embodiment = _embodiment(suite_file, robot, controller, proprio, control_hz)
    refused = refusal(task, embodiment)
    mistakes = [f"--task: {refused}"] if refused else []
    if environment_of(task):
        mistakes += _problems(embodiment, task)
    elif embodiment != DEFAULT:
        mistakes.append(f"--task: robot, controller, rate and proprioception of {task} are its own")
    posed = tuple(pose.name for pose in embodiment.poses)
    default = posed or (cameras_of_task(task)[:1] if is_plugin(task) else ("robot0_eye_in_hand",))
    views = tuple(cameras.split(",")) if cameras else default
    if twice := sorted({view for view in views if views.count(view) > 1}):
        mistakes.append(f"--cameras: {', '.join(twice)} is named twice; name each camera once")
    mistakes += unknown_views(task, views, render_profile, posed)
    if mistakes:
        raise argument_error(*mistakes)

    began = time.monotonic()
    storage = open_storage(store)
    conventions = contract_of(
        task, views, (image_size, image_size), render_profile, embodiment if environment_of(task) else None
    )
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


def _embodiment(
    suite_file: str | None,
    robot: str | None,
    controller: str | None,
    proprio: str | None,
    control_hz: float | None,
) -> "Embodiment":
    """Return the embodiment of a sweep's suite, with the options in place of its fields.

    Raises SweepError for a suite that cannot be read.
    """
    from sim_workers.envs.embodiment import DEFAULT

    base = DEFAULT
    if suite_file:
        from orchestrator.config.sweep_config import load_suite

        base = load_suite(suite_file).embodiment
    keys = None if proprio is None else () if proprio == "none" else tuple(proprio.split(","))
    given = {"robot": robot, "controller": controller, "proprio": keys, "control_hz": control_hz}
    return replace(base, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


def _problems(embodiment: "Embodiment", task: str) -> list[str]:
    """Return the settings that a robosuite task cannot have, one sentence each."""
    from sim_workers.envs.registry import environment_of, is_task

    name = environment_of(task) if is_task(task) else ""
    if not name:
        return []
    return [f"--{problem.replace('control_hz', 'control-hz', 1)}" for problem in embodiment.problems(name)]
