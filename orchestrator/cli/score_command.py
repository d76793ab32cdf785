"""`demoscale score`: any policy, on any suite, without a sweep. `python -m jobs.score` is the same command by
another name.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from click.core import ParameterSource

from orchestrator.cli.common import JSON, graceful_interrupt
from orchestrator.cli.mistakes import report_user_errors
from sim_workers.rollout.suite import SHIFTS

if TYPE_CHECKING:
    from orchestrator.config.schema import SuiteConfig
    from orchestrator.evaluation.policy_ref import PolicyRef
    from orchestrator.evaluation.sequential_rule import StoppingRule
    from orchestrator.evaluation.standalone import StandaloneEval
    from sim_workers.rollout.suite import Suite

EVERY = "every"
NAMELESS = (
    "results are not kept: {name} has no fingerprint; with --fingerprint NAME, a name of this policy,"
    " a stopped run can be resumed"
)


@dataclass(frozen=True)
class ScoreRequest:
    """What is to be played: the suite of a sweep file, options given beside it, or options alone."""

    tasks: tuple[str, ...]
    episodes: int
    horizon: int
    settle: int
    success: Literal["once", "at_end"]
    shifts: tuple[str, ...]
    rung: str
    block: int
    gl: Literal["egl", "osmesa", "mixed"] = "egl"
    rule: "StoppingRule | None" = None

    def beside(self, suite: "SuiteConfig", given: Callable[[str], bool]) -> "ScoreRequest":
        """As a sweep has it, but for what was given on the command line."""
        from orchestrator.evaluation.sequential_rule import StoppingRule

        told: dict[str, Any] = {"shifts": ("nominal", *suite.shifts)}
        told |= {
            name: getattr(suite, name)
            for name in ("tasks", "episodes", "horizon", "settle", "success", "rung")
        }
        # there is no other arm to compare with
        decide = suite.decide if suite.decide and suite.decide.threshold is not None else None
        rule = StoppingRule(decide.look_every, decide.confidence, decide.threshold) if decide else None
        return replace(
            self, gl=suite.gl, rule=rule, **{name: value for name, value in told.items() if not given(name)}
        )

    def mistakes(self) -> list[str]:
        """Return one sentence per unknown task and per shift that a task does not have."""
        from sim_workers.envs.registry import TASKS, refusal

        unknown = [
            f"--task: unknown task {task}; known are {', '.join(TASKS[:19])} and those of LIBERO-10 and"
            " RoboCasa-24"
            for task in self.tasks
            if task not in TASKS
        ]
        pairs = [
            (task, shift) for task in self.tasks for shift in self.shifts if shift != EVERY and task in TASKS
        ]
        return unknown + [f"--shift: {why}" for task, shift in pairs if (why := refusal(task, shift))]

    def suites(self) -> list["Suite"]:
        """One per shift, the sweep's own lists, so that its scores are found again."""
        from sim_workers.envs.registry import refusal
        from sim_workers.rollout.suite import EpisodeRules, Suite

        shifts = SHIFTS if EVERY in self.shifts else tuple(dict.fromkeys(self.shifts))
        of_shift = {
            shift: tuple(task for task in dict.fromkeys(self.tasks) if not refusal(task, shift))
            for shift in shifts
        }
        rules = EpisodeRules(self.horizon, self.settle, self.success)
        return [
            Suite(tasks, self.episodes, rules, self.block, shift)
            for shift, tasks in of_shift.items()
            if tasks
        ]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("checkpoint")
