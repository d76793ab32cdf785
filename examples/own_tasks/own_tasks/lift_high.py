"""An own task of robosuite: the cube of Lift, but higher."""

from typing import Any

import numpy as np
import numpy.typing as npt

from sim_workers.demos.experts import LiftExpert
from sim_workers.envs.plugins import robosuite_task


class LiftHighExpert:
    """Scripted expert: that of Lift, which goes on rising."""

    horizon = 200

    def __init__(self) -> None:
        self._lift = LiftExpert()

    def act(self, env: Any) -> npt.NDArray[np.float64]:
        """Return the displacement of the hand, (7,) in [-1, 1], which the recorder turns into the contract's
        action.
        """
        return self._lift.act(env.state)


def _register() -> None:
    from . import lift_high_env  # noqa: F401  its class registers itself with robosuite


LIFT_HIGH = robosuite_task(
    environment="LiftHigh",
    register=_register,
    instruction="lift the red cube high",
    horizon=200,
    expert=LiftHighExpert,
    noise=(0.3, 0.3, 0.3, 0.0, 0.0, 0.15, 0.0),
)
