"""The robomimic export, read back with h5py alone; and the conventions that either export states."""

import json
import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result

from orchestrator.cli.export_command import export as export_command
from orchestrator.data.episode_format import Episode, EpisodeError, decode
from orchestrator.data.episode_store import commit, fetch, load_manifest, put_episode
from orchestrator.data.exporters.lerobot_v3 import contract_of_export, export, exportable
from orchestrator.data.exporters.robomimic import CONTROLLER, env_args, export_robomimic, proprio_groups
from orchestrator.data.importers.base import ImportOptions, open_source
from orchestrator.storage.base import Storage, open_storage
from orchestrator.testing.episodes import CAMERA, CONTRACT, make_episode, make_episode_store
from policy.interface import Contract
from sim_workers.envs.robosuite import ACTION, PROPRIO, PROPRIO_KEYS

OURS = replace(CONTRACT, simulator="robosuite 1.5.2, mujoco 3.9.0")


def stored(folder: Path, *episodes: Episode, contract: Contract = OURS) -> Storage:
    storage = open_storage(str(folder))
    commit(storage, contract, [put_episode(storage, episode, contract.control_hz) for episode in episodes])
    return storage


def written(storage: Storage, path: Path, labelled_only: bool = False, **chosen: Any) -> Path:
    manifest = load_manifest(storage)
    entries = exportable(storage, manifest, labelled_only, "robomimic")
    assert list(export_robomimic(storage, manifest.contract, entries, path, **chosen)) == entries
    return path


def command(*arguments: object) -> Result:
    return CliRunner().invoke(export_command, list(map(str, arguments)))


def proprioception(file: Any, demo: str) -> np.ndarray:
    keys = json.loads(file["data"].attrs["demoscale.proprio_keys"])
    return np.concatenate([file[f"data/{demo}/obs/{key}"][()] for key in keys], 1)


@pytest.fixture
def mixed(tmp_path: Path) -> Storage:
    """Return a store with a success, a failure, an episode of unknown success and one without actions;
    lengths and sentences differ.
    """
    failed = replace(
        make_episode(1, length=5),
        success=False,
        task="Stack",
        instruction="stack the red cube on the green cube",
    )
    unknown = replace(make_episode(2, length=1), success=None)
    return stored(
        tmp_path / "store", make_episode(0), failed, unknown, make_episode(3, length=4, labelled=False)
    )


def test_robomimic_export_holds_the_decoded_episodes(mixed: Storage, tmp_path: Path) -> None:
    manifest = load_manifest(mixed)
    with h5py.File(written(mixed, tmp_path / "lift.hdf5", labelled_only=True)) as file:
        data = file["data"]
        assert set(data) == {"demo_0", "demo_1", "demo_2"}
        assert data.attrs["total"] == 12 + 5 + 1
        assert "mask" not in file
        for demo in data:
            group = data[demo]
            episode = decode(
                fetch(mixed, manifest[group.attrs["demoscale.episode_id"]]), OURS.cameras, with_actions=True
            )
            assert group.attrs["num_samples"] == episode.length
            assert {len(group[name]) for name in ("actions", "rewards", "dones")} == {episode.length}
            assert np.array_equal(group["actions"], episode.action)
            assert np.array_equal(proprioception(file, demo), episode.proprio)
            assert set(group["obs"]) == {f"{CAMERA}_image", *PROPRIO_KEYS}
            pictures = group[f"obs/{CAMERA}_image"]
            assert pictures.dtype == np.uint8
            assert pictures.chunks == (1, 64, 64, 3)
            assert pictures.compression == "gzip"
            assert np.array_equal(pictures, episode.frames[CAMERA])
            own = {name: group.attrs[f"demoscale.{name}"] for name in ("task", "instruction", "source")}
            assert own == {"task": episode.task, "instruction": episode.instruction, "source": episode.source}
            assert group.attrs.get("demoscale.success") == episode.success
            assert group["dones"][()].tolist() == [0] * (episode.length - 1) + [1]
            assert group["rewards"][()].tolist() == [0.0] * (episode.length - 1) + [
                float(episode.success is True)
            ]
        widths = {key: file[f"data/demo_0/obs/{key}"].shape for key in PROPRIO_KEYS}
        assert widths == dict(zip(PROPRIO_KEYS, ((12, 3), (12, 4), (12, 2)), strict=True))


