"""Recordings that can be replayed in the simulator: HDF5 files with states or actions (robosuite's own
recorder, robomimic, MimicGen, LIBERO, RoboCasa), and episode stores of this program.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from orchestrator.data.episode_format import EpisodeError, decode
from orchestrator.data.episode_store import fetch, load_manifest, newest_manifest
from orchestrator.data.importers.base import ImportOptions
from orchestrator.data.importers.hdf5_arrays import FAULTS, is_vectors, member, vectors
from orchestrator.data.importers.items import episode_ids, examined, identity
from orchestrator.data.importers.robomimic_attributes import (
    attributes_of,
    family_of,
    json_of,
    recording_program,
    text_of,
    words_of,
)
from orchestrator.data.importers.robomimic_demos import NothingReadError, demonstration_names
from orchestrator.data.importers.robomimic_hdf5 import recorded_success
from orchestrator.data.importers.source_files import HDF5_SUFFIXES, SourceError, refuse_pointer, visible
from orchestrator.storage.base import Storage, open_storage
from policy.interface import Contract
from sim_workers.demos.replay import RecordedDemo, ReplayMode
from sim_workers.envs import libero, robocasa
from sim_workers.envs.embodiment import DEFAULT, DELTA_POSE, Embodiment, EmbodimentError
from sim_workers.envs.registry import (
    cameras_of,
    contract_of,
    environment_of,
    instruction_of,
    is_task,
    unfit,
    unknown_views,
)
from sim_workers.envs.robosuite import ACTION, PROPRIO_KEYS

RECORDERS_HZ = 20.0
"""Control steps per second of robosuite's own recorder, which its files do not say."""
_EXPERT = re.compile(
    r"(?:replay of )?scripted expert, seed (\d+), disturbance ([\d.]+(?:e-?\d+)?)"
    r"(?:, by expert; content \w+)?"
)
_SERIES = re.compile(r"robosuite (\d+\.\d+)")


@dataclass(frozen=True)
class ReplayOptions:
    """What is replayed and how its pictures are drawn. An empty option means: as the source states."""

    by: ReplayMode | None = None
    """None: by states where there are some; of a store, by the scripted expert that recorded it, else by
    actions.
    """
    task: str | None = None
    cameras: tuple[str, ...] = ()
    image_size: int | None = None
    render_profile: str | None = None
    controller: str | None = None
    mask: str | None = None
    label: str | None = None
    episodes: int | None = None
    """Only so many, in the source's order."""


@dataclass(frozen=True, kw_only=True)
class ReplayItem:
    """One demonstration of a source, listed without playing it."""

    name: str
    """File and demonstration, or the episode's id in its store."""
    episode_id: str
    """Id in the store that is written."""
    task: str
    instruction: str
    length: int
    by: ReplayMode
    success: bool | None
    """Whether the recording says that it succeeded; None if it does not say."""
    origin: str
    """`source` of the episode that is written."""
    place: tuple[str, str]
    """File and demonstration in it; URI of the store and episode."""


@dataclass(frozen=True, kw_only=True)
class RecordedSource:
    """File, folder or store whose demonstrations can be replayed. It can be pickled."""

    format: str
    items: list[ReplayItem]
    problems: list[str]
    """One sentence per demonstration that is left out."""
    contract: Contract
    """Conventions of the replay."""
    simulator: str
    """Versions that recorded it, as far as known."""
    notes: list[str]
    """Sentences on what the replay cannot keep."""

    @property
    def tasks(self) -> list[str]:
        """Tasks of the items, sorted."""
        return sorted({item.task for item in self.items})

    def read(self, item: ReplayItem) -> RecordedDemo:
        """Return a demonstration. Raises SourceError or EpisodeError, which name it, if it is damaged."""
        where, name = item.place
        if Path(where).suffix.lower() in HDF5_SUFFIXES:
            return _read_hdf5(Path(where), name, item, self.contract)
        return _read_episode(open_storage(where), name, item)


