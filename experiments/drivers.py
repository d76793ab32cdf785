"""How much do the pictures of the same scenes differ between drivers, and how many episodes end otherwise?

    python -m experiments.drivers              about four minutes
    python -m experiments.drivers --quick      one episode, the fast render profile

Every driver of this machine renders in a process of its own: Mesa's two software rasterisers through EGL,
OSMesa, and a GPU's EGL. The first is the reference. The pictures are of the same states, after the same
actions. The policy of the episodes locates the cube in its pictures, so a pixel can change its actions.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from bench import harness
from orchestrator.testing.servo import cameras, servo

SOFTWARE = {
    "__EGL_VENDOR_LIBRARY_FILENAMES": "/usr/share/glvnd/egl_vendor.d/50_mesa.json",
    "CUDA_VISIBLE_DEVICES": "-1",
}
DRIVERS = {
    "egl, llvmpipe": SOFTWARE | {"MUJOCO_GL": "egl", "GALLIUM_DRIVER": "llvmpipe"},
    "egl, softpipe": SOFTWARE | {"MUJOCO_GL": "egl", "GALLIUM_DRIVER": "softpipe"},
    "osmesa": {"MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "osmesa"},
    "egl, the machine's own": {"MUJOCO_GL": "egl"},
}
PROFILES = ("default", "fast")
LOOKS, BETWEEN = 5, 8
"""Pictures of a scene, and random control steps between two of them."""


def draw(folder: Path, profile: str, episodes: int) -> None:
    """Write the name of this process's driver, its pictures, and the results of its episodes."""
    from sim_workers.envs.registry import make_env
    from sim_workers.envs.render import driver
    from sim_workers.rollout.episode import run_episode
    from sim_workers.rollout.suite import EpisodeRules, Suite

    env, rules = make_env("Lift", cameras(profile)), EpisodeRules(horizon=96, settle=0)
    pictures: list[npt.NDArray[np.uint8]] = []
    ends: list[tuple[bool, int]] = []
    for spec in Suite(("Lift",), episodes, rules).episode_list():
        rng = np.random.default_rng(spec.scene_seed)
        env.reset(spec.scene_seed)
        for _ in range(LOOKS):
            pictures += env.observe(0).images.values()
            for action in rng.uniform(-1, 1, (BETWEEN, len(env.contract.action))):
                env.step(action)
        outcome = run_episode(env, spec, rules, servo)
        ends.append((outcome.result == "success", outcome.steps))
    np.savez(folder / "drawn.npz", driver=driver(), pictures=np.stack(pictures), ends=np.array(ends))


def drawn(name: str, profile: str, episodes: int) -> dict[str, npt.NDArray[Any]] | None:
    """Return what `draw` writes with a driver; None if the machine does not have it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "experiments.drivers",
            "--draw",
            folder,
            profile,
            str(episodes),
        ]
        done = subprocess.run(command, env=os.environ | DRIVERS[name], capture_output=True, text=True)
        if done.returncode:
            return None
        with np.load(Path(folder) / "drawn.npz") as told:
            return dict(told)


def compared(profile: str, episodes: int) -> dict[str, Any]:
    """Print one row per driver, compared with the first; return their differences."""
    reference, answers = None, {}
    for name in DRIVERS:
        own = drawn(name, profile, episodes)
        if own is None:
            print(f"{profile:>9}  {name:<24} not on this machine")
            continue
        reference = own if reference is None else reference
        apart = np.abs(own["pictures"].astype(int) - reference["pictures"].astype(int))
        differ = (apart.max(-1) > 0).mean()
        ended_otherwise = (own["ends"] != reference["ends"]).any(-1).mean()
        print(
            f"{profile:>9} "
            f" {name:<24}{differ:>12.2%}{apart.mean():>10.3f}"
            f"{np.quantile(apart, 0.999):>8.0f}{apart.max():>6}"
            f"{own['ends'][:, 0].mean():>10.2f}{ended_otherwise:>17.0%}"
            f"   {own['driver']}",
            flush=True,
        )
        answers[f"{profile}, {name}"] = {
            "pixels_differ": round(float(differ), 5),
            "otherwise": round(float(ended_otherwise), 3),
        }
    return answers


@click.command()
@click.option("--quick", is_flag=True, help="A short look.")
@click.option("--draw", "drawing", nargs=3, type=(Path, str, int), hidden=True)
def main(quick: bool, drawing: tuple[Path, str, int] | None) -> None:
    """Print the table and, last, one line of JSON."""
    if drawing:
        return draw(*drawing)
    episodes, profiles = (1, PROFILES[-1:]) if quick else (10, PROFILES)
    print(
        f"Lift, wrist camera of 128 pixels; {episodes} scenes, {LOOKS} pictures and one episode of each;"
        " levels of 0 to 255\n"
    )
    print(
        f"{'profile':>9} "
        f" {'driver':<24}{'pixels differ':>12}{'mean':>9}{'99.9 %':>8}{'most':>6}"
        f"{'success':>10}{'ends otherwise':>17}"
        "   what draws"
    )
    answers: dict[str, Any] = {}
    for profile in profiles:
        answers |= compared(profile, episodes)
    harness.print_answer("drivers", {"against_the_first": answers, "episodes": episodes}, quick)


if __name__ == "__main__":
    harness.run(main)
