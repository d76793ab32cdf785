"""The pinned packages work together: all of them import in one process with a running environment."""

import tomllib

import pytest
from conftest import CHECKOUT, run

IMPORT_NAMES = {"pyyaml": "yaml", "pillow": "PIL", "flip-evaluator": "flip_evaluator"}


@pytest.mark.full
@pytest.mark.sim
def test_dependencies_import_in_a_process_with_a_running_environment() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    names = [line.split(";")[0].split("[")[0] for line in project["dependencies"]]
    packages = [name.split("==")[0].split(">=")[0].strip() for name in names]
    imports = ", ".join(IMPORT_NAMES.get(name, name) for name in packages)
    code = f"""
from sim_workers.envs.robosuite import SimEnv, contract
env = SimEnv("Lift", contract(("robot0_eye_in_hand",), (64, 64), "fast"))
env.reset(0)
import {imports}
import ray.train, ray.tune, ray.data, ray.job_submission
env.step(env.proprio[:7] * 0)
assert env.observe(0).images["robot0_eye_in_hand"].shape == (64, 64, 3)
env.close()
"""
    done = run("-W", "ignore", "-c", code)
    assert done.returncode == 0, done.stderr
    assert {"ray", "torch", "diffusers", "mlflow", "robosuite", "optuna", "boto3"} <= set(packages)