def open_recordings(src: str, options: ReplayOptions) -> RecordedSource:
    """List the demonstrations of an HDF5 file, of a folder of them, or of an episode store.

    Raises SourceError, in one sentence that names file or store and the fix, if nothing can be replayed or an
    option does not fit, and EpisodeError for a damaged store.
    """
    path = Path(src)
    if path.is_file() or path.suffix.lower() in HDF5_SUFFIXES:
        if not path.is_file():
            raise SourceError(f"{path}: there is no such file")
        return _hdf5_source([path], options)
    files = list(visible(path, HDF5_SUFFIXES, depth=1)) if path.is_dir() else []
    storage = open_storage(src)
    if files and newest_manifest(storage) is None:
        return _hdf5_source(files, options)
    if newest_manifest(storage) is None:
        raise SourceError(
            f"{src}: neither an HDF5 file with demonstrations (.hdf5, .h5), a folder of such files, nor an"
            " episode store"
        )
    return _store_source(storage, options)


# -- conventions ---------------------------------------------------------------------------------------------


def _contract(
    where: str, task: str, options: ReplayOptions, given: Contract | None, embodiment: Embodiment | None
) -> Contract:
    """Return the conventions of the replay of a task. given: those of the store that is replayed."""
    posed = tuple(pose.name for pose in given.poses) if given else ()
    available = (*cameras_of(task), *posed)
    default = (
        given.cameras
        if given
        else tuple(camera for camera in ("agentview", "robot0_eye_in_hand") if camera in available)
    )
    cameras = options.cameras or default or available[:1]
    profile = options.render_profile or (given.render_profile if given else "fast")
    size = (options.image_size,) * 2 if options.image_size else (given.image_size if given else (64, 64))
    if mistakes := unknown_views(task, cameras, profile, posed):
        raise SourceError(f"{where}: {'; '.join(mistakes)}")
    if embodiment is not None and not environment_of(task):
        embodiment = None
    try:
        return contract_of(task, cameras, size, profile, embodiment)
    except EmbodimentError as error:
        raise SourceError(f"{where}: {error}") from None


def _known_task(where: str, named: str) -> str:
    """Return the task of the registry that a source names. Raises SourceError for an unknown one."""
    if is_task(named):
        return named
    if f"robocasa/{named}" in robocasa.ROBOCASA_24:
        return f"robocasa/{named}"
    found = [task for task in libero.LIBERO if task.partition("/")[2] == named]
    if len(found) == 1:
        return found[0]
    if found:
        raise SourceError(
            f"{where}: several suites of LIBERO have the task {named}; choose one with --task:"
            f" {', '.join(found)}"
        )
    raise SourceError(
        f"{where}: there is no task {named} here; name it with --task, `demoscale task list` lists all"
    )


def _chosen(items: list[ReplayItem], options: ReplayOptions) -> list[ReplayItem]:
    return items[: options.episodes]


# -- HDF5 ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    """Facts about one HDF5 file."""

    task: str
    format: str
    simulator: str
    embodiment: Embodiment
    items: list[ReplayItem]
    problems: list[str]