@click.option(
    "--suite",
    "suite_file",
    help=(
        "Sweep file whose suite is played. Options given below override it. A rule that compares with another"
        " arm (suite.decide.against) is ignored: all episodes are played."
    ),
)
@click.option(
    "--task", "tasks", multiple=True, default=("Lift",), show_default=True, help="Task to play. Repeatable."
)
@click.option(
    "--episodes",
    type=click.IntRange(1, 1_000_000),
    default=20,
    show_default=True,
    help="Episodes per task and shift.",
)
@click.option(
    "--horizon",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    help="Most control steps of an episode; 20 are one second.",
)
@click.option(
    "--settle",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    help="Control steps played on after the first success.",
)
@click.option(
    "--success",
    type=click.Choice(["once", "at_end"]),
    default="once",
    show_default=True,
    help="Count a task as done if it was done at any step, or in the last one played.",
)
@click.option(
    "--shift",
    "shifts",
    type=click.Choice([*SHIFTS, EVERY]),
    multiple=True,
    default=("nominal",),
    show_default=True,
    help="Shift of the scenes. Repeatable.",
)
@click.option(
    "--block",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Number of the block of scenes; blocks have no scene in common.",
)
@click.option(
    "--rung", default="", help="Rung of the checkpoint's sampler ladder; the checkpoint's own by default."
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Simulator processes; one per core by default. The score does not depend on it.",
)
@click.option(
    "--storage",
    default="runs",
    show_default=True,
    help="Folder or s3:// URI that stores every outcome; name a sweep's to share its scores.",
)
@click.option(
    "--fingerprint",
    default="",
    help=(
        "Name under which the outcomes of a URL or function are stored, so that a stopped run can be resumed."
        " A checkpoint needs none: its fingerprint is a hash of its weights. A change of the policy behind a"
        " URL or function cannot be detected: give it a new name whenever it changes, or the outcomes of two"
        " policies are mixed in one score."
    ),
)
@click.option(
    "--sweep",
    default="",
    help=(
        "Name of a sweep; CHECKPOINT is then one of its arms, whose last checkpoint is scored, by default on"
        " the sweep's own suite."
    ),
)
@click.option(
    "--mlflow",
    default="",
    help="MLflow tracking URI that has models:/ID; the database in the storage by default.",
)
@click.option(
    "--save", type=click.Path(path_type=Path), help="Also write every episode's outcome: .jsonl or .parquet."
)
@JSON
@report_user_errors
def score(
    checkpoint: str,
    suite_file: str | None,
    tasks: tuple[str, ...],
    episodes: int,
    horizon: int,
    settle: int,
    success: Literal["once", "at_end"],
    shifts: tuple[str, ...],
    block: int,
    rung: str,
    workers: int | None,
    storage: str,
    fingerprint: str,
    sweep: str,
    mlflow: str,
    save: Path | None,
    as_json: bool,
) -> None:
    """Score the policy CHECKPOINT, on this machine or on the Ray cluster RAY_ADDRESS names: successes out of
    the same episodes for every policy.

    CHECKPOINT is a checkpoint's folder, its s3:// URI, models:/ID of a model in MLflow, http(s)://HOST:PORT
    of a policy server, or MODULE:FUNCTION that returns a policy. A finished episode is never played again:
    the same command continues a run that was stopped or killed, and finds what a sweep with this storage has
    scored. Ctrl-C once: episodes in progress are finished; twice: now.

    \b
    demoscale score path/to/checkpoint --suite jobs/quickstart.yaml
    demoscale score s3://robot/runs/arms/ARM/step_002000 --storage s3://robot/runs --task Lift --episodes 200
    demoscale score models:/m-0123456789abcdef0123456789abcdef --suite jobs/quickstart.yaml --json
    demoscale score demos-40_ratio-1_seed-0 --sweep quickstart --shift lighting
    demoscale score http://127.0.0.1:8000 --task Lift --shift every --fingerprint pi-2026-11
    demoscale score examples.waypoints:make --episodes 50 --save waypoints.parquet
    """
    from orchestrator.cli.progress import progress_bar
    from orchestrator.cluster.ray_runtime import CPU, connect, device_here, quiet
    from orchestrator.config.sweep_config import SweepError, load_suite
    from orchestrator.evaluation.policy_ref import PolicyRefError, resolve_policy
    from orchestrator.evaluation.scores import ProtocolError
    from orchestrator.evaluation.standalone import StandaloneEval
    from orchestrator.storage.base import open_storage
    from orchestrator.tracking.mlflow_writer import tracking_uri
    from sim_workers.envs.registry import TASKS, unfit

    context = click.get_current_context()

    def given(name: str) -> bool:
        return context.get_parameter_source(name) == ParameterSource.COMMANDLINE

    quiet()
    kept_in = open_storage(storage)
    wanted = ScoreRequest(tasks, episodes, horizon, settle, success, shifts, rung, block)
    if sweep:
        from orchestrator.sweep.state import last_checkpoint

        checkpoint, suite = last_checkpoint(sweep, checkpoint, storage)
        wanted = wanted.beside(suite, given)
    if suite_file:
        wanted = wanted.beside(load_suite(suite_file), given)
    mistakes = wanted.mistakes() + _unwritable(save)
    subject: PolicyRef | None = None
    try:
        subject = resolve_policy(
            checkpoint, wanted.rung, not given("rung"), fingerprint, tracking_uri(mlflow, kept_in.uri)
        )
        known = [task for task in wanted.tasks if task in TASKS]
        mistakes += [
            f"--task {task}: {sentence}" for task in known for sentence in unfit(subject.contract, task)
        ]
    except PolicyRefError as error:
        mistakes.append(f"CHECKPOINT: {error}")
    if mistakes or subject is None:
        raise SweepError(context.command_path, mistakes)

    with ExitStack() as closing:
        kept = (
            kept_in
            if subject.fingerprint
            else open_storage(closing.enter_context(tempfile.TemporaryDirectory()))
        )
        device = CPU
        if subject.sampler:  # a checkpoint of ours, which policy servers of the cluster load
            device = _device_of_cluster() if "RAY_ADDRESS" in os.environ else device_here()
        scoring = StandaloneEval(subject, wanted.suites(), wanted.gl, wanted.rule, kept, device=device)
        if not subject.fingerprint:
            click.echo(NAMELESS.format(name=subject.name).replace("\n", " "), err=True)
        if scoring.complete:
            click.echo(f"{subject.name}: nothing to play, all outcomes are in {kept.uri}", err=as_json)
        else:
            found = f", {scoring.counted} of them are in {kept.uri} already" if scoring.counted else ""
            click.echo(f"{subject.name}: {scoring.listed} episodes{found}; starting Ray", err=as_json)
            connect()
            if subject.sampler and (found := _device_of_cluster()) != device:
                raise ProtocolError(
                    f"the policy servers of this cluster run on {found}, the scores are of {device}; set"
                    " RAY_ADDRESS=local"
                )
            from rich.console import Console

            with progress_bar("scoring", Console(stderr=True)) as progress, graceful_interrupt(scoring):
                task = progress.add_task("scoring", total=scoring.listed, completed=scoring.counted)
                scoring.play(workers, lambda more: progress.advance(task, more))
        if save:
            scoring.save(save)
        if as_json:
            click.echo(json.dumps(scoring.to_json(), indent=1))
        else:
            _print(scoring)
    for message in scoring.causes:
        click.echo(f"error: {message}", err=True)
    if scoring.interrupted and not scoring.complete:
        click.echo("stopped" + ("; run the same command to resume" if subject.fingerprint else ""), err=True)
        sys.exit(130)
    if scoring.causes:
        sys.exit(1)


def _device_of_cluster() -> str:
    """Return the device class of policy servers on the cluster that RAY_ADDRESS names."""
    from orchestrator.cluster.ray_runtime import acting_device, connect, resources

    connect()
    return acting_device(resources().get("GPU", 0.0))


def _unwritable(save: Path | None) -> list[str]:
    """Return what is wrong with the file to write; empty if nothing is."""
    if save and save.suffix not in (".jsonl", ".parquet"):
        return [f"--save: {save} must end in .jsonl or .parquet"]
    if save and not save.parent.is_dir():
        return [f"--save: there is no folder {save.parent}"]
    return [f"--save: {save} exists already; name another file"] if save and save.exists() else []


def _print(scoring: "StandaloneEval") -> None:
    """Print a line per task and shift; a single one without its title."""
    lines = scoring.lines()
    for of, one in lines:
        click.echo(str(one) if len(lines) == 1 else f"{of}: {one}")
