"""Replay of recordings: what is listed and refused, and demonstrations of Lift played again."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import run

import robosuite_recordings
from orchestrator.cli.main import main
from orchestrator.data.drawn_by import difference, drivers_of, note_driver, refuse_other_driver
from orchestrator.data.episode_format import EpisodeError, decode
from orchestrator.data.episode_store import fetch, load_manifest
from orchestrator.data.importers.source_files import SourceError
from orchestrator.data.recorded_demos import ReplayOptions, open_recordings
from orchestrator.data.replay_demos import Comparison, comparisons
from orchestrator.storage.base import open_storage
from orchestrator.testing.episodes import make_episode_store
from sim_workers.demos.replay import Divergence, ReplayError, fixed_bodies, joints
from sim_workers.envs.robosuite import ACTION

OSC = {"type": "OSC_POSE", "control_delta": True, "input_max": 1, "output_max": [0.05] * 3 + [0.5] * 3}


def hdf5(path: Path, env: str = "Lift", robots: str = "Panda", **demos: dict[str, np.ndarray]) -> Path:
    """Write a file in robomimic's layout without pictures; demos: parts of each demonstration."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        kwargs = {"robots": [robots], "controller_configs": OSC, "control_freq": 20}
        data.attrs["env_args"] = json.dumps(
            {"env_name": env, "env_version": "1.4.1", "type": 1, "env_kwargs": kwargs}
        )
        for name, parts in demos.items():
            for key, values in parts.items():
                data.create_group(name) if name not in data else None
                data[name][key] = values
    return path


def demo(steps: int = 3, width: int = len(ACTION)) -> dict[str, np.ndarray]:
    return {"states": np.ones((steps, 32)), "actions": np.zeros((steps, width)), "rewards": np.eye(steps)[-1]}


# -- listing and refusals ------------------------------------------------------------------------------------


def test_recordings_are_listed_with_what_they_say(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "lift.hdf5", demo_10=demo(5), demo_2=demo(3), demo_3={"actions": np.zeros((2, 7))})
    source = open_recordings(str(path), ReplayOptions(cameras=("frontview",), image_size=96))
    assert [(item.episode_id, item.length, item.by, item.success) for item in source.items] == [
        ("lift-demo_2", 3, "states", True),
        ("lift-demo_10", 5, "states", True),
    ]
    assert source.problems == [
        "lift.hdf5, demo_3: it holds no states, so where it starts is unknown; left out"
    ]
    assert (source.contract.cameras, source.contract.image_size) == (("frontview",), (96, 96))
    assert source.simulator == "robosuite 1.4.1, mujoco unknown"
    assert "recorded models are not loaded" in source.notes[0]
    assert len({item.origin for item in source.items}) == 2


@pytest.mark.parametrize(
    ("written", "options", "sentence"),
    [
        ({"env": "Teapot"}, {}, "there is no task Teapot here; name it with --task"),
        ({"robots": "Sawyer"}, {}, "say what they are with --controller"),
        ({}, {"by": "expert"}, "no scripted expert recorded it"),
        ({}, {"mask": "train"}, "there is no mask train"),
        ({}, {"cameras": ("top",)}, "unknown camera top"),
        ({}, {"render_profile": "shiny"}, "unknown profile shiny"),
        ({"demo_1": {"actions": np.zeros((2, 7))}}, {}, "demo_1: it holds no states"),
        (
            {"demo_1": {"states": np.ones((2, 9)), "actions": np.zeros((3, 7))}},
            {},
            "demo_1: it has 2 states and 3 actions",
        ),
        ({"demo_1": {"states": np.full((2, 9), np.nan)}}, {}, "demo_1: "),
    ],
)
def test_bad_recordings_and_options_are_refused_by_name(
    tmp_path: Path, written: dict, options: dict, sentence: str
) -> None:
    path = hdf5(tmp_path / "file.hdf5", **({"demo_1": demo()} | written))
    with pytest.raises(SourceError, match=sentence) as caught:
        open_recordings(str(path), ReplayOptions(**options))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_of_a_folder_have_own_ids_and_unreadable_ones_are_left_out(tmp_path: Path) -> None:
    for name in ("lift.hdf5", "lift.h5", "b.hdf5"):
        hdf5(tmp_path / name, demo_1=demo())
    (tmp_path / "b.hdf5").write_bytes((tmp_path / "b.hdf5").read_bytes()[:1000])
    (tmp_path / "c.hdf5").write_text("version https://git-lfs.github.com/spec/v1\n")
    source = open_recordings(str(tmp_path), ReplayOptions())
    assert [item.episode_id for item in source.items] == ["lift-h5-demo_1", "lift-hdf5-demo_1"]
    assert "b.hdf5: it cannot be read as HDF5" in source.problems[0]
    assert "c.hdf5: it is a git-LFS pointer" in source.problems[1]


