"""Contract test of a task's environment, for a package's own tests."""

from collections.abc import Callable

from sim_workers.envs.check import check_env as results
from sim_workers.rollout.episode import Env


def check_env(make_env: Callable[[], Env]) -> None:
    """Play a few steps and check what scores rely on; raise AssertionError with every problem, one a line.

    make_env: returns the environment; called twice, the second time after the first was closed.
    """
    problems = [f"{check.name}: {check.problem}" for check in results(make_env) if check.problem]
    assert not problems, "\n".join(problems)
