"""One control step of robosuite without its overhead: the same floating-point operations in the same order.

A control step (1/20 s) is 25 physics steps; before each, controllers turn the goal into torques. robosuite
resolves names at 500 Hz, checks for every observable whether it is due, and computes a reward, at several
times the cost of the physics. `FastStep` does only the work that affects the trajectory, on MuJoCo's own
arrays, and computes observations on demand.

Written against robosuite 1.5.2: `environments/base.py` step, `robots/fixed_base_robot.py` control,
`controllers/parts/arm/osc.py`. Import after `sim_workers.envs.render.choose_backend`.
"""

from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt
from robosuite.controllers.parts.arm.osc import OperationalSpaceController
from robosuite.controllers.parts.gripper.simple_grip import SimpleGripController
from robosuite.environments.base import MujocoEnv
from robosuite.environments.robot_env import RobotEnv
from robosuite.robots.fixed_base_robot import FixedBaseRobot
from robosuite.utils import transform_utils as transforms
from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error
from robosuite.utils.numba import jit_decorator

from sim_workers.envs.lazy_observables import LateObservations

Array = npt.NDArray[np.float64]
Action = npt.NDArray[np.floating[Any]]

ARM = {
    **{
        "name": "OSC_POSE",
        "impedance_mode": "fixed",
        "input_type": "delta",
        "input_ref_frame": "base",
        "_goal_update_mode": "achieved",
    },
    **{
        "uncoupling": True,
        "lite_physics": True,
        "num_ref_sites": 1,
        "interpolator_pos": None,
        "interpolator_ori": None,
    },
}
"""Settings of the only supported arm controller: robosuite's default for the Panda."""
LIBERO = "libero.libero.envs.bddl_base_domain"
"""Module of LIBERO's base class (rpent-libero 0.2.0), whose tasks are supported, too. Its control step is
robosuite's with two success checks, for the reward and for `done`, and `_post_process`, which derives the
looks of a lit stove from the state.
"""


class FastStep:
    """Replacement of `env.step` for one robosuite environment. Raises ValueError if the environment has a
    part that this file does not support.

    State between control steps stays in robosuite's own objects: goals and the gripper's opening in the
    controllers, the sampling clock in the observables. So `env.step`, `env.reset` and this can be mixed
    freely. Not kept: the reward, and `robot.recent_*` where only the reward uses them.
    """

    def __init__(self, env: Any) -> None:
        self._env = env
        kind = type(env)
        # Of robosuite's tasks only Wipe overrides _post_action, and only its reward has a side effect: it
        # removes the dirt.
        after, rewards = kind._post_action, kind.reward.__module__
        self._is_libero = after.__module__ == rewards == LIBERO
        self._only_a_reward = self._is_libero or (
            after is MujocoEnv._post_action and rewards.startswith("robosuite.environments.manipulation.")
        )
        self._bind()

    def _bind(self) -> None:
        """Look up the objects that a control step uses: a reset makes new controllers, a hard reset also a
        new simulation.
        """
        env = self._env
        _refuse_unknown(env)
        self._of = [env.sim, *(robot.composite_controller for robot in env.robots)]
        self._model, self._data = env.sim.model._model, env.sim.data._data
        self._substeps = int(env.control_timestep / env.model_timestep)
        self._arms = _arms(env)
        self._observations = LateObservations(env)

    def _bound(self) -> bool:
        now = [self._env.sim, *(robot.composite_controller for robot in self._env.robots)]
        return all(one is other for one, other in zip(now, self._of, strict=True))

    def __call__(self, action: Action) -> None:
        """Advance one control step with one (A,) action; the result is in the environment and in
        observations().

        Raises ValueError if the episode is over or the action's length is wrong.
        """
        env = self._env
        if env.done:
            raise ValueError("the episode is over: reset the environment before the next action")
        if len(action) != env.action_dim:
            raise ValueError(f"the action has {len(action)} values, the robots take {env.action_dim}")
        if not self._bound():
            self._bind()
        later, model, data = self._observations.postpone(self._substeps), self._model, self._data
        env.timestep += 1
        for substep in range(self._substeps):
            mujoco.mj_step1(model, data)
            if substep == 0:
                self._begin(action)
            else:
                for arm in self._arms:
                    arm.push()
            mujoco.mj_step2(model, data)
            if not later:
                env._update_observables()
        for arm in self._arms:
            arm.leave()
        env.cur_time += env.control_timestep
        if self._only_a_reward:
            env.done = env.timestep >= env.horizon and not env.ignore_done
            if self._is_libero:
                env._post_process()
        else:
            env._post_action(action)

    def observations(self) -> Any:
        """Return the observations that `env.step` would have returned, robosuite's named low-dimensional
        ones, sampled now if not sampled yet.
        """
        if self._bound():
            self._observations.sample()
        return self._env._get_observations()

    def _begin(self, action: Action) -> None:
        """Set the goals of a control step and command its first torques."""
        up_to_date = all(arm.control.new_update for arm in self._arms)
        if up_to_date and self._only_a_reward:
            for arm in self._arms:
                arm.set_goal(action)
                arm.push()
            return
        self._env._pre_action(action, policy_step=True)  # Wipe's counters use robot.recent_*
        # in the first step after a reset, robosuite's controllers use the state at their construction
        if not up_to_date:
            self._arms = _arms(self._env)
        for arm in self._arms:
            arm.see_goal()


