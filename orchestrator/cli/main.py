"""The command `demoscale`. Heavy imports happen inside the commands, so that `--help` and mistakes answer at
once.

Exit codes: those of `main`.
"""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.collect_command import collect
from orchestrator.cli.compare_command import compare
from orchestrator.cli.curve_output import print_curve
from orchestrator.cli.data_commands import data
from orchestrator.cli.encode_command import encode
from orchestrator.cli.explain_command import explain
from orchestrator.cli.export_command import export
from orchestrator.cli.export_policy_command import export_policy
from orchestrator.cli.forecast_command import forecast
from orchestrator.cli.gc_command import gc
from orchestrator.cli.import_command import import_
from orchestrator.cli.mistakes import report_user_errors
from orchestrator.cli.new_commands import new
from orchestrator.cli.next_command import next_
from orchestrator.cli.options import HELP, JSON, MLFLOW, SET, STORAGE, take_short_help
from orchestrator.cli.policy_commands import policy
from orchestrator.cli.pretrain_command import pretrain
from orchestrator.cli.replay_command import replay
from orchestrator.cli.score_command import score
from orchestrator.cli.serve_command import serve
from orchestrator.cli.sheet_command import sheet
from orchestrator.cli.status_commands import status
from orchestrator.cli.submit_commands import stop, submit
from orchestrator.cli.task_commands import task
from orchestrator.cli.terminal import graceful_interrupt, print_wide
from orchestrator.cli.tracked_sweep import tracked_at

if TYPE_CHECKING:
    from orchestrator.config.sweep_config import SweepConfig
    from orchestrator.planning.calibration import Calibration
    from orchestrator.tracking.mlflow_reader import Checkpoint

SWEEP_FILE = click.argument("sweep_file", type=click.Path(dir_okay=False))


SECTIONS = {
    "A sweep": {
        "plan": "check a sweep file; print what it does and costs",
        "run": "train, score and print the curve, or resume",
        "status": "progress, scores and costs of every arm",
        "curve": "success against demo count, as text, picture, page",
        "compare": "several sweeps, or published results, on one curve",
        "forecast": "how many demos a success rate will take",
        "next": "the arm that narrows the answer most for its cost",
        "explain": "why an arm would be trained or scored again",
        "gc": "remove checkpoints that nothing needs any more",
        "export-policy": "an arm's policy as a folder of its own",
    },
    "On a Ray cluster": {
        "submit": "run a sweep file, or a command below, as a Ray job",
        "stop": "stop a submitted sweep; submit resumes it",
    },
    "Episodes": {
        "collect": "record scripted demonstrations, or a policy's rollouts",
        "import": "robomimic, LeRobot, RLDS, MCAP, zarr, video to a store",
        "export": "a store as LeRobot or robomimic data",
        "replay": "play recordings again; render them at other cameras",
        "data": "list, show, verify and check a store",
        "encode": "store latents for training of svd-256",
        "pretrain": "pretrain a video model on a store's videos",
    },
    "One policy": {
        "score": "score any policy without a sweep",
        "serve": "serve a policy over HTTP",
        "policy": "check a policy or its server; prepare environments",
    },
    "Tasks and this machine": {
        "task": "list the tasks, check one",
        "new": "write the skeleton of a task or of a policy",
        "sheet": "picture of a task's shifted scenes",
        "doctor": "check this machine",
    },
}
"""Commands with what each does, by section of `demoscale --help`."""


class Sectioned(click.Group):
    """Group that lists its commands by section, each on one line."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections."""
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()), col_max=15)


@click.group(cls=Sectioned, context_settings=HELP)
@click.version_option(package_name="demoscale")
def main() -> None:
    """Measure how many demonstrations a video-action policy needs, and how many action-free video replaces.

    \b
    demoscale doctor                                   is this machine ready?
    demoscale collect --episodes 40 --store data/lift  record demonstrations
    demoscale plan jobs/quickstart.yaml                work and cost; starts nothing
    demoscale run jobs/quickstart.yaml                 run it; again: resume
    demoscale status quickstart                        progress
    demoscale curve quickstart --html curve.html       the answer

    `demoscale COMMAND --help` has options and examples. Exit codes: 0 done; 1 something could not be done;
    2 a mistake in what was asked for; 75 storage, disk or cluster failed, and the same command resumes;
    130 stopped by Ctrl-C, and the same command resumes.
    """


