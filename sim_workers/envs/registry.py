"""Registry of the tasks and their simulators: those of this package, and those of plug-ins. Imports neither a
simulator nor a plug-in until a task is used.
"""

from dataclasses import replace

from policy.errors import DemoscaleError
from policy.interface import Contract
from sim_workers.envs import embodiment as embodiments
from sim_workers.envs import libero, plugins, robocasa, shifts, tasks
from sim_workers.envs import robosuite as env
from sim_workers.envs.embodiment import DEFAULT, DEFAULT_ROBOT, Embodiment, EmbodimentError, embodiment_of
from sim_workers.envs.plugins import PluginError as PluginError
from sim_workers.envs.render import PROFILES
from sim_workers.rollout.episode import Env
from sim_workers.rollout.suite import Reset

TASKS = (*tasks.TASKS, *libero.LIBERO, *robocasa.ROBOCASA_24)
"""Names of all tasks of this package."""


def task_names() -> tuple[str, ...]:
    """Return the names of all tasks, those of plug-ins last."""
    return (*TASKS, *(name for name in plugins.names() if name not in TASKS))


def is_task(name: str) -> bool:
    """Return whether there is such a task, of this package or of an installed plug-in."""
    return name in TASKS or is_plugin(name)


def is_plugin(task: str) -> bool:
    """Return whether the task is one of a plug-in; a name of this package is never."""
    return task not in TASKS and task in plugins.names()


def environment_of(task: str) -> str:
    """Return the name of the task's robosuite environment, whose embodiment can be chosen; empty for other
    simulators. Raises PluginError for a broken plug-in.
    """
    if task in tasks.TASKS:
        return task
    return plugins.load(task).environment if is_plugin(task) else ""


def cameras_of(task: str) -> tuple[str, ...]:
    """Return the cameras that a policy of the task may use, without configured ones. Raises PluginError for a
    broken plug-in.
    """
    if is_plugin(task):
        return plugins.load(task).cameras
    if task in libero.LIBERO:
        return libero.CAMERAS
    return robocasa.CAMERAS if task in robocasa.ROBOCASA_24 else tasks.cameras(task)


def instruction_of(task: str) -> str:
    """Return the task as a sentence. Raises PluginError for a broken plug-in."""
    if is_plugin(task):
        return plugins.load(task).instruction
    return {**tasks.TASKS, **libero.LIBERO, **robocasa.ROBOCASA_24}[task]


def horizon_of(task: str) -> int:
    """Return the control steps until an episode of the task counts as failed, as its authors or its scripted
    expert state them. Raises PluginError for a broken plug-in.
    """
    if is_plugin(task):
        return plugins.load(task).horizon
    if task in libero.LIBERO:
        return libero.horizon_of(task)
    return robocasa.REGISTERED_HORIZONS[task] if task in robocasa.ROBOCASA_24 else tasks.horizon_of(task)


def contract_of(
    task: str,
    cameras: tuple[str, ...],
    image_size: tuple[int, int],
    render_profile: str,
    embodiment: Embodiment | None = None,
) -> Contract:
    """Return the contract of the task's simulator on this machine. embodiment: of robosuite's tasks, the
    default one by default.

    Raises DemoscaleError if the simulator is not installed or the plug-in is broken, EmbodimentError if the
    task cannot have the embodiment.
    """
    if name := environment_of(task):
        return env.contract(cameras, image_size, render_profile, name, embodiment or DEFAULT)
    if embodiment not in (None, DEFAULT):
        raise EmbodimentError(
            f"robot, controller, proprioception, rate and poses of cameras of {task} are its own and cannot"
            " be chosen"
        )
    if is_plugin(task):
        return plugins.load(task).contract(cameras, image_size, render_profile)
    if task in libero.LIBERO:
        return libero.libero_contract(cameras, image_size, render_profile)
    return robocasa.robocasa_contract(cameras, image_size, render_profile)


