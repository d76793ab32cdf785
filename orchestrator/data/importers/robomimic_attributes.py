"""Attributes of robomimic-style HDF5 files: which program recorded a file, and the conventions that an export
of this project states in it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.data.importers.base import ImportOptions
from orchestrator.data.importers.hdf5_arrays import FAULTS, member
from policy.interface import Contract
from sim_workers.envs.robosuite import ACTION
from sim_workers.envs.tasks import TASKS


@dataclass(frozen=True)
class RecordingProgram:
    """Origin of a file, by its own attributes."""

    task: str
    instruction: str | None
    hz: float | None
    simulator: str
    arm: tuple[str, ...] | None
    """Names of the arm's action dimensions, where the controller is known to be the simulator's; else
    None.
    """
    single_panda: bool
    image_convention: str
    robots: tuple[str, ...] = ()
    """Names of the robots; empty if not stated."""


@dataclass(frozen=True)
class StatedConventions:
    """Conventions that an export of a store states."""

    contract: Contract
    proprio_keys: tuple[str, ...]


def stated_conventions(data: Any) -> StatedConventions | None:
    """Return the conventions that `demoscale export` wrote; None for a file of another program."""
    said = attributes_of(data)
    try:
        contract = Contract.from_json(json_of(said.get("demoscale.contract")))
        keys = json.loads(text_of(said.get("demoscale.proprio_keys", "[]")))
    except (*FAULTS, RecursionError, IndexError):
        return None
    names = (
        *contract.cameras,
        *contract.proprio,
        *contract.action,
        contract.render_profile,
        contract.simulator,
    )
    if not all(isinstance(name, str) for name in names) or not _positive(contract.control_hz):
        return None
    return StatedConventions(
        contract, tuple(keys) if isinstance(keys, list) and all(isinstance(key, str) for key in keys) else ()
    )


def recording_program(path: Path, data: Any, reading: ImportOptions) -> RecordingProgram:
    """Return what the attributes of `data` say of the program that recorded a file."""
    said = attributes_of(data)
    args, problem = json_of(said.get("env_args")), json_of(said.get("problem_info"))
    # robosuite's own recorder writes the environment's arguments under another name
    kwargs = _table(args.get("env_kwargs")) or json_of(said.get("env_info"))
    version = words_of(args.get("env_version")) or words_of(said.get("repository_version")) or "unknown"
    robots = kwargs.get("robots")
    robots = [robots] if isinstance(robots, str) else robots if isinstance(robots, list) else []
    single_panda = len(robots) == 1 and str(robots[0]).startswith("Panda")
    # LIBERO has a file per task; many tasks share an environment's name.
    named = (
        path.stem.removesuffix("_demo")
        if problem
        else words_of(args.get("env_name")) or words_of(said.get("env")) or path.stem
    )
    task = reading.task or named
    convention = words_of(said.get("macros_image_convention"))
    return RecordingProgram(
        task=task,
        instruction=words_of(problem.get("language_instruction")) or TASKS.get(task),
        hz=_positive(kwargs.get("control_freq")) or _isaacs_rate(args),
        simulator=f"robosuite {version}, mujoco unknown" if args.get("type", 1) == 1 else "unknown",
        arm=ACTION if single_panda and _is_our_controller(kwargs.get("controller_configs")) else None,
        single_panda=single_panda,
        image_convention=(
            f" (this file's convention is {convention}{', upside-down' * (convention == 'opengl')})"
            if convention
            else ""
        ),
        robots=tuple(map(str, robots)),
    )


def family_of(data: Any, demo: str) -> str:
    """Return the name of a file's format: LIBERO, RoboCasa or robomimic HDF5. demo: one of its demos."""
    kind = (
        "LIBERO"
        if "problem_info" in data.attrs
        else "RoboCasa"
        if "ep_meta" in attributes_of(data, demo)
        else "robomimic"
    )
    return f"{kind} HDF5"


def _isaacs_rate(args: dict[str, Any]) -> float | None:
    """Return Isaac Lab's steps per second, from the duration of a physics step and the number of them per
    action.
    """
    steps = _table(args.get("sim_args"))
    seconds, count = _positive(steps.get("dt")), _positive(steps.get("decimation"))
    return _positive(round(1 / (seconds * count), 6)) if args.get("type") == 2 and seconds and count else None


def _is_our_controller(config: Any) -> bool:
    """Return whether robosuite's controller takes hand displacements as in ACTION; old files name the
    controller, new ones its parts.
    """
    if not isinstance(config, dict):
        return False
    if config.get("type") == "OSC_POSE":
        delta = config.get("control_delta", config.get("input_type") == "delta")
        return (
            bool(delta)
            and config.get("output_max") == [0.05] * 3 + [0.5] * 3
            and config.get("input_max", 1) == 1
        )
    parts = config.get("body_parts", config)
    if isinstance(parts, dict) and "right" in parts:  # a single arm; robosuite keeps the defaults of others
        return _is_our_controller(parts["right"])
    return isinstance(parts, dict) and any(_is_our_controller(part) for part in parts.values())


def attributes_of(group: Any, name: str = "") -> dict[str, Any]:
    """Return the attributes of a group, or of a member of it; an unreadable one counts as missing."""
    found: dict[str, Any] = {}
    attributes = (member(group, name) if name else group).attrs
    for key in attributes:
        try:
            found[str(key)] = attributes[key]
        except FAULTS:
            continue
    return found


def text_of(value: Any) -> str:
    """Return an attribute, bytes or an array of one value, as text."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def words_of(value: Any) -> str:
    """Return a sentence or name without white space around it; '' for anything else. LIBERO also stores
    sentences as lists of words.
    """
    if isinstance(value, (list, np.ndarray)):
        words = (
            [words_of(word) for word in list(np.ravel(value)) if isinstance(word, (str, bytes))]
            if isinstance(value, np.ndarray)
            else value
        )
        return " ".join(words).strip() if all(isinstance(word, str) for word in words) else ""
    return text_of(value).strip() if isinstance(value, (str, bytes)) else ""


def _positive(value: Any) -> float | None:
    """Return a number above zero and below 1e9 as float; None for anything else."""
    plain = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e9
    return float(value) if plain else None


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def json_of(value: Any) -> dict[str, Any]:
    """Return the JSON object in an attribute; empty if there is none or it cannot be parsed."""
    try:
        return _table(json.loads(text_of(value))) if value is not None else {}
    except (ValueError, RecursionError):
        return {}
