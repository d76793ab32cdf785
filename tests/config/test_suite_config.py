"""The suite of a sweep file: horizons per task, robot, controller, proprioception, rate and cameras."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from orchestrator.api import Sweep
from orchestrator.config.schema import Camera, SuiteConfig
from orchestrator.config.sweep_config import SweepError
from orchestrator.data.episode_store import commit, put_episode
from orchestrator.planning.plan import make_plan
from orchestrator.storage.base import open_storage
from orchestrator.testing.episodes import CONTRACT, make_episode
from sim_workers.envs.embodiment import DEFAULT, Embodiment


def file(tmp_path: Path, **suite: Any) -> Path:
    store = tmp_path / "store"
    if not store.exists():
        storage = open_storage(str(store))
        commit(storage, CONTRACT, [put_episode(storage, make_episode(seed), 20.0) for seed in range(8)])
    sweep = {
        "name": "good",
        "data": {"episodes": str(store), "demo_count": [2]},
        "train": {"steps": 100, "checkpoint_every": 100},
        "suite": {"tasks": ["Lift"], "episodes": 10, "horizon": 50} | suite,
        "storage": str(tmp_path / "runs"),
    }
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep))
    return path


def mistakes(tmp_path: Path, **suite: Any) -> list[str]:
    """Return every mistake in a sweep with the suite, of the file and of its store."""
    try:
        sweep = Sweep.load(file(tmp_path, **suite))
        make_plan(sweep)
    except SweepError as error:
        return error.problems
    return []


CAMERA = {"name": "corner", "position": [1, 0, 1.5], "lookat": [0, 0, 0.8]}


@pytest.mark.parametrize(
    ("suite", "sentence"),
    [
        ({"horizon": 0}, "suite.horizon: write a whole number of control steps"),
        ({"horizon": "long"}, "one per task, or auto; not 'long'"),
        ({"horizon": {}}, "suite.horizon: no horizon for Lift; name every task of suite.tasks"),
        ({"horizon": {"Lift": 50, "Door": 9}}, "suite.horizon: Door: not among suite.tasks"),
        ({"horizon": {"Lift": -1}}, "not -1"),
        ({"robot": "R2D2"}, "suite.robot: unknown robot R2D2; there are Panda, Sawyer"),
        ({"controller": "torque"}, "suite.controller: unknown controller torque; there are delta_pose"),
        ({"control_hz": 30}, "suite.control_hz: 30 steps per second are no whole number of physics steps"),
        ({"proprio": ["knee"]}, "suite.proprio: there is no knee among"),
        ({"robot": "Sawyer"}, "suite.robot: Sawyer, but the store was recorded with Panda"),
        ({"control_hz": 10}, "suite.control_hz: 10.0, but the store was recorded with 20.0"),
        ({"controller": "pose"}, "suite.controller: pose, but the store was recorded with delta_pose"),
        ({"cameras": [{**CAMERA, "depth": True}]}, "corner: depth is not supported; pictures are RGB"),
        (
            {"cameras": [{"name": "corner", "position": [1, 0, 1]}]},
            "corner: write either lookat or orientation",
        ),
        ({"cameras": [{**CAMERA, "position": [0, 0, 0.8]}]}, "corner: lookat is the camera's own position"),
        ({"cameras": [{**CAMERA, "mount": "robot1_hand"}]}, "corner is mounted on robot1_hand; Lift has"),
        ({"cameras": [CAMERA]}, "suite.cameras: the store has no pictures of corner; it has"),
        ({"cameras": [CAMERA, CAMERA]}, "suite.cameras: each camera may appear once"),
        ({"tasks": ["Lfit"]}, "unknown task Lfit; did you mean Lift?"),
    ],
)
def test_mistake_in_the_suite_is_one_sentence(tmp_path: Path, suite: Any, sentence: str) -> None:
    said = mistakes(tmp_path, **suite)
    assert any(sentence in one for one in said), said
    assert all("\n" not in one for one in said)


@pytest.mark.parametrize(
    "suite",
    [
        {"horizon": {"Lift": 50}},
        {"horizon": "auto"},
        {"robot": "Panda", "controller": "delta_pose", "control_hz": 20, "proprio": ["eef_pos"]},
        {"proprio": []},
    ],
)
def test_suite_that_fits_its_store_has_no_mistake(tmp_path: Path, suite: Any) -> None:
    assert mistakes(tmp_path, **suite) == []


def test_horizons_lead_to_the_list_of_episodes() -> None:
    def suite(horizon: Any) -> SuiteConfig:
        return SuiteConfig.model_validate({"tasks": ["Lift", "Door"], "episodes": 2, "horizon": horizon})

    one = suite(150).to_suite(("Lift", "Door"))
    assert suite({"Lift": 150, "Door": 150}).to_suite(("Lift", "Door")) == one
    assert suite("auto").to_suite(("Lift", "Door")).horizons == (("Lift", 150),)
    assert suite("auto").to_suite(("Lift",)) == suite(150).to_suite(("Lift",))


def test_suite_of_earlier_versions_keeps_its_keys() -> None:
    """Decisions of a search are filed by this dump."""
    suite = SuiteConfig.model_validate({"tasks": ["Lift"], "episodes": 2, "horizon": 50})
    assert not {"robot", "controller", "control_hz", "cameras", "proprio"} & set(
        suite.model_dump(mode="json", exclude_none=True)
    )
    assert suite.embodiment == DEFAULT
    assert suite.to_suite(("Lift",)).processors == "one"
    mixed = suite.model_copy(update={"processors": "mixed"})
    assert mixed.to_suite(("Lift",)).processors == "mixed"


def test_embodiment_of_a_suite_is_what_collect_records() -> None:
    suite = SuiteConfig.model_validate(
        {
            **{"tasks": ["Lift"], "episodes": 2, "horizon": 50},
            **{"robot": "Sawyer", "controller": "pose", "control_hz": 10, "proprio": [], "cameras": [CAMERA]},
        }
    )
    (pose,) = suite.embodiment.poses
    assert suite.embodiment == Embodiment("Sawyer", "pose", (), 10.0, (pose,))


@pytest.mark.parametrize(
    ("position", "lookat"),
    [((1, 0, 1.5), (0, 0, 0.8)), ((0.2, -0.7, 1), (0, 0.1, 1)), ((0, 0, 2), (0, 0, 0))],
)
def test_camera_looks_at_its_point_with_the_top_upwards(position: Any, lookat: Any) -> None:
    pose = Camera(name="c", position=position, lookat=lookat).pose()
    w, x, y, z = pose.orientation
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    way = np.subtract(lookat, position) / np.linalg.norm(np.subtract(lookat, position))
    np.testing.assert_allclose(-rotation[:, 2], way, atol=1e-6)
    assert rotation[2, 1] >= -1e-9


def test_chosen_proprioception_changes_the_training_key_and_the_contract(tmp_path: Path) -> None:
    whole = Sweep.load(file(tmp_path))
    none = Sweep.load(file(tmp_path, proprio=[]))
    assert whole.suite.contract_of(CONTRACT) == CONTRACT
    assert none.suite.contract_of(CONTRACT).proprio == ()
    packages = dict.fromkeys(("av", "diffusers", "numpy", "torch", "transformers"), "1")
    keys = [sweep.training_key("data", (), "", packages) for sweep in (whole, none)]
    assert "proprioception" not in keys[0].parts
    assert keys[0].fingerprint != keys[1].fingerprint
