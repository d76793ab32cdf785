"""Rendering: the GL backend, chosen before the simulator is imported, and the declared render profiles.

A profile changes pixels, so it is part of the contract: training data and evaluation must use the same one.
The cost on a CPU renderer is per vertex, not per pixel: a reflection or a shadow draws the whole scene again.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class RenderProfile:
    """Settings of the renderer. `reflections` and `shadows` each cost another pass over the scene; `samples`:
    samples per pixel (multisampling).
    """

    reflections: bool
    shadows: bool
    samples: int


PROFILES = {
    "default": RenderProfile(reflections=True, shadows=True, samples=4),
    "fast": RenderProfile(reflections=False, shadows=False, samples=0),
}


MIXED = "mixed"
"""Value of `gl` for a suite whose workers may have different EGL drivers; otherwise every worker must draw
like the first one.
"""


def backend_of(gl: str) -> str:
    """Return MuJoCo's name of the backend for a suite's `gl`: egl, osmesa or MIXED."""
    return "egl" if gl == MIXED else gl


def renderer_of(slot: int, visible: str | None, gpus: int) -> str | None:
    """Return the EGL device of a simulator; None: whichever comes first.

    slot: its number among the simulators of its node. visible: CUDA_VISIBLE_DEVICES, the GPUs that Ray gave
    it, None or empty if it gave none. gpus: GPUs of the node, over which the simulators are spread then.
    """
    given = (visible or "").split(",")[0]
    if given:
        return given if given.isdigit() else None
    return str(slot % gpus) if gpus else None


def share_renderers(slot: int) -> None:
    """Set the EGL device of this process, before its first simulator chooses one. slot: as for
    `renderer_of`.
    """
    gpus = len([*Path("/dev").glob("nvidia[0-9]*")])
    device = renderer_of(slot, os.environ.get("CUDA_VISIBLE_DEVICES"), gpus)
    if device is not None and "mujoco" not in sys.modules:
        os.environ["MUJOCO_EGL_DEVICE_ID"] = device


def choose_backend() -> str:
    """Fix the process's GL environment and return the backend's name. Call it before `mujoco` or `robosuite`
    is imported.

    EGL renders on a GPU and, through Mesa, on a CPU alone. llvmpipe without threads of its own is
    deterministic in its thread count at the same CPU time. A scheduler may set `CUDA_VISIBLE_DEVICES` to a
    form that the EGL loader cannot parse; the loader then gets a plain index.
    """
    backend = os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("PYOPENGL_PLATFORM", backend)
    os.environ.setdefault("LP_NUM_THREADS", "0")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not visible.split(",")[0].isdigit():
        del os.environ["CUDA_VISIBLE_DEVICES"]
        os.environ.setdefault("MUJOCO_EGL_DEVICE_ID", "0")
    elif visible:
        os.environ["MUJOCO_EGL_DEVICE_ID"] = visible.split(",")[0]
    return backend


def apply_profile(sim: Any, profile: RenderProfile) -> None:
    """Switch a live robosuite simulation to `profile`. Repeat it after every hard reset, which makes a new GL
    context.
    """
    import mujoco

    flags = sim._render_context_offscreen.scn.flags
    flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = profile.reflections
    flags[mujoco.mjtRndFlag.mjRND_SHADOW] = profile.shadows


def build_context(sim: Any, profile: RenderProfile, size: tuple[int, int]) -> None:
    """Rebuild a simulation's GL context, because its multisampling is fixed at construction. Repeat it after
    every hard reset.
    """
    height, width = size
    sim.model.vis.quality.offsamples = profile.samples
    sim._render_context_offscreen.update_offscreen_size(width, height)
    apply_profile(sim, profile)


def render(sim: Any, camera: str, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return one upright (H, W, 3) RGB picture. Raises RuntimeError if it is all black, which means a broken
    GL context.
    """
    height, width = size
    picture: npt.NDArray[np.uint8] = np.ascontiguousarray(
        sim.render(camera_name=camera, height=height, width=width)[::-1]
    )
    if not picture.any():
        raise RuntimeError(
            f"camera {camera} rendered an all-black picture: the GL context of this process is broken"
        )
    return picture


def driver() -> str:
    """Return the backend, the renderer and its version. Call it after the first picture, in the thread that
    rendered it.
    """
    from OpenGL import GL

    renderer, release = (GL.glGetString(name) for name in (GL.GL_RENDERER, GL.GL_VERSION))
    return f"{os.environ['MUJOCO_GL']}: {renderer.decode()}, {release.decode()}"
