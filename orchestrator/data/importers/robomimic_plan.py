"""Parts of a robomimic-style HDF5 file's demonstrations that are read: cameras, vectors and actions, from the
options and from what most demonstrations have.
"""

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.data.importers.base import ImportOptions
from orchestrator.data.importers.conventions import chosen_cameras, chosen_proprio, names_of
from orchestrator.data.importers.hdf5_arrays import is_vectors, member
from orchestrator.data.importers.robomimic_attributes import RecordingProgram, StatedConventions
from orchestrator.data.importers.robomimic_demos import ACTIONS, DemoShape
from orchestrator.data.importers.source_files import SourceError
from sim_workers.envs.robosuite import ACTION, PROPRIO, PROPRIO_KEYS

LIBEROS_HAND = ("ee_pos", "ee_ori", "gripper_states")
"""LIBERO's names for the same hand and fingers, the hand's rotation as axis times angle; it is converted back
to the original quaternion.
"""
LIBEROS_WIDTHS = (3, 3, 2)
PROPRIO_BY_DEFAULT = (PROPRIO_KEYS, LIBEROS_HAND)
ARM = len(ACTION)
MOBILE_BASE = ("base_x", "base_y", "base_turn", "torso", "base_mode_minus1_arm_plus1_base")
"""Action dimensions of RoboCasa's mobile Panda, after the arm's."""


@dataclass(frozen=True)
class DemoPlan:
    """Parts of a demonstration to read, and their required shapes; can be pickled."""

    cameras: dict[str, str]
    """Camera of the source -> name in the store."""
    sizes: dict[str, tuple[int, int]]
    proprio: dict[str, int]
    """Vector in `obs` -> values per row."""
    hand: bool
    """Whether the vectors are LIBERO's and must be converted to the simulator's."""
    action: str
    """Name of the actions in a demonstration; empty if they are dropped."""
    width: int
    """Values per action in the file."""
    arm_only: bool
    unlabelled_too: bool
    """Whether demonstrations without actions are taken as well."""
    stated: bool
    """Whether demonstrations carry the attributes of an export."""

    @property
    def kept(self) -> int:
        """Values per action in the store."""
        return ARM if self.arm_only else self.width


def planned(
    path: Path,
    data: Any,
    found: dict[str, DemoShape],
    program: RecordingProgram,
    stated: StatedConventions | None,
    reading: ImportOptions,
) -> tuple[DemoPlan, tuple[str, ...], tuple[str, ...]]:
    """Return the plan, from the reading and from what most demonstrations have, and the names of
    proprioception and actions.
    """
    cameras = _cameras(path, found.values(), stated, reading)
    sizes = {
        name: _most(shape.cameras[name][1] for shape in found.values() if name in shape.cameras)
        for name in cameras
    }
    proprio, names = _proprio(path, found.values(), stated, reading)
    hand = tuple(proprio) == LIBEROS_HAND and tuple(proprio.values()) == LIBEROS_WIDTHS

    key = reading.action or ACTIONS
    actions = [shape.action for shape in found.values() if shape.action]
    labelled = not reading.action_free and bool(actions or not (stated and reading.action is None))
    if labelled and not actions:
        if reading.action:
            offered = sorted({name for demo in found for name in _two_dimensional(member(data, demo))})
            raise SourceError(
                f"{path}: there are no vectors {key}; --action can choose from {', '.join(offered) or 'none'}"
            )
        raise SourceError(
            f"{path}: {next(iter(found))} has no vectors `actions`; add --action-free to import its pictures"
        )
    width = _most(actions) if labelled else 0
    robocasa = width == ARM + len(MOBILE_BASE) and program.single_panda
    action = _action_names(path, width, program, robocasa, stated, reading) if labelled else ()
    plan = DemoPlan(
        cameras=cameras,
        sizes=sizes,
        proprio=proprio,
        hand=hand,
        action=key if labelled else "",
        width=width,
        arm_only=labelled and robocasa and reading.arm_only,
        unlabelled_too=stated is not None and reading.action is None,
        stated=stated is not None,
    )
    return plan, PROPRIO if hand else names, action


def _most(values: Iterable[Any]) -> Any:
    """Return the most frequent value; of equally frequent ones the first."""
    return Counter(values).most_common(1)[0][0]


def _cameras(
    path: Path, found: Iterable[DemoShape], stated: StatedConventions | None, reading: ImportOptions
) -> dict[str, str]:
    """Return the cameras of most demonstrations, or those that the reading chooses, which only some
    may have.
    """
    combinations = Counter(tuple(shape.cameras) for shape in found)
    if reading.cameras:
        return chosen_cameras(
            str(path), dict.fromkeys(name for names in combinations for name in names), reading
        )
    available = max(combinations, key=lambda names: (combinations[names], len(names)))
    if stated and set(stated.contract.cameras) == set(available):
        available = stated.contract.cameras
    return chosen_cameras(str(path), available, reading)


def _proprio(
    path: Path, found: Iterable[DemoShape], stated: StatedConventions | None, reading: ImportOptions
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return key -> width of the vectors that make up the proprioception, and a name per value."""
    found = list(found)
    having = Counter(key for shape in found for key in shape.widths)
    asked = reading.proprio or (stated.proprio_keys if stated else ())
    widths = {
        key: _most(shape.widths[key] for shape in found if key in shape.widths)
        for key, count in having.items()
        if key in asked or 2 * count >= len(found)
    }
    if (
        stated
        and reading.proprio is None
        and sum(widths.get(key, 0) for key in stated.proprio_keys) == len(stated.contract.proprio)
    ):
        return {key: widths[key] for key in stated.proprio_keys if key in widths}, stated.contract.proprio
    keys, names = chosen_proprio(str(path), "vectors", widths, PROPRIO_BY_DEFAULT, reading)
    return {key: widths[key] for key in keys}, names


def _two_dimensional(group: Any) -> list[str]:
    names = []
    for key in group:
        with suppress(ValueError):
            if is_vectors(found := member(group, key)) and found.ndim == 2:
                names.append(str(key))
    return names


def _action_names(
    path: Path,
    width: int,
    program: RecordingProgram,
    robocasa: bool,
    stated: StatedConventions | None,
    reading: ImportOptions,
) -> tuple[str, ...]:
    if reading.arm_only and not robocasa:
        raise SourceError(
            f"{path}: --arm-only is for RoboCasa's {ARM + len(MOBILE_BASE)} action dimensions; this file has"
            f" {width} of another layout"
        )
    arm = program.arm if (reading.action or ACTIONS) == ACTIONS else None
    if robocasa:
        arm = arm or (*(f"arm_{i}" for i in range(ARM - 1)), "gripper")
        return arm if reading.arm_only else (*arm, *MOBILE_BASE)
    if stated and reading.action is None and len(stated.contract.action) == width:
        return stated.contract.action
    return arm if arm and width == ARM else names_of(["action"], [width])
