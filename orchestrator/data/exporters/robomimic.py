"""Exporter of a store's episodes to one HDF5 file in robomimic's layout, which robomimic and
`orchestrator/data/importers/robomimic_hdf5.py` read.

    data                                attributes total, env_args (JSON), demoscale.contract (JSON,
                                        `Contract`), demoscale.proprio_keys (JSON)
    data/demo_3                         attributes num_samples, demoscale.episode_id, .task, .instruction,
                                        .source, .success (if known)
    data/demo_3/actions                 (L, A) float32
    data/demo_3/rewards, dones          (L,) reward 1 in the last step of a success, done in the last step
    data/demo_3/obs/<camera>_image      (L, H, W, 3) uint8, upright, a compressed chunk per frame
    data/demo_3/obs/<vector>            (L, D) float32; concatenated in the order of demoscale.proprio_keys,
                                        they are the proprioception
    mask/train                          names of all demonstrations, if requested
    mask/with_actions, action_free      names of those with actions, and of those whose actions are zeros
                                        (attribute demoscale.has_action false), if there are any of the latter

The pictures are the decoded frames of the store's videos.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from orchestrator.data.episode_format import Episode, EpisodeError
from orchestrator.data.exporters.roles import HAS_ACTION, read_episode, shown_contract
from orchestrator.data.manifest import EpisodeEntry
from orchestrator.storage.base import Storage
from policy.interface import Contract
from sim_workers.envs.embodiment import FINGER_KEYS, HAND_KEYS
from sim_workers.envs.robosuite import ACTION, PROPRIO

SUFFIXES = (".hdf5", ".h5")
REST = "proprio"
"""Name of the vector for values that belong to none of robosuite's vectors."""
PARTS = dict(zip(HAND_KEYS + FINGER_KEYS, (PROPRIO[:3], PROPRIO[3:7], PROPRIO[7:]), strict=True))
"""Robosuite's name of a vector, without the arm's -> the simulator's names of its values."""
GZIP_LEVEL = 1  # higher levels take several times as long and shrink a rendered frame little further
ROBOSUITE = 1  # robomimic's EnvType.ROBOSUITE_TYPE
CONTROLLER = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "damping_ratio": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_ratio_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "input_type": "delta",
    "input_ref_frame": "base",
    "interpolation": None,
    "ramp_ratio": 0.2,
    "gripper": {"type": "GRIP"},
}
"""Default controller of a Panda's arm in robosuite 1.5 (controllers/config/robots/default_panda.json)."""


def export_robomimic(
    storage: Storage,
    contract: Contract,
    entries: Sequence[EpisodeEntry],
    path: Path,
    train_mask: bool = False,
    action_free: Collection[str] = (),
    proprio: Sequence[int] | None = None,
) -> Generator[EpisodeEntry, None, None]:
    """Write the episodes to a new file, yielding each when it is written; the file gets its name when it is
    complete.

    One episode at a time is in memory. action_free: ids of episodes whose actions are not written; all others
    must be labelled. proprio: as for `roles.shown_contract`. Raises EpisodeError for an existing file, a name
    that robomimic does not accept, or a failed write.
    """
    _refuse(storage, contract, path)
    written = shown_contract(contract, proprio)
    groups = proprio_groups(written.proprio)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = h5py.File(partial, "w")
    try:
        for index, entry in enumerate(entries):
            episode = read_episode(storage, contract, entry, action_free, proprio)
            with _writing(path):
                _write_demo(file.create_group(f"data/demo_{index}"), episode, groups)
                if entry.episode_id in action_free:
                    file[f"data/demo_{index}"].attrs[f"demoscale.{HAS_ACTION}"] = False
            yield entry
        with _writing(path):
            file["data"].attrs.update(_attributes(written, entries, groups))
            if train_mask:
                file["mask/train"] = np.array([f"demo_{index}" for index in range(len(entries))], "S")
            if action_free:
                for name, wanted in (("with_actions", False), ("action_free", True)):
                    chosen = [i for i, e in enumerate(entries) if (e.episode_id in action_free) is wanted]
                    file[f"mask/{name}"] = np.array([f"demo_{index}" for index in chosen], "S")
            file.close()
            _publish(partial, path)
    finally:
        with suppress(OSError, RuntimeError):  # report the first error, not a consequence of it
            file.close()
        partial.unlink(missing_ok=True)