def unknown_views(
    task: str, cameras: tuple[str, ...], render_profile: str, configured: tuple[str, ...] = ()
) -> list[str]:
    """Return one sentence for each of a command's --cameras and --render-profile with an unknown name.
    configured: names of cameras that a configuration places.
    """
    sentences = []
    if render_profile not in PROFILES:
        sentences.append(
            f"--render-profile: unknown profile {render_profile}; known are {', '.join(PROFILES)}"
        )
    known = (*cameras_of(task), *configured)
    if unknown := [camera for camera in cameras if camera not in known]:
        sentences.append(
            f"--cameras: unknown camera {', '.join(unknown)}; {task} has {', '.join(known)}"
            + (
                "; there are no pictures of depth"
                if any(camera.endswith(("_depth", "_segmentation")) for camera in unknown)
                else ""
            )
        )
    return sentences


def unfit(policy: Contract, task: str) -> list[str]:
    """Return the reasons why a policy with this contract cannot play the task on this machine, one sentence
    each.
    """
    try:
        views = (*cameras_of(task), *(pose.name for pose in policy.poses))
        sentences = [
            f"the policy needs the camera {camera}; the task has {', '.join(views)}"
            for camera in policy.cameras
            if camera not in views
        ]
        if policy.render_profile not in PROFILES:
            sentences.append(
                f"the policy needs the render profile {policy.render_profile}; known are"
                f" {', '.join(PROFILES)}"
            )
        if problem := libero.scene_problem(task):
            sentences.append(problem)
        return sentences + _offered_to(policy, task)
    except PluginError as error:
        return [str(error)]


def _offered_to(policy: Contract, task: str) -> list[str]:
    """Return in what the simulator that fits best differs from the policy's contract."""
    if policy.robot == DEFAULT_ROBOT:  # the default is not named
        policy = replace(policy, robot="")
    views = (policy.cameras, policy.image_size, policy.render_profile)
    if name := environment_of(task):
        try:
            return policy.mismatches(contract_of(task, *views, embodiment_of(policy, name)))
        except EmbodimentError:
            return policy.mismatches(contract_of(task, *views))
    if task in libero.LIBERO:
        return policy.mismatches(libero.libero_contract(*views, policy.proprio))
    return policy.mismatches(contract_of(task, *views))


def not_lean(policy: Contract, task: str) -> str:
    """Return why the task's simulator takes robosuite's own control steps instead of the lean ones
    (`fast_control.py`), as a phrase; empty if they are lean, or the simulator is another.

    The contract fits the task (`unfit`). Raises PluginError for a broken plug-in.
    """
    name = environment_of(task)
    return embodiments.not_lean(embodiment_of(policy, name)) if name else ""


def refusal(task: str, shift: str) -> str:
    """Return why the task has no such shift, as one sentence; empty if it has one."""
    if task in tasks.TASKS or shift == "nominal":
        return shifts.refusal(task, shift)
    return f"there is no {shift} shift of {task}: shifts are made of robosuite's own tasks"


def make_env(
    task: str, contract: Contract, shift: str = "nominal", variant: int = 0, reset: Reset = "settled"
) -> Env:
    """Return the task's simulator in this process, which must have no other open one. The GL backend is
    chosen before the simulator is imported. reset: how episodes begin, for LIBERO's tasks.

    Raises ValueError if the task has no such shift or reset, DemoscaleError with the remedy if its simulator
    is not installed or its plug-in is broken or another version than the contract's.
    """
    if refused := refusal(task, shift):
        raise ValueError(refused)
    if reset != "settled" and task not in libero.LIBERO:
        raise ValueError(f"the reset {reset} is one of LIBERO's tasks, not of {task}")
    if task in tasks.TASKS:
        return env.SimEnv(task, contract, shift, variant)
    if is_plugin(task):
        return _made_by_plugin(task, contract)
    if task in libero.LIBERO:
        return libero.LiberoEnv(task, contract, reset)
    return robocasa.RobocasaEnv(task, contract)


def _made_by_plugin(task: str, contract: Contract) -> Env:
    if different := unfit(contract, task):
        raise PluginError(f"the package {plugins.package(task)} does not fit: {'; '.join(different)}")
    try:
        return plugins.load(task).make(contract)
    except DemoscaleError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise PluginError(
            f"the task {task} of the package {plugins.package(task)} cannot be made:"
            f" {type(error).__name__}: {said}"
        ) from error