def _hdf5_source(paths: Sequence[Path], options: ReplayOptions) -> RecordedSource:
    if options.by == "expert":
        raise SourceError(
            f"{paths[0]}: no scripted expert recorded it; replay it --by states or --by actions"
        )
    stems = Counter(path.stem for path in paths)
    files: list[_File] = []
    readable: list[Path] = []
    unreadable: list[str] = []
    for path in paths:
        part = path.stem if stems[path.stem] == 1 else path.name.replace(".", "-")
        try:
            files.append(_file(path, options, part, len(paths) > 1))
            readable.append(path)
        except NothingReadError as error:
            unreadable.append(str(error))
    if not files:
        raise SourceError(unreadable[0])
    paths, first = readable, files[0]
    for path, file in zip(paths, files, strict=True):
        if (file.embodiment, file.simulator) != (first.embodiment, first.simulator):
            raise SourceError(
                f"{path}: it was recorded with another robot, rate or simulator than {paths[0].name}"
                f" ({file.simulator}; {first.simulator}); replay them one by one"
            )
    contracts = [
        _contract(str(path), f.task, options, None, f.embodiment)
        for path, f in zip(paths, files, strict=True)
    ]
    for path, contract in zip(paths, contracts, strict=True):
        if different := contracts[0].mismatches(contract):
            raise SourceError(f"{path}: {'; '.join(different)}; replay the files one by one")
    items = [item for file in files for item in file.items]
    problems = [problem for file in files for problem in file.problems]
    problems += [f"{problem}; left out" for problem in unreadable]
    if not items:
        said = problems[0].removesuffix("; left out") if problems else "it holds no demonstrations"
        raise SourceError(f"{paths[0]}: nothing can be replayed: {said}")
    notes = []
    if not _same_series(first.simulator, contracts[0].simulator):
        notes.append(
            f"recorded on {first.simulator}, replayed on {contracts[0].simulator}: the recorded models are"
            " not loaded, sizes of objects are those of the installed simulator"
        )
    return RecordedSource(
        format=first.format,
        items=_chosen(items, options),
        problems=problems,
        contract=contracts[0],
        simulator=first.simulator,
        notes=notes,
    )


def _same_series(recorded: str, here: str) -> bool:
    """Return whether two descriptions of simulators name the same series of robosuite, such as 1.5."""
    found = [_SERIES.search(text) for text in (recorded, here)]
    return all(found) and found[0][1] == found[1][1]  # type: ignore[index]


def _file(path: Path, options: ReplayOptions, part: str, several: bool) -> _File:
    """Return the facts about a file. `part`: its name in the ids of its demonstrations. Raises
    NothingReadError if it holds nothing readable, SourceError if it cannot be replayed as a whole.
    """
    try:
        refuse_pointer(path)
    except SourceError as error:
        raise NothingReadError(str(error)) from None
    try:
        with h5py.File(path, "r") as file:
            data = member(file, "data")
            if not isinstance(data, h5py.Group):
                raise NothingReadError(
                    f"{path}: it has no group `data` with demonstrations, as robomimic's files have"
                )
            return _understood(path, file, data, options, part, several)
    except FAULTS as error:
        raise NothingReadError(
            f"{path}: it cannot be read as HDF5 ({' '.join(str(error).split())}); was it copied whole?"
        ) from None


def _understood(path: Path, file: Any, data: Any, options: ReplayOptions, part: str, several: bool) -> _File:
    program = recording_program(path, data, ImportOptions(task=options.task))
    task = _known_task(str(path), options.task or _libero_task(data) or program.task)
    recorder = "env_info" in attributes_of(data) and "env_args" not in attributes_of(data)
    embodiment = DEFAULT
    if environment_of(task):
        controller = options.controller or (DELTA_POSE if program.arm or len(program.robots) > 1 else None)
        if controller is None:
            raise SourceError(
                f"{path}: it does not say that its actions are displacements of a Panda's hand (OSC_POSE);"
                " say what they are with --controller"
            )
        embodiment = Embodiment(
            program.robots[0] if program.robots else DEFAULT.robot,
            controller,
            None,
            program.hz or (RECORDERS_HZ if recorder else DEFAULT.control_hz),
        )
    elif program.hz and program.hz != DEFAULT.control_hz:
        raise SourceError(
            f"{path}: it was recorded at {program.hz:g} steps per second, {task} runs at"
            f" {DEFAULT.control_hz:g} here"
        )
    kitchen = task in robocasa.ROBOCASA_24
    names, absent = demonstration_names(path, file, data, options.mask)
    label = options.label or part
    ids = episode_ids(f"{label}-{part}" if several and options.label else label, names)

    def describe(name: str) -> ReplayItem:
        group = member(data, name)
        values = _values(group, kitchen)
        by = options.by or ("states" if values.states is not None else "actions")
        if by == "states" and values.states is None:
            raise ValueError("it holds no states; replay it --by actions")
        if values.states is None:
            raise ValueError("it holds no states, so where it starts is unknown")
        if by == "actions" and values.actions is None:
            raise ValueError("it holds no actions; replay it --by states")
        meta = json_of(attributes_of(group).get("ep_meta"))
        sentence = words_of(meta.get("lang")) or program.instruction
        return ReplayItem(
            name=f"{path.name}, {name}",
            episode_id=ids[name],
            task=task,
            instruction=sentence or instruction_of(task),
            length=len(values.states),
            by=by,
            success=recorded_success(group, "demoscale.success" in group.attrs),
            origin=f"replay of {path.name}, {name}, by {by}; content"
            f" {identity(*(one for one in (values.states, values.actions) if one is not None))}",
            place=(str(path), name),
        )

    items, faults = examined(path.name, names, describe)
    return _File(
        task,
        family_of(data, names[0]) if names else "HDF5",
        program.simulator,
        embodiment,
        [items[name] for name in names if name in items],
        [*absent, *faults.values()],
    )


