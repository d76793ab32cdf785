"""The GPU on which a simulator renders."""

import subprocess
import sys

import pytest
from conftest import CHECKOUT

from sim_workers.envs.render import renderer_of


@pytest.mark.parametrize(
    ("slot", "visible", "gpus", "device"),
    [
        (0, None, 8, "0"),
        (11, None, 8, "3"),
        (5, "", 8, "5"),
        (5, "6", 8, "6"),
        (5, "2,3", 8, "2"),
        (5, "GPU-0aa3", 8, None),
        (5, None, 0, None),
    ],
    ids=["first", "in turn", "none visible", "Ray's", "Ray's first", "Ray's by UUID", "no GPU"],
)
def test_renderer_is_the_gpu_that_ray_gave_or_the_nodes_in_turn(
    slot: int, visible: str | None, gpus: int, device: str | None
) -> None:
    assert renderer_of(slot, visible, gpus) == device


def test_simulators_of_a_node_have_its_gpus_in_turn_before_mujoco_is_imported() -> None:
    """In a process of its own, which has no simulator yet; the GPUs of the node are fake."""
    program = (
        "import os, pathlib, sys\n"
        "os.environ.pop('CUDA_VISIBLE_DEVICES', None)\n"
        "os.environ.pop('MUJOCO_EGL_DEVICE_ID', None)\n"
        "from sim_workers.envs import render\n"
        "pathlib.Path.glob = lambda *_: iter(range(4))\n"
        "render.share_renderers(6)\n"
        "render.choose_backend()\n"
        "sys.modules['mujoco'] = sys\n"
        "render.share_renderers(3)\n"
        "print(os.environ['MUJOCO_EGL_DEVICE_ID'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=CHECKOUT, check=True
    )
    assert done.stdout.strip() == "2"
