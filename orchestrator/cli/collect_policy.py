"""`demoscale collect --policy`: a policy's own rollouts, as episodes without actions."""

import json
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.mistakes import argument_error
from orchestrator.cli.parameters import HorizonOption, InputPath, StorePath
from orchestrator.cli.score_command import ScoreRequest
from orchestrator.cli.terminal import graceful_interrupt
from policy.errors import DemoscaleError
from sim_workers.rollout.rollout_block import ROLLOUT_BLOCK

if TYPE_CHECKING:
    from orchestrator.data.record_rollouts import PolicyRollouts
    from orchestrator.evaluation.collect_rollouts import RolloutCollection

SCENES_PER_EPISODE = 10
"""Default of --attempts, per episode."""
KIND = {"any": "rollouts", "failed": "failed rollouts", "succeeded": "successful rollouts"}
"""What is recorded in words, by --outcome."""
CONTRACT_OPTIONS = (
    "suite_file",
    "robot",
    "controller",
    "proprio",
    "control_hz",
    "cameras",
    "image_size",
    "render_profile",
)
"""Options of scripted demonstrations that a policy's contract answers."""


class FewRolloutsError(DemoscaleError):
    """A policy's rollouts end too rarely as they are asked for."""


def policy_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a policy whose rollouts are recorded."""
    added = (
        click.option(
            "--policy",
            type=InputPath(),
            default="",
            help="Record the rollouts of this policy in place of demonstrations, without actions. Named as"
            " for `demoscale score`.",
        ),
        click.option(
            "--sweep",
            default="",
            help="Name of a sweep; POLICY is then one of its arms, whose last checkpoint plays by the rules"
            " of the sweep's suite.",
        ),
        click.option(
            "--storage",
            type=StorePath(),
            help="With --policy: folder or s3:// URI the sweep keeps its results in; runs by default.",
        ),
        click.option(
            "--outcome",
            type=click.Choice([*KIND]),
            default="any",
            help="With --policy: which rollouts are recorded; any by default. Others are played, counted and"
            " not played again.",
        ),
        click.option(
            "--attempts",
            type=click.IntRange(1, 1_000_000),
            help="With --policy: most scenes to play, including those of earlier runs; 10 times EPISODES by"
            " default.",
        ),
        click.option(
            "--horizon",
            type=HorizonOption(),
            default="200",
            help="With --policy: most control steps of a rollout, or auto, the task's own; the sweep's, or"
            " 200, by default. A rollout ends 10 control steps after its first success, or as the sweep's"
            " suite says.",
        ),
        click.option(
            "--rung",
            default="",
            help="With --policy: sampler setting of the checkpoint (suite.rung); the sweep's, or the"
            " checkpoint's own, by default.",
        ),
        click.option(
            "--fingerprint",
            default="",
            help="With --policy: name of the policy behind a URL or function, part of its episodes' ids and"
            " sources. A checkpoint has its own.",
        ),
        click.option(
            "--run-programs",
            is_flag=True,
            help="With --policy: run the programs with which a checkpoint of an external policy is served;"
            " look at them first.",
        ),
        click.option(
            "--mlflow",
            type=InputPath(),
            default="",
            help="With --policy: MLflow tracking URI that has models:/...; the database in the storage by"
            " default.",
        ),
    )
    for option in reversed(added):  # the last one that is added is shown first
        command = option(command)
    return command


POLICY_OPTIONS = (
    "sweep",
    "storage",
    "outcome",
    "attempts",
    "horizon",
    "rung",
    "fingerprint",
    "run_programs",
    "mlflow",
    "execute",
    "layout",
    "contract",
)
"""Options that only a policy's rollouts have."""


def misplaced(policy: str, given: Collection[str]) -> list[str]:
    """Return one sentence for each group of options `given` that contradict --policy, or its absence."""
    if not policy:
        alone = [name for name in POLICY_OPTIONS if name in given]
        return [f"{_flags(alone)}: only with --policy, for a policy's rollouts"] if alone else []
    problems = []
    if contract := [name for name in CONTRACT_OPTIONS if name in given]:
        problems.append(f"{_flags(contract)}: leave it out; the policy's own contract says it")
    if "disturbance" in given:
        problems.append("--disturbance: leave it out; a policy's rollouts are not disturbed")
    return problems


def _flags(names: list[str]) -> str:
    """Return the options' spellings on the command line."""
    parameters = {parameter.name: parameter for parameter in click.get_current_context().command.params}
    return ", ".join(parameters[name].opts[0] for name in names)


def request_of(options: dict[str, Any], given: Collection[str]) -> ScoreRequest:
    """Return what the rollouts share with a score of one episode: policy, task and rules.

    Raises SweepError for a sweep or an arm that cannot be read.
    """
    from orchestrator.config.schema import SuiteConfig

    suite = SuiteConfig.model_fields
    shared = ("horizon", "fingerprint", "mlflow", "contract", "layout", "execute", "run_programs")
    request = ScoreRequest(
        checkpoint=options["policy"],
        tasks=(options["task"],),
        episodes=1,
        settle=suite["settle"].default,
        success=suite["success"].default,
        shifts=("nominal",),
        block=ROLLOUT_BLOCK,
        rung=options["rung"] or suite["rung"].default,
        rung_given="rung" in given,
        storage=options["storage"] or "runs",
        save=None,
        **{name: options[name] for name in shared},
    )
    if not options["sweep"]:
        return request
    from orchestrator.sweep.state import last_checkpoint

    checkpoint, of_sweep = last_checkpoint(options["sweep"], request.checkpoint, request.storage)
    own = {"episodes", *given} | ({"tasks"} if "task" in given else set())
    request = replace(request, checkpoint=checkpoint).with_suite(of_sweep, own)
    return replace(request, shifts=("nominal",))


