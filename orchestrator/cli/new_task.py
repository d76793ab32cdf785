"""Text of the package that `demoscale new task` writes: a dot that must reach a disc, drawn with numpy."""

PYPROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "NAME"
version = "0.1.0"
requires-python = ">=3.11"

[project.entry-points."demoscale.envs"]
"NAME/Reach" = "NAME.reach:REACH"

[tool.setuptools]
packages = ["NAME"]
"""

INIT = '''"""A task for demoscale."""
'''

REACH = '''"""A dot that must reach a disc: replace it with your own simulator.

`sim_workers.rollout.episode.Env` says what each method must do; `demoscale task check NAME/Reach` checks it.
"""

from importlib.metadata import version

import numpy as np

from policy.interface import Contract, Observation
from sim_workers.envs.plugins import Task
from sim_workers.rollout.divergence import refuse_action

INSTRUCTION = "move the dot onto the disc"
SPEED, RADIUS, NEAR = 0.05, 0.08, 0.06  # the scene is 1 wide


class Reach:
    """One environment. Its states depend on the seed of reset() and on the actions alone."""

    film_camera = "top"

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self._dot = self._disc = np.zeros(2)

    def reset(self, seed: int) -> None:
        """Draw the scene from the seed."""
        rng = np.random.default_rng(seed)
        self._dot, self._disc = rng.uniform(0.1, 0.4, 2), rng.uniform(0.6, 0.9, 2)

    def step(self, action) -> None:
        """Move the dot; refuse_action raises the error that ends an episode on a value that is not finite."""
        refuse_action(action, self.contract.action)
        self._dot = np.clip(self._dot + SPEED * np.clip(action, -1.0, 1.0), 0.0, 1.0)

    @property
    def succeeded(self) -> bool:
        """Whether the task is done now."""
        return bool(np.linalg.norm(self._dot - self._disc) < NEAR)

    @property
    def physics(self):
        """Everything that moves."""
        return np.concatenate([self._dot, self._disc])

    def picture(self, camera: str, size: tuple[int, int]):
        """Draw the scene, (H, W, 3) uint8 RGB, row 0 at the top."""
        height, width = size
        y, x = np.mgrid[0:height, 0:width]
        places = np.stack([(x + 0.5) / width, (y + 0.5) / height], -1)
        image = np.full((height, width, 3), 235, np.uint8)
        image[np.linalg.norm(places - self._disc, axis=-1) < RADIUS] = (60, 170, 90)
        image[np.linalg.norm(places - self._dot, axis=-1) < RADIUS / 2] = (200, 60, 50)
        return image

    def observe(self, noise_seed: int) -> Observation:
        """Return the policy's view of the current state."""
        images = {camera: self.picture(camera, self.contract.image_size) for camera in self.contract.cameras}
        return Observation(images, self._dot.astype(np.float32), INSTRUCTION, noise_seed)

    def close(self) -> None:
        """Release the simulator."""


class ReachExpert:
    """Scripted expert, for `demoscale collect`; leave it out if recordings come from elsewhere."""

    horizon = 60

    def act(self, env: Reach):
        """Return the action for the current state."""
        way = env.physics[2:] - env.physics[:2]
        return way / max(SPEED, float(np.abs(way).max()))


def contract(cameras: tuple[str, ...], image_size: tuple[int, int], render_profile: str) -> Contract:
    """Return the conventions; `simulator` names everything on which a trajectory depends."""
    return Contract(
        cameras=cameras,
        image_size=image_size,
        render_profile=render_profile,
        proprio=("dot_x", "dot_y"),
        action=("move_x_x0.05", "move_y_x0.05"),
        control_hz=10.0,
        simulator=f"NAME {version('NAME')}",
    )


REACH = Task(
    instruction=INSTRUCTION,
    cameras=("top",),
    contract=contract,
    make=Reach,
    horizon=60,
    expert=ReachExpert,
    noise=(0.5, 0.5),
)
'''

TEST = '''"""Tests of the task."""

from orchestrator.testing.envs import check_env

from NAME.reach import REACH


def make():
    return REACH.make(REACH.contract(("top",), (64, 64), "fast"))


def test_environment_keeps_the_contract() -> None:
    check_env(make)


def test_expert_succeeds() -> None:
    env = make()
    for seed in range(5):
        env.reset(seed)
        expert = REACH.expert()
        for _ in range(expert.horizon):
            env.step(expert.act(env))
            if env.succeeded:
                break
        assert env.succeeded, f"seed {seed}"
'''

SWEEP = """# demoscale collect --task NAME/Reach --episodes 8 --store data/NAME && demoscale run sweep.yaml
name: NAME
data:
  episodes: data/NAME
  demo_count: [4]
policy:
  preset: tiny
train:
  steps: 20
  batch_size: 4
  checkpoint_every: 20
suite:
  tasks: [NAME/Reach]
  episodes: 4
  horizon: auto
  video_clips: 0
"""

README = """# NAME

A task for demoscale, found by the entry point `demoscale.envs` in `pyproject.toml`.

```
pip install --no-deps --editable .
demoscale task check NAME/Reach
pytest
demoscale collect --task NAME/Reach --episodes 8 --store data/NAME
demoscale run sweep.yaml
```
"""


def files(name: str) -> dict[str, str]:
    """Return the text of every file of the package `name`, by its path."""
    texts = {
        "pyproject.toml": PYPROJECT,
        f"{name}/__init__.py": INIT,
        f"{name}/reach.py": REACH,
        f"tests/test_{name}.py": TEST,
        "sweep.yaml": SWEEP,
        "README.md": README,
    }
    return {file: text.replace("NAME", name) for file, text in texts.items()}
