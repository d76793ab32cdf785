"""Test of a sweep whose processes are killed at random: no episode may be lost or counted twice, and the
curve must stay the same.

    python -m stress.chaos                30 faults; an hour on two busy cores
    python -m stress.chaos --quick        one of each kind; half an hour there

Six short arms, in two stages, trained by Ray Train and played in robosuite on two Ray nodes, all results in
SeaweedFS and in an MLflow server: first undisturbed, then again under `kill -9` of the driver, a training
worker, a policy server, a rollout worker, the control actor, Ray Train's controller, a trial of Ray Tune, the
actor that measures generated video, a whole node, the storage server or the MLflow server, an error in the
driver's watching thread, or a full disk, at moments drawn from a seed. A driver that ended is restarted with
the same command until it succeeds; servers and nodes come back after a few seconds. Exit code 1 if anything
differs. A full disk needs root, and is left out without it.
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
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from orchestrator.provenance import CHECKOUT
from orchestrator.testing.mlflow_server import MlflowServer
from orchestrator.testing.seaweedfs import SeaweedFS, running
from orchestrator.testing.small_disk import NoMountError, SmallDisk, small_disk
from stress.disturbed import KINDS, Disturbed, Outage, Place, undisturbed

DISK_MIB = 384


@dataclass(frozen=True)
class ServerOutage:
    """Outage of a server that is killed and started again."""

    server: SeaweedFS | MlflowServer

    def begin(self) -> None:
        """Kill the server."""
        self.server.kill()

    def end(self) -> None:
        """Start the server again."""
        self.server.start()


@dataclass(frozen=True)
class DiskOutage:
    """Outage of a disk that is full."""

    disk: SmallDisk

    def begin(self) -> None:
        """Fill the disk."""
        self.disk.fill()

    def end(self) -> None:
        """Free the disk."""
        self.disk.free()


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
                        if name not in ("worker", "simulated_on", "acted_on", "recorded")
                        and not name.endswith("_s")
                    }


def checkpoints(place: Place) -> dict[tuple[str, int], str]:
    """Return the checkpoints' fingerprints by arm and step."""
    from orchestrator.sweep.state import SweepState

    state = SweepState.named("chaos", place.storage)
    return {
        (arm.name, step): checkpoint.fingerprint
        for arm_id, arm in state.arms().items()
        for step, checkpoint in state.checkpoints(arm_id).items()
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
    (folder / "seaweed").mkdir()
    (folder / "mlflow").mkdir()
    with ExitStack() as stack:
        server = stack.enter_context(running(folder / "seaweed"))
        point(server.variables)
        tracking = MlflowServer(folder / "mlflow")
        stack.callback(tracking.kill)
        clips = int("video judge" in kinds)
        calm, wild = (Place(name, folder, tracking.url, seeds, clips) for name in ("calm", "wild"))
        outages: dict[str, Outage] = {
            "storage": ServerOutage(server),
            "mlflow server": ServerOutage(tracking),
        }
        if "full disk" in kinds:
            try:
                outages["full disk"] = DiskOutage(stack.enter_context(small_disk(wild.work, DISK_MIB)))
            except NoMountError as error:
                print(f"no full disk: {error}", file=sys.stderr)
                kinds = tuple(kind for kind in kinds if kind != "full disk")
        undisturbed(calm, episodes)
        disturbed = time.monotonic()
        tally = Disturbed(wild, episodes, outages, kills, random.Random(seed), kinds).run()
        tracking.wait()
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
@click.option("--kills", default=30, show_default=True, help="Number of faults.")
@click.option("--quick", is_flag=True, help="A short run: one fault of each kind.")
@click.option("--seed", default=0, show_default=True, help="Seed of the kinds and moments of the faults.")
def main(kills: int, quick: bool, seed: int) -> None:
    """Print the faults, their effect and, last, one line of JSON."""
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
                "kills_by_kind": {kind: shown[kind] for kind in KINDS if kind in shown},
                "seed": seed,
                "quick": quick,
            }
        )
    )
    sys.exit(not harmless(answers))


if __name__ == "__main__":
    main()
