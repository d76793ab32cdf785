"""`demoscale status`: how far a sweep is, while it runs and afterwards."""

import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.mistakes import report_user_errors
from orchestrator.cli.options import JSON, STORAGE
from orchestrator.cli.terminal import print_wide

if TYPE_CHECKING:
    from orchestrator.cost import Cost
    from orchestrator.sweep.live_status import LiveStatus
    from orchestrator.sweep.state import SweepState
    from orchestrator.sweep.status import ArmLine

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
        from orchestrator.sweep.driver_lease import Lease
        from orchestrator.sweep.republish import republish
        from orchestrator.tracking.outbox_relay import DEFAULT_OUTBOX, OutboxSettings

        quiet()
        settings = context.find_object(OutboxSettings) or DEFAULT_OUTBOX
        # not by `LiveStatus.written`, which is of the driver's clock
        lease = Lease(state.storage, name, lambda _: None)
        scores = republish(state, settings, may_run=lease.held(lambda line: click.echo(line, err=True)))
        click.echo(f"{strip_credentials(state.tracking_uri)}: has {scores} scores", err=as_json)
    now = Progress.of(state)
    if as_json:
        return click.echo(json.dumps(now.to_json(), indent=1))

    def drawn() -> Any:
        return Group(table(now.arms), Text(now.summary()))

    if once or not now.live or not sys.stdout.isatty():
        return print_wide(drawn())
    with Live(get_renderable=drawn, refresh_per_second=1) as live:
        while now.live:
            time.sleep(2)
            now = Progress.of(state)
        live.refresh()


@dataclass(frozen=True)
class Progress:
    """How far a sweep is."""

    arms: "tuple[ArmLine, ...]"
    cost: "Cost"
    live: "LiveStatus | None"
    """What the run in progress wrote last; None if none is in progress: the rest is then what the storage
    has.
    """

    @classmethod
    def of(cls, state: "SweepState") -> "Progress":
        """Return what the run in progress wrote last, or else what the storage has."""
        from orchestrator.cost import CostLedger, added
        from orchestrator.sweep.live_status import LiveStatus

        live = LiveStatus.read(state.storage, state.sweep.name)
        if live and not live.over and time.time() - live.written < FRESH_S:
            return cls(live.arms, live.cost, live)
        cost = added(CostLedger.read(state.storage, state.sweep.name).by_arm().values())
        return cls(tuple(state.board().lines()), cost, None)

    def to_json(self) -> dict[str, Any]:
        """Return the object that `demoscale status --json` prints."""
        if self.live:
            return self.live.to_json() | {"running": True}
        return {
            "running": False,
            "arms": [arm.to_json() for arm in self.arms],
            "cost": self.cost.to_json(),
        }

    def summary(self) -> str:
        """Return queue, workers, cost, time and mixed processors in a few lines."""
        from sim_workers.arithmetic import different_arithmetic

        mixed = different_arithmetic(arm.trained_on for arm in self.arms if arm.trained_on or arm.scores)
        lines = [f"spent    {self.cost}", *([f"note     {mixed}"] if mixed else [])]
        if live := self.live:
            left = "" if live.left_s is None else f", about {_minutes(live.left_s)} left if no arm is stopped"
            ending = f"; ending: {live.ending}" if live.ending else ""
            lines = [
                f"running  on {live.host} (process {live.pid}) for {_minutes(live.wall_s)}{left}{ending}",
                (
                    f"at work  {len(live.training)} training runs, {live.workers} simulators,"
                    f" {live.episodes_to_play} episodes to play"
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
