"""Checks that end an episode as an error: an action that is not finite, or a simulation that diverges.
Neither measures the policy's skill.

MuJoCo replaces a control that is not a number by zero, and resets a state that is not finite or huge to the
model's start pose, each with a warning and no error. Without the checks an episode would continue silently,
with a robot at rest or from the start pose.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

MOST = 1e10
"""Largest magnitude of a position, velocity, acceleration or control that MuJoCo accepts (`mjMAXVAL`);
metres, radians, seconds.
"""


class EpisodeFaultError(RuntimeError):
    """The episode cannot continue; the message is a clause with the cause. A reset starts the next episode,
    unaffected.
    """


class ActionError(EpisodeFaultError, ValueError):
    """An action holds a value that is not finite."""


class DivergedError(EpisodeFaultError):
    """The simulation left the range of values that MuJoCo accepts."""


def refuse_action(action: npt.NDArray[np.floating[Any]], names: Sequence[str]) -> None:
    """Raise ActionError if a value of an (A,) action is not finite; `names` are the contract's names of the
    dimensions.
    """
    if np.isfinite(action).all():
        return
    held: dict[str, list[str]] = {}
    for i in np.flatnonzero(~np.isfinite(action)):
        held.setdefault(str(float(action[i])), []).append(names[i] if i < len(names) else f"dimension {i}")
    what = " and ".join(f"{value} in {', '.join(where)}" for value, where in held.items())
    raise ActionError(
        f"the action holds {what}; check the weights and the normalisation of the policy that gave it"
    )


def refuse_divergence(model: Any, data: Any) -> None:
    """Raise DivergedError if MuJoCo has warned since the last reset, or would warn of the current state in
    its next step.

    model, data: MuJoCo's own. One call per control step is enough: a warning stays counted until the next
    reset, even after the reset that the warning itself causes. Costs 4 microseconds.
    """
    if data.warning.number[_warnings()].any():
        raise DivergedError(
            f"the simulation diverged: {_reported(model, data)}; check the actions before it and the scene"
        )
    for kind, values in (("position", data.qpos), ("velocity", data.qvel)):
        if not np.abs(values).max(initial=0.0) <= MOST:
            index = int(np.flatnonzero(~(np.abs(values) <= MOST))[0])
            where = _joint(
                model, _joint_of_qpos(model, index) if kind == "position" else int(model.dof_jntid[index])
            )
            raise DivergedError(
                f"the simulation diverged: the {kind} of {where} is {values[index]:g}; check the actions"
                " before it and the scene"
            )


@cache
def _warnings() -> slice:
    """Return the indices of the warnings of a state or control that is not finite or huge; the four are
    adjacent in `mjtWarning`.
    """
    import mujoco  # the import fixes the GL backend, so not before `sim_workers.envs.render.choose_backend`

    kinds = mujoco.mjtWarning
    return slice(int(kinds.mjWARN_BADQPOS), int(kinds.mjWARN_BADCTRL) + 1)


def _reported(model: Any, data: Any) -> str:
    """Describe the first of the warnings, with its joint or actuator."""
    import mujoco

    first = _warnings().start + int(np.flatnonzero(data.warning.number[_warnings()])[0])
    index, name = int(data.warning.lastinfo[first]), mujoco.mjtWarning(first).name.removeprefix("mjWARN_")
    if name == "BADCTRL":
        what = (
            "the control of actuator"
            f" {mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_ACTUATOR, index) or index}"
        )
    elif name == "BADQPOS":
        what = f"the position of {_joint(model, _joint_of_qpos(model, index))}"
    else:
        what = (
            f"the {'velocity' if name == 'BADQVEL' else 'acceleration'} of"
            f" {_joint(model, int(model.dof_jntid[index]))}"
        )
    return f"MuJoCo warned of {what} ({name}), which is not a number or exceeds {MOST:g}"


def _joint(model: Any, joint: int) -> str:
    import mujoco

    return f"joint {mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_JOINT, joint) or joint}"


def _joint_of_qpos(model: Any, index: int) -> int:
    return int(np.searchsorted(model.jnt_qposadr, index, side="right")) - 1
