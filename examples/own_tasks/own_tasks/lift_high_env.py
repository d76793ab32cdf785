"""The environment of LiftHigh. Imports robosuite, so only the process that plays imports it."""

from robosuite.environments.manipulation.lift import Lift

HEIGHT_M = 0.15
"""Height of the cube above the table at which the task is done."""


class LiftHigh(Lift):
    """Robosuite's Lift with another success."""

    def _check_success(self) -> bool:
        cube = self.sim.data.body_xpos[self.cube_body_id][2]
        return bool(cube > self.model.mujoco_arena.table_offset[2] + HEIGHT_M)
