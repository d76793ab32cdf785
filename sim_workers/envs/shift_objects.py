"""Objects of shifted worlds: replacements of a task's objects, and distractors. See `shifts.py`."""

from pathlib import Path
from typing import Any

import numpy as np

# Per variant of a task whose objects keep their shape: texture and tint (RGBA) of the first material; each
# further material gets the next entry.
PAINTS = (
    ("blue-wood", "0.6 0.8 1 1"),
    ("white-plaster", "1 0.8 0.2 1"),
    ("metal", "0.7 0.4 0.9 1"),
    ("clay", "1 0.6 0.5 1"),
    ("green-wood", "0.7 1 0.6 1"),
)
SIZES = (1.0, 0.9, 1.0, 0.85, 1.1)
"""Scale of PickPlace's objects, per variant."""

# Per variant: shape, half extents (m; of a cylinder radius, radius and half height), texture and tint of the
# object that replaces a cube.
Block = tuple[str, tuple[float, float, float], str, str]
LIFT: tuple[Block, ...] = (
    ("box", (0.026, 0.026, 0.026), "blue-wood", "0.6 0.8 1 1"),
    ("cylinder", (0.020, 0.020, 0.020), "white-plaster", "1 0.8 0.2 1"),
    ("box", (0.030, 0.018, 0.016), "green-wood", "0.8 1 0.7 1"),
    ("sphere", (0.024, 0.024, 0.024), "metal", "0.7 0.4 0.9 1"),
    ("box", (0.016, 0.016, 0.016), "dark-wood", "0.6 0.6 0.6 1"),
)
# The lower object is at least as wide as the upper, and the two together are no higher than the nominal 0.09
# m.
STACK: tuple[tuple[Block, Block], ...] = (
    (
        ("box", (0.018, 0.018, 0.018), "blue-wood", "0.6 0.8 1 1"),
        ("box", (0.027, 0.027, 0.027), "white-plaster", "1 0.8 0.2 1"),
    ),
    (
        ("cylinder", (0.020, 0.020, 0.020), "white-plaster", "1 0.8 0.2 1"),
        ("cylinder", (0.030, 0.030, 0.025), "metal", "0.7 0.4 0.9 1"),
    ),
    (
        ("box", (0.024, 0.024, 0.014), "clay", "1 0.6 0.5 1"),
        ("box", (0.030, 0.030, 0.025), "dark-wood", "0.6 0.6 0.6 1"),
    ),
    (
        ("box", (0.022, 0.022, 0.022), "brass-ambra", "1 1 1 1"),
        ("box", (0.022, 0.022, 0.022), "steel-scratched", "1 1 1 1"),
    ),
    (
        ("cylinder", (0.022, 0.022, 0.015), "metal", "0.7 0.4 0.9 1"),
        ("box", (0.028, 0.028, 0.030), "blue-wood", "0.6 0.8 1 1"),
    ),
)
# Per variant of a PickPlace task with one object: the object that replaces it, and its scale; "" keeps the
# object, with other materials. An object that would replace itself becomes the can. All are small enough to
# be grasped from above in any direction and released over the bin like a can.
SWAPS = (("Milk", 0.6), ("", 1.0), ("Bottle", 0.6), ("Cereal", 0.6), ("", 0.85))

# Distractors by name; half extents (m) and colour (RGBA). Boxes or cylinders of plain colour, none of them a
# cube.
BLOCKS = {
    "slab": ("box", (0.035, 0.018, 0.012), (0.95, 0.75, 0.1, 1)),
    "pillar": ("box", (0.014, 0.014, 0.035), (0.5, 0.2, 0.7, 1)),
    "disc": ("cylinder", (0.03, 0.012), (0.1, 0.6, 0.6, 1)),
    "rod": ("cylinder", (0.014, 0.04), (0.15, 0.3, 0.8, 1)),
}
DISTRACTORS = (
    ("Lemon", "pillar", "Can"),
    ("Bread", "disc", "rod"),
    ("Can", "slab", "Bread"),
    ("Lemon", "rod", "slab", "disc"),
    ("Bread", "Lemon", "Can", "pillar"),
)
GAP_M = 0.045
"""Smallest gap between a distractor and any other object, in metres: a finger fits in."""
NEAR_M = 0.12
"""Largest excess over GAP_M of a distractor's gap to the nearest task object, in metres: distractors lie
close to the task.
"""
AREAS = {"Door": ((-0.12, 0.12), (-0.27, -0.21)), "ToolHang": ((-0.3, -0.12), (-0.3, 0.1))}
"""Areas of the distractors in tasks without a free table or bin middle (m, x and y, world): before the door,
behind the tools.
"""


