"""HDF5 as robomimic writes it, and what descends from it: MimicGen, RoboCasa, LIBERO.

    data                          attributes env_args (JSON: which simulator, at which rate), LIBERO: problem_info (JSON with the instruction)
    data/demo_3/actions           (L, A)
    data/demo_3/obs/agentview_image, agentview_rgb, robot0_eef_pos ...    (L, H, W, 3) pictures and (L, D) vectors
    data/demo_3                   attribute ep_meta (RoboCasa: JSON with the instruction as `lang`)
    mask/<name>                   optional lists of demonstrations

Pictures are paired with actions as the file pairs them. (LIBERO's recorder takes each picture after its action, and its policies are trained so.)
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from orchestrator.data.episodes import Episode
from orchestrator.data.sources.source import (
    Item,
    Pictures,
    Raw,
    Reading,
    SourceError,
    cameras_by_name,
    chosen_cameras,
    chosen_proprio,
    contract_of,
    finished,
    kept_frames,
    label_of,
    names_of,
    native_rate,
    orientation,
    origin,
    rows_of,
    width_of,
)
from policy.interface import Contract
from sim_workers.env import ACTION, PROPRIO, PROPRIO_KEYS
from sim_workers.tasks import TASKS

LIBEROS_HAND = ("ee_pos", "ee_ori", "gripper_states")
"""LIBERO's names for the same hand and fingers, the hand's turn as axis times angle; it is kept as the quaternion it was made from."""
PROPRIO_BY_DEFAULT = (PROPRIO_KEYS, LIBEROS_HAND)
ARM = len(ACTION)
MOBILE_BASE = ("base_x", "base_y", "base_turn", "torso", "base_mode_minus1_arm_plus1_base")
"""What RoboCasa's mobile Panda takes after the arm's dimensions."""


@dataclass(frozen=True)
class _Made:
    """What a file says about where it comes from."""

    task: str
    instruction: str | None
    hz: float | None
    simulator: str
    arm: tuple[str, ...] | None
    """Names of the arm's action dimensions, where the controller is known to be ours."""
    single_panda: bool
    image_convention: str


@dataclass
class Hdf5:
    """One file, or a folder of files with equal conventions."""

    format: str
    contract: Contract
    items: list[Item]
    problems: list[str]
    questions: list[str]
    _cameras: dict[str, str]
    """Camera of the source -> name in the store."""
    _proprio: tuple[str, ...]
    _stored: str
    _native_hz: float
    _places: dict[str, tuple[Path, str]]
    """Item -> file and demonstration."""

    def read(self, item: Item) -> Episode:
        path, demo = self._places[item.name]
        try:
            with h5py.File(path, "r") as file:
                group = file["data"][demo]
                keys = _pictures(group)
                raw = Raw(
                    frames={name: group["obs"][keys[name]][()] for name in self._cameras},
                    proprio=_values(group["obs"], self._proprio) if self._proprio else None,
                    action=group["actions"][()][:, : len(self.contract.action)] if item.labelled else None,
                    success=_success(group),
                )
        except (OSError, KeyError) as error:
            raise SourceError(f"{path.name}, {demo}: it cannot be read ({' '.join(str(error).split())}); restore the file") from None
        return finished(item, raw, self.contract, self._cameras, self._stored, self._native_hz)

    def first_pictures(self, item: Item) -> dict[str, Pictures]:
        path, demo = self._places[item.name]
        with h5py.File(path, "r") as file:
            group = file["data"][demo]
            keys = _pictures(group)
            return {name: group["obs"][keys[name]][0] for name in self._cameras}


def open_hdf5(path: Path, reading: Reading) -> Hdf5:
    """Look at a file, or at every .hdf5 file of a folder; SourceError if a file is none of these, or if two files' conventions differ."""
    files = [path] if path.is_file() else sorted(path.glob("*.hdf5"))
    source = _open_file(files[0], reading, label_of(path, reading), "" if path.is_file() else f"{files[0].stem}-")
    for file in files[1:]:
        other = _open_file(file, reading, label_of(path, reading), f"{file.stem}-")
        conventions = {**source.contract.to_json(), "recorded_rate": source._native_hz}
        others = {**other.contract.to_json(), "recorded_rate": other._native_hz}
        for name, mine in conventions.items():
            if (theirs := others[name]) != mine:
                raise SourceError(f"{file}: its {name.replace('_', ' ')} is {theirs}, that of {files[0].name} {mine}; import them one by one")
        source.items += other.items
        source.problems += other.problems
        source.questions = source.questions or other.questions
        source._places |= other._places
    return source


