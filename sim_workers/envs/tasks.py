"""robosuite's tasks: names, instructions, arms and cameras. Imports no simulator."""

TASKS = {
    "Lift": "lift the red cube",
    "Stack": "stack the red cube on the green cube",
    "Door": "open the door",
    "NutAssembly": "put each nut on its peg",
    "NutAssemblySingle": "put the nut on its peg",
    "NutAssemblySquare": "put the square nut on the square peg",
    "NutAssemblyRound": "put the round nut on the round peg",
    "PickPlace": "put every object into its bin",
    "PickPlaceSingle": "put the object into its bin",
    "PickPlaceMilk": "put the milk into its bin",
    "PickPlaceBread": "put the bread into its bin",
    "PickPlaceCereal": "put the cereal into its bin",
    "PickPlaceCan": "put the can into its bin",
    "Wipe": "wipe the marks off the table",
    "ToolHang": "put the frame into the base and hang the tool on it",
    "TwoArmLift": "lift the pot with both hands",
    "TwoArmPegInHole": "put the peg into the hole",
    "TwoArmHandover": "hand the hammer over to the other arm",
    "TwoArmTransport": "carry the hammer to the other table and clear the bin",
}
"""Instruction of every task, by the name of its robosuite environment."""

HORIZONS = {"Lift": 150, "Stack": 200, "Door": 200, "PickPlaceCan": 200, "NutAssemblySquare": 300}
"""Control steps of the tasks with a scripted expert, after which a demonstration has failed."""
LONG = 500
"""Control steps of every other task."""


def horizon_of(task: str) -> int:
    """Return the control steps until an episode of the task counts as failed, unless a sweep says another
    number.
    """
    return HORIZONS.get(task, LONG)


def hands(task: str) -> tuple[str, ...]:
    """Return robosuite's prefix of each arm, in the order of their actions."""
    return ("robot0", "robot1") if task.startswith("TwoArm") else ("robot0",)


def has_fingers(task: str) -> bool:
    """Return whether the hands are grippers; in some tasks they hold a tool instead."""
    return task not in ("Wipe", "TwoArmPegInHole")


def cameras(task: str) -> tuple[str, ...]:
    """Return the names of the cameras of the task's scene."""
    side = () if task.startswith("PickPlace") else ("sideview",)
    shoulders = ("shouldercamera0", "shouldercamera1") if task == "TwoArmTransport" else ()
    eyes = tuple(f"{hand}_{camera}" for hand in hands(task) for camera in ("eye_in_hand", "robotview"))
    return ("agentview", "birdview", "frontview", *side, *shoulders, *eyes)
