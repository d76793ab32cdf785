"""Which simulator plays a task, and what it offers. Imports none of them until one is made."""

from policy.interface import Contract
from sim_workers import env, tasks
from sim_workers.rollout import Env


def cameras_of(task: str) -> tuple[str, ...]:
    """What the task's scene can be seen from."""
    return tasks.cameras(task)


def contract_of(task: str, cameras: tuple[str, ...], image_size: tuple[int, int], render_profile: str) -> Contract:
    """What the task's simulator offers and takes on this machine."""
    return env.contract(cameras, image_size, render_profile, task)


def make_env(task: str, contract: Contract, shift: str = "nominal", variant: int = 0) -> Env:
    """The task's simulator in this process, which must have no other alive. Its GL backend is chosen here, before it is imported."""
    return env.SimEnv(task, contract, shift, variant)