def _open_file(path: Path, reading: Reading, label: str, prefix: str) -> Hdf5:
    try:
        with h5py.File(path, "r") as file:
            return _understand(path, file, reading, label, prefix)
    except OSError as error:
        raise SourceError(f"{path}: it cannot be read as HDF5 ({' '.join(str(error).split())}); was it copied whole?") from None


def _understand(path: Path, file: Any, reading: Reading, label: str, prefix: str) -> Hdf5:
    if "data" not in file:
        raise SourceError(f"{path}: it has no group `data` with demonstrations, as robomimic's files have")
    demos, problems = _demos(path, file, reading)
    example = file["data"][demos[0]]
    made = _made(path, file["data"], reading)
    keys = _pictures(example)
    cameras = chosen_cameras(str(path), keys, reading)
    sizes = {name: (int(example["obs"][keys[name]].shape[1]), int(example["obs"][keys[name]].shape[2])) for name in cameras}
    proprio, proprio_names = _proprio(path, example["obs"], reading)
    labelled = not reading.action_free
    if labelled and ("actions" not in example or example["actions"].ndim != 2):
        raise SourceError(f"{path}: {demos[0]} has no vectors `actions`; add --action-free to import its pictures")
    width = example["actions"].shape[1] if labelled else 0
    robocasa = width == ARM + len(MOBILE_BASE) and made.single_panda
    action = _action_names(path, width, made, robocasa, reading) if labelled else ()
    native_hz = native_rate(str(path), made.hz, reading)
    stored, questions = orientation(path.name, None, made.image_convention, reading)
    contract = contract_of(str(path), cameras, sizes, proprio_names, action, native_hz, made.simulator, reading)
    items, places = [], {}
    for demo in demos:
        group = file["data"][demo]
        where = f"{path.name}, {demo}"
        if problem := _misfit(group, keys, cameras, sizes, proprio, width, reading, robocasa):
            problems.append(f"{where}: {problem}; left out")
            continue
        instruction = reading.instruction or _json(group.attrs.get("ep_meta")).get("lang") or made.instruction
        length = len(kept_frames(group["obs"][keys[next(iter(cameras))]].shape[0], native_hz, contract.control_hz))
        native_size = sizes[next(iter(cameras))]
        name = prefix + demo
        item = Item(name, f"{label}-{name}", made.task, instruction or "", length, labelled, origin(where, stored, native_size, native_hz, contract))
        items.append(item)
        places[name] = (path, demo)
    if not all(item.instruction for item in items):
        questions.append(f"{path.name}: it does not say in words what is done; say it with --instruction")
    family = "LIBERO" if "problem_info" in file["data"].attrs else "RoboCasa" if "ep_meta" in example.attrs else "robomimic"
    return Hdf5(f"{family} HDF5", contract, items, problems, questions, cameras, proprio, stored, native_hz, places)


def _demos(path: Path, file: Any, reading: Reading) -> tuple[list[str], list[str]]:
    """The demonstrations that have pictures, by number, and a sentence for each that has none."""
    demos = sorted(file["data"], key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])
    if reading.mask:
        masks = list(file.get("mask", ()))
        if reading.mask not in masks:
            raise SourceError(f"{path}: there is no mask {reading.mask}; --mask can choose from {', '.join(masks) or 'none'}")
        listed = {_text(name) for name in file["mask"][reading.mask][()]}
        demos = [demo for demo in demos if demo in listed]
    seen = [demo for demo in demos if "obs" in file["data"][demo] and _pictures(file["data"][demo])]
    if not seen and any("states" in file["data"][demo] for demo in demos):
        raise SourceError(
            f"{path}: its demonstrations hold states and actions but no pictures, as robosuite's own recorder leaves them; "
            "render them first, for example with robomimic's dataset_states_to_obs.py"
        )
    if not seen:
        raise SourceError(f"{path}: it holds no demonstration with pictures under data/demo_<k>/obs")
    return seen, [f"{path.name}, {demo}: it has no pictures; left out" for demo in demos if demo not in seen]


def _made(path: Path, data: Any, reading: Reading) -> _Made:
    args = _json(data.attrs.get("env_args"))
    kwargs = args.get("env_kwargs") or {}
    problem = _json(data.attrs.get("problem_info"))
    version = args.get("env_version") or _text(data.attrs.get("repository_version", "")) or "unknown"
    robots = kwargs.get("robots") or []
    robots = [robots] if isinstance(robots, str) else robots
    single_panda = len(robots) == 1 and robots[0].startswith("Panda")
    # One task of LIBERO is one file; its environment's name is shared by many.
    task = reading.task or (path.stem.removesuffix("_demo") if problem else args.get("env_name") or _text(data.attrs.get("env", "")) or path.stem)
    convention = _text(data.attrs.get("macros_image_convention", ""))
    return _Made(
        task=task,
        instruction=problem.get("language_instruction") or TASKS.get(task),
        hz=kwargs.get("control_freq"),
        simulator=f"robosuite {version}, mujoco unknown" if args.get("type", 1) == 1 else "unknown",
        arm=ACTION if single_panda and _is_our_controller(kwargs.get("controller_configs")) else None,
        single_panda=single_panda,
        image_convention=f" (this file's convention is {convention}{', upside-down' * (convention == 'opengl')})" if convention else "",
    )


