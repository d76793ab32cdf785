"""`demoscale score`: any policy, on any suite, without a sweep."""

import json
import os
import sys
import tempfile
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from orchestrator.cli.mistakes import argument_error, report_user_errors
from orchestrator.cli.options import HELP, JSON, foreign_options, given_options
from orchestrator.cli.parameters import HorizonOption, InputPath, OutputPath, StorePath, SuiteOption
from orchestrator.cli.terminal import graceful_interrupt
from sim_workers.rollout.rollout_block import ROLLOUT_BLOCK
from sim_workers.rollout.suite import SHIFTS

if TYPE_CHECKING:
    from orchestrator.config.schema import SuiteConfig
    from orchestrator.evaluation.policy_ref import PolicyRef
    from orchestrator.evaluation.sequential_rule import StoppingRule
    from orchestrator.evaluation.standalone import StandaloneEval
    from orchestrator.storage.base import Storage
    from sim_workers.rollout.suite import Reset, Suite

EVERY = "every"
NAMELESS = (
    "results are not kept: {name} has no fingerprint; with --fingerprint NAME, a name of this policy,"
    " a stopped run can be resumed"
)


@dataclass(frozen=True)
class ScoreRequest:
    """What is to be scored, on what, and where the outcomes are kept: the options of the command, or of a
    sweep's suite where they are not given.
    """

    checkpoint: str
    tasks: tuple[str, ...]
    episodes: int
    horizon: "int | Literal['auto'] | Mapping[str, int]"
    settle: int
    success: Literal["once", "at_end"]
    shifts: tuple[str, ...]
    block: int
    rung: str
    rung_given: bool
    """Whether a policy without this rung is refused, instead of acting with its own."""
    storage: str
    fingerprint: str
    mlflow: str
    save: Path | None
    contract: str
    layout: str
    execute: int
    run_programs: bool = False
    """Whether the programs in a checkpoint of an external policy may run."""
    gl: Literal["egl", "osmesa", "mixed"] = "egl"
    processors: Literal["one", "mixed"] = "one"
    libero_reset: "Reset" = "settled"
    rule: "StoppingRule | None" = None

    @classmethod
    def from_click(cls, context: click.Context) -> "ScoreRequest":
        """Return the request of the command line. Raises SweepError for a suite or an arm that it names and
        that cannot be read.
        """
        options = dict(context.params)
        sweep, suite_file = options.pop("sweep"), options.pop("suite_file")
        del options["workers"], options["as_json"]
        given = given_options(context)
        request = cls(**options, rung_given="rung" in given)
        if sweep:
            from orchestrator.sweep.state import last_checkpoint

            checkpoint, suite = last_checkpoint(sweep, request.checkpoint, request.storage)
            request = replace(request, checkpoint=checkpoint).with_suite(suite, given)
        if suite_file:
            from orchestrator.config.sweep_config import load_suite

            request = request.with_suite(load_suite(suite_file), given)
        return request

    def with_suite(self, suite: "SuiteConfig", given: Collection[str]) -> "ScoreRequest":
        """Return the request with the values of a sweep's suite, except those of the options `given`."""
        from orchestrator.evaluation.sequential_rule import StoppingRule

        values: dict[str, Any] = {"shifts": ("nominal", *suite.shifts)}
        values |= {
            name: getattr(suite, name)
            for name in ("tasks", "episodes", "horizon", "settle", "success", "libero_reset", "rung")
        }
        # there is no other arm to compare with
        decide = None if suite.select else suite.decide
        decide = decide if decide and decide.threshold is not None else None
        rule = StoppingRule(decide.look_every, decide.confidence, decide.threshold) if decide else None
        return replace(
            self,
            gl=suite.gl,
            processors=suite.processors,
            rule=rule,
            **{name: value for name, value in values.items() if name not in given},
        )

    def validate(self) -> list[str]:
        """Return what is wrong with the request, one sentence each.

        Raises CheckpointError, StorageError or TrackingError if the policy cannot be read.
        """
        from orchestrator.evaluation.policy_ref import PolicyRefError
        from sim_workers.envs.libero import LIBERO
        from sim_workers.envs.registry import TASKS, is_plugin, is_task, refusal, task_names, unfit

        known = [task for task in self.tasks if is_task(task)]
        own = ", ".join([*TASKS[:19], *filter(is_plugin, task_names())])
        listed = f"known are {own} and those of LIBERO and RoboCasa-24 (`demoscale task list`)"
        problems = [
            f"--task: unknown task {task}; "
            + (f"did you mean {close[0]}?" if (close := get_close_matches(task, task_names(), 1)) else listed)
            for task in self.tasks
            if not is_task(task)
        ]
        if isinstance(self.horizon, Mapping) and (
            lacking := [task for task in known if task not in self.horizon]
        ):
            problems.append(
                f"--horizon: the suite has none for {', '.join(lacking)}; write --horizon auto, or a number"
            )
        if self.libero_reset != "settled" and (others := [task for task in known if task not in LIBERO]):
            problems.append(
                f"--libero-reset: {self.libero_reset} is a reset of LIBERO's tasks, not of"
                f" {', '.join(others)}"
            )
        shifts = [shift for shift in self.shifts if shift != EVERY]
        problems += [f"--shift: {why}" for task in known for shift in shifts if (why := refusal(task, shift))]
        problems += _unwritable(self.save)
        try:
            contract = self.policy.contract
        except PolicyRefError as error:
            return [*problems, f"CHECKPOINT: {error}"]
        return problems + [f"--task {task}: {why}" for task in known for why in unfit(contract, task)]

    @cached_property
    def policy(self) -> "PolicyRef":
        """The policy with the name `checkpoint`. Raises what `resolve_policy` raises."""
        from orchestrator.evaluation.policy_ref import ForeignOptions, resolve_policy
        from orchestrator.storage.base import open_storage
        from orchestrator.tracking.mlflow_writer import tracking_uri

        tracking = tracking_uri(self.mlflow, open_storage(self.storage).uri)
        foreign = ForeignOptions(self.contract, self.layout, self.execute)
        return resolve_policy(
            self.checkpoint,
            self.rung,
            not self.rung_given,
            self.fingerprint,
            tracking,
            foreign,
            self.run_programs,
        )

    def suites(self) -> list["Suite"]:
        """One per shift, the sweep's own lists, so that its scores are found again."""
        from orchestrator.config.schema import suite_of
        from sim_workers.envs.registry import refusal

        shifts = SHIFTS if EVERY in self.shifts else tuple(dict.fromkeys(self.shifts))
        of_shift = {
            shift: tuple(task for task in dict.fromkeys(self.tasks) if not refusal(task, shift))
            for shift in shifts
        }
        return [
            replace(
                suite_of(tasks, self.episodes, self.horizon, self.settle, self.success, self.block, shift),
                processors=self.processors,
                reset=self.libero_reset,
            )
            for shift, tasks in of_shift.items()
            if tasks
        ]

    def evaluation(self, storage: "Storage") -> "StandaloneEval":
        """Return the evaluation that keeps its outcomes in `storage`."""
        from orchestrator.cluster.ray_runtime import CPU, device_here
        from orchestrator.evaluation.standalone import StandaloneEval

        device = CPU
        if self.policy.sampler:  # a checkpoint, which policy servers of the cluster load
            device = _device_of_cluster() if "RAY_ADDRESS" in os.environ else device_here()
        return StandaloneEval(self.policy, self.suites(), self.gl, self.rule, storage, device=device)