def problems_of(request: ScoreRequest) -> list[str]:
    """Return why the rollouts of the request cannot be recorded, one sentence each.

    Raises CheckpointError, StorageError or TrackingError if the policy cannot be read.
    """
    from sim_workers.envs.libero import INIT_STATES, LIBERO

    if len(request.tasks) > 1:
        return [f"--task: the sweep plays {', '.join(request.tasks)}; name one of them"]
    (task,) = request.tasks
    if task in LIBERO:
        return [
            f"--task: {task} has {INIT_STATES} fixed scenes, which scores play; an episode recorded in one"
            " of them must not be trained on"
        ]
    if problems := request.validate():
        return [problem.replace("CHECKPOINT: ", "--policy: ", 1) for problem in problems]
    if not request.policy.fingerprint:
        problems.append(
            f"--fingerprint: {request.policy.name} has none of its own; give a name of this policy, by which"
            " its episodes differ from another's"
        )
    if not request.policy.contract.cameras:
        problems.append(f"--policy: {request.policy.name} sees no camera, so there are no pictures to record")
    return problems


def rollouts_of(request: ScoreRequest) -> "PolicyRollouts":
    """Return the rollouts of a request without problems."""
    from orchestrator.data.record_rollouts import PolicyRollouts

    policy, (task,) = request.policy, request.tasks
    (suite,) = request.suites()
    sampler = json.dumps(policy.sampler.model_dump(mode="json"), sort_keys=True) if policy.sampler else ""
    return PolicyRollouts(policy.fingerprint, sampler, task, suite.rules_of(task), policy.contract)


def collect_rollouts(options: dict[str, Any], given: Collection[str]) -> None:
    """Record the rollouts that the options ask for. given: names of those on the command line.

    Raises SweepError for wrong options, EpisodeError for a store of other conventions, FewRolloutsError if
    too few rollouts end as they are asked for.
    """
    from orchestrator.cli.terminal import progress_bar
    from orchestrator.cluster.ray_runtime import connect, quiet
    from orchestrator.evaluation.collect_rollouts import RolloutCollection
    from orchestrator.storage.base import open_storage

    quiet()
    request = request_of(options, given)
    if problems := problems_of(request):
        raise argument_error(*problems)
    began, storage = time.monotonic(), open_storage(options["store"])
    episodes, attempts = options["episodes"], options["attempts"]
    most_scenes = min(attempts or SCENES_PER_EPISODE * episodes, 1_000_000)
    collection = RolloutCollection(
        request.policy,
        rollouts_of(request),
        options["outcome"],
        episodes,
        most_scenes,
        storage,
        request.gl,
    )
    kind = f"{KIND[options['outcome']]} of {request.policy.name} in {request.tasks[0]}"
    if collection.held:
        click.echo(
            f"{storage.uri} already holds {collection.held} of {episodes} {kind}"
            + ("; nothing to record" if collection.complete else "")
        )
    if collection.complete:
        return
    click.echo("starting Ray")
    connect()
    text = "recording, {task.fields[scenes]} scenes played"
    with progress_bar(text) as progress, graceful_interrupt(collection):
        bar = progress.add_task("", total=episodes, completed=collection.held, scenes=collection.scenes)
        collection.play(
            options["workers"] if "workers" in given else None,
            lambda held, scenes: progress.update(bar, completed=held, scenes=scenes),
        )
    _conclude(collection, kind, storage.uri, most_scenes, time.monotonic() - began)


def _conclude(
    collection: "RolloutCollection", kind: str, store: str, most_scenes: int, seconds: float
) -> None:
    """Say what was recorded; exit with an error if the store does not hold the episodes."""
    new, results = collection.recorded, collection.results
    steps = f", {sum(entry.length for entry in new) / len(new):.0f} steps on average" if new else ""
    click.echo(f"recorded {len(new)} {kind}{steps}, in {seconds:.0f} s, into {store}")
    ended = f"{results['failure']} of {results.total()} rollouts failed"
    click.echo(ended)
    for message in collection.causes:
        click.echo(f"error: {message}", err=True)
    if collection.complete:
        return
    if collection.interrupted:
        click.echo("stopped; run the same command to resume", err=True)
        sys.exit(130)
    holds = f"{store} holds {collection.held} of {collection.episodes} {kind}"
    if collection.failing:
        raise FewRolloutsError(
            f"{holds}: too many scenes in a row ended as an error; fix its cause and run the same command"
        )
    raise FewRolloutsError(
        f"{holds}, after {most_scenes} scenes, of which --attempts allows no more: {ended}; ask for fewer"
        " --episodes, or for more --attempts"
    )