def _libero_task(data: Any) -> str:
    """Return the task that a LIBERO file names by its definition; empty for other files."""
    named = PurePosixPath(text_of(attributes_of(data).get("bddl_file_name", "")))
    task = f"{named.parent.name}/{named.stem}"
    return task if task in libero.LIBERO else named.stem


@dataclass(frozen=True)
class _Values:
    """Values of one demonstration."""

    states: npt.NDArray[np.float64] | None
    actions: npt.NDArray[np.float64] | None


def _values(group: Any, kitchen: bool) -> _Values:
    """Return states and actions of a demonstration. Raises ValueError if they cannot be read, differ in
    length, or move RoboCasa's base.
    """
    if not isinstance(group, h5py.Group):
        raise ValueError("it is no demonstration")
    found = {}
    for name in ("states", "actions"):
        array = member(group, name)
        if is_vectors(array) and array.ndim == 2 and len(array):
            found[name] = vectors(array, name).astype(np.float64)
    states, actions = found.get("states"), found.get("actions")
    if states is not None and actions is not None and len(states) != len(actions):
        raise ValueError(f"it has {len(states)} states and {len(actions)} actions")
    if kitchen and actions is not None and actions.shape[1] > len(ACTION):
        if np.abs(actions[:, len(ACTION) : -1]).max(initial=0.0) > 1e-6:
            raise ValueError("the base moves, which this task's actions here cannot express")
        actions = actions[:, : len(ACTION)]
    return _Values(states, actions)


def _read_hdf5(path: Path, demo: str, item: ReplayItem, contract: Contract) -> RecordedDemo:
    try:
        with h5py.File(path, "r") as file:
            data = member(file, "data")
            group = member(data, demo)
            values = _values(group, item.task in robocasa.ROBOCASA_24)
            said = attributes_of(group)
            program = recording_program(path, data, ImportOptions(task=item.task))
            if values.actions is not None and values.actions.shape[1] != len(contract.action):
                raise ValueError(
                    f"its actions have {values.actions.shape[1]} dimensions, those of {item.task} here"
                    f" {len(contract.action)}"
                )
            return RecordedDemo(
                task=item.task,
                states=values.states,
                actions=values.actions,
                proprio=_recorded_proprio(member(group, "obs")),
                model=text_of(said.get("model_file", "")),
                same_simulator=_same_series(program.simulator, f"robosuite {version('robosuite')}"),
                meta=json_of(said.get("ep_meta")),
            )
    except FAULTS as error:
        raise SourceError(f"{item.name}: {' '.join(str(error).split())}; left out") from None


