"""`demoscale next`: the arm that says most for its cost."""

import json
import math
from collections.abc import Callable
from typing import Any

import click

from orchestrator.cli.mistakes import report_user_errors
from orchestrator.cli.options import JSON, MLFLOW, RATE, STORAGE
from orchestrator.cli.tracked_sweep import tracked_at
from policy.errors import DemoscaleError

TARGETS = ("demos", "equivalence", "area")


@click.command("next")
@click.argument("name")
@click.option(
    "--target",
    type=click.Choice(TARGETS),
    default="demos",
    show_default=True,
    help="What to know: the demos that --rate takes with the lowest ratio, what action-free video is worth in"
    " demos, or the area under the curve.",
)
@RATE
@click.option(
    "--budget",
    type=click.FloatRange(0, min_open=True),
    default=math.inf,
    help="Most that the next arm may cost, in the unit of the answer; unlimited by default.",
)
@STORAGE
@MLFLOW
@JSON
@report_user_errors
def next_(
    name: str, target: Any, rate: float, budget: float, storage: str, mlflow: str | None, as_json: bool
) -> None:
    """Propose what to run next in the sweep NAME: a further training of a demo count and ratio, or further
    episodes of a trained arm, whichever narrows the target's interval most for its cost.

    Demo counts go up to four times the largest one tried, as far as the sweep's episode store has them; a
    store that this machine cannot read is not asked.

    Costs are those of the sweep's arms so far, in money if it has prices, in GPU-hours or CPU-hours else.

    The command starts nothing. `search: next` in a sweep file has `demoscale run` train such arms.

    \b
    demoscale next lift
    demoscale next lift --rate 0.8 --budget 2
    demoscale next lift --target equivalence --json
    """
    from orchestrator.cluster.ray_runtime import quiet
    from orchestrator.report.next_report import next_arms
    from orchestrator.report.sample_efficiency_curve import Curve

    quiet()
    curve = Curve.read(*tracked_at(name, storage, mlflow))  # refuses a sweep that measures action errors
    found = next_arms(curve, target, rate, budget, store_limit(name, storage))
    if as_json:
        told = [{"refused": one} if isinstance(one, str) else one.to_json() for one in found]
        return click.echo(json.dumps(told, indent=1))
    for one in found:
        for sentence in [one] if isinstance(one, str) else one.in_words():
            click.echo(sentence)


def store_limit(name: str, storage: str) -> Callable[[int, float], bool]:
    """Return what says whether the episode store of a sweep has the episodes of an arm, by demo count and
    ratio; it says so of all arms if the sweep's storage or store cannot be read here.
    """
    from orchestrator.config.arms import Arm
    from orchestrator.data.subset import SubsetError
    from orchestrator.sweep.state import SweepState

    try:
        state = SweepState.named(name, storage)
    except DemoscaleError:
        return lambda demos, ratio: True

    def possible(demos: int, ratio: float) -> bool:
        sweep, arm = state.sweep, Arm(demos, ratio, state.sweep.seeds[0], state.sweep.lines[0].name)
        try:
            sweep.select(state.manifest, arm, state.quarantined.keys(), frozenset(state.held_out))
        except SubsetError:
            return False
        return True

    return possible
