"""Tasks of other packages: found by entry points, imported when used, hashed, checked."""

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from command_session import outputs
from installed_package import forget, install, on_path
from orchestrator.cli.main import main
from orchestrator.cli.new_task import files
from orchestrator.code_fingerprint import plugin_code
from orchestrator.config.schema import SuiteConfig
from orchestrator.evaluation.scores import protocol_key, render_references_of
from orchestrator.storage.base import open_storage
from orchestrator.testing.envs import check_env
from policy.entry_points import TASKS
from sim_workers.checkout import CHECKOUT
from sim_workers.envs import plugins
from sim_workers.envs.check import check_env as results
from sim_workers.envs.registry import (
    cameras_of,
    contract_of,
    horizon_of,
    instruction_of,
    is_task,
    make_env,
    refusal,
    task_names,
    unfit,
)
from sim_workers.rollout.suite import EpisodeRules, Suite


@pytest.fixture
def package(tmp_path: Path) -> Iterator[Path]:
    """A folder on the path with the package `dots`, whose task is the skeleton's, and two broken ones."""
    texts = {file: text for file, text in files("dots").items() if file.startswith("dots/")}
    with on_path(tmp_path) as site:
        offer(site, "dots", texts, {"dots/Reach": "dots.reach:REACH", "Lift": "dots.reach:REACH"})
        offer(site, "broken", {"broken.py": "import no_such_module"}, {"broken/Task": "broken:TASK"})
        others = {"other/Task": "other:TASK", "not a name": "other:TASK"}
        offer(site, "other", {"other.py": "TASK = 3"}, others)
        yield site


def offer(site: Path, name: str, texts: dict[str, str], tasks: dict[str, str]) -> None:
    install(site, name, texts, {TASKS.name: tasks})


def test_names_of_plugins_are_found_without_an_import(package: Path) -> None:
    assert {"dots/Reach", "broken/Task", "other/Task"} <= set(task_names())
    assert "not a name" not in task_names()
    assert is_task("dots/Reach")
    assert not refusal("dots/Reach", "nominal")
    assert "shifts are made of robosuite's own tasks" in refusal("dots/Reach", "lighting")
    suite = SuiteConfig.model_validate({"tasks": ["dots/Reach", "Lift"], "episodes": 2, "horizon": 50})
    assert suite.tasks == ("dots/Reach", "Lift")
    assert not {"dots", "broken", "other"} & set(sys.modules)
    assert plugin_code("dots/Reach")["package"] == "dots 1.0"
    assert "dots" not in sys.modules


def test_plugin_task_answers_like_a_task_of_its_own(package: Path) -> None:
    assert cameras_of("dots/Reach") == ("top",)
    assert instruction_of("dots/Reach") == "move the dot onto the disc"
    assert horizon_of("dots/Reach") == 60
    said = contract_of("dots/Reach", ("top",), (32, 48), "fast")
    assert said.simulator == "dots 1.0"
    assert not unfit(said, "dots/Reach")
    env = make_env("dots/Reach", said)
    env.reset(1)
    assert env.observe(3).images["top"].shape == (32, 48, 3)
    with pytest.raises(plugins.PluginError, match=r"simulator: the policy was trained with dots 0\.9"):
        make_env("dots/Reach", replace(said, simulator="dots 0.9"))


def test_name_of_this_package_is_never_taken_by_a_plugin(package: Path) -> None:
    assert instruction_of("Lift") == "lift the red cube"
    assert plugins.package("Lift") == "dots 1.0"
    listed = CliRunner().invoke(main, ["task", "list"])
    assert listed.exit_code == 0
    assert re.search(r"^dots/Reach +dots 1.0$", listed.output, re.M)
    assert "hidden by this package's own" in listed.output


def test_broken_plugin_is_one_sentence_and_no_other_task_breaks(package: Path) -> None:
    said = contract_of("dots/Reach", ("top",), (32, 32), "fast")
    (sentence,) = unfit(said, "broken/Task")
    assert sentence.startswith(
        "the task broken/Task of the package broken 1.0 (broken:TASK) cannot be loaded:"
    )
    assert "No module named 'no_such_module'" in sentence
    assert "must be a sim_workers.envs.plugins.Task" in unfit(said, "other/Task")[0]
    assert not unfit(said, "dots/Reach")
    done = CliRunner().invoke(main, ["task", "check", "broken/Task"])
    assert done.exit_code == 1
    assert "cannot be loaded" in done.output
    assert "Traceback" not in done.output


def test_two_packages_with_one_task_are_named(package: Path) -> None:
    offer(package, "twin", {}, {"dots/Reach": "dots.other:REACH"})
    said = (
        r"dots/Reach is offered by dots 1.0 \(dots.reach:REACH\) and twin 1.0 \(dots.other:REACH\); uninstall"
    )
    with pytest.raises(plugins.PluginError, match=said):
        plugins.load("dots/Reach")