def test_replay_reports_what_a_mask_lists_in_vain(tmp_path: Path) -> None:
    path = hdf5(tmp_path / "lift.hdf5", demo_1=demo())
    with h5py.File(path, "a") as file:
        file["mask/train"] = np.array([b"demo_1", b"demo_7"])
    source = open_recordings(str(path), ReplayOptions(mask="train"))
    assert source.problems == [
        "lift.hdf5, demo_7: the mask train lists it, but it is not in the file; left out"
    ]


def test_places_that_hold_no_recordings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.hdf5").write_text("no HDF5")
    for place, sentence in (
        ("none.hdf5", "there is no such file"),
        ("text.hdf5", "cannot be read as HDF5"),
        ("folder", "nor an episode store"),
    ):
        with pytest.raises(SourceError, match=sentence):
            open_recordings(str(tmp_path / place), ReplayOptions())


@pytest.mark.libero
def test_libero_files_name_their_tasks(tmp_path: Path) -> None:
    stove = "KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it"
    path = hdf5(tmp_path / "any.hdf5", env="Libero_Kitchen_Tabletop_Manipulation", demo_0=demo())
    with h5py.File(path, "a") as file:
        file["data"].attrs["bddl_file_name"] = f"libero/bddl_files/libero_10/{stove}.bddl"
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": "turn on the stove"})
    source = open_recordings(str(path), ReplayOptions())
    assert (source.tasks, source.format) == ([f"libero_10/{stove}"], "LIBERO HDF5")


def test_robocasa_files_without_robocasa_are_refused(tmp_path: Path) -> None:
    kitchen = hdf5(
        tmp_path / "door.hdf5",
        env="OpenSingleDoor",
        robots="PandaOmron",
        demo_0=demo(width=12),
        demo_1=demo(width=12) | {"actions": np.full((3, 12), 0.5)},
    )
    with pytest.raises(Exception, match="RoboCasa is not installed"):
        open_recordings(str(kitchen), ReplayOptions())


def test_stores_without_seeds_are_refused(tmp_path: Path) -> None:
    uri = make_episode_store(tmp_path / "store", episodes=1, length=2, size=16)
    with pytest.raises(SourceError, match="does not say its seed"):
        open_recordings(uri, ReplayOptions())
    with pytest.raises(SourceError, match="a store keeps no states"):
        open_recordings(uri, ReplayOptions(by="states"))


# -- models and drivers --------------------------------------------------------------------------------------

MODEL = """<mujoco><worldbody>
  <body name="robot0_base" pos="1 0 0"><joint name="robot0_joint1"/></body>
  <body name="cabinet_main" pos="0.1 0.2 0.3" quat="0 0 0 1"><body name="door"><joint name="hinge"/></body></body>
  <body name="pot_main"><freejoint name="pot_joint0"/></body>
</worldbody></mujoco>"""


def test_model_gives_joints_in_order_and_furniture() -> None:
    assert joints(MODEL) == ["robot0_joint1", "hinge", "pot_joint0"]
    (cabinet,) = fixed_bodies(MODEL)
    assert (cabinet.name, cabinet.position, cabinet.rotation) == (
        "cabinet_main",
        [0.1, 0.2, 0.3],
        [0, 0, 0, 1],
    )
    for broken, sentence in (("<mujoco", "no XML"), ("<mujoco/>", "no worldbody"), ("<!DOCTYPE x>", "plain")):
        with pytest.raises(ReplayError, match=sentence):
            joints(broken)


def test_store_names_its_drivers_and_refuses_another(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "store"))
    refuse_other_driver(storage, "egl: A")  # it does not say what drew it
    note_driver(storage, "egl: A", "a test")
    note_driver(storage, "egl: A", "again")
    assert drivers_of(storage) == ("egl: A",)
    refuse_other_driver(storage, "egl: A")
    with pytest.raises(EpisodeError, match=r"drawn by egl: A, this machine draws with egl: B"):
        refuse_other_driver(storage, "egl: B")
    assert difference([("x", ()), ("y", ("egl: B",))], "egl: B") == ""
    assert "y was drawn by egl: A" in difference([("x", ("egl: B",)), ("y", ("egl: A",))], "egl: B")


def test_comparison_says_what_differs() -> None:
    one = Comparison(
        episode="a",
        recording="f.hdf5, demo_1",
        by="actions",
        model="installed",
        simulator="robosuite",
        driver="egl",
        recorded_success=True,
        success=False,
        divergence=Divergence(position=0.25, step=7, proprio=None),
    )
    assert not one.agrees
    assert str(one) == (
        "f.hdf5, demo_1: recorded success, replayed failure; positions differ by up to 0.25, beyond 0.001 from"
        " step 7 on"
    )


