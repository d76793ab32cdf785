"""gym-pusht's task: push the T onto its goal. Read through the general adapter for gymnasium, with a scripted
expert.
"""

import heapq
import itertools
from importlib.metadata import version
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import shapely
import shapely.geometry

from sim_workers.envs.from_gymnasium import GymnasiumEnv, GymnasiumTask

Array = npt.NDArray[np.float64]
RADIUS = 15.0
"""Of the agent, in pixels of the scene, which is 512 wide."""


def make(size: tuple[int, int]) -> Any:
    """Return gym-pusht's environment, without gymnasium's time limit and checker."""
    import gym_pusht  # noqa: F401  registers the environment

    return gymnasium.make(
        "gym_pusht/PushT-v0",
        obs_type="state",
        render_mode="rgb_array",
        visualization_height=size[0],
        visualization_width=size[1],
        disable_env_checker=True,
        max_episode_steps=1_000_000,
    ).unwrapped


def _picture(env: Any, _observation: Any) -> npt.NDArray[np.uint8]:
    env._last_action = None  # else a cross would show the last action
    return np.asarray(env.render(), np.uint8)


def _physics(env: Any, _observation: Any) -> Array:
    agent, block = env.agent, env.block
    return np.array(
        [
            *agent.position,
            *agent.velocity,
            *block.position,
            block.angle,
            *block.velocity,
            block.angular_velocity,
        ]
    )


class PushTExpert:
    """Expert that tries straight pushes in a simulation of its own, and plays the best one: walk to the T's
    edge, push, look again.
    """

    horizon = 300
    reach = 72.0
    """Longest push, in pixels."""
    speed = 8.0
    """Pixels by which the commanded point moves in a control step of a push."""

    def __init__(self) -> None:
        self._scratch = make((16, 16))
        self._scratch.reset(seed=0)
        self._targets: list[Array] = []

    def act(self, env: GymnasiumEnv) -> Array:
        """Return the (2,) point towards which the agent moves, in pixels."""
        real = env.gymnasium
        if not self._targets:
            self._targets = self._plan(real)
        return self._targets.pop(0)

    def _plan(self, real: Any) -> list[Array]:
        """Return the points of the next push, and of the way to where it begins."""
        pose = np.array([*real.block.position, real.block.angle])
        now = self._distance(real, pose)
        outline, agent = _outline(real), np.array(real.agent.position)
        best: tuple[float, Array, Array, int] | None = None
        for point, normal in _edge(outline):
            start = point + (RADIUS + 4.0) * normal
            if not _free(outline, start):
                continue
            for angle in (-0.5, 0.0, 0.5):
                c, s = np.cos(angle), np.sin(angle)
                way = -np.array([c * normal[0] - s * normal[1], s * normal[0] + c * normal[1]])
                left, steps = self._tried(pose, start, way)
                # short ways first: of equal pushes the nearer one
                cost = left + 0.004 * float(np.linalg.norm(start - agent))
                if best is None or cost < best[0]:
                    best = cost, start, way, steps
        if best is None or best[0] > now + 20.0:
            return [agent + np.array([40.0, 0.0])]
        _, start, way, steps = best
        push = [start + self.speed * (i + 1) * way for i in range(steps)]
        back = start - 6.0 * way
        return [*_walk(outline, agent, start), *push, back]

    def _tried(self, pose: Array, start: Array, way: Array) -> tuple[float, int]:
        """Return the distance of the T from its goal after the best length of a push, and its steps."""
        scratch = self._scratch
        scratch.agent.position, scratch.agent.velocity = tuple(start), (0.0, 0.0)
        scratch.block.angle, scratch.block.position = float(pose[2]), tuple(pose[:2])
        scratch.block.velocity, scratch.block.angular_velocity = (0.0, 0.0), 0.0
        scratch.space.reindex_shapes_for_body(scratch.block)
        scratch.space.reindex_shapes_for_body(scratch.agent)
        best, steps = np.inf, 1
        for step in range(1, int(self.reach / self.speed) + 1):
            _advance(scratch, start + self.speed * step * way)
            after = np.array([*scratch.block.position, scratch.block.angle])
            if (left := self._distance(scratch, after)) < best:
                best, steps = left, step
            elif left > best + 12.0:
                break
        return best, steps

    @staticmethod
    def _distance(env: Any, pose: Array) -> float:
        """Return how far the corners of the T lie from those of its goal, in pixels."""
        corners = np.array([v for shape in env.block.shapes for v in shape.get_vertices()])
        return float(np.linalg.norm(_placed(corners, pose) - _placed(corners, env.goal_pose), axis=1).mean())