def test_key_of_a_score_has_the_code_of_its_plugins_only(package: Path, tmp_path: Path) -> None:
    said, rules = contract_of("dots/Reach", ("top",), (32, 32), "fast"), EpisodeRules(60)

    def fingerprint(*tasks: str) -> str:
        return protocol_key(Suite(tasks, 2, rules), said, None, "egl").fingerprint

    before, ours = fingerprint("dots/Reach"), fingerprint("Lift")
    assert "plug-ins" not in protocol_key(Suite(("Lift",), 2, rules), said, None, "egl").parts
    storage = open_storage(str(tmp_path / "runs"))
    portraits = [render_references_of(storage, "egl", (task,))._prefix for task in ("dots/Reach", "Lift")]
    assert portraits[0] != portraits[1]
    assert portraits[1] == render_references_of(storage, "egl")._prefix
    file = package / "dots" / "reach.py"
    text = file.read_text()
    for edited, differs in (
        (f"# a comment\n{text}", False),
        (text.replace("SPEED, RADIUS, NEAR = 0.05", "SPEED, RADIUS, NEAR = 0.06"), True),
    ):
        file.write_text(edited)
        forget()
        assert (fingerprint("dots/Reach") != before) == differs
        assert fingerprint("Lift") == ours
    file.write_text(text)
    (package / "dots" / "mesh.xml").write_text("<mujoco/>")
    forget()
    assert fingerprint("dots/Reach") != before


# -- the contract test ---------------------------------------------------------------------------------------


EVER_OTHER = itertools.count()


def test_check_passes_for_an_environment_that_keeps_the_contract(package: Path) -> None:
    task = plugins.load("dots/Reach")
    check_env(lambda: task.make(task.contract(("top",), (32, 32), "fast")))
    done = CliRunner().invoke(main, ["task", "check", "dots/Reach"])
    assert done.exit_code == 0, done.output
    assert "FAILED" not in done.output


@pytest.mark.parametrize(
    ("method", "wrong", "check"),
    [
        ("reset", lambda self, seed: self._start(next(EVER_OTHER)), "the same seed again"),
        ("reset", lambda self, seed: self._start(0), "another seed is another scene"),
        ("succeeded", property(lambda self: np.bool_(False)), "succeeded is True or False"),
        ("succeeded", property(lambda self: True), "a fresh episode is not done"),
        ("physics", property(lambda self: np.zeros(2)), "steps change physics"),
        ("picture", lambda self, camera, size: np.zeros((*size, 3), np.uint8), "picture of top"),
        ("picture", lambda self, camera, size: np.ones((4, 4, 3)), "picture of top"),
        (
            "step",
            lambda self, action: self._move(np.nan_to_num(action)),
            "an action that is not finite is refused",
        ),
    ],
)
def test_check_names_what_an_environment_does_wrong(
    package: Path, method: str, wrong: object, check: str
) -> None:
    task = plugins.load("dots/Reach")
    kind = task.make
    changed = type("Changed", (kind,), {"_start": kind.reset, "_move": kind.step, method: wrong})  # type: ignore[misc, attr-defined]
    found = results(lambda: changed(task.contract(("top",), (32, 32), "fast")))
    assert any(one.name.startswith(check) and one.problem for one in found), found


# -- the skeleton --------------------------------------------------------------------------------------------


def test_new_task_writes_a_package_whose_test_passes(tmp_path: Path) -> None:
    place = tmp_path / "mine"
    done = CliRunner().invoke(main, ["new", "task", "my_task", "--folder", str(place)])
    assert done.exit_code == 0, done.output
    assert "demoscale task check my_task/Reach" in done.output
    again = CliRunner().invoke(main, ["new", "task", "my_task", "--folder", str(place)])
    assert "exists already" in again.output
    assert "no name of a Python package" in CliRunner().invoke(main, ["new", "task", "My-Task"]).output
    offer(place, "my_task", {}, {"my_task/Reach": "my_task.reach:REACH"})
    played = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=place,
        env={**os.environ, "PYTHONPATH": f"{place}:{CHECKOUT}"},
        capture_output=True,
        text=True,
    )
    assert played.returncode == 0, played.stdout + played.stderr
    assert "2 passed" in played.stdout


@pytest.mark.stress
@pytest.mark.ray
@pytest.mark.e2e
def test_new_task_is_collected_and_swept(tmp_path: Path) -> None:
    CliRunner().invoke(main, ["new", "task", "my_task", "--folder", str(tmp_path / "mine")])
    offer(tmp_path / "mine", "my_task", {}, {"my_task/Reach": "my_task.reach:REACH"})

    said, _, status, curve = outputs(
        [
            ["collect", "--task", "my_task/Reach", "--episodes", "6", "--store", "data/my_task"],
            ["run", "mine/sweep.yaml"],
            ["status", "my_task"],
            ["curve", "my_task"],
        ],
        folder=tmp_path,
        variables={"PYTHONPATH": f"{tmp_path / 'mine'}:{CHECKOUT}"},
    )
    assert "recorded 6 episodes of my_task/Reach, 6 successful" in said
    assert "4/4" in status
    assert "my_task" in curve
