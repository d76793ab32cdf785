"""`demoscale forecast`: how many demonstrations a success rate will take."""

import json
from pathlib import Path

import click

from orchestrator.cli.mistakes import argument_error, report_user_errors
from orchestrator.cli.options import JSON, MLFLOW, RATE, STORAGE
from orchestrator.cli.parameters import OutputPath
from orchestrator.cli.tracked_sweep import tracked_at


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@RATE
@click.option(
    "--backtest",
    is_flag=True,
    help="Only say what would have been forecast of the largest demo counts, and what they scored; without"
    " NAME for all sweeps of the storage.",
)
@STORAGE
@MLFLOW
@click.option(
    "--save",
    type=OutputPath(path_type=Path),
    help="Also draw the forecast of one sweep, as a .png, .svg or .pdf file.",
)
@JSON
@report_user_errors
def forecast(
    names: tuple[str, ...],
    rate: float,
    backtest: bool,
    storage: str,
    mlflow: str | None,
    save: Path | None,
    as_json: bool,
) -> None:
    """Forecast how many demonstrations a success rate takes, from the sweeps NAME so far, read from MLflow.

    The interval is of the prediction, over trainings and scenes. Where the scores do not identify an answer,
    the command says so; `demoscale next` proposes what to train. With 4 demo counts or more it also prints
    what would have been forecast without the largest one.

    \b
    demoscale forecast quickstart
    demoscale forecast lift --rate 0.8 --save forecast.png
    demoscale forecast --backtest --storage s3://robot/runs
    """
    from orchestrator.cluster.ray_runtime import quiet
    from orchestrator.report.forecast_report import SweepForecast
    from orchestrator.report.sample_efficiency_curve import Curve
    from orchestrator.storage.base import open_storage
    from orchestrator.storage.identity import sweep_names
    from orchestrator.tracking.mlflow_writer import TrackingError

    quiet()
    every = not names
    if every and not backtest:
        raise argument_error("name a sweep, or give --backtest for all sweeps of the storage")
    if every:
        names = tuple(sweep_names(open_storage(storage)))
    if save and len(names) != 1:
        raise argument_error(f"--save draws one sweep, not {len(names)}")
    found, skipped = list[SweepForecast](), list[str]()
    for name in names:
        try:
            found.append(SweepForecast(Curve.read(*tracked_at(name, storage, mlflow)), rate))
        except TrackingError as error:  # also of a sweep that measures action errors
            if not every:
                raise
            skipped.append(str(error))
    if save:
        save.write_bytes(found[0].draw(save.suffix.removeprefix(".")))
    if as_json:
        return click.echo(json.dumps([one.to_json() for one in found], indent=1))
    for one in found:
        sentences = [*map(str, one.left_out)] if backtest else one.in_words()
        for sentence in sentences:
            click.echo(f"{one.curve.name}: {sentence}" if len(found) > 1 else sentence)
    for sentence in skipped:
        click.echo(f"skipped: {sentence}")
    tested = [back for one in found for back in one.left_out]
    if backtest:
        held = sum(back.held for back in tested)
        click.echo(
            f"{held} of {len(tested)} back-tests are inside the 90 % interval of their forecast"
            if tested
            else "no back-test: that takes a sweep with 4 demo counts and 3 seeds of a point"
        )