def _shape(env: Any, thing: Any, block: Block) -> None:
    """Replace a robosuite box by another block."""
    shape, size, picture, tint = block
    extents = {"box": size, "cylinder": size[1:], "sphere": size[:1]}[shape]
    for geom in thing.get_obj().iter("geom"):
        geom.set("type", shape)
        geom.set("size", " ".join(map(str, extents)))
        if shape == "sphere":  # rolling friction, without which a sphere never comes to rest
            geom.set("condim", "6")
            geom.set("friction", "1 0.01 0.001")
    thing.size = list(size)
    _cover(env, f"{thing.name}_", picture, tint)


def _cover(env: Any, prefix: str, picture: str, tint: str) -> None:
    """Give every textured material whose name begins with `prefix` another texture and tint."""
    textures = {texture.get("name"): texture for texture in env.model.asset.iter("texture")}
    for material in env.model.asset.iter("material"):
        texture = textures.get(material.get("texture"))
        if material.get("name").startswith(prefix) and texture is not None and texture.get("file"):
            texture.set("file", str(Path(texture.get("file")).parent / f"{picture}.png"))
            material.set("rgba", tint)


def _paint(env: Any, variant: int) -> None:
    """Give every material that belongs neither to the room nor to a robot another texture and tint."""
    room = [material.get("name") for material in env.model.mujoco_arena.asset.iter("material")]
    names = [material.get("name") for material in env.model.asset.iter("material")]
    for index, name in enumerate(
        name for name in names if name not in room and not name.startswith(("robot", "gripper"))
    ):
        _cover(env, name, *PAINTS[(variant + index) % len(PAINTS)])


def _shipped(kind: str, name: str) -> Any:
    """Return an object that robosuite ships."""
    from robosuite.models import objects

    thing = getattr(objects, f"{kind}Object")(name=name)
    for texture in thing.asset.iter("texture"):
        texture.set("type", "2d")  # the bottle's texture would be used for the sky
    return thing


def unseen(base: Any, task: str, variant: int) -> dict[str, Any]:
    """Return overrides for the task with undemonstrated objects: other shapes and sizes where the task
    allows, else other materials.
    """

    def load(env: Any) -> None:
        base._load_model(env)
        if task == "Lift":
            _shape(env, env.cube, LIFT[variant])
        elif task == "Stack":
            for cube, block in zip((env.cubeA, env.cubeB), STACK[variant], strict=True):
                _shape(env, cube, block)
        elif not swap(env):
            _paint(env, variant)

    def swap(env: Any) -> str:
        return SWAPS[variant][0] if getattr(env, "object_to_id", None) and env.single_object_mode == 2 else ""

    def construct(env: Any) -> None:
        base._construct_objects(env)
        if kind := swap(env):
            own = env.objects[env.object_id]
            kind, size = ("Can", 1.0) if type(own).__name__ == f"{kind}Object" else SWAPS[variant]
            env.objects[env.object_id] = _shipped(kind, own.name)
            env.objects[env.object_id].set_scale(size)
        else:
            for thing in env.objects:
                thing.set_scale(SWAPS[variant][1] if env.single_object_mode == 2 else SIZES[variant])

    return {
        "_load_model": load,
        **({"_construct_objects": construct} if task.startswith("PickPlace") else {}),
    }


