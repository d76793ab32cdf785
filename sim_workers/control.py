"""One control step of robosuite without robosuite's overhead: the same floating-point operations in the same order, and little else.

A control step (1/20 s) is 25 steps of physics, and before each the controllers turn the goal into torques. robosuite looks everything up by
name at 500 Hz, asks every observable whether it is due, and computes a reward; that costs several times the physics. `FastStep` does what has
an effect on the trajectory, on MuJoCo's own arrays, and the observations when somebody asks for them.

Written against robosuite 1.5.2: `environments/base.py` step, `robots/fixed_base_robot.py` control, `controllers/parts/arm/osc.py`.
Import after `sim_workers.render.choose_backend`.
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
from robosuite.utils import observables
from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error
from robosuite.utils.numba import jit_decorator

Array = npt.NDArray[np.float64]

ONLY_A_REWARD = frozenset(
    "Lift Stack Door ToolHang NutAssembly NutAssemblySingle NutAssemblySquare NutAssemblyRound PickPlace PickPlaceSingle PickPlaceMilk "
    "PickPlaceBread PickPlaceCereal PickPlaceCan TwoArmLift TwoArmPegInHole TwoArmHandover TwoArmTransport".split()
)
"""Tasks whose `_post_action` computes nothing but a reward, which nobody reads. Wipe's, say, removes the dirt."""


class FastStep:
    """Takes the place of `env.step` of one robosuite environment.

    What lasts between control steps stays in robosuite's own objects: goals and the gripper's opening in the controllers, the sampling clock in
    the observables. So `env.step`, `env.reset` and this can be mixed freely. Not kept: the reward, and `robot.recent_*`, which only rewards use.
    """

    def __init__(self, env: Any) -> None:
        self._env = env
        self._due = False
        _refuse_unknown(env)
        self._bind()

    def _bind(self) -> None:
        """Look up, once per reset, all that a control step needs: a reset makes new controllers, a hard reset a new simulation, too."""
        env = self._env
        self._sim = env.sim
        self._model, self._data = env.sim.model._model, env.sim.data._data
        self._substeps = int(env.control_timestep / env.model_timestep)
        self._controllers = [robot.composite_controller for robot in env.robots]
        self._arms = [_Arm(robot, arm) for robot in env.robots for arm in robot.arms]
        self._due = False

    def __call__(self, action: npt.NDArray[np.floating[Any]]) -> None:
        """Advance one control step with one (A,) action; what it led to is in the environment and in observations()."""
        env = self._env
        if env.done:
            raise ValueError("executing action in terminated episode")
        if env.sim is not self._sim or any(robot.composite_controller is not old for robot, old in zip(env.robots, self._controllers, strict=True)):
            self._bind()
        if len(action) != env.action_dim:
            raise ValueError(f"the action has {len(action)} values, the robots take {env.action_dim}")
        env.timestep += 1
        at_the_end = self._sampled_at_the_end()
        if not at_the_end:
            self.observations()
        model, data, arms = self._model, self._data, self._arms
        for substep in range(self._substeps):
            mujoco.mj_step1(model, data)
            for arm in arms:
                arm.look(model, data)
            if substep == 0:
                self._set_goals(action)
            for arm in arms:
                arm.push()
            mujoco.mj_step2(model, data)
            if not at_the_end:
                env._update_observables()
        for arm in arms:
            arm.leave()
        self._due = at_the_end
        env.cur_time += env.control_timestep
        if type(env).__name__ in ONLY_A_REWARD:
            env.done = env.timestep >= env.horizon and not env.ignore_done
        else:
            env._post_action(action)

    def observations(self) -> Any:
        """What `env.step` would have returned: robosuite's named low-dimensional observations, sampled now if nobody has asked before."""
        env = self._env
        if self._due:
            cache = env._obs_cache
            for name, observable in env._observables.items():
                if observable._enabled:
                    seen = np.array(observable._sensor(cache))
                    observable._current_observed_value = seen[0] if seen.shape == (1,) else seen
                    cache[name] = np.array(observable._current_observed_value)
            self._due = False
        return env._get_observations()

    def _set_goals(self, action: npt.NDArray[np.floating[Any]]) -> None:
        """Once per control step, as robosuite does it. The grippers' command does not change before the next."""
        start = 0
        for robot in self._env.robots:
            robot.composite_controller.update_state()
            robot.composite_controller.set_goal(action[start : start + robot.action_dim])
            start += robot.action_dim
        for arm in self._arms:
            arm.take_goal()

    def _sampled_at_the_end(self) -> bool:
        """Whether all observables will be sampled after the last step of physics, as they are unless somebody forces an update in between.

        If so, their clock is set to what it will be then. They can wait: nothing that they read changes before the next control step.
        """
        seen = [observable for observable in self._env._observables.values() if observable._enabled]
        clocks = {(observable._time_since_last_sample, observable._sampled, observable._sampling_timestep) for observable in seen}
        if len(clocks) != 1 or not all(map(_plain, seen)):
            return False
        ((clock, sampled, period),) = clocks
        timestep, sampled_at = self._env.model_timestep, []
        for substep in range(self._substeps):  # as Observable.update counts: sums of many 0.002 are not quite multiples of it
            clock += timestep
            if not sampled and period >= clock:
                sampled_at.append(substep)
                sampled = True
            if clock >= period:
                if not sampled:
                    return False
                clock %= period
                sampled = False
        if sampled_at != [self._substeps - 1]:
            return False
        for observable in seen:
            observable._time_since_last_sample, observable._sampled = clock, sampled
        return True


