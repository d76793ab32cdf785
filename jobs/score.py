"""Score any policy on a fixed list of simulated episodes, without a sweep.

python -m jobs.score --policy http://127.0.0.1:8000 --task Lift --episodes 20
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from orchestrator.mistakes import answers_mistakes
from sim_workers.suite import SHIFTS

if TYPE_CHECKING:
    from policy.interface import Contract
    from sim_workers.rollout import Outcome
    from sim_workers.sources import PolicySource
    from sim_workers.suite import Suite

EVERY = "every"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--policy", required=True, help="http(s)://HOST:PORT, MODULE:FUNCTION that returns a policy, or a checkpoint's folder.")
@click.option("--task", "tasks", multiple=True, default=("Lift",), show_default=True, help="May be given several times.")
@click.option("--episodes", type=click.IntRange(1, 1_000_000), default=20, show_default=True, help="Per task and shift.")
@click.option("--workers", type=click.IntRange(1), default=os.cpu_count(), help="Simulator processes; one per core by default.")
@click.option("--horizon", type=click.IntRange(1), default=200, show_default=True, help="Control steps until an episode is over; 20 are one second.")
@click.option("--settle", type=click.IntRange(0), default=10, show_default=True, help="Control steps played on after the first success.")
@click.option("--success", type=click.Choice(["once", "at_end"]), default="once", show_default=True, help="At any step, or in the last one played.")
@click.option(
    "--shift",
    "shifts",
    type=click.Choice([*SHIFTS, EVERY]),
    multiple=True,
    default=("nominal",),
    show_default=True,
    help="May be given several times.",
)
@click.option("--block", type=click.IntRange(0), default=0, show_default=True, help="Which block of scenes; another one shares none with it.")
@click.option("--rung", default="", help="Of a checkpoint's ladder; its own by default.")
@click.option("--save", type=click.Path(path_type=Path), help="Write every episode's outcome: .jsonl or .parquet.")
@answers_mistakes
def main(
    policy: str,
    tasks: tuple[str, ...],
    episodes: int,
    workers: int,
    horizon: int,
    settle: int,
    success: Literal["once", "at_end"],
    shifts: tuple[str, ...],
    block: int,
    rung: str,
    save: Path | None,
) -> None:
    """Score POLICY: successes out of the episodes of every task and shift, the same episodes for every policy.

    \b
    python -m jobs.score --policy examples.waypoints:make --episodes 50 --save waypoints.jsonl
    python -m jobs.score --policy http://127.0.0.1:8000 --task Lift --shift nominal --shift lighting
    """
    from orchestrator.cluster import connect, quiet
    from orchestrator.progress import progress_bar
    from orchestrator.score import Score
    from orchestrator.spec import SweepError
    from sim_workers.backends import TASKS, refusal, unfit
    from sim_workers.suite import Rules, Suite

    mistakes = [
        f"--task: unknown task {task}; known are {', '.join(TASKS[:19])} and those of LIBERO-10 and RoboCasa-24"
        for task in tasks
        if task not in TASKS
    ]
    mistakes += [f"--shift: {why}" for task in tasks for shift in shifts if shift != EVERY and task in TASKS and (why := refusal(task, shift))]
    if save and save.suffix not in (".jsonl", ".parquet"):
        mistakes.append(f"--save: {save} must end in .jsonl or .parquet")
    elif save and not save.parent.is_dir():
        mistakes.append(f"--save: there is no folder {save.parent}")
    elif save and save.exists():
        mistakes.append(f"--save: {save} is there already; name another file")
    # Ray's processes look for modules where this one does.
    sys.path.insert(0, os.getcwd())
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    try:
        reach, contract = policy_behind(policy, rung)
        mistakes += [f"--task {task}: {sentence}" for task in tasks if task in TASKS for sentence in unfit(contract, task)]
    except ValueError as error:
        mistakes.append(f"--policy: {error}")
    if mistakes:
        raise SweepError("jobs.score", mistakes)

    rules = Rules(horizon, settle, success)
    chosen = SHIFTS if EVERY in shifts else tuple(dict.fromkeys(shifts))
    pairs = [(task, shift) for task in dict.fromkeys(tasks) for shift in chosen if not refusal(task, shift)]
    suites = {(task, shift): Suite((task,), episodes, rules, block, shift) for task, shift in pairs}
    listed = episodes * len(suites)
    quiet()
    click.echo(f"{policy}: {listed} episodes, starting Ray")
    connect()
    outcomes: list[Outcome] = []
    stopped = False
    try:
        with progress_bar("scoring") as progress:
            for outcome in progress.track(play(reach(workers), contract, list(suites.values()), workers), total=listed):
                outcomes.append(outcome)
    except KeyboardInterrupt:
        stopped = True
    if save and outcomes:
        write(save, outcomes)
    for task, shift in suites:
        score = Score.of((o for o in outcomes if (o.spec.task, o.spec.shift) == (task, shift)), episodes)
        click.echo(str(score) if len(suites) == 1 else f"{task}, {shift}: {score}")
    for message in sorted({outcome.message for outcome in outcomes if outcome.result == "error"}):
        click.echo(f"error: {message}", err=True)
    if stopped:
        sys.exit(130)
    if any(outcome.result == "error" for outcome in outcomes):
        sys.exit(1)


def policy_behind(name: str, rung: str) -> tuple[Callable[[int], "PolicySource"], "Contract"]:
    """How to reach it from so many workers, once Ray is there, and its conventions; ValueError with a sentence if there is none."""
    from policy.remote import RemoteError, RemotePolicy
    from sim_workers.sources import Named, Remote

    if Path(name).is_dir():
        return checkpoint(Path(name).resolve(), rung)
    if rung:
        raise ValueError(f"only a checkpoint's folder has a ladder to take --rung {rung} from")
    if "://" not in name:
        return lambda _: Named(name), Named(name).make().contract
    try:
        return lambda _: Remote(name), RemotePolicy(name, patience_s=3.0).contract
    except RemoteError as error:
        raise ValueError(str(error)) from None


def checkpoint(folder: Path, rung: str) -> tuple[Callable[[int], "PolicySource"], "Contract"]:
    """A checkpoint of ours, on as many policy servers as the workers need."""
    from orchestrator.cluster import resources
    from orchestrator.evaluate import policy_servers
    from orchestrator.placement import Placement
    from policy.checkpoint import load_card
    from sim_workers.served import Served

    card = load_card(folder)
    if rung and rung not in card.config.ladder:
        raise ValueError(f"{folder} has no rung {rung}; it has {', '.join(card.config.ladder)}")

    def serve(workers: int) -> Served:
        placement = Placement.fit(resources(), 1, workers, 1)
        return Served(policy_servers(placement.servers, placement.server_gpus, rung), str(folder))

    return serve, card.contract


def play(source: "PolicySource", contract: "Contract", suites: Sequence["Suite"], workers: int) -> Iterator["Outcome"]:
    """Every episode of the suites, as it is done."""
    from sim_workers.pool import RolloutPool
    from sim_workers.worker import RolloutJob

    pool = RolloutPool(workers)
    try:
        for suite in suites:
            for spec in suite.episode_list():
                pool.submit(RolloutJob(spec, suite.rules, contract, source))
        for _, outcome, _ in pool.results():
            yield outcome
    finally:
        pool.close()


def write(file: Path, outcomes: Sequence["Outcome"]) -> None:
    """A line per episode, in the order of their specs: .jsonl as `Outcome.from_json` reads it, .parquet with the spec's fields as columns."""
    rows = [outcome.to_json() for outcome in sorted(outcomes, key=lambda outcome: outcome.spec)]
    if file.suffix == ".jsonl":
        import json

        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    import pyarrow
    import pyarrow.parquet

    flat: list[dict[str, Any]] = [{**row.pop("spec"), **row} for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(flat), file)


if __name__ == "__main__":
    main()