def _recorded_proprio(obs: Any) -> npt.NDArray[np.float32] | None:
    """Return the proprioception of the default embodiment, (T, 9); None if it was not recorded."""
    if not isinstance(obs, h5py.Group):
        return None
    found = [member(obs, key) for key in PROPRIO_KEYS]
    if not all(is_vectors(one) for one in found):
        return None
    rows = [vectors(one, key) for one, key in zip(found, PROPRIO_KEYS, strict=True)]
    return np.concatenate(rows, 1).astype(np.float32) if len({len(row) for row in rows}) == 1 else None


# -- stores --------------------------------------------------------------------------------------------------


def _store_source(storage: Storage, options: ReplayOptions) -> RecordedSource:
    if options.mask or options.controller or options.task:
        raise SourceError(
            f"{storage.uri}: --mask, --controller and --task are for HDF5 files; a store says them itself"
        )
    if options.by == "states":
        raise SourceError(
            f"{storage.uri}: a store keeps no states; replay it --by expert or --by actions, or replay the"
            " file it was imported from"
        )
    manifest = load_manifest(storage)
    given, items, problems = manifest.contract, list[ReplayItem](), list[str]()
    for entry in manifest.entries:
        expert = _EXPERT.fullmatch(entry.source)
        by = options.by or ("expert" if expert else "actions")
        why = ""
        if not is_task(entry.task):
            why = f"there is no task {entry.task} here"
        elif not expert:
            why = "it does not say its seed, so where it starts is unknown; replay what it was imported from"
        elif by == "actions" and not entry.labelled:
            why = "it has no actions; replay it --by expert"
        if why:
            problems.append(f"{storage.uri}, episode {entry.episode_id}: {why}; left out")
            continue
        items.append(
            ReplayItem(
                name=entry.episode_id,
                episode_id=f"{options.label}-{entry.episode_id}" if options.label else entry.episode_id,
                task=entry.task,
                instruction=entry.instruction,
                length=entry.length,
                by=by,
                success=entry.success,
                origin=f"replay of {entry.source}, by {by}; content {entry.sha256[:12]}",
                place=(storage.uri, entry.episode_id),
            )
        )
    if not items:
        raise SourceError(
            problems[0].removesuffix("; left out") if problems else f"{storage.uri}: it is empty"
        )
    items = _chosen(items, options)
    contracts = [
        _store_contract(storage.uri, task, options, given) for task in sorted({i.task for i in items})
    ]
    notes = []
    if given.simulator != contracts[0].simulator:
        notes.append(f"recorded on {given.simulator}, replayed on {contracts[0].simulator}")
    if any(item.by == "actions" for item in items):
        notes.append(
            "the recorded actions are the expert's, without the disturbance that was executed: by actions a"
            " disturbed episode does not take the recorded way; --by expert repeats it"
        )
    return RecordedSource(
        format="episode store",
        items=items,
        problems=problems,
        contract=contracts[0],
        simulator=given.simulator,
        notes=notes,
    )


def _store_contract(where: str, task: str, options: ReplayOptions, given: Contract) -> Contract:
    """Return the store's own conventions with the cameras, size and profile of the replay. Raises SourceError
    if the installed simulator offers others.
    """
    views = _contract(where, task, options, given, None)
    wanted = replace(
        given,
        cameras=views.cameras,
        image_size=views.image_size,
        render_profile=views.render_profile,
        simulator=views.simulator,
        poses=tuple(pose for pose in given.poses if pose.name in views.cameras),
    )
    if different := unfit(wanted, task):
        raise SourceError(f"{where}: {task} cannot be replayed here: {'; '.join(different)}")
    return wanted


def _read_episode(storage: Storage, episode_id: str, item: ReplayItem) -> RecordedDemo:
    entry = load_manifest(storage)[episode_id]
    expert = _EXPERT.fullmatch(entry.source)
    if expert is None:
        raise EpisodeError(f"{storage.uri}: episode {episode_id} does not say its seed")
    episode = decode(fetch(storage, entry), (), entry.labelled, wanted=())
    return RecordedDemo(
        task=item.task,
        actions=episode.action,
        proprio=episode.proprio,
        seed=int(expert[1]),
        disturbance=float(expert[2]),
    )