class _Arm:
    """One arm under operational space control, and its gripper: the arrays that its torques are computed from."""

    def __init__(self, robot: Any, arm: str) -> None:
        sim, parts = robot.sim, robot.composite_controller.part_controllers
        data = sim.data._data
        self._control = control = parts[arm]
        self._gripper = parts.get(robot.get_gripper_name(arm))
        joints, dofs = _span(control.qpos_index), _span(control.qvel_index)
        actuators = _span(robot._ref_actuators_indexes_dict[arm])
        self._site = sim.model.site_name2id(control.ref_name)
        self._pose = data.site_xpos[self._site], data.site_xmat[self._site].reshape(3, 3)
        self._joint_pos, self._joint_vel, self._qvel = data.qpos[joints], data.qvel[dofs], data.qvel
        self._bias = data.qfrc_bias[dofs]
        self._low, self._high = np.ascontiguousarray(sim.model.actuator_ctrlrange[actuators].T)
        self._ctrl = data.ctrl[actuators]
        number = len(control.qvel_index)
        self._jacobian = np.zeros((3, sim.model.nv)), np.zeros((3, sim.model.nv))
        self._first_dof = dofs.start
        self._inertia, self._entries = data.qM, _mass_matrix_entries(sim)[dofs, dofs].copy()
        # In Fortran's order, as indexing gives it to robosuite: BLAS rounds differently for the transpose.
        self._mass = np.zeros((number, number), order="F")
        self._force, self._torque, self._wrench, self._torques = np.zeros(3), np.zeros(3), np.zeros(6), np.zeros(number)
        if self._gripper is not None:
            self._grip_actuators = robot._ref_actuators_indexes_dict[robot.get_gripper_name(arm)]
            self._grip_range = sim.model.actuator_ctrlrange[self._grip_actuators].T
        self._all_ctrl = data.ctrl

    def look(self, model: Any, data: Any) -> None:
        """Take the hand's velocity (`Controller.update`): these products have to be numpy's."""
        control, (linear, angular) = self._control, self._jacobian
        self._held = not control.new_update
        if self._held:  # the first time after a reset, robosuite's controller goes by what it saw when it was made
            return
        mujoco.mj_jacSite(model, data, linear, angular, self._site)
        np.dot(linear, self._qvel, out=control.ref_pos_vel)
        np.dot(angular, self._qvel, out=control.ref_ori_vel)
        control.ref_pos[:], control.ref_ori_mat[:] = self._pose
        control.new_update = False  # so that set_goal does not update it again

    def take_goal(self) -> None:
        """Take the arm's goal (in the world) from robosuite's controller, and command the gripper."""
        control = self._control
        if control.input_ref_frame == "base":
            self._goal_pos = control.origin_pos + np.dot(control.origin_ori, control.goal_pos)
            self._goal_ori = np.dot(control.origin_ori, control.goal_ori)
        else:
            self._goal_pos, self._goal_ori = control.goal_pos, control.goal_ori
        if self._gripper is not None:
            self._all_ctrl[self._grip_actuators] = np.clip(self._gripper.run_controller(), *self._grip_range)

    def push(self) -> None:
        """Command the torques (`OperationalSpaceController.run_controller`)."""
        control = self._control
        if self._held:
            np.minimum(np.maximum(control.run_controller(), self._low), self._high, out=self._ctrl)
            return
        force, torque, lambda_pos, lambda_ori, null = _towards_goal(
            self._goal_pos,
            self._goal_ori,
            control.ref_pos,
            control.ref_ori_mat,
            control.ref_pos_vel,
            control.ref_ori_vel,
            control.kp,
            control.kd,
            self._inertia,
            self._entries,
            self._mass,
            *self._jacobian,
            self._first_dof,
            control.J_pos,
            control.J_ori,
            control.J_full,
            control.initial_joint,
            self._joint_pos,
            self._joint_vel,
        )
        np.dot(lambda_pos, force, out=self._force)
        np.dot(lambda_ori, torque, out=self._torque)
        np.concatenate((self._force, self._torque), out=self._wrench)
        torques = np.dot(control.J_full.T, self._wrench, out=self._torques)
        torques += self._bias
        torques += null
        np.minimum(np.maximum(torques, self._low), self._high, out=self._ctrl)
        control.new_update = True

    def leave(self) -> None:
        """Leave in robosuite's controller what it would hold after the control step."""
        control = self._control
        control.joint_pos, control.joint_vel = self._joint_pos.copy(), self._joint_vel.copy()
        control.mass_matrix, control.torques = self._mass.copy(order="F"), self._torques.copy()


