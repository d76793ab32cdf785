"""Test of a sweep whose processes are killed at random: no episode may be lost or counted twice, and the
curve must stay the same.

    python -m stress.chaos                30 kills; half an hour on two busy cores
    python -m stress.chaos --quick        one of each kind; a quarter of an hour there

Six short arms trained by Ray Train and played in robosuite, all results in SeaweedFS: first undisturbed, then
again under `kill -9` of the driver, a training worker, a policy server, a rollout worker, the control actor,
Ray Train's controller, a trial of Ray Tune or the storage server, at moments drawn from a seed. A dead driver
is restarted with the same command until it succeeds; the storage server is restarted after a few seconds.
Exit code 1 if anything differs.
"""

import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from orchestrator.provenance import CHECKOUT
from orchestrator.testing.seaweedfs import running
from stress.disturbed import KINDS, Disturbed, Place, undisturbed


def rows(place: Place, sealed: bool) -> Iterator[dict[str, Any]]:
    """Yield every finished episode of the sealed ledgers, or of their parts, without its worker, time of
    recording and durations.
    """
    import pyarrow.parquet as pq

    from orchestrator.storage.base import open_storage

    storage = open_storage(place.storage)
    for key in storage.list("outcomes/"):
        if key.endswith(".parquet") and (key.count("/") == 2) == sealed:
            for row in pq.read_table(io.BytesIO(storage.get(key))).to_pylist():
                if row["result"] != "error":
                    yield {
                        name: value
                        for name, value in row.items()
                        if name not in ("worker", "recorded") and not name.endswith("_s")
                    }


def checkpoints(place: Place) -> dict[tuple[str, int], str]:
    """Return the checkpoints' fingerprints by arm and step."""
    from orchestrator.sweep.state import SweepState

    state = SweepState.named("chaos", place.storage)
    return {
        (arm.name, step): told["checkpoint"]
        for arm_id, arm in state.arms().items()
        for step, told in state.checkpoints(arm_id).items()
    }


def points(place: Place) -> list[dict[str, Any]]:
    """Return the curve's points, as the command prints them, without their cost, which includes lost work."""
    command = [
        sys.executable,
        "-m",
        "orchestrator",
        "curve",
        "chaos",
        "--storage",
        place.storage,
        "--mlflow",
        place.mlflow,
        "--json",
    ]
    answer: dict[str, Any] = json.loads(
        subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.PIPE, check=True).stdout
    )
    found: list[dict[str, Any]] = answer["points"]
    return [{name: value for name, value in point.items() if name != "cost"} for point in found]


def compared(calm: Place, wild: Place) -> dict[str, Any]:
    """Compare the results of a disturbed sweep with those of an undisturbed one."""

    def episode(row: dict[str, Any]) -> tuple[str, str, str]:
        return row["checkpoint"], row["protocol"], row["episode"]

    expected = {episode(row): row for row in rows(calm, sealed=True)}
    counted, recorded = [*rows(wild, sealed=True)], [*rows(wild, sealed=False)]
    return {
        "episodes": len(expected),
        "lost": len(expected.keys() - {*map(episode, counted)}),
        "double_counted": len(counted) - len({*map(episode, counted)}),
        "recorded_twice": len(recorded) - len({*map(episode, recorded)}),
        "different": sum(row != expected.get(episode(row)) for row in (*counted, *recorded)),
        "equal_checkpoints": checkpoints(calm) == checkpoints(wild),
        "equal_curve": points(calm) == points(wild),
    }


def chaos(
    folder: Path,
    episodes: Path,
    kills: int,
    seed: int,
    point: Callable[[dict[str, str]], None] = os.environ.update,
    seeds: int = 3,
    kinds: tuple[str, ...] = KINDS,
) -> dict[str, Any]:
    """Run the sweep undisturbed and disturbed, and compare. A sweep has two arms per training seed.

    episodes: a store with six or more episodes of Lift. point: sets the environment variables of an S3
    server.
    """
    began = time.monotonic()
    calm, wild = Place("calm", folder, seeds), Place("wild", folder, seeds)
    (folder / "seaweed").mkdir()
    with running(folder / "seaweed") as server:
        point(server.variables)
        undisturbed(calm, episodes)
        disturbed = time.monotonic()
        tally = Disturbed(wild, episodes, server, kills, random.Random(seed), kinds).run()
        ended = time.monotonic()
        return {
            "arms": len({arm for arm, _ in checkpoints(calm)}),
            "kills": sum(tally.kills.values()),
            "kills_by_kind": {kind: tally.kills[kind] for kind in kinds},
            "restarts": tally.restarts,
            **compared(calm, wild),
            "undisturbed_s": round(disturbed - began),
            "disturbed_s": round(ended - disturbed),
            "wall_s": round(time.monotonic() - began),
        }


def harmless(answers: dict[str, Any]) -> bool:
    """Return whether the kills had no effect on the results."""
    wrong = [answers[name] for name in ("lost", "double_counted", "different")]
    return (
        not any(wrong) and answers["equal_checkpoints"] and answers["equal_curve"] and answers["episodes"] > 0
    )


@click.command()
@click.option("--kills", default=30, show_default=True, help="How many processes to kill.")
@click.option("--quick", is_flag=True, help="A short look: one kill of each kind.")
@click.option("--seed", default=0, show_default=True, help="Of what is killed, and when.")
def main(kills: int, quick: bool, seed: int) -> None:
    """Print what was killed and what it came to and, last, one line of JSON."""
    kills = len(KINDS) if quick else kills
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        store = Path(folder, "lift")
        collect = [
            sys.executable,
            "-m",
            "orchestrator",
            "collect",
            "--task",
            "Lift",
            "--episodes",
            "6",
            "--store",
            str(store),
        ]
        subprocess.run(collect, cwd=CHECKOUT, stdout=subprocess.DEVNULL, check=True)
        answers = chaos(Path(folder), store, kills, seed)
    shown = {**answers.pop("kills_by_kind"), **answers}
    print("\n".join(f"{name.replace('_', ' '):<24}{value}" for name, value in shown.items()) + "\n")
    print(
        json.dumps(
            {
                "bench": "chaos",
                **answers,
                "kills_by_kind": {kind: shown[kind] for kind in KINDS},
                "seed": seed,
                "quick": quick,
            }
        )
    )
    sys.exit(not harmless(answers))


if __name__ == "__main__":
    main()
