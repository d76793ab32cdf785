"""`demoscale submit` and `demoscale stop`: a sweep, or another job, on a Ray cluster."""

import os
import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.collect_command import collect
from orchestrator.cli.encode_command import encode
from orchestrator.cli.export_command import export
from orchestrator.cli.import_command import import_
from orchestrator.cli.mistakes import argument_error, report_user_errors
from orchestrator.cli.options import SET
from orchestrator.cli.parameters import check_arguments
from orchestrator.cli.pretrain_command import pretrain
from orchestrator.cli.replay_command import replay
from orchestrator.cli.score_command import score

if TYPE_CHECKING:
    from orchestrator.cluster.ray_jobs import Cluster, JobSpec
    from orchestrator.config.sweep_config import SweepConfig

JOBS = {
    "collect": collect,
    "import": import_,
    "ingest": import_,
    "score": score,
    "pretrain": pretrain,
    "encode": encode,
    "export": export,
    "replay": replay,
}
"""Commands that run on a cluster, by the names of `--job`; `ingest` is `import`'s former name."""


def _address(_context: Any, _parameter: Any, value: str | None) -> str:
    """Given, or that of the environment; the address of a Ray head (host:6379) is not one."""
    found = value or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS", "")
    if "://" not in found or found.startswith("ray://"):
        raise click.BadParameter(
            "name the cluster's dashboard, --address http://head:8265, or set RAY_API_SERVER_ADDRESS"
        )
    return found


ADDRESS = click.option(
    "--address",
    callback=_address,
    help="Address of the cluster's dashboard, http://head:8265; RAY_API_SERVER_ADDRESS by default.",
)


@click.command()
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="SWEEP_FILE | -- ARGUMENTS")
@ADDRESS
@SET
@click.option(
    "--job",
    type=click.Choice(JOBS),
    help="Run demoscale JOB with the arguments after -- instead of a sweep.",
)
@click.option(
    "--follow", is_flag=True, help="Print the job's output until it ends; Ctrl-C leaves it running."
)
@click.option(
    "--pip",
    is_flag=True,
    help="Have Ray install the pinned packages on every node first: slow, minutes and gigabytes.",
)
@report_user_errors
def submit(
    arguments: tuple[str, ...],
    address: str,
    overrides: tuple[str, ...],
    job: str | None,
    follow: bool,
    pip: bool,
) -> None:
    """Run SWEEP_FILE on the Ray cluster at ADDRESS, with the code of this checkout.

    While it runs, the same command finds it; when it was stopped or died, the same command continues it. With
    --follow the exit code is 0 if it was done, 1 if it failed, 130 if it was stopped or Ctrl-C was pressed.

    \b
    demoscale submit sweep.yaml --address http://head:8265 --set storage=s3://results/lift --follow
    demoscale submit --job collect --address http://head:8265 -- --task Lift --episodes 500 --store
    s3://robot-data/lift
    """
    from orchestrator.cluster.ray_jobs import Cluster
    from orchestrator.cluster.submission import send, sweep_load
    from orchestrator.provenance import git_commit

    if job:
        load, texts, status = _job_load(job, arguments, overrides), dict[str, str | bytes](), ""
    else:
        sweep = _sweep(arguments, overrides)
        load, texts = sweep_load(sweep)
        status = f"demoscale status {load.name} --storage {load.place}"

    cluster = Cluster(address)
    if told := cluster.check_versions():
        click.echo(f"note     {told}")
    found, sent = send(load, texts, cluster, pip)
    if sent:
        click.echo(
            f"sent     {sent.nbytes / 2**20:.1f} MiB, {sent.files} files: this checkout at {git_commit()}"
            + (", and the sweep" if texts else "")
        )
        click.echo(f"started  {found.job_id} at {cluster.address}")
    else:
        click.echo(f"running  {found.job_id} at {cluster.address} is running already; nothing was started")
    again = _follow_command(load, arguments, overrides, cluster.address)
    end = f"demoscale stop {load.name if status else found.job_id} --address {cluster.address}"
    if follow:
        sys.exit(_followed(cluster, found.job_id, again, end))
    click.echo(f"follow   {again}")
    if status:
        click.echo(f"status   {status}")
    click.echo(f"stop     {end}")
    click.echo(f"look     {cluster.address}/#/jobs/{found.job_id}")


