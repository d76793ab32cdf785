"""Run a sweep file with a fake trainer and fake simulators.

python -m orchestrator.testing sweep.yaml --step-s 0.01
"""

import json

import click

from orchestrator.testing.fake_trainer import FakeTrainer
from orchestrator.testing.players import FakeEvalBackend


@click.command()
@click.argument("sweep_file")
@click.option("--step-s", default=0.01, show_default=True, help="Seconds that an optimiser step takes.")
def main(sweep_file: str, step_s: float) -> None:
    """Run SWEEP_FILE; print what becomes of it and, last, one line of JSON: the state of every arm."""
    from orchestrator.config.sweep_config import SweepConfig
    from orchestrator.sweep.run import SweepRun

    run = SweepRun(
        SweepConfig.load(sweep_file), click.echo, fit=FakeTrainer(step_s), players=FakeEvalBackend()
    )
    run.run()
    click.echo(json.dumps({arm.name: arm.state for arm in run.board.arms.values()}))


if __name__ == "__main__":
    main()