class _Arm:
    """One arm under operational space control, and its gripper: the arrays from which its torques are
    computed.

    `control`, robosuite's controller, keeps the goal, in the frame of the arm's base, and receives the values
    that robosuite would store in it.
    """

    def __init__(self, robot: Any, arm: str, start: int) -> None:
        """start: first index of the robot's part of an action."""
        sim, parts, splits = (
            robot.sim,
            robot.part_controllers,
            robot.composite_controller._action_split_indexes,
        )
        self._model, self._data = model, data = sim.model._model, sim.data._data
        self.control = control = parts[arm]
        self._mine, gripper = slice(*(start + index for index in splits[arm])), robot.get_gripper_name(arm)
        self._gripper = None
        if gripper in parts and parts[gripper].control_dim:
            self._gripper = _Gripper(robot, gripper, slice(*(start + index for index in splits[gripper])))
        joints, dofs, actuators = (
            _span(one)
            for one in (control.qpos_index, control.qvel_index, robot._ref_actuators_indexes_dict[arm])
        )
        self._site, self._qvel, self._bias, self._ctrl = (
            sim.model.site_name2id(control.ref_name),
            data.qvel,
            data.qfrc_bias[dofs],
            data.ctrl[actuators],
        )
        self._pos, self._ori = data.site_xpos[self._site], data.site_xmat[self._site].reshape(3, 3)
        self._low, self._high = np.ascontiguousarray(model.actuator_ctrlrange[actuators].T)
        self._into_base, self._pose = (
            transforms.pose_inv(transforms.make_pose(control.origin_pos, control.origin_ori)),
            np.eye(4),
        )
        number = control.joint_dim
        self._wrench, self._torques = np.zeros(6), np.zeros(number)
        self._linear, self._angular = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        # In Fortran order, like robosuite's: BLAS sums in another order for a transpose.
        self._mass = np.zeros((number, number), order="F")
        self._lambda_pos, self._lambda_ori = np.zeros((3, 3), order="F"), np.zeros((3, 3), order="F")
        self._force, self._torque, self._posture = np.zeros(3), np.zeros(3), np.zeros(number)
        self._given = (
            *(self._pos, self._ori, control.ref_pos_vel, control.ref_ori_vel, control.kp, control.kd),
            *(
                data.qM,
                _mass_matrix_entries(model)[dofs, dofs].copy(),
                self._mass,
                self._linear,
                self._angular,
                dofs.start,
            ),
            *(
                control.J_pos,
                control.J_ori,
                control.J_full,
                control.initial_joint,
                data.qpos[joints],
                data.qvel[dofs],
            ),
            *(self._force, self._torque, self._lambda_pos, self._lambda_ori, self._posture),
        )

    def set_goal(self, action: Action) -> None:
        """Do what `OperationalSpaceController.set_goal` does: the goal is the hand's current pose, moved and
        turned by the action.
        """
        control, delta = self.control, _scaled(self.control, action[self._mine])
        self._pose[:3, :3], self._pose[:3, 3] = self._ori, self._pos
        hand = self._into_base.dot(self._pose)
        control.goal_pos = hand[:3, 3] + delta[:3]
        control.goal_ori = np.dot(transforms.quat2mat(transforms.axisangle2quat(delta[3:])), hand[:3, :3])
        self.see_goal()
        if self._gripper is not None:
            self._gripper.command(action)

    def see_goal(self) -> None:
        """Cache the controller's goal in world coordinates; it does not change before the next
        control step.
        """
        control = self.control
        self._goal = (
            control.origin_pos + np.dot(control.origin_ori, control.goal_pos),
            np.dot(control.origin_ori, control.goal_ori),
        )

    def push(self) -> None:
        """Command the torques of one physics step (`Controller.update`,
        `OperationalSpaceController.run_controller`).
        """
        control, torques = self.control, self._torques
        mujoco.mj_jacSite(self._model, self._data, self._linear, self._angular, self._site)
        self._linear.dot(self._qvel, control.ref_pos_vel)
        self._angular.dot(self._qvel, control.ref_ori_vel)
        _towards_goal(*self._goal, *self._given)
        np.concatenate(
            (self._lambda_pos.dot(self._force), self._lambda_ori.dot(self._torque)), out=self._wrench
        )
        control.J_full.T.dot(self._wrench, torques)
        torques += self._bias
        torques += self._posture
        np.maximum(torques, self._low, self._ctrl)
        np.minimum(self._ctrl, self._high, self._ctrl)

    def leave(self) -> None:
        """Store in robosuite's controller its values after the control step; it looks the others up before
        the next.
        """
        self.control.ref_pos[:], self.control.ref_ori_mat[:], self.control.torques = (
            self._pos,
            self._ori,
            self._torques.copy(),
        )


