"""How pictures are made: the GL backend, chosen before the simulator is imported, and the declared render profiles.

A profile changes pixels, so it is part of the contract: training data and evaluation use the same one or refuse.
Cost on a CPU renderer is per vertex, not per pixel: a reflection or a shadow draws the whole scene again.
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class RenderProfile:
    """What the renderer draws. `reflections` and `shadows` each cost another pass over the scene; `samples` is multisampling per pixel."""

    reflections: bool
    shadows: bool
    samples: int


PROFILES = {
    "default": RenderProfile(reflections=True, shadows=True, samples=4),
    "fast": RenderProfile(reflections=False, shadows=False, samples=0),
}


MIXED = "mixed"
"""Of a suite whose pictures may come from several EGL drivers, each worker's own; otherwise all must draw as the first one did."""


def backend_of(gl: str) -> str:
    """MuJoCo's name of what a suite asks for: egl, osmesa or MIXED."""
    return "egl" if gl == MIXED else gl


def choose_backend() -> str:
    """Fix the process's GL environment and return the backend's name. Call before `mujoco` or `robosuite` is imported.

    EGL serves a GPU and, through Mesa, a bare CPU. llvmpipe without threads of its own is deterministic in its thread count and
    costs the same CPU time. A scheduler may leave `CUDA_VISIBLE_DEVICES` in a form the EGL loader cannot parse; it then gets a plain index.
    """
    backend = os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("PYOPENGL_PLATFORM", backend)
    os.environ.setdefault("LP_NUM_THREADS", "0")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not visible.split(",")[0].isdigit():
        del os.environ["CUDA_VISIBLE_DEVICES"]
        os.environ["MUJOCO_EGL_DEVICE_ID"] = "0"
    elif visible:
        os.environ["MUJOCO_EGL_DEVICE_ID"] = visible.split(",")[0]
    return backend


def apply_profile(sim: Any, profile: RenderProfile) -> None:
    """Switch a live robosuite simulation to `profile`; to be repeated after every hard reset, which makes a new GL context."""
    import mujoco

    flags = sim._render_context_offscreen.scn.flags
    flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = profile.reflections
    flags[mujoco.mjtRndFlag.mjRND_SHADOW] = profile.shadows


def build_context(sim: Any, profile: RenderProfile, size: tuple[int, int]) -> None:
    """Build the GL context of a simulation anew: multisampling is fixed when it is built. To be repeated after every hard reset."""
    height, width = size
    sim.model.vis.quality.offsamples = profile.samples
    sim._render_context_offscreen.update_offscreen_size(width, height)
    apply_profile(sim, profile)


def render(sim: Any, camera: str, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """One upright (H, W, 3) RGB picture. An all-black one means a broken GL context and raises: never silently shown to a policy."""
    height, width = size
    picture: npt.NDArray[np.uint8] = np.ascontiguousarray(sim.render(camera_name=camera, height=height, width=width)[::-1])
    if not picture.any():
        raise RuntimeError(f"camera {camera} rendered an all-black picture: the GL context of this process is broken")
    return picture


def driver() -> str:
    """Who draws: the backend, the renderer and its version. Ask after the first picture, in the thread that made it."""
    from OpenGL import GL

    renderer, release = (GL.glGetString(name) for name in (GL.GL_RENDERER, GL.GL_VERSION))
    return f"{os.environ['MUJOCO_GL']}: {renderer.decode()}, {release.decode()}"