def distractors(base: Any, task: str, variant: int) -> dict[str, Any]:
    """Return overrides for the task with distractors: loose objects at other places in each episode, clear of
    the task's own objects.
    """

    def load(env: Any) -> None:
        from robosuite.models.objects import BoxObject, CylinderObject

        base._load_model(env)
        own = {type(thing).__name__ for thing in env.model.mujoco_objects}
        env.distractors = []
        for index, kind in enumerate(DISTRACTORS[variant]):
            if f"{kind}Object" in own:
                kind = list(BLOCKS)[index]
            name = f"distractor{index}"
            if kind in BLOCKS:
                shape, size, colour = BLOCKS[kind]
                thing = (BoxObject if shape == "box" else CylinderObject)(
                    name=name, size=size, rgba=colour, density=300
                )
            else:
                thing = _shipped(kind, name)
            env.model.merge_assets(thing)
            env.model.worldbody.append(thing.get_obj())  # last, so that the task's joints keep their indices
            env.distractors.append(thing)

    def reset(env: Any) -> None:
        base._reset_internal(env)
        taken = _taken(env)
        (x_range, y_range), height = _surface(env, task)
        for thing in env.distractors:
            radius = thing.horizontal_radius + 0.005
            best, best_slack = np.zeros(2), -np.inf
            for _ in range(300):
                place = np.array([env.rng.uniform(*x_range), env.rng.uniform(*y_range)])
                gaps = [np.linalg.norm(place - middle) - reach - radius - GAP_M for middle, reach, _ in taken]
                to_task = min(
                    (gap for gap, (_, _, of_task) in zip(gaps, taken, strict=True) if of_task), default=0.0
                )
                slack = min(min(gaps, default=0.0), NEAR_M - to_task)
                if slack > best_slack:
                    best, best_slack = place, slack
                if slack >= 0:
                    break
            turn = env.rng.uniform(-np.pi, np.pi)
            pose = [*best, height - thing.bottom_offset[2], np.cos(turn / 2), 0.0, 0.0, np.sin(turn / 2)]
            env.sim.data.set_joint_qpos(thing.joints[0], np.array(pose))
            taken.append((best, radius, False))

    return {"_load_model": load, "_reset_internal": reset}


def _taken(env: Any) -> list[tuple[Any, float, bool]]:
    """Return the occupied places: middle (x, y; m, world), radius (m) and True (part of the task) for every
    part of the task's objects.
    """
    import mujoco

    if hasattr(env, "door"):
        return []  # its area is clear
    model, data = env.sim.model._model, env.sim.data._data
    mujoco.mj_kinematics(model, data)  # the poses just drawn
    own = [thing.root_body for thing in env.model.mujoco_objects if thing.joints]
    roots = [
        *own,
        *(marker.root_body for marker in getattr(env.model.mujoco_arena, "markers", [])),
        *(("peg1", "peg2") if hasattr(env, "nuts") else ()),
    ]
    parts = {model.body(name).id for name in roots}
    for body in range(model.nbody):  # parents come before their children
        if model.body_parentid[body] in parts:
            parts.add(body)
    middles, sizes = data.geom_xpos[:, :2], model.geom_rbound
    # robosuite moves unused objects far out of the scene
    return [
        (middles[geom].copy(), float(sizes[geom]), True)
        for geom in range(model.ngeom)
        if model.geom_bodyid[geom] in parts and middles[geom][0] < 5
    ]


def _surface(env: Any, task: str) -> tuple[tuple[tuple[float, float], tuple[float, float]], float]:
    """Return where distractors may lie: the ranges of x and y, and the height (m, world)."""
    if task in AREAS:
        return AREAS[task], float(env.table_offset[2])
    if hasattr(env, "bin1_pos"):
        (x, y, z), half = env.bin1_pos, (0.15, 0.2)
        z += 0.02  # the thickness of its floor
    else:
        x, y, z = env.model.mujoco_arena.table_offset
        # the part that most cameras show
        half = tuple(min(size / 2 - 0.05, 0.22) for size in env.model.mujoco_arena.table_full_size[:2])
    return ((x - half[0], x + half[0]), (y - half[1], y + half[1])), float(z)