@click.command()
@click.argument("name")
@ADDRESS
@click.option("--storage", default="", help="Storage of the sweep, if several of this name run.")
@report_user_errors
def stop(name: str, address: str, storage: str) -> None:
    """Stop the sweep NAME on the cluster at ADDRESS as Ctrl-C does; submit it again to resume. NAME may be a
    job's id.

    \b
    demoscale stop lift-demo-efficiency --address http://head:8265
    """
    from orchestrator.cluster.ray_jobs import STOP_WAIT_S, Cluster
    from orchestrator.cluster.submission import has_ended

    cluster = Cluster(address)
    job = cluster.running(name, storage.rstrip("/"))
    click.echo(
        f"asked {job.job_id} to stop; it may take {STOP_WAIT_S // 60} minutes to save its state and finish"
        " the episodes in progress"
    )
    try:
        click.echo(f"{job.job_id}: {has_ended(cluster.stop(job))}")
    except KeyboardInterrupt:
        click.echo("detached; the job is still stopping", err=True)
        sys.exit(130)


def _sweep(arguments: tuple[str, ...], overrides: tuple[str, ...]) -> "SweepConfig":
    """Return the sweep if it can run on other machines; print its plan, or why there is none."""
    from orchestrator.cluster.preflight import check_sweep, warnings_for
    from orchestrator.config.sweep_config import SweepConfig, SweepError
    from orchestrator.data.episode_format import EpisodeError
    from orchestrator.data.episode_store import load_manifest
    from orchestrator.planning.plan import make_plan
    from orchestrator.storage.base import StorageError, open_storage

    if len(arguments) != 1:
        raise click.UsageError("name one sweep file, or a job with --job")
    sweep = SweepConfig.load(arguments[0], overrides)
    if problems := check_sweep(sweep):
        raise SweepError(arguments[0], problems)
    try:
        for store in sweep.data.stores:
            load_manifest(open_storage(store))
    except (EpisodeError, StorageError):
        click.echo(
            f"note     {', '.join(sweep.data.stores)} cannot be read from this machine; the sweep checks it"
            " on the cluster"
        )
    else:
        try:
            click.echo(f"{make_plan(sweep)}\n")
        except StorageError:
            click.echo(
                f"note     {sweep.storage} cannot be read from here: the plan needs the data version and the"
                " quarantined episodes that an earlier run of the sweep stored there"
            )
    for note in warnings_for(sweep):
        click.echo(f"note     {note}")
    return sweep


def _job_load(job: str, arguments: tuple[str, ...], overrides: tuple[str, ...]) -> "JobSpec":
    from orchestrator.cluster.ray_jobs import JobSpec
    from orchestrator.cluster.submission import CHECK, COMMAND
    from orchestrator.provenance import digest

    if overrides:
        raise click.UsageError(f"--set is for sweeps; give {job} its own options after --")
    if problems := check_arguments(JOBS[job], f"demoscale submit --job {job} --", arguments):
        raise argument_error(*problems)
    module = "ingest" if job == "import" else job  # of jobs/: `import` is a keyword
    asked = digest(arguments)
    return JobSpec(module, module, asked, asked, f"{CHECK} && {COMMAND}{module} {shlex.join(arguments)}")


def _follow_command(
    load: "JobSpec", arguments: tuple[str, ...], overrides: tuple[str, ...], address: str
) -> str:
    sets = [part for override in overrides for part in ("--set", override)]
    what = [*arguments, *sets] if load.kind == "sweep" else ["--job", load.kind]
    after = [] if load.kind == "sweep" else ["--", *arguments]
    return shlex.join(["demoscale", "submit", *what, "--address", address, "--follow", *after])


def _followed(cluster: "Cluster", job_id: str, again: str, end: str) -> int:
    """Until it ends; the exit code."""
    from orchestrator.cluster.submission import has_ended

    try:
        job = cluster.follow(
            job_id, lambda text: click.echo(text, nl=False), lambda line: click.echo(line, err=True)
        )
    except KeyboardInterrupt:
        click.echo(f"\ndetached; {job_id} keeps running\nfollow   {again}\nstop     {end}", err=True)
        return 130
    click.echo(f"{job_id}: {has_ended(job)}", err=True)
    return {"SUCCEEDED": 0, "STOPPED": 130}.get(job.status, 1)
