"""`demoscale explain`: why an arm would be trained again, or its checkpoints played again."""

import json
from pathlib import Path

import click

from orchestrator.cli.mistakes import report_user_errors
from orchestrator.cli.options import JSON, STORAGE


@click.command()
@click.argument("name")
@click.argument("arm")
@STORAGE
@JSON
@report_user_errors
def explain(name: str, arm: str, storage: str, as_json: bool) -> None:
    """Print what the next run of the sweep NAME would do with its arm ARM, and which part of a key changed.

    Results are named by everything that shapes them: code by file, package versions, data, weights, recipe,
    suite, sampler, device. Each part is `same`, or `differs: stored -> now`. NAME may be a sweep file, which
    is then compared in place of the one that ran last; it names its own storage. The device is that of the
    last run: only a run knows the cluster's.

    \b
    demoscale explain quickstart demos-20_ratio-1_seed-0
    demoscale explain jobs/quickstart.yaml demos-20_ratio-1_seed-0
    demoscale explain quickstart demos-20_ratio-1_seed-0 --json | jq .consequence
    """
    from orchestrator.config.sweep_config import SweepConfig
    from orchestrator.sweep.explain import explain as compared
    from orchestrator.sweep.state import SweepState

    is_file = Path(name).suffix in (".yaml", ".yml")
    state = (
        SweepState.open(SweepConfig.load(name), here=True)
        if is_file
        else SweepState.named(name, storage, here=True)
    )
    explanation = compared(state, arm)
    if as_json:
        return click.echo(json.dumps(explanation.to_json(), indent=1))
    for line in explanation.lines():
        click.echo(line)