# -- the simulator -------------------------------------------------------------------------------------------

IN_ONE_PROCESS = """
import json, sys
from orchestrator.data.collect_demos import record
from orchestrator.data.episode_store import commit
from orchestrator.data.recorded_demos import ReplayOptions, open_recordings
from orchestrator.data.replay_demos import Replayer, missing
from orchestrator.storage.base import open_storage
from sim_workers.demos.recorder import Demonstration
from sim_workers.envs.registry import contract_of, make_env

folder, file = sys.argv[1:]
storage = open_storage(folder + "/collected")
contract = contract_of("Lift", ("robot0_eye_in_hand",), (32, 32), "fast")
env = make_env("Lift", contract)
commit(storage, contract, [record(env, storage, Demonstration("Lift", seed, 0.3)) for seed in (0, 1)])
env.close()
for name, src, options in (
    ("states", file, ReplayOptions(by="states", cameras=("agentview", "robot0_eye_in_hand"), image_size=64, episodes=1)),
    ("actions", file, ReplayOptions(by="actions", cameras=("frontview",), image_size=48, episodes=1)),
    ("expert", storage.uri, ReplayOptions(cameras=("frontview",), image_size=48)),
    ("blind", storage.uri, ReplayOptions(by="actions", image_size=48)),
):
    to = open_storage(f"{folder}/{name}")
    source = open_recordings(src, options)
    replayer = Replayer(source, "Lift", to.uri)
    answers = [replayer.record(item) for item in missing(source, to)]
    replayer._env.close()
    commit(to, source.contract, answers)
    assert missing(source, to) == []
"""


@pytest.mark.full
@pytest.mark.sim
def test_demonstrations_of_lift_are_replayed_at_other_sizes(tmp_path: Path, recorded: Path) -> None:
    """Collect two episodes and replay them by the expert and by their actions; replay one of
    robosuite's own recordings by states and by actions.
    """
    done = run("-W", "ignore", "-c", IN_ONE_PROCESS, str(tmp_path), str(recorded / "demo.hdf5"))
    assert done.returncode == 0, done.stderr
    stores = {
        name: open_storage(str(tmp_path / name))
        for name in ("collected", "states", "actions", "expert", "blind")
    }
    found = {name: comparisons(storage) for name, storage in stores.items()}

    # by states: the pictures are those that robosuite itself renders of the recorded states
    manifest = load_manifest(stores["states"])
    for entry, meant in zip(manifest.entries, robosuite_recordings.load(recorded), strict=False):
        episode = decode(fetch(stores["states"], entry), entry.cameras, True)
        for camera, pictures in meant.frames.items():
            apart = np.abs(episode.frames[camera].astype(int) - pictures)
            assert apart.mean() < 2.5, f"{camera}: H.264 loses no more"
        assert episode.action is not None
        assert np.allclose(episode.action, meant.action, atol=1e-6)
        assert episode.proprio is not None
        assert np.allclose(episode.proprio, meant.proprio, atol=1e-5)
    assert [(one.success, one.model) for one in found["states"].values()] == [(True, "recorded")]

    # by actions: the same way, to the last bit, in other pictures
    assert load_manifest(stores["actions"]).contract.image_size == (48, 48)
    for one in found["actions"].values():
        assert one.success
        assert one.divergence.position == 0.0

    # by the expert: bit-equal actions and proprioception; by actions without the disturbance: another way
    for one in found["expert"].values():
        assert one.agrees
        assert (one.divergence.proprio, one.divergence.action) == (0.0, 0.0)
    assert any((one.divergence.proprio or 0) > 1e-3 for one in found["blind"].values())
    for storage in stores.values():
        assert len(drivers_of(storage)) <= 1
    assert drivers_of(stores["expert"]) == drivers_of(stores["states"])
    assert "egl" in drivers_of(stores["states"])[0]


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.sim
def test_replay_command_replays_once_and_reports(tmp_path: Path, recorded: Path, ray_cluster: None) -> None:
    command = [
        "replay",
        str(recorded / "demo.hdf5"),
        str(tmp_path / "store"),
        "--episodes",
        "1",
        "--image-size",
        "32",
    ]
    planned = CliRunner().invoke(main, [*command, "--dry-run"])
    assert "1 episodes to replay" in planned.output
    assert not (tmp_path / "store").exists()
    first = CliRunner().invoke(main, command)
    assert first.exit_code == 0, first.output
    assert "success        1 of 1 replays; the recordings do not say" in first.output
    again = CliRunner().invoke(main, command)
    assert "0 episodes to replay, 1 already there" in again.output
    other = CliRunner().invoke(main, [*command, "--image-size", "48"])
    assert other.exit_code == 2
    assert "use another folder" in other.output
