"""Registry of the tasks and their simulators. Imports no simulator until one is made."""

from policy.interface import Contract
from sim_workers.envs import libero, robocasa, shifts, tasks
from sim_workers.envs import robosuite as env
from sim_workers.envs.render import PROFILES
from sim_workers.rollout.episode import Env

TASKS = (*tasks.TASKS, *libero.LIBERO_10, *robocasa.ROBOCASA_24)
"""Names of all tasks."""


def cameras_of(task: str) -> tuple[str, ...]:
    """Return the cameras that a policy of the task may use."""
    if task in libero.LIBERO_10:
        return libero.CAMERAS
    return robocasa.CAMERAS if task in robocasa.ROBOCASA_24 else tasks.cameras(task)


def contract_of(
    task: str, cameras: tuple[str, ...], image_size: tuple[int, int], render_profile: str
) -> Contract:
    """Return the contract of the task's simulator on this machine. Raises DemoscaleError if the simulator is
    not installed.
    """
    if task in libero.LIBERO_10:
        return libero.libero_contract(cameras, image_size, render_profile)
    if task in robocasa.ROBOCASA_24:
        return robocasa.robocasa_contract(cameras, image_size, render_profile)
    return env.contract(cameras, image_size, render_profile, task)


def unknown_views(task: str, cameras: tuple[str, ...], render_profile: str) -> list[str]:
    """Return one sentence for each of a command's --cameras and --render-profile with an unknown name."""
    sentences = []
    if render_profile not in PROFILES:
        sentences.append(
            f"--render-profile: unknown profile {render_profile}; known are {', '.join(PROFILES)}"
        )
    if unknown := [camera for camera in cameras if camera not in cameras_of(task)]:
        sentences.append(
            f"--cameras: unknown camera {', '.join(unknown)}; {task} has {', '.join(cameras_of(task))}"
        )
    return sentences


def unfit(policy: Contract, task: str) -> list[str]:
    """Return the reasons why a policy with this contract cannot play the task on this machine, one sentence
    each.
    """
    views = cameras_of(task)
    sentences = [
        f"the policy needs the camera {camera}; the task has {', '.join(views)}"
        for camera in policy.cameras
        if camera not in views
    ]
    if policy.render_profile not in PROFILES:
        sentences.append(
            f"the policy needs the render profile {policy.render_profile}; known are {', '.join(PROFILES)}"
        )
    return sentences + policy.mismatches(
        contract_of(task, policy.cameras, policy.image_size, policy.render_profile)
    )


def refusal(task: str, shift: str) -> str:
    """Return why the task has no such shift, as one sentence; empty if it has one."""
    if task in tasks.TASKS or shift == "nominal":
        return shifts.refusal(task, shift)
    return f"there is no {shift} shift of {task}: shifts are made of robosuite's own tasks"


def make_env(task: str, contract: Contract, shift: str = "nominal", variant: int = 0) -> Env:
    """Return the task's simulator in this process, which must have no other open one. The GL backend is
    chosen before the simulator is imported.

    Raises ValueError if the task has no such shift, DemoscaleError with the remedy if its simulator is not
    installed.
    """
    if refused := refusal(task, shift):
        raise ValueError(refused)
    if task in tasks.TASKS:
        return env.SimEnv(task, contract, shift, variant)
    return (
        libero.LiberoEnv(task, contract) if task in libero.LIBERO_10 else robocasa.RobocasaEnv(task, contract)
    )