class _Gripper:
    def __init__(self, robot: Any, name: str, mine: slice) -> None:
        """mine: the gripper's part of an action."""
        self._control, self._gripper, self._mine = (
            robot.part_controllers[name],
            robot.composite_controller.grippers[name],
            mine,
        )
        self._actuators, self._ctrl = robot._ref_actuators_indexes_dict[name], robot.sim.data._data.ctrl
        self._low, self._high = robot.sim.model.actuator_ctrlrange[self._actuators].T.copy()

    def command(self, action: Action) -> None:
        """Do what `SimpleGripController.set_goal` and `run_controller` do; the command does not change within
        a control step.
        """
        control = self._control
        wanted = self._gripper.format_action(action[self._mine])
        control.goal_qvel = wanted = _scaled(control, wanted) if control.use_action_scaling else wanted
        if control.use_action_scaling:
            low, high = control.actuator_min, control.actuator_max
            wanted = 0.5 * (high + low) + 0.5 * (high - low) * wanted
        self._ctrl[self._actuators] = np.minimum(np.maximum(wanted, self._low), self._high)


def _scaled(control: Any, action: Action) -> Array:
    """Return the result of `Controller.scale_action` for every call but the first, which the first control
    step has made.
    """
    clipped = np.minimum(np.maximum(action, control.input_min), control.input_max)
    scaled: Array = (
        clipped - control.action_input_transform
    ) * control.action_scale + control.action_output_transform
    return scaled