def test_robomimic_export_holds_contract_and_environment(mixed: Storage, tmp_path: Path) -> None:
    path = written(mixed, tmp_path / "new" / "lift.h5", labelled_only=True, train_mask=True)
    with h5py.File(path) as file:
        assert Contract.from_json(json.loads(file["data"].attrs["demoscale.contract"])) == OURS
        args = json.loads(file["data"].attrs["env_args"])
        assert [name.decode() for name in file["mask/train"]] == ["demo_0", "demo_1", "demo_2"]
    assert {name: args[name] for name in ("env_name", "env_version", "type")} == {
        "env_name": "Lift",
        "env_version": "1.5.2",
        "type": 1,
    }
    assert args["env_kwargs"] == {
        "robots": ["Panda"],
        "control_freq": 20,
        "controller_configs": {"type": "BASIC", "body_parts": {"right": CONTROLLER}},
        "camera_names": [CAMERA],
        "camera_heights": 64,
        "camera_widths": 64,
    }
    assert contract_of_export(path) == OURS


def test_export_controller_equals_robosuites_default_for_a_panda() -> None:
    found = find_spec("robosuite")  # not imported: the file alone is wanted
    assert found is not None
    assert found.origin is not None
    default = json.loads(
        (Path(found.origin).parent / "controllers/config/robots/default_panda.json").read_text()
    )
    assert default["body_parts"]["arms"]["right"] == CONTROLLER


def test_env_args_exist_only_for_a_contract_of_this_simulator(tmp_path: Path) -> None:
    entries = list(load_manifest(stored(tmp_path / "store", make_episode())).entries)
    two = tuple(f"robot{arm}_{name}" for arm in range(2) for name in ACTION)
    known = env_args(replace(OURS, action=two, control_hz=12.5), entries)
    assert known is not None
    assert (known["env_kwargs"]["robots"], known["env_kwargs"]["control_freq"]) == (["Panda", "Panda"], 12.5)
    assert env_args(replace(OURS, action=ACTION[:6]), entries) is not None
    for others in (
        "robosuite 1.4.1, mujoco unknown",
        "robocasa 1.0, robosuite 1.5.2, mujoco 3.9.0",
        "unknown",
    ):
        assert env_args(replace(OURS, simulator=others), entries) is None
    assert env_args(replace(OURS, action=tuple(f"joint_{i}" for i in range(7))), entries) is None
    foreign = stored(tmp_path / "foreign", make_episode(), contract=replace(OURS, simulator="a lab"))
    with h5py.File(written(foreign, tmp_path / "foreign.hdf5")) as file:
        assert "env_args" not in file["data"].attrs


def numbered(key: str, width: int) -> tuple[str, ...]:
    return tuple(f"{key}_{i}" for i in range(width))


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (PROPRIO, {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}),
        (PROPRIO[:7], {"robot0_eef_pos": 3, "robot0_eef_quat": 4}),
        (
            tuple(f"robot{arm}_{name}" for arm in range(2) for name in PROPRIO[:7]),
            {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot1_eef_pos": 3, "robot1_eef_quat": 4},
        ),
        (
            numbered("robot0_base_to_eef_pos", 3)
            + numbered("robot0_eef_quat", 4)
            + numbered("robot0_joint_pos", 12),
            {"robot0_base_to_eef_pos": 3, "robot0_eef_quat": 4, "robot0_joint_pos": 12},
        ),
        (numbered("observation.state", 4), {"proprio": 4}),
        (("speed", *PROPRIO[:3], "grip", "force"), {"proprio": 1, "robot0_eef_pos": 3, "proprio_2": 2}),
        ((*PROPRIO[:3], *PROPRIO[:3]), {"robot0_eef_pos": 3, "proprio": 3}),
        ((*PROPRIO[:2], "robot0_width"), {"proprio": 3}),
        ((), {}),
    ],
)
def test_proprio_groups_cover_every_value_in_order(names: tuple[str, ...], groups: dict[str, int]) -> None:
    found = proprio_groups(names)
    assert {key: width for key, (_, width) in found.items()} == groups
    assert [value for first, width in found.values() for value in names[first : first + width]] == list(names)