@click.command(context_settings=HELP)
@click.argument("checkpoint", type=InputPath())
@click.option(
    "--suite",
    "suite_file",
    type=InputPath(),
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
    type=HorizonOption(),
    default="200",
    show_default=True,
    help="Most control steps of an episode; 20 are one second by default. auto: each task's own.",
)
@click.option(
    "--settle",
    type=click.IntRange(0),
    cls=SuiteOption,
    show_default=True,
    help="Control steps played on after the first success.",
)
@click.option(
    "--success",
    type=click.Choice(["once", "at_end"]),
    cls=SuiteOption,
    show_default=True,
    help="Count a task as done if it was done at any step, or in the last one played.",
)
@click.option(
    "--libero-reset",
    type=click.Choice(["settled", "libero", "openvla"]),
    cls=SuiteOption,
    show_default=True,
    help="How episodes of LIBERO begin: settled, or with the resets and idle steps of LIBERO's own evaluation"
    " or of OpenVLA's.",
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
    type=click.IntRange(0, ROLLOUT_BLOCK - 1),
    default=0,
    show_default=True,
    help="Number of the block of scenes; blocks have no scene in common. The next one is that of recorded"
    " rollouts (`demoscale collect --policy`), which may be trained on.",
)
@click.option(
    "--rung",
    cls=SuiteOption,
    help="Sampler setting of a checkpoint (suite.rung); its own by default.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Simulator processes; one per core by default. The score does not depend on it.",
)
@click.option(
    "--storage",
    type=StorePath(),
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
    "--run-programs",
    is_flag=True,
    help="Run the programs with which a checkpoint of an external policy is served; look at them first.",
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
    type=InputPath(),
    default="",
    help="MLflow tracking URI that has models:/...; the database in the storage by default.",
)
@click.option(
    "--save", type=OutputPath(path_type=Path), help="Also write every episode's outcome: .jsonl or .parquet."
)
@foreign_options
@JSON
@report_user_errors
def score(workers: int | None, as_json: bool, **_options: Any) -> None:
    """Score the policy CHECKPOINT, on this machine or on the Ray cluster RAY_ADDRESS names: successes out of
    the same episodes for every policy.

    CHECKPOINT is a checkpoint's folder, its s3:// URI, models:/ID, models:/NAME/VERSION or models:/NAME@ALIAS
    of a model in MLflow, http(s)://HOST:PORT of a policy server (several with commas between), openpi://,
    vla-eval:// or groot://HOST:PORT of a server of theirs, or MODULE:FUNCTION that returns a policy. A
    finished episode is never played again: the same command continues a run that was stopped or killed, and
    finds what a sweep with this storage has scored. Ctrl-C once: episodes in progress are finished; twice:
    now.

    \b
    demoscale score path/to/checkpoint --suite jobs/quickstart.yaml
    demoscale score s3://robot/runs/arms/ARM/step_002000 --storage s3://robot/runs --task Lift --episodes 200
    demoscale score models:/m-0123456789abcdef0123456789abcdef --suite jobs/quickstart.yaml --json
    demoscale score demos-20_ratio-1_seed-0 --sweep quickstart --shift lighting
    demoscale score http://127.0.0.1:8000 --task Lift --shift every --fingerprint pi-2026-11
    demoscale score openpi://gpu-1:8000 --contract contract.json --layout libero --execute 5
    demoscale score examples.waypoints:make --episodes 50 --save waypoints.parquet
    """
    from orchestrator.cluster.ray_runtime import quiet
    from orchestrator.storage.base import open_storage

    quiet()
    request = ScoreRequest.from_click(click.get_current_context())
    if problems := request.validate():
        raise argument_error(*problems)
    kept = bool(request.policy.fingerprint)
    with ExitStack() as closing:
        place = request.storage if kept else closing.enter_context(tempfile.TemporaryDirectory())
        storage = open_storage(place)
        evaluation = request.evaluation(storage)
        if not kept:
            click.echo(NAMELESS.format(name=request.policy.name), err=True)
        _play(evaluation, storage.uri, workers, as_json)
        if request.save:
            evaluation.save(request.save)
        _print(evaluation, as_json)
    for message in evaluation.causes:
        click.echo(f"error: {message}", err=True)
    if evaluation.interrupted and not evaluation.complete:
        click.echo("stopped" + ("; run the same command to resume" if kept else ""), err=True)
        sys.exit(130)
    if evaluation.causes:
        sys.exit(1)