def proprio_groups(names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return key in `obs` -> (index of its first value, width), in the order of the values.

    The simulator's own names (eef_x_m ..., of several arms robot1_eef_x_m ...) and numbered ones
    (robot0_eef_pos_0 ...) go into robosuite's vectors. Other values go into `proprio`, and into proprio_2,
    proprio_3 ... where vectors lie between them, so that the order is kept.
    """
    spans: list[tuple[str, int, int]] = []
    first = 0
    while first < len(names):
        key, width = _vector_at(names, first)
        if any(key == taken for taken, _, _ in spans):
            key, width = "", 1
        if not key and spans and not spans[-1][0]:
            spans[-1] = ("", spans[-1][1], spans[-1][2] + width)
        else:
            spans.append((key, first, width))
        first += width
    groups: dict[str, tuple[int, int]] = {}
    rest = 0
    for key, begin, width in spans:
        rest += not key
        groups[key or (REST if rest == 1 else f"{REST}_{rest}")] = (begin, width)
    return groups


def _vector_at(names: Sequence[str], first: int) -> tuple[str, int]:
    """Return robosuite's vector whose values begin at index `first`, and its width; ("", 1) if there
    is none.
    """
    arm = match[0] if (match := re.match(r"robot\d+_", names[first])) else ""
    for part, values in PARTS.items():
        if tuple(names[first : first + len(values)]) == tuple(arm + value for value in values):
            return (arm or "robot0_") + part, len(values)
    stem = names[first].removesuffix("_0")
    if not arm or stem == names[first]:
        return "", 1
    width = 1
    while first + width < len(names) and names[first + width] == f"{stem}_{width}":
        width += 1
    return stem, width


def _refuse(storage: Storage, contract: Contract, path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise EpisodeError(
            f"{path}: a robomimic file ends in {' or '.join(SUFFIXES)}; name it {path.name or 'demo'}.hdf5"
        )
    if path.exists():
        raise EpisodeError(f"{path}: it exists already; name another file, or remove it first")
    if slashed := [camera for camera in contract.cameras if "/" in camera]:
        raise EpisodeError(
            f"{storage.uri}: camera {slashed[0]} has a slash in its name, which an HDF5 file cannot express; "
            "import the episodes again with another name, demoscale import --cameras"
        )


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Convert errors of writing the file to EpisodeError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise EpisodeError(
            f"{path}: it could not be written ({said}); check the free space and the permissions"
        ) from None


def _publish(partial: Path, path: Path) -> None:
    """Give the complete file its name. Raises EpisodeError if another process took the name in the
    meantime.
    """
    try:
        os.link(partial, path)  # unlike a rename, it never replaces a file
    except FileExistsError:
        raise EpisodeError(f"{path}: another process wrote it meanwhile; name another file") from None
    except OSError:  # a file system without hard links
        partial.rename(path)


def _write_demo(demo: Any, episode: Episode, groups: dict[str, tuple[int, int]]) -> None:
    assert episode.proprio is not None
    assert episode.action is not None
    last = np.arange(episode.length) == episode.length - 1
    demo["actions"] = episode.action
    demo["rewards"] = (last & bool(episode.success)).astype(np.float64)
    demo["dones"] = last.astype(np.int64)
    obs = demo.create_group("obs")
    for camera, frames in episode.frames.items():
        chunk = (1, *frames.shape[1:])
        obs.create_dataset(
            f"{camera}_image", data=frames, chunks=chunk, compression="gzip", compression_opts=GZIP_LEVEL
        )
    for key, (first, width) in groups.items():
        obs[key] = episode.proprio[:, first : first + width]
    demo.attrs["num_samples"] = episode.length
    for name in ("episode_id", "task", "instruction", "source", "success"):
        if (value := getattr(episode, name)) is not None:
            demo.attrs[f"demoscale.{name}"] = value


def _attributes(
    contract: Contract, entries: Sequence[EpisodeEntry], groups: dict[str, tuple[int, int]]
) -> dict[str, Any]:
    """Return the attributes of the whole file."""
    args = env_args(contract, entries)
    return {
        "total": sum(entry.length for entry in entries),
        "demoscale.contract": json.dumps(contract.to_json()),
        "demoscale.proprio_keys": json.dumps(list(groups)),
        **({"env_args": json.dumps(args, indent=4)} if args else {}),
    }


def env_args(contract: Contract, entries: Sequence[EpisodeEntry]) -> dict[str, Any] | None:
    """Return the arguments of robomimic's environment; None unless the contract is that of this simulator's
    default controller, with the scene's own cameras, in robosuite 1.5 or later.

    A file has one environment: that of the most frequent task (each demonstration has its own in
    demoscale.task).
    """
    versions = re.fullmatch(r"robosuite ((\d++)\.(\d++)\S*), mujoco \S+", contract.simulator)
    arms = _arms(contract.action)
    if not (versions and arms and (int(versions[2]), int(versions[3])) >= (1, 5)) or contract.poses:
        return None
    height, width = contract.image_size
    hz = contract.control_hz
    kwargs = {
        "robots": [contract.robot or "Panda"] * arms,
        "control_freq": int(hz) if hz == int(hz) else hz,
        "controller_configs": {"type": "BASIC", "body_parts": {"right": CONTROLLER}},
        "camera_names": list(contract.cameras),
        "camera_heights": height,
        "camera_widths": width,
    }
    task = Counter(entry.task for entry in entries).most_common(1)[0][0]
    return {"env_name": task, "env_version": versions[1], "type": ROBOSUITE, "env_kwargs": kwargs}


def _arms(action: Sequence[str]) -> int:
    """Return the number of the simulator's arms that take the actions; 0 if the names are others."""
    for names in (ACTION, ACTION[:-1]):  # some hands hold a tool instead of a gripper
        for arms in (("",), ("robot0_", "robot1_")):
            if tuple(action) == tuple(arm + name for arm in arms for name in names):
                return len(arms)
    return 0