def test_robomimic_export_keeps_proprioception_of_unknown_names(tmp_path: Path) -> None:
    contract = replace(OURS, proprio=("speed", *PROPRIO[:3], *numbered("joint", 5)))
    storage = stored(tmp_path / "store", make_episode(), contract=contract)
    with h5py.File(written(storage, tmp_path / "a.hdf5")) as file:
        assert json.loads(file["data"].attrs["demoscale.proprio_keys"]) == [
            "proprio",
            "robot0_eef_pos",
            "proprio_2",
        ]
        assert np.array_equal(proprioception(file, "demo_0"), make_episode().proprio)
    assert contract_of_export(tmp_path / "a.hdf5") == contract


def test_robomimic_export_refuses_or_omits_action_free_episodes_by_name(
    mixed: Storage, tmp_path: Path
) -> None:
    sentence = (
        r"1 of 4 episodes have no actions, which robomimic cannot express; leave them out with"
        r" --labelled-only \(Lift-000003\)"
    )
    with pytest.raises(EpisodeError, match=sentence):
        written(mixed, tmp_path / "lift.hdf5")
    done = command(mixed.uri, tmp_path / "lift.hdf5", "--format", "robomimic", "--labelled-only")
    assert done.exit_code == 0, done.output
    assert "exported 3 episodes, 18 steps" in done.output
    assert "1 episodes without actions left out: Lift-000003" in done.output
    films = stored(tmp_path / "films", make_episode(labelled=False))
    with pytest.raises(
        EpisodeError, match="no episode has actions, and robomimic cannot express one without"
    ):
        written(films, tmp_path / "films.hdf5", labelled_only=True)


def test_robomimic_export_overwrites_no_file_and_leaves_no_partial_one(
    mixed: Storage, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    manifest = load_manifest(mixed)
    entries = exportable(mixed, manifest, True, "robomimic")
    writing = export_robomimic(mixed, manifest.contract, entries, folder / "a.hdf5")
    next(writing)
    assert [path.name for path in folder.iterdir()] == [f".a.hdf5.{os.getpid()}.partial"]
    writing.close()
    assert not list(folder.iterdir())

    writing = export_robomimic(mixed, manifest.contract, entries, folder / "a.hdf5")
    next(writing)
    (folder / "a.hdf5").write_bytes(b"another's")
    with pytest.raises(EpisodeError, match="another process wrote it meanwhile"):
        list(writing)
    done = command(mixed.uri, folder / "a.hdf5", "--format", "robomimic", "--labelled-only")
    assert done.exit_code == 1
    assert "a.hdf5: it exists already; name another file" in done.output
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("a.hdf5", b"another's")]

    os.remove(mixed.uri.removeprefix("file://") + "/" + entries[1].key)
    with pytest.raises(EpisodeError, match="episode Lift-000001 is missing"):
        written(mixed, folder / "b.hdf5", labelled_only=True)
    assert [path.name for path in folder.iterdir()] == ["a.hdf5"]
    with pytest.raises(EpisodeError, match=r"b.hdf5: it could not be written \(.*\); check the free space"):
        written(mixed, folder / "a.hdf5" / "b.hdf5", labelled_only=True)