@main.command()
@SWEEP_FILE
@SET
@click.option(
    "--calibrate",
    is_flag=True,
    help="Measure this machine first, about a minute, for the estimate of the cost.",
)
@click.option(
    "--power",
    "difference",
    type=click.FloatRange(0.01, 0.9),
    help="Print what it takes, in seeds, episodes and cost, to find this difference between success rates"
    " (0.1: 10 points) with 80 % power.",
)
@report_user_errors
def plan(sweep_file: str, overrides: tuple[str, ...], calibrate: bool, difference: float | None) -> None:
    """Check SWEEP_FILE and print what it would do and cost, and which differences it can show.

    \b
    demoscale plan jobs/quickstart.yaml
    demoscale plan jobs/quickstart.yaml --set train.steps=2000
    demoscale plan jobs/quickstart.yaml --calibrate
    demoscale plan jobs/quickstart.yaml --power 0.1
    """
    from orchestrator.config.sweep_config import SweepConfig
    from orchestrator.planning.calibration import load_calibration
    from orchestrator.planning.cost_estimate import estimate
    from orchestrator.planning.plan import make_plan

    sweep = SweepConfig.load(sweep_file, overrides)
    click.echo(str(make_plan(sweep)))
    if sweep.device:
        from orchestrator.planning.device_estimate import device_estimate

        click.echo(str(device_estimate(sweep, sweep.device)))
    measured = load_calibration(sweep)
    if calibrate:
        from orchestrator.planning.microbenchmark import measure as measure

        measured = measure(sweep, lambda line: click.echo(f"measuring {line}", err=True))
    if measured:
        click.echo(str(estimate(sweep, measured)))
    else:
        click.echo(
            f"{'cost':<14} not known on this machine; demoscale plan {sweep_file} --calibrate measures it"
            " (about a minute)"
        )
    if difference:
        _print_what_it_takes(sweep, difference, measured)


