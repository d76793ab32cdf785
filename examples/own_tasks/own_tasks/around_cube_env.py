"""The environments of the tasks around the cube. Imports robosuite, so only the process that plays imports
it.
"""

import numpy as np
from robosuite.environments.manipulation.lift import Lift

from .around_cube import DIRECTIONS, TOLERANCE_M, environment, place

SPREAD_M = (0.08, 0.12)
"""Largest distance of the cube from the table's middle along x and along y."""
REST_M_S = 0.1
"""Speed of the hand below which it rests, so that passing through a place is no success."""


class AroundCube(Lift):
    """Robosuite's Lift with a wider spread of the cube; done once the hand rests at its place."""

    direction = ""

    def _load_model(self) -> None:
        super()._load_model()
        x, y = SPREAD_M
        self.placement_initializer.x_range = [-x, x]
        self.placement_initializer.y_range = [-y, y]

    def _check_success(self) -> bool:
        data, site = self.sim.data, self.robots[0].eef_site_id["right"]
        way = place(self.direction, data.body_xpos[self.cube_body_id]) - data.site_xpos[site]
        speed = np.linalg.norm(data.get_site_xvelp(self.sim.model.site_id2name(site)))
        return bool(np.linalg.norm(way) < TOLERANCE_M and speed < REST_M_S)


for _direction in DIRECTIONS:  # robosuite knows a class by its name, once it is made
    type(environment(_direction), (AroundCube,), {"direction": _direction, "__module__": __name__})