def test_export_refuses_names_that_cannot_be_written(tmp_path: Path) -> None:
    storage = open_storage(make_episode_store(tmp_path / "store", episodes=1))
    assert (
        "a robomimic file ends in .hdf5 or .h5; name it"
        in command(storage.uri, tmp_path / "lift", "--format", "robomimic").output
    )
    slashed = replace(make_episode(), frames={"wrist/left": make_episode().frames[CAMERA]})
    other = stored(tmp_path / "other", slashed, contract=replace(OURS, cameras=("wrist/left",)))
    with pytest.raises(EpisodeError, match="camera wrist/left has a slash in its name"):
        written(other, tmp_path / "other.hdf5")
    for arguments, sentence in (
        ((tmp_path / "store", "--format", "robomimic"), "is a folder; name a new file"),
        ((tmp_path / "lift.hdf5",), "add --format robomimic"),
        ((tmp_path / "lift", "--train-mask"), "LeRobot has no masks"),
        (("s3://bucket/lift.hdf5", "--format", "robomimic"), "is no path of this machine"),
    ):
        done = command(storage.uri, *arguments)
        assert done.exit_code == 2
        assert sentence in done.output


def test_either_export_states_its_contract(mixed: Storage, tmp_path: Path) -> None:
    folder, path = tmp_path / "lift", tmp_path / "lift.hdf5"
    manifest = load_manifest(mixed)
    list(export(mixed, manifest.contract, exportable(mixed, manifest, True), folder))
    stated = json.loads((folder / "meta/info.json").read_text())["demoscale"]["contract"]
    assert Contract.from_json(stated) == contract_of_export(folder) == OURS
    for exported in (folder, written(mixed, path, labelled_only=True)):
        done = command("--contract-of", exported)
        assert done.exit_code == 0
        assert Contract.from_json(json.loads(done.output)) == OURS


def test_contract_of_a_path_without_one_raises(tmp_path: Path) -> None:
    done = command("--contract-of", tmp_path / "nothing")
    assert done.exit_code == 1
    assert "there is no export here" in done.output
    damaged, other = tmp_path / "damaged.hdf5", tmp_path / "other.hdf5"
    damaged.write_bytes(b"no HDF5")
    with pytest.raises(EpisodeError, match="it cannot be read"):
        contract_of_export(damaged)
    with h5py.File(other, "w") as file:
        file.create_group("data").attrs["demoscale.contract"] = "{}"
    with pytest.raises(EpisodeError, match="the conventions it states are damaged"):
        contract_of_export(other)
    for info in ("{}", '{"demoscale": {}}'):
        (tmp_path / "meta").mkdir(exist_ok=True)
        (tmp_path / "meta/info.json").write_text(info)
        with pytest.raises(EpisodeError, match="it does not state the conventions of a store"):
            contract_of_export(tmp_path)
    with h5py.File(tmp_path / "linked.hdf5", "w") as file:
        file["data"] = h5py.ExternalLink("other.hdf5", "data")
    with pytest.raises(EpisodeError, match="it does not state the conventions of a store"):
        contract_of_export(tmp_path / "linked.hdf5")


@pytest.mark.parametrize("kind", ["robomimic", "LeRobot"])
def test_export_is_imported_whole_without_questions(tmp_path: Path, kind: str) -> None:
    episodes = [
        replace(make_episode(seed, length=120), instruction=f"lift cube {seed}", success=bool(seed))
        for seed in range(2)
    ]
    storage = stored(tmp_path / "store", *episodes)
    manifest = load_manifest(storage)
    path = tmp_path / ("lift.hdf5" if kind == "robomimic" else "lift")
    if kind == "robomimic":
        written(storage, path)
    else:
        list(export(storage, manifest.contract, list(manifest.entries), path))
    source = open_source(path, ImportOptions())
    assert (source.questions, source.problems) == ([], [])
    assert source.contract == OURS
    for item, entry in zip(source.items, manifest.entries, strict=True):
        back, there = source.read(item), decode(fetch(storage, entry), OURS.cameras, with_actions=True)
        assert (back.task, back.instruction, back.success) == (there.task, there.instruction, there.success)
        assert back.action is not None
        assert back.proprio is not None
        assert there.action is not None
        assert there.proprio is not None
        assert np.array_equal(back.action, there.action)
        assert np.array_equal(back.proprio, there.proprio)
        assert np.array_equal(back.frames[CAMERA], there.frames[CAMERA])