def _is_our_controller(config: Any) -> bool:
    """Whether robosuite's controller takes hand displacements as ACTION names them; old files name the controller, new ones its parts."""
    if not isinstance(config, dict):
        return False
    if config.get("type") == "OSC_POSE":
        delta = config.get("control_delta", config.get("input_type") == "delta")
        return bool(delta) and list(config.get("output_max", ())) == [0.05] * 3 + [0.5] * 3 and config.get("input_max", 1) == 1
    return any(_is_our_controller(part) for part in config.values())


def _action_names(path: Path, width: int, made: _Made, robocasa: bool, reading: Reading) -> tuple[str, ...]:
    if reading.arm_only and not robocasa:
        raise SourceError(f"{path}: --arm-only is for RoboCasa's {ARM + len(MOBILE_BASE)} action dimensions; this file has {width} of another layout")
    if robocasa:
        arm = made.arm or (*(f"arm_{i}" for i in range(ARM - 1)), "gripper")
        return arm if reading.arm_only else (*arm, *MOBILE_BASE)
    return made.arm if made.arm and width == ARM else names_of(["action"], [width])


def _proprio(path: Path, obs: Any, reading: Reading) -> tuple[tuple[str, ...], tuple[str, ...]]:
    widths = {key: width_of(obs[key]) for key in obs if obs[key].ndim in (1, 2) and obs[key].dtype.kind == "f"}
    keys, names = chosen_proprio(str(path), "vectors", widths, PROPRIO_BY_DEFAULT, reading)
    return keys, PROPRIO if keys == LIBEROS_HAND else names


def _values(obs: Any, keys: tuple[str, ...]) -> Any:
    """(L, P): the vectors side by side."""
    rows = [rows_of(obs[key][()]) for key in keys]
    if keys == LIBEROS_HAND:  # (L, 3) axis times angle, 0 to 2 pi, to x, y, z, w: the inverse of robosuite's `quat2axisangle`, sign included
        angle = np.linalg.norm(rows[1], axis=1, keepdims=True)
        rows[1] = np.concatenate([rows[1] * np.sinc(angle / (2 * np.pi)) / 2, np.cos(angle / 2)], 1)
    return np.concatenate(rows, 1)


def _misfit(
    group: Any,
    keys: dict[str, str],
    cameras: dict[str, str],
    sizes: dict[str, Any],
    proprio: tuple[str, ...],
    width: int,
    reading: Reading,
    base: bool,
) -> str:
    """What sets a demonstration apart from the file's first."""
    obs = group["obs"]
    if missing := [key for key in (*(keys[name] for name in cameras), *proprio) if key not in obs]:
        return f"obs has no {', '.join(missing)}"
    if not all(obs[keys[name]].shape[0] for name in cameras):
        return "it is empty"
    if any(tuple(obs[keys[name]].shape[1:3]) != size for name, size in sizes.items()):
        return "its pictures have another size"
    if width and ("actions" not in group or group["actions"].shape[1:] != (width,)):
        return f"it has no actions of {width} dimensions"
    if base and reading.arm_only and np.abs(group["actions"][:, ARM : ARM + 4]).max() > 1e-6:
        return "the base moves, which --arm-only cannot express"
    return ""


def _pictures(group: Any) -> dict[str, str]:
    """Camera -> its key in `obs`."""
    keys = [key for key in group["obs"] if group["obs"][key].ndim == 4 and group["obs"][key].shape[-1] == 3 and group["obs"][key].dtype == np.uint8]
    return cameras_by_name(keys)


def _success(group: Any) -> bool | None:
    """From sparse rewards; None where there are none, or shaped ones."""
    rewards = group["rewards"][()] if "rewards" in group else np.empty(0)
    return bool(rewards.any()) if rewards.size and np.isin(rewards, (0, 1)).all() else None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _json(value: Any) -> dict[str, Any]:
    try:
        parsed = json.loads(_text(value)) if value is not None else {}
    except ValueError:
        parsed = {}
    return parsed if isinstance(parsed, dict) else {}
