"""Which MuJoCo settles LIBERO's scenes as its tasks say, and draws its pictures alike?

    python -m experiments.libero_versions              installs five versions of MuJoCo; about ten minutes
    python -m experiments.libero_versions --quick      the installed version, few scenes

Every version plays in a process of its own, on the installed robosuite and LIBERO (`make libero`). The fixed
states of one task hold the bowl in the air above the ramekin, on which it must come to rest. Pictures are of
the first observation of other tasks; pixels, and positions at rest, are compared with the table's first row.
"""

import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from bench import harness
from sim_workers.envs.libero import ON_THE_RAMEKIN

NAME = "experiments.libero_versions"
VERSIONS = ("3.3.0", "3.3.2", "3.3.3", "3.3.7", "3.4.0", "3.9.0")
DRAWN = (
    "libero_object/pick_up_the_milk_and_place_it_in_the_basket",
    "libero_10/KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it",
    "libero_10/LIVING_ROOM_SCENE1_put_both_the_alphabet_soup_and_the_cream_cheese_box_in_the_basket",
)
IDLE = 20
"""Control steps of a zero action after the reset, in which everything comes to rest."""
OFF_CENTRE_M = 0.03
"""A bowl farther from the ramekin's middle is not on it, as LIBERO's own predicate `On` says."""


@dataclass(frozen=True)
class Played:
    """What a version of MuJoCo made of the scenes of a task."""

    pictures: npt.NDArray[np.uint8]
    """(scenes x cameras, height, width, 3): at the first observation."""
    positions: npt.NDArray[np.float64]
    """(scenes, generalised positions): at rest; metres for all that is free to move."""
    seated: npt.NDArray[np.float64]
    """(scenes, 2): the bowl's distance from the ramekin's middle in metres, and its tilt in degrees; of other
    tasks (0, 2).
    """


def play(scenes: int, task: str, file: Path) -> None:
    """Play the first scenes of a task with the MuJoCo of this process; write them to a file."""
    from sim_workers.envs.libero import CAMERAS, LiberoEnv, libero_contract

    env = LiberoEnv(task, libero_contract(CAMERAS, (128, 128), "default"), "libero")
    pictures, positions, seated = [], [], []
    for scene in range(scenes):
        env.reset(scene)
        pictures += list(env.pictures().values())
        for _ in range(IDLE):
            env.step(np.zeros(7))
        positions.append(env.flat_state[1 : 1 + env.position_count])
        if task == ON_THE_RAMEKIN:
            state = env.state
            apart = state["akita_black_bowl_1_pos"] - state["glazed_rim_porcelain_ramekin_1_pos"]
            x, y = state["akita_black_bowl_1_quat"][:2]
            tilt = np.degrees(np.arccos(np.clip(1 - 2 * (x * x + y * y), -1, 1)))
            seated.append((np.linalg.norm(apart[:2]), tilt))
    played = Played(np.stack(pictures), np.stack(positions), np.array(seated).reshape(-1, 2))
    np.savez(file, **asdict(played))


def played_with(folder: str, scenes: int, task: str) -> Played:
    """Return what the MuJoCo in a folder makes of a task's scenes; the installed one's if it is empty.

    Raises CalledProcessError if the version cannot play.
    """
    with tempfile.TemporaryDirectory() as results:
        file = Path(results) / "played.npz"
        paths = [path for path in (folder, os.environ.get("PYTHONPATH", "")) if path]
        subprocess.run(
            [sys.executable, "-W", "ignore", "-m", NAME, "--play", str(scenes), task, str(file)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "MUJOCO_GL": "egl"},
            capture_output=True,
            text=True,
            check=True,
        )
        with np.load(file) as arrays:
            return Played(**arrays)


def install(wanted: str, root: str) -> str:
    """Install a version of MuJoCo into a folder of its own; return it, empty for the installed version."""
    if wanted == version("mujoco"):
        return ""
    folder = str(Path(root) / f"mujoco-{wanted}")
    command = ["uv", "pip", "install", "--quiet", "--python", sys.executable, "--target", folder, "--no-deps"]
    subprocess.run([sys.executable, "-m", *command, f"mujoco=={wanted}"], check=True)
    return folder


@dataclass(frozen=True)
class Compared:
    """A row of the table; differences are from its first row."""

    on_the_ramekin: float
    """Share of scenes in which the bowl comes to rest on it."""
    off_mm: float
    """Median over the scenes, like the tilt."""
    tilt_degrees: float
    moved_mm: float
    """Largest difference of a position at rest."""
    pixels: float
    """Share of pixels that differ."""
    level: float
    """Mean of all pictures, 0 to 255."""


def compared(bowl: Played, drawn: list[Played], first: list[Played]) -> Compared:
    """Compare the pictures and positions of tasks with those of the first version."""
    pairs = list(zip(drawn, first, strict=True))
    apart = [np.abs(one.pictures.astype(int) - other.pictures).max(-1) > 0 for one, other in pairs]
    off, tilt = np.median(bowl.seated, axis=0)
    return Compared(
        on_the_ramekin=float(np.mean(bowl.seated[:, 0] < OFF_CENTRE_M)),
        off_mm=1000 * float(off),
        tilt_degrees=float(tilt),
        moved_mm=max(1000 * float(np.abs(one.positions - other.positions).max()) for one, other in pairs),
        pixels=float(np.mean(np.concatenate(apart))),
        level=float(np.mean([one.pictures.mean() for one in drawn])),
    )


@click.command()
@click.option("--quick", is_flag=True, help="A short look.")
@click.option("--play", "playing", nargs=3, type=(int, str, Path), hidden=True)
def main(quick: bool, playing: tuple[int, str, Path] | None) -> None:
    """Print the table and, last, one line of JSON."""
    if playing:
        return play(*playing)
    versions, scenes, few = ((version("mujoco"),), 2, 1) if quick else (VERSIONS, 20, 3)
    tasks = DRAWN[:1] if quick else DRAWN
    print(
        f"{scenes} scenes of the bowl on the ramekin, {few} of each of {len(tasks)} other tasks\n\n"
        f"{'MuJoCo':>7}{'on the ramekin':>16}{'off its middle, mm':>20}{'tilt, degrees':>15}"
        f"{'positions differ, mm':>22}{'pixels differ':>15}{'mean level':>12}"
    )
    rows, first = dict[str, Compared](), list[Played]()
    with tempfile.TemporaryDirectory() as root:
        for wanted in versions:
            folder = install(wanted, root)
            try:
                bowl = played_with(folder, scenes, ON_THE_RAMEKIN)
                drawn = [played_with(folder, few, task) for task in tasks]
            except subprocess.CalledProcessError as error:
                print(f"{wanted:>7}  cannot play: {(error.stderr.strip().splitlines() or ['?'])[-1][:120]}")
                continue
            first = first or drawn
            row = rows[wanted] = compared(bowl, drawn, first)
            print(
                f"{wanted:>7}{row.on_the_ramekin:>16.0%}{row.off_mm:>20.1f}{row.tilt_degrees:>15.1f}"
                f"{row.moved_mm:>22.1f}{row.pixels:>15.1%}{row.level:>12.2f}",
                flush=True,
            )
    answer = {
        name: {"on_the_ramekin": round(row.on_the_ramekin, 3), "level": round(row.level, 2)}
        for name, row in rows.items()
    }
    harness.print_answer("libero_versions", {"versions": answer, "scenes": scenes}, quick)


if __name__ == "__main__":
    harness.run(main)
