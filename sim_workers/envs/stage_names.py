"""Names of the stages of robosuite's tasks. Imports no simulator."""

from types import MappingProxyType

NO_STAGE = "none"
"""Stage of an episode that has not come to the first one."""
_CARRY = ("reached", "grasped", "lifted", "placed")
LADDERS = MappingProxyType(
    {
        "Lift": ("reached", "grasped", "lifted"),
        "Stack": _CARRY,
        "Door": ("reached", "turned", "opened"),
        **{
            task: _CARRY
            for task in (
                *("NutAssembly", "NutAssemblySingle", "NutAssemblySquare", "NutAssemblyRound"),
                *("PickPlace", "PickPlaceSingle", "PickPlaceMilk", "PickPlaceBread"),
                *("PickPlaceCereal", "PickPlaceCan"),
            )
        },
    }
)
"""Stages of every task in their order; the last one is robosuite's success check."""