@jit_decorator
def _towards_goal(
    goal_pos,
    goal_ori,
    ref_pos,
    ref_ori,
    pos_vel,
    ori_vel,
    kp,
    kd,
    inertia,
    entries,
    mass,
    linear,
    angular,
    first,
    J_pos,
    J_ori,
    J_full,
    initial_joint,
    joint_pos,
    joint_vel,
):
    """The hand's wanted force and torque (3,), their two inertias (3, 3), and the torques (J,) that keep the arm's posture.

    Only what rounds alike wherever it is computed (sums and products of single numbers), and robosuite's own compiled functions: its remaining
    matrix products are numpy's. Fills `mass` (J, J) and the Jacobians (3, J), (3, J), (6, J). The base stands still, so its velocity is 0.
    """
    for column in range(mass.shape[1]):
        for row in range(mass.shape[0]):
            mass[row, column] = inertia[entries[row, column]]
        for row in range(3):
            J_pos[row, column] = linear[row, first + column]
            J_ori[row, column] = angular[row, first + column]
            J_full[row, column] = linear[row, first + column]
            J_full[3 + row, column] = angular[row, first + column]
    force = (goal_pos - ref_pos) * kp[0:3] + -pos_vel * kd[0:3]
    torque = orientation_error(goal_ori, ref_ori) * kp[3:6] + -ori_vel * kd[3:6]
    _, lambda_pos, lambda_ori, nullspace = opspace_matrices(mass, J_full, J_pos, J_ori)
    return force, torque, lambda_pos, lambda_ori, nullspace_torques(mass, nullspace, initial_joint, joint_pos, joint_vel)


def _mass_matrix_entries(sim: Any) -> npt.NDArray[np.int64]:
    """(V, V) where in MuJoCo's sparse `qM` each entry of the mass matrix is; -1 for the zeros that it leaves out."""
    dense = np.zeros((sim.model.nv, sim.model.nv))
    mujoco.mj_fullM(sim.model._model, dense, np.arange(1.0, 1.0 + len(sim.data.qM)))
    return dense.astype(np.int64) - 1


def _span(indexes: Any) -> slice:
    """The slice that `indexes` are."""
    start, stop = int(indexes[0]), int(indexes[-1]) + 1
    if list(indexes) != list(range(start, stop)):
        raise ValueError(f"the fast control step takes joints and actuators that lie side by side, not {list(indexes)}")
    return slice(start, stop)


def _plain(observable: Any) -> bool:
    """Whether an observable shows what its sensor says, at once."""
    return (
        observable._corrupter is observables.NO_CORRUPTION
        and observable._filter is observables.NO_FILTER
        and observable._delayer is observables.NO_DELAY
        and observable._current_delay == 0.0
    )


def _refuse_unknown(env: Any) -> None:
    """ValueError, one sentence, unless everything that robosuite would run in a control step is what this file stands in for."""
    kind = type(env)
    if kind.step is not MujocoEnv.step or kind._pre_action is not RobotEnv._pre_action or not env.lite_physics or env.viewer is not None:
        raise ValueError(f"the fast control step stands in for robosuite's plain one with lite_physics and without a viewer; {kind.__name__} has another")
    for robot in env.robots:
        if type(robot) is not FixedBaseRobot or robot.composite_controller.name != "BASIC":
            raise ValueError(f"the fast control step knows robots on a fixed base under the BASIC controller, not {robot.name}'s")
        for name, control in robot.part_controllers.items():
            gripper = type(control) is SimpleGripController and control.interpolator is None
            if not gripper and not _known_arm(robot, control):
                raise ValueError(
                    f"the fast control step knows OSC_POSE with fixed impedance, uncoupled, without interpolation, on a base that stands still; "
                    f"{name} of {robot.name} is under another {control.name}"
                )
            if not robot.enabled(name):
                raise ValueError(f"the fast control step drives every part of a robot; {name} of {robot.name} is switched off")


def _known_arm(robot: Any, control: Any) -> bool:
    if type(control) is not OperationalSpaceController:
        return False
    model = robot.sim.model
    base = model.site_bodyid[model.site_name2id(f"{control.naming_prefix}{control.part_name}_center")]
    return bool(
        control.use_ori
        and control.impedance_mode == "fixed"
        and control.input_type == "delta"
        and control.uncoupling
        and control.lite_physics
        and control.interpolator_pos is None
        and control.interpolator_ori is None
        and control.num_ref_sites == 1
        and model.body_weldid[base] == 0
    )
