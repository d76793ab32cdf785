"""Which MuJoCo settles LIBERO's scenes as its tasks say, and draws its pictures alike?

    python -m experiments.libero_versions              installs six versions of MuJoCo; about ten minutes
    python -m experiments.libero_versions --quick      the installed version, few scenes

Every version plays in a process of its own, on the installed robosuite and LIBERO. The fixed states of the
task with the bowl on the ramekin hold the bowl in the air above it, on which it must come to rest in the idle
steps before the first observation. Pictures are of the first observation of other tasks; pixels and positions
are compared with the first version of the table.
"""

import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench import harness

NAME = "experiments.libero_versions"
VERSIONS = ("3.3.0", "3.3.2", "3.3.3", "3.3.7", "3.4.0", "3.9.0")
RAMEKIN = "libero_spatial/pick_up_the_black_bowl_on_the_ramekin_and_place_it_on_the_plate"
DRAWN = (
    "libero_object/pick_up_the_milk_and_place_it_in_the_basket",
    "libero_10/KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it",
    "libero_10/LIVING_ROOM_SCENE1_put_both_the_alphabet_soup_and_the_cream_cheese_box_in_the_basket",
)
IDLE = 20
"""Further control steps of a zero action after the reset, in which everything comes to rest."""
OFF_CENTRE_M, TILT_DEGREES = 0.03, 10.0
"""A bowl farther from the ramekin's middle, or tilted more, is not on it."""


def measure(scenes: int, task: str, folder: Path) -> None:
    """Write, for one task, pictures at the first look, positions after IDLE steps and the bowl's rest."""
    from sim_workers.envs.libero import CAMERAS, LiberoEnv, libero_contract

    env = LiberoEnv(task, libero_contract(CAMERAS, (128, 128), "default"), "libero")
    pictures, ends, seated = [], [], []
    for scene in range(scenes):
        env.reset(scene)
        pictures += list(env.pictures().values())
        for _ in range(IDLE):
            env.step(np.zeros(7))
        ends.append(env.flat_state[1 : 1 + env.position_count])
        if task == RAMEKIN:
            bowl, ramekin = (
                env.state["akita_black_bowl_1_pos"],
                env.state["glazed_rim_porcelain_ramekin_1_pos"],
            )
            x, y = env.state["akita_black_bowl_1_quat"][:2]
            tilt = np.degrees(np.arccos(np.clip(1 - 2 * (x * x + y * y), -1, 1)))
            off = np.linalg.norm((bowl - ramekin)[:2])
            seated.append([off, tilt])
    np.savez(
        folder / "measured.npz", pictures=np.stack(pictures), ends=np.stack(ends), seated=np.array(seated)
    )


def measured(wanted: str, place: str, scenes: int, task: str) -> dict[str, Any] | None:
    """Return what `measure` writes with the MuJoCo in the folder `place`, the installed one if empty; None if
    the version cannot play.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [path for path in (place, os.environ.get("PYTHONPATH", "")) if path]
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", NAME, "--measure", str(scenes), task, folder],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "MUJOCO_GL": "egl"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            print(f"{wanted:>7}  {(done.stderr.strip().splitlines() or ['failed'])[-1][:120]}")
            return None
        with np.load(Path(folder) / "measured.npz") as told:
            return dict(told)


def install(wanted: str, folder: str) -> str:
    """Install a version of MuJoCo into a folder of its own and return it; empty for the installed version."""
    if wanted == version("mujoco"):
        return ""
    place = str(Path(folder) / f"mujoco-{wanted}")
    command = ["uv", "pip", "install", "--quiet", "--python", sys.executable, "--target", place, "--no-deps"]
    subprocess.run([sys.executable, "-m", *command, f"mujoco=={wanted}"], check=True)
    return place


@click.command()
@click.option("--quick", is_flag=True, help="A short look.")
@click.option("--measure", "measuring", nargs=3, type=(int, str, Path), hidden=True)
def main(quick: bool, measuring: tuple[int, str, Path] | None) -> None:
    """Print the table and, last, one line of JSON."""
    if measuring:
        return measure(*measuring)
    versions, scenes, few = ((version("mujoco"),), 2, 1) if quick else (VERSIONS, 20, 3)
    drawn = DRAWN[:1] if quick else DRAWN
    print(
        f"{scenes} scenes of the bowl on the ramekin, {few} of {len(drawn)} other tasks; levels of 0"
        " to 255\n\n"
        f"{'MuJoCo':>7}  {'bowl on the ramekin':>19}{'off its middle, mm':>20}{'tilt, degrees':>15}"
        f"{'positions differ, mm':>22}{'pixels differ':>15}{'mean level':>12}"
    )
    answers, first = dict[str, Any](), None
    with tempfile.TemporaryDirectory() as folder:
        for wanted in versions:
            place = install(wanted, folder)
            bowl = measured(wanted, place, scenes, RAMEKIN)
            others = [measured(wanted, place, few, task) for task in drawn]
            if bowl is None or None in [other and 1 for other in others]:
                continue
            first = first or (bowl, others)
            off, tilt = np.median(bowl["seated"], axis=0)
            on = np.mean((bowl["seated"] < (OFF_CENTRE_M, TILT_DEGREES)).all(-1))
            pairs = [(a, b) for a, b in zip(others, first[1], strict=True) if a is not None and b is not None]
            moved = max(float(np.abs(a["ends"] - b["ends"]).max()) for a, b in pairs)
            apart = np.concatenate(
                [np.abs(a["pictures"].astype(int) - b["pictures"]).max(-1) for a, b in pairs]
            )
            level = float(np.mean([a["pictures"].mean() for a, _ in pairs]))
            print(
                f"{wanted:>7}  {on:>19.0%}{1000 * off:>20.1f}{tilt:>15.1f}{1000 * moved:>22.1f}"
                f"{(apart > 0).mean():>15.1%}{level:>12.2f}",
                flush=True,
            )
            answers[wanted] = {"on_the_ramekin": round(float(on), 3), "mean_level": round(level, 2)}
    harness.print_answer("libero_versions", {"versions": answers, "scenes": scenes}, quick)


if __name__ == "__main__":
    harness.run(main)
