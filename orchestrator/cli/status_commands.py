"""`demoscale status`: how far a sweep is, while it runs and afterwards."""

import json
import sys
import time
from typing import Any

import click

from orchestrator.cli.common import JSON, STORAGE, print_wide
from orchestrator.cli.mistakes import report_user_errors

FRESH_S = 30.0
"""A run that has written nothing for so long is not running any more."""


@click.command()
@click.argument("name")
@STORAGE
@JSON
@click.option("--once", is_flag=True, help="Print the status once instead of following a running sweep.")
@click.option(
    "--rebuild",
    is_flag=True,
    help="Also publish results to MLflow that are in the storage and missing there.",
)
@click.pass_context
@report_user_errors
def status(context: click.Context, name: str, storage: str, as_json: bool, once: bool, rebuild: bool) -> None:
    """Show the progress of the sweep NAME: every arm's training, scores and costs. On a terminal it follows a
    running sweep until Ctrl-C.

    \b
    demoscale status quickstart
    demoscale status quickstart --json | jq .arms
    demoscale status quickstart --rebuild      publish missing results to MLflow
    """
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from orchestrator.sweep.state import SweepState
    from orchestrator.sweep.status import table

    state = SweepState.named(name, storage)
    if rebuild:
        from orchestrator.cluster.ray_runtime import quiet
        from orchestrator.redaction import strip_credentials
        from orchestrator.sweep.tracking_publisher import republish
        from orchestrator.tracking.outbox_relay import DEFAULT_OUTBOX, OutboxSettings

        quiet()
        scores = republish(state, context.find_object(OutboxSettings) or DEFAULT_OUTBOX)
        click.echo(f"{strip_credentials(state.tracking_uri)}: has {scores} scores", err=as_json)
    now = _now(state)
    if as_json:
        return click.echo(json.dumps(now, indent=1))

    def drawn() -> Any:
        return Group(table(now["arms"]), Text(_summary(now)))

    if once or not now["running"] or not sys.stdout.isatty():
        return print_wide(drawn())
    with Live(get_renderable=drawn, refresh_per_second=1) as live:
        while now["running"]:
            time.sleep(2)
            now = _now(state)
        live.refresh()


def _now(state: Any) -> dict[str, Any]:
    """Return the last state that the run in progress wrote; without one, the state in the storage."""
    key = f"live/{state.sweep.name}.json"
    live: dict[str, Any] = json.loads(state.storage.get(key)) if state.storage.exists(key) else {}
    if live and not live["over"] and time.time() - live["written"] < FRESH_S:
        return live | {"running": True}
    from orchestrator.cost import CostLedger, added

    cost = added(CostLedger.read(state.storage, state.sweep.name).by_arm().values())
    return {"running": False, "arms": state.board().lines(), "cost": cost.to_json()}


def _summary(now: dict[str, Any]) -> str:
    """Queue, workers, cost and time in two lines."""
    from orchestrator.cost import Cost

    lines = [f"spent    {Cost.from_json(now['cost'])}"]
    if now["running"]:
        left = "" if now["left_s"] is None else f", about {_minutes(now['left_s'])} left if no arm is stopped"
        ending = f"; ending: {now['ending']}" if now["ending"] else ""
        lines = [
            f"running  on {now['host']} (process {now['pid']}) for {_minutes(now['wall_s'])}{left}{ending}",
            (
                f"at work  {len(now['training'])} training runs, {now['workers']} simulators,"
                f" {now['episodes_to_play']} episodes to play"
            ),
            *lines,
        ]
    return "\n" + "\n".join(lines)


def _minutes(seconds: float) -> str:
    return (
        f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d} h"
        if seconds >= 3600
        else f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
    )
