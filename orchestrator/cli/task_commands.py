"""`demoscale task`: the tasks of this installation, and the contract test of one."""

import sys

import click

from orchestrator.cli.mistakes import argument_error, report_user_errors
from orchestrator.cli.options import HELP


@click.group(context_settings=HELP)
def task() -> None:
    """List the tasks that sweep files may name, and check one.

    \b
    demoscale task list
    demoscale task check Lift
    """


@task.command(name="list", context_settings=HELP, short_help="List every task with its package.")
@report_user_errors
def list_tasks() -> None:
    """List every task with its package; plug-ins are not imported."""
    from sim_workers.envs import libero, plugins, robocasa, tasks
    from sim_workers.envs.registry import is_plugin

    for name in tasks.TASKS:
        click.echo(f"{name:<40} robosuite")
    click.echo(f"{'libero_SUITE/NAME':<40} LIBERO, {len(libero.LIBERO)} tasks of five suites (`make libero`)")
    click.echo(f"{'robocasa/NAME':<40} RoboCasa, {len(robocasa.ROBOCASA_24)} tasks")
    for name in plugins.names():
        try:
            said = plugins.package(name)
        except plugins.PluginError as error:
            said = str(error)
        click.echo(f"{name:<40} " + (said if is_plugin(name) else f"{said}; hidden by this package's own"))


@task.command(
    name="check", context_settings=HELP, short_help="Check what scores rely on: same states, same pictures."
)
@click.argument("name")
@click.option("--image-size", type=click.IntRange(16, 1024), default=64, show_default=True, help="Pixels.")
@report_user_errors
def check(name: str, image_size: int) -> None:
    """Play a few steps of the task NAME and check what scores rely on: determinism, shapes, pictures,
    success, closing and making it again.

    Exits with code 1 if a check fails.
    """
    from sim_workers.envs.check import check_env
    from sim_workers.envs.registry import cameras_of, contract_of, is_task, make_env

    if not is_task(name):
        raise argument_error(f"NAME: unknown task {name}; `demoscale task list` lists them")
    contract = contract_of(name, cameras_of(name)[:1], (image_size, image_size), "fast")
    failed = False
    for one in check_env(lambda: make_env(name, contract)):
        failed |= bool(one.problem)
        click.echo(
            f"{'FAILED' if one.problem else 'ok':<7} {one.name}" + (f": {one.problem}" if one.problem else "")
        )
    if failed:
        sys.exit(1)