def _print_what_it_takes(sweep: "SweepConfig", difference: float, measured: "Calibration | None") -> None:
    """Print the seeds and episodes with which a difference is found, and their cost."""
    from rich.table import Table

    from orchestrator.planning.power_table import ASSUMED
    from orchestrator.planning.sample_size import MOST_EPISODES, SEEDS, what_it_takes

    headings, *rows = what_it_takes(sweep, difference, measured)
    click.echo(
        f"\nto find a difference of {difference:g} between recipes with 80 % power, on the same episodes:"
    )
    if not rows:
        click.echo(f"more than {max(SEEDS)} seeds, or {MOST_EPISODES:,} episodes per task")
    else:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for heading in headings:
            table.add_column(heading, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        print_wide(table)
    click.echo(ASSUMED)


@main.command(context_settings=HELP)
@SWEEP_FILE
@SET
@click.option("--retry-failed", is_flag=True, help="Train only the arms that failed in an earlier run.")
@click.option(
    "--take-over",
    is_flag=True,
    help="If another process runs the sweep, stop it, wait until its state is saved, and resume from there.",
)
@report_user_errors
def run(sweep_file: str, overrides: tuple[str, ...], retry_failed: bool, take_over: bool) -> None:
    """Run SWEEP_FILE on this machine, or on the Ray cluster RAY_ADDRESS names, to its curve.

    Finished arms and finished episodes are never repeated: the same command continues a sweep that was
    stopped or killed. Ctrl-C once: training saves its state, episodes in progress are finished; twice: now.
    SIGTERM does the same. With `budget`, it ends there and says what it knows.

    Exit codes: 0 done, 1 something could not be done, 2 a mistake in the sweep file, 75 what it runs on
    failed (storage, disk, cluster) and the same command resumes, 130 stopped.

    \b
    demoscale run jobs/quickstart.yaml
    demoscale run jobs/quickstart.yaml --set seeds=[0,1,2,3,4]
    demoscale run jobs/quickstart.yaml --set search=asha --set budget.max_episodes=500
    demoscale run jobs/quickstart.yaml --retry-failed
    """
    from rich.console import Console
    from rich.live import Live

    from orchestrator.cluster.ray_runtime import quiet
    from orchestrator.config.sweep_config import SweepConfig
    from orchestrator.planning.plan import make_plan

    began = time.monotonic()
    sweep = SweepConfig.load(sweep_file, overrides)
    click.echo(f"{make_plan(sweep)}\n")
    quiet()
    from orchestrator.redaction import strip_credentials
    from orchestrator.sweep.run import SweepRun
    from orchestrator.sweep.status import table

    console = Console(soft_wrap=True, highlight=False)

    def say(line: str) -> None:
        console.print(f"[{_clock(time.monotonic() - began)}] {line}", markup=False)

    sweep_run = SweepRun(sweep, say, retry_failed, take_over=take_over)
    say(f"tracking in {strip_credentials(sweep_run.state.tracking_uri)}; starting Ray")
    with (
        Live(get_renderable=lambda: table(sweep_run.board.lines()), console=console, refresh_per_second=2),
        graceful_interrupt(sweep_run),
    ):
        answer = sweep_run.run()
    console.print()
    say(sweep_run.ending or "done")
    if answer:
        print_curve(answer)
        _print_places(sweep_run, answer)
    click.echo(f"spent    {_spent(sweep_run.spending.total(), sweep.prices)}")


@main.command()
@click.argument("name")
@STORAGE
@MLFLOW
@click.option(
    "--save",
    type=click.Path(dir_okay=False),
    help="Also write the curve to a .png, .svg, .pdf or .json file.",
)
@click.option(
    "--html",
    type=click.Path(dir_okay=False),
    help="Also write a self-contained HTML page with all results and films.",
)
@click.option(
    "--checkpoint",
    type=click.Choice(["last", "best"]),
    default="last",
    show_default=True,
    help="Which checkpoint of every arm to show. best: the best one on the scenes of suite.select, with its"
    " score on the others; takes suite.report: best.",
)
@JSON
@report_user_errors
def curve(
    name: str,
    storage: str,
    mlflow: str | None,
    save: str | None,
    html: str | None,
    checkpoint: "Checkpoint",
    as_json: bool,
) -> None:
    """Print the sample-efficiency curve of the sweep NAME, read from MLflow alone.

    Of several sweeps of one name in one MLflow, --storage chooses: it is asked for its identity, if it can be
    reached, and for nothing else.

    \b
    demoscale curve quickstart
    demoscale curve quickstart --save curve.png
    demoscale curve quickstart --html curve.html
    demoscale curve quickstart --json | jq .points
    demoscale curve lift-select --checkpoint best
    """
    from orchestrator.cluster.ray_runtime import quiet
    from orchestrator.report.held_out_curve import HeldOutCurve, read_curve
    from orchestrator.tracking.rollout_videos import films

    quiet()
    sweep = tracked_at(name, storage, mlflow)
    answer = read_curve(*sweep, checkpoint)
    if save:
        answer.save(save)
    if html:
        Path(html).parent.mkdir(parents=True, exist_ok=True)
        page = (
            answer.page()
            if isinstance(answer, HeldOutCurve)
            else answer.page(films(sweep.tracking_uri, answer.arms))
        )
        Path(html).write_text(page, encoding="utf-8")
    if as_json:
        click.echo(json.dumps(answer.to_json(), indent=1))
    else:
        print_curve(answer)


@main.command()
@report_user_errors
def doctor() -> None:
    """Check that this machine can collect, train and score; every failure comes with its fix."""
    from orchestrator.cli.doctor import checks

    failed = 0
    for check in checks():
        failed += not check.passed
        click.echo(f"{'ok  ' if check.passed else 'FAIL'} {check.name}: {check.finding}")
    sys.exit(1 if failed else 0)


for command in (
    collect,
    compare,
    data,
    encode,
    explain,
    export,
    forecast,
    export_policy,
    gc,
    import_,
    new,
    next_,
    policy,
    pretrain,
    replay,
    score,
    serve,
    sheet,
    status,
    stop,
    submit,
    task,
):
    main.add_command(command)
for section in SECTIONS.values():
    for name, summary in section.items():
        main.commands[name].short_help = summary
take_short_help(main)


def _spent(cost: Any, prices: Any) -> str:
    """Return a cost in hours and counts, and in money if there are prices."""
    money = cost.money(prices)
    return f"{cost}" + (f"; {money:,.2f} at the sweep's prices" if money else "")


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"


LISTED_FILMS = 6


def _print_places(sweep_run: Any, answer: Any) -> None:
    """Where everything is and how to open it."""
    from orchestrator.redaction import strip_credentials

    state = sweep_run.state
    click.echo()
    if not state.storage.uri.startswith("s3://"):
        for kind in ("png", "svg"):
            picture = Path(state.storage.uri) / f"{state.sweep.name}-curve.{kind}"
            answer.save(picture)
            click.echo(f"picture          {picture}")
    films = [(film, arm) for arm, films in sweep_run.films().items() for film in films]
    for film, arm in films[:LISTED_FILMS]:
        click.echo(f"rollout video    {film}   ({arm})")
    if len(films) > LISTED_FILMS:
        page = f"demoscale curve {state.sweep.name} --storage {state.storage.uri} --html curve.html"
        click.echo(f"{len(films) - LISTED_FILMS:>4} more        {page}")
    uri = strip_credentials(state.tracking_uri)
    served = uri.startswith("http")
    click.echo(
        f"MLflow           {uri}"
        if served
        else f"MLflow           mlflow ui --backend-store-uri {uri}   (then open http://127.0.0.1:5000)"
    )
    click.echo(f"the curve again  demoscale curve {state.sweep.name} --storage {state.storage.uri}")
