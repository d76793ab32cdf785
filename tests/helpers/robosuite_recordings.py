"""Recordings for the importers: robosuite plays under its own recorder, and the recorded states are
rendered.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

HZ = 20
CAMERAS = ("agentview", "robot0_eye_in_hand")
VECTORS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
INSTRUCTION = "lift the red cube"
CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Recorded:
    """One demonstration: L steps, pictures upright."""

    frames: dict[str, np.ndarray]
    vectors: dict[str, np.ndarray]
    action: np.ndarray

    @property
    def proprio(self) -> np.ndarray:
        return np.concatenate([self.vectors[key] for key in VECTORS], 1)


def record(folder: Path, episodes: int = 3) -> None:
    """Play Lift with the scripted expert under robosuite's recorder, gather demo.hdf5 with robosuite's own
    script, then render the recorded states. Leaves `demo.hdf5` and `episodes.npz`. In a process of its own: a
    simulator is one per process.
    """
    from sim_workers.demos.experts import expert_for
    from sim_workers.envs.render import PROFILES, build_context, choose_backend

    choose_backend()
    import robosuite
    from robosuite.controllers import load_composite_controller_config
    from robosuite.scripts.collect_human_demonstrations import gather_demonstrations_as_hdf5
    from robosuite.wrappers import DataCollectionWrapper

    controller = load_composite_controller_config(robot="Panda")
    config = {"env_name": "Lift", "robots": ["Panda"], "controller_configs": controller}
    common = {"control_freq": HZ, "ignore_done": True, "has_renderer": False}
    env: Any = robosuite.make(
        **config, **common, has_offscreen_renderer=False, use_camera_obs=False, hard_reset=False, seed=0
    )
    recorder = DataCollectionWrapper(env, str(folder / "raw"))
    for number in range(episodes):
        state, expert, lingered = recorder.reset(), expert_for("Lift"), 0
        while lingered < 3 + 4 * number:  # so that no two have one length
            state = recorder.step(expert.act(state))[0]
            lingered = lingered + 1 if env._check_success() or lingered else 0
    recorder.close()
    gather_demonstrations_as_hdf5(str(folder / "raw"), str(folder), json.dumps(config))

    env = robosuite.make(
        **config,
        **common,
        has_offscreen_renderer=True,
        use_camera_obs=True,
        camera_names=list(CAMERAS),
        camera_heights=64,
        camera_widths=64,
        renderer="mujoco",
    )
    arrays = {}
    with h5py.File(folder / "demo.hdf5", "r") as file:
        for number, demo in enumerate(sorted(file["data"])):
            env.reset_from_xml_string(env.edit_model_xml(file["data"][demo].attrs["model_file"]))
            build_context(env.sim, PROFILES["fast"], (64, 64))
            seen: dict[str, list[Any]] = {
                key: [] for key in (*VECTORS, *(f"{camera}_image" for camera in CAMERAS))
            }
            for state in file["data"][demo]["states"]:
                env.sim.reset()
                env.sim.set_state_from_flattened(state)
                env.sim.forward()
                observed = env._get_observations(force_update=True)
                for key, values in seen.items():
                    values.append(observed[key])
            for key, values in seen.items():
                stacked = np.stack(values)
                # robosuite's observations are in OpenGL's row order
                arrays[f"{number}/{key}"] = stacked[:, ::-1] if key.endswith("_image") else stacked
            arrays[f"{number}/actions"] = file["data"][demo]["actions"][()]
    env.close()
    np.savez(folder / "episodes.npz", **arrays)


def record_in_process(folder: Path) -> None:
    """Record into a new folder, in a process of its own."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__)), str(folder)],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def load(folder: Path) -> list[Recorded]:
    with np.load(folder / "episodes.npz") as arrays:
        numbers = sorted({int(key.partition("/")[0]) for key in arrays})
        return [
            Recorded(
                {camera: arrays[f"{n}/{camera}_image"] for camera in CAMERAS},
                {key: arrays[f"{n}/{key}"] for key in VECTORS},
                arrays[f"{n}/actions"],
            )
            for n in numbers
        ]


if __name__ == "__main__":
    record(Path(sys.argv[1]))