def _play(evaluation: "StandaloneEval", place: str, workers: int | None, as_json: bool) -> None:
    """Play the episodes that have no outcome yet in the storage `place`.

    Raises ProtocolError if the policy would act on another device than that of its scores.
    """
    from rich.console import Console

    from orchestrator.cli.terminal import progress_bar
    from orchestrator.cluster.ray_runtime import connect
    from orchestrator.evaluation.scores import ProtocolError

    name = evaluation.subject.name
    if evaluation.complete:
        click.echo(f"{name}: nothing to play, all outcomes are in {place}", err=as_json)
        return
    found = f", {evaluation.counted} of them are in {place} already" if evaluation.counted else ""
    click.echo(f"{name}: {evaluation.listed} episodes{found}; starting Ray", err=as_json)
    connect()
    device = evaluation.device
    if evaluation.subject.sampler and (now := _device_of_cluster()) != device:
        raise ProtocolError(
            f"the policy servers of this cluster run on {now}, the scores are of {device}; set"
            " RAY_ADDRESS=local"
        )
    with progress_bar("scoring", Console(stderr=True)) as progress, graceful_interrupt(evaluation):
        task = progress.add_task("scoring", total=evaluation.listed, completed=evaluation.counted)
        evaluation.play(workers, lambda more: progress.advance(task, more))


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


def _print(evaluation: "StandaloneEval", as_json: bool) -> None:
    """Print JSON, or a line per task and shift, the only one without their names."""
    if as_json:
        click.echo(json.dumps(evaluation.to_json(), indent=1))
        return
    lines = evaluation.lines()
    for of, one in lines:
        click.echo(str(one) if len(lines) == 1 else f"{of}: {one}")
    click.echo(f"played on {evaluation.subject.contract.simulator}", err=True)