@jit_decorator
def _towards_goal(
    goal_pos: Array,
    goal_ori: Array,
    pos: Array,
    ori: Array,
    pos_vel: Array,
    ori_vel: Array,
    kp: Array,
    kd: Array,
    inertia: Array,
    entries: npt.NDArray[np.int64],
    mass: Array,
    linear: Array,
    angular: Array,
    first_dof: int,
    J_pos: Array,
    J_ori: Array,
    J_full: Array,
    initial_joint: Array,
    joint_pos: Array,
    joint_vel: Array,
    force: Array,
    torque: Array,
    lambda_pos: Array,
    lambda_ori: Array,
    posture: Array,
) -> None:
    """Fill in, for one arm of J joints, the hand's wanted `force` and `torque` (3,), their inertias
    `lambda_*` (3, 3), and the torques that keep the arm's `posture` (J,); as intermediate results `mass` (J,
    J) and the Jacobians `J_*` (3, J), (3, J), (6, J).

    Contains only operations that round the same everywhere (sums and products of scalars) and robosuite's own
    compiled functions. The other matrix products must stay numpy's, because compiled code uses another BLAS.
    The base is at rest: its velocity, which robosuite subtracts, is 0.
    """
    for column in range(mass.shape[1]):
        for row in range(mass.shape[0]):
            mass[row, column] = inertia[entries[row, column]]
        for row in range(3):
            J_full[row, column] = J_pos[row, column] = linear[row, first_dof + column]
            J_full[3 + row, column] = J_ori[row, column] = angular[row, first_dof + column]
    force[:] = (goal_pos - pos) * kp[0:3] + -pos_vel * kd[0:3]
    torque[:] = orientation_error(goal_ori, ori) * kp[3:6] + -ori_vel * kd[3:6]
    _, lambda_pos[:], lambda_ori[:], nullspace = opspace_matrices(mass, J_full, J_pos, J_ori)
    posture[:] = nullspace_torques(mass, nullspace, initial_joint, joint_pos, joint_vel)


def _arms(env: Any) -> list[_Arm]:
    """Return the arms in the order in which robosuite runs their controllers."""
    starts = np.cumsum([0, *(robot.action_dim for robot in env.robots)])
    return [
        _Arm(robot, arm, int(start))
        for robot, start in zip(env.robots, starts, strict=False)
        for arm in robot.arms
    ]


def _mass_matrix_entries(model: Any) -> npt.NDArray[np.int64]:
    """Return, as (V, V), the index in MuJoCo's sparse `qM` of each entry of the mass matrix; -1 for the
    omitted zeros.
    """
    dense = np.zeros((model.nv, model.nv))
    mujoco.mj_fullM(model, dense, np.arange(1.0, model.nM + 1.0))
    return dense.astype(np.int64) - 1


def _span(indexes: Any) -> slice:
    """Return consecutive `indexes` as a slice. Raises ValueError if they are not consecutive."""
    start, stop = int(indexes[0]), int(indexes[-1]) + 1
    if list(indexes) != list(range(start, stop)):
        raise ValueError(
            f"the fast control step supports only consecutive joints and actuators, not {list(indexes)}"
        )
    return slice(start, stop)


def _refuse_unknown(env: Any) -> None:
    """Raise ValueError, with one sentence, unless this file replaces everything that robosuite would run in a
    control step.
    """
    kind = type(env)
    if (
        (kind.step is not MujocoEnv.step and kind.step.__module__ != LIBERO)
        or (kind._pre_action is not RobotEnv._pre_action and kind._pre_action.__module__ != LIBERO)
        or not env.lite_physics
        or env.viewer is not None
    ):
        raise ValueError(
            "the fast control step supports only the steps of robosuite and LIBERO, with lite_physics and"
            f" without a viewer; {kind.__name__} has another"
        )
    for robot in env.robots:
        if type(robot) is not FixedBaseRobot or robot.composite_controller.name != "BASIC":
            raise ValueError(
                "the fast control step supports only robots on a fixed base under the BASIC controller;"
                f" {robot.name} is not one"
            )
        for name, control in robot.part_controllers.items():
            if type(control) is SimpleGripController and control.interpolator is None and robot.enabled(name):
                continue
            if type(control) is not OperationalSpaceController:
                raise ValueError(
                    f"the fast control step supports only arms under OSC_POSE and their grippers; {name} of"
                    f" {robot.name} is under {control.name}"
                )
            other = [
                f"{key} {getattr(control, key)}"
                for key, known in ARM.items()
                if getattr(control, key) != known
            ]
            base = env.sim.model.site_bodyid[
                env.sim.model.site_name2id(f"{control.naming_prefix}{control.part_name}_center")
            ]
            if other or not robot.enabled(name):
                raise ValueError(
                    "the fast control step supports only robosuite's default controller;"
                    f" {name} of {robot.name} has {', '.join(other) or 'none that is enabled'}"
                )
            if env.sim.model.body_weldid[base]:
                raise ValueError(
                    "the fast control step supports only arms whose base is welded to the world;"
                    f" that of {robot.name} is on a body that moves"
                )