def _advance(env: Any, target: Array) -> None:
    """Do what the environment's step does, without its observation."""
    x, y = float(target[0]), float(target[1])
    agent, dt = env.agent, env.dt
    for _ in range(int(1 / (dt * env.control_hz))):
        (px, py), (vx, vy) = agent.position, agent.velocity
        agent.velocity = (
            vx + (env.k_p * (x - px) - env.k_v * vx) * dt,
            vy + (env.k_p * (y - py) - env.k_v * vy) * dt,
        )
        env.space.step(dt)


def _placed(points: Array, pose: Array) -> Array:
    c, s = np.cos(pose[2]), np.sin(pose[2])
    placed: Array = points @ np.array([[c, s], [-s, c]]) + pose[:2]
    return placed


def _outline(env: Any) -> Any:
    """Return the T as one polygon, in pixels."""
    parts = [
        shapely.geometry.Polygon([env.block.local_to_world(v) for v in shape.get_vertices()])
        for shape in env.block.shapes
    ]
    return shapely.union_all(parts).buffer(0.5).simplify(0.6)


def _edge(outline: Any) -> list[tuple[Array, Array]]:
    """Return points on the T's edge, every 10 pixels, with the outward normals."""
    corners = np.array(shapely.geometry.polygon.orient(outline).exterior.coords)
    found = []
    for a, b in itertools.pairwise(corners):
        length = float(np.linalg.norm(b - a))
        if length < 6.0:
            continue
        along = (b - a) / length
        for at in np.linspace(5.0, length - 5.0, max(1, int(length / 10.0))):
            found.append((a + at * along, np.array([along[1], -along[0]])))
    return found


def _free(outline: Any, point: Array, gap: float = 2.0) -> bool:
    """Return whether the agent fits at the point, between the walls and off the T."""
    inside = bool((point > 24.0).all() and (point < 488.0).all())
    return inside and outline.distance(shapely.geometry.Point(point)) > RADIUS + gap


def _walk(outline: Any, start: Array, goal: Array) -> list[Array]:
    """Return points from start to goal round the T, as commands that the agent follows."""
    path = _shortest(outline, start, goal)
    commands: list[Array] = []
    for a, b in itertools.pairwise(path):
        count = max(1, int(np.ceil(np.linalg.norm(b - a) / 24.0)))
        commands += [a + (b - a) * (i + 1) / count for i in range(count)]
    return [*commands, goal, goal]


def _shortest(outline: Any, start: Array, goal: Array, cell: float = 12.0) -> list[Array]:
    """Return the corners of the shortest way on a grid, (x, y) each; the straight line if it is free."""
    if shapely.geometry.LineString([start, goal]).distance(outline) > RADIUS + 1.0:
        return [start, goal]
    number = int(512 / cell)
    centres = (np.stack(np.meshgrid(np.arange(number), np.arange(number), indexing="ij"), -1) + 0.5) * cell
    open_ = shapely.distance(outline, shapely.points(centres)) > RADIUS + 3.0
    open_ &= ((centres > 20) & (centres < 492)).all(-1)

    def nearest(point: Array) -> tuple[int, int]:
        off = np.where(open_, np.linalg.norm(centres - point, axis=-1), np.inf)
        i, j = np.unravel_index(int(off.argmin()), off.shape)
        return int(i), int(j)

    first, last = nearest(start), nearest(goal)
    came: dict[tuple[int, int], tuple[int, int]] = {first: first}
    cost, todo = {first: 0.0}, [(0.0, first)]
    while todo and last not in came:
        spent, (i, j) = heapq.heappop(todo)
        for di in (-1, 0, 1):
            for dj in (-1, 0, 1):
                k, m = i + di, j + dj
                if not (0 <= k < number and 0 <= m < number) or not open_[k, m]:
                    continue
                after = spent + float(np.hypot(di, dj))
                if after < cost.get((k, m), np.inf):
                    cost[k, m], came[k, m] = after, (i, j)
                    heapq.heappush(todo, (after, (k, m)))
    if last not in came:
        return [start, goal]
    cells = [last]
    while cells[-1] != first:
        cells.append(came[cells[-1]])
    return [start, *(centres[i, j] for i, j in reversed(cells)), goal]


PUSH_T = GymnasiumTask(
    make=make,
    instruction="push the T onto the green T",
    action=("target_x_px", "target_y_px"),
    proprio=("agent_x_px", "agent_y_px"),
    state=lambda env, observation: np.array(env.agent.position),
    physics=_physics,
    control_hz=10.0,
    horizon=300,
    simulator=f"gym-pusht {version('gym-pusht')}, pymunk {version('pymunk')}",
    pictures={"top": _picture},
    expert=PushTExpert,
    noise=(20.0, 20.0),
).task()
