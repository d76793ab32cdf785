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
from robosuite.utils import transform_utils as transforms
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
    the observables. So `env.step`, `env.reset` and this can be mixed freely. Not kept: the reward, and `robot.recent_*` where only a reward uses
    them.
    """

    def __init__(self, env: Any) -> None:
        _refuse_unknown(env)
        self._env = env
        self._only_a_reward = type(env).__name__ in ONLY_A_REWARD
        self._bind()

    def _bind(self) -> None:
        """Look up, once per reset, all that a control step needs: a reset makes new controllers, a hard reset a new simulation, too."""
        env = self._env
        self._sim = env.sim
        self._model, self._data = env.sim.model._model, env.sim.data._data
        self._substeps = int(env.control_timestep / env.model_timestep)
        self._controllers = [robot.composite_controller for robot in env.robots]
        starts = np.cumsum([0] + [robot.action_dim for robot in env.robots])
        self._arms = [_Arm(robot, arm, int(start)) for robot, start in zip(env.robots, starts, strict=False) for arm in robot.arms]
        self._seen = {name: observable for name, observable in env._observables.items() if observable._enabled}
        self._looked_back_at = _looked_back_at(self._seen, env._obs_cache)
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
        if self._due:
            self._sample(self._looked_back_at)
        self._due = self._sampled_at_the_end()
        model, data, arms = self._model, self._data, self._arms
        for substep in range(self._substeps):
            mujoco.mj_step1(model, data)
            if substep == 0:
                self._begin(action)
            else:
                for arm in arms:
                    arm.push()
            mujoco.mj_step2(model, data)
            if not self._due:
                env._update_observables()
        for arm in arms:
            arm.leave()
        env.cur_time += env.control_timestep
        if self._only_a_reward:
            env.done = env.timestep >= env.horizon and not env.ignore_done
        else:
            env._post_action(action)

    def observations(self) -> Any:
        """What `env.step` would have returned: robosuite's named low-dimensional observations, sampled now if nobody has asked before."""
        if self._due:
            self._sample(self._seen)
            self._due = False
        return self._env._get_observations()

    def _sample(self, seen: dict[str, Any]) -> None:
        """What `Observable.update` does when a plain observable is due."""
        cache = self._env._obs_cache
        for name, observable in seen.items():
            value = np.array(observable._sensor(cache))
            observable._current_observed_value = value[0] if value.shape == (1,) else value
            cache[name] = np.array(observable._current_observed_value)

    def _begin(self, action: npt.NDArray[np.floating[Any]]) -> None:
        """Set the goals of a control step, and the first torques towards them."""
        if self._only_a_reward and all(arm.control.new_update for arm in self._arms):
            for arm in self._arms:
                arm.set_goal(action)
                arm.push()
        else:  # the first time after a reset, robosuite's controllers go by what they saw when they were made
            self._env._pre_action(action, policy_step=True)
            for arm in self._arms:
                arm.see_goal()

    def _sampled_at_the_end(self) -> bool:
        """Whether all observables will be sampled after the last step of physics, as they are unless somebody forces an update in between.

        If so, their clock is set to what it will be then. They can wait: nothing that they read changes before the next control step.
        """
        seen = self._seen.values()
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


class _Watched(dict[str, Any]):
    """An observation cache that notes what is read and written."""

    def __init__(self, cache: dict[str, Any]) -> None:
        super().__init__(cache)
        self.read: set[str] = set()
        self.written: set[str] = set()

    def __contains__(self, key: object) -> bool:
        self.read.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def __setitem__(self, key: str, value: Any) -> None:
        self.written.add(key)
        super().__setitem__(key, value)


def _looked_back_at(seen: dict[str, Any], cache: dict[str, Any]) -> dict[str, Any]:
    """The observables of which the next sample uses this one's values, and what these use in turn.

    A sensor may read from the cache what is sampled only after it: PickPlace's way from a thing to the hand goes by where the thing was.
    """
    watched, reads, writers, back = _Watched(cache), dict[str, set[str]](), dict[str, set[str]](), set[str]()
    for _ in range(2):  # from an empty cache, a sensor might not read on
        before = set[str]()
        for name, observable in seen.items():
            watched.read, watched.written = set(), set()
            watched[name] = np.array(observable._sensor(watched))
            reads[name] = watched.read
            for key in watched.written:
                writers.setdefault(key, set()).add(name)
            back |= watched.read - before
            before |= watched.written
    names, more = set[str](), back
    while more:
        new = {name for key in more for name in writers.get(key, ())} - names
        names |= new
        more = {key for name in new for key in reads[name]}
    return {name: observable for name, observable in seen.items() if name in names}


class _Arm:
    """One arm under operational space control, and its gripper: the arrays that its torques are computed from.

    `control`, robosuite's controller, keeps the goal, in the frame of the arm's base, and receives what it would hold.
    """

    def __init__(self, robot: Any, arm: str, start: int) -> None:
        """The robot's part of an action begins at `start`."""
        sim, parts, splits = robot.sim, robot.part_controllers, robot.composite_controller._action_split_indexes
        data, joints, gripper = sim.data._data, _span(parts[arm].qpos_index), robot.get_gripper_name(arm)
        self.control = control = parts[arm]
        self._mine = slice(*(start + index for index in splits[arm]))
        self._gripper = None
        if gripper in parts and parts[gripper].control_dim:
            self._gripper = _Gripper(robot, gripper, slice(*(start + index for index in splits[gripper])))
        dofs, actuators = _span(control.qvel_index), _span(robot._ref_actuators_indexes_dict[arm])
        self._model, self._data, self._site, self._qvel = sim.model._model, data, sim.model.site_name2id(control.ref_name), data.qvel
        self._pos, self._ori, self._bias, self._ctrl = (
            data.site_xpos[self._site],
            data.site_xmat[self._site].reshape(3, 3),
            data.qfrc_bias[dofs],
            data.ctrl[actuators],
        )
        self._joint_pos, self._joint_vel = data.qpos[joints], data.qvel[dofs]
        self._low, self._high = np.ascontiguousarray(sim.model.actuator_ctrlrange[actuators].T)
        number = len(control.qvel_index)
        self._linear, self._angular = np.zeros((3, sim.model.nv)), np.zeros((3, sim.model.nv))
        # In Fortran's order, as indexing gives it to robosuite: BLAS rounds differently for the transpose.
        self._mass = np.zeros((number, number), order="F")
        self._wrench, self._torques = np.zeros(6), np.zeros(number)
        self._force, self._torque, self._posture = np.zeros(3), np.zeros(3), np.zeros(number)
        self._lambda_pos, self._lambda_ori = np.zeros((3, 3), order="F"), np.zeros((3, 3), order="F")
        self._given = (
            *(self._pos, self._ori, control.ref_pos_vel, control.ref_ori_vel, control.kp, control.kd),
            *(data.qM, _mass_matrix_entries(sim)[dofs, dofs].copy(), self._mass, self._linear, self._angular, dofs.start),
            *(control.J_pos, control.J_ori, control.J_full, control.initial_joint, self._joint_pos, self._joint_vel),
            *(self._force, self._torque, self._lambda_pos, self._lambda_ori, self._posture),
        )
        self._into_base = transforms.pose_inv(transforms.make_pose(control.origin_pos, control.origin_ori))
        self._pose = np.eye(4)

    def set_goal(self, action: npt.NDArray[np.floating[Any]]) -> None:
        """Do what `OperationalSpaceController.set_goal` does: the goal is where the hand is, moved and turned by the action."""
        control = self.control
        delta = _scaled(control, action[self._mine])
        self._pose[:3, :3], self._pose[:3, 3] = self._ori, self._pos
        hand = np.dot(self._into_base, self._pose)
        control.goal_pos = hand[:3, 3] + delta[:3]
        control.goal_ori = np.dot(transforms.quat2mat(transforms.axisangle2quat(delta[3:])), hand[:3, :3])
        if self._gripper is not None:
            self._gripper.command(action)
        self.see_goal()

    def see_goal(self) -> None:
        """Take over the controller's goal, in the world: it does not change before the next control step."""
        control = self.control
        self._goal = control.origin_pos + np.dot(control.origin_ori, control.goal_pos), np.dot(control.origin_ori, control.goal_ori)

    def push(self) -> None:
        """Command the torques of one step of physics (`Controller.update`, `OperationalSpaceController.run_controller`)."""
        control, torques = self.control, self._torques
        mujoco.mj_jacSite(self._model, self._data, self._linear, self._angular, self._site)
        self._linear.dot(self._qvel, control.ref_pos_vel)
        self._angular.dot(self._qvel, control.ref_ori_vel)
        _towards_goal(*self._goal, *self._given)
        np.concatenate((self._lambda_pos.dot(self._force), self._lambda_ori.dot(self._torque)), out=self._wrench)
        control.J_full.T.dot(self._wrench, torques)
        torques += self._bias
        torques += self._posture
        np.maximum(torques, self._low, self._ctrl)
        np.minimum(self._ctrl, self._high, self._ctrl)

    def leave(self) -> None:
        """Leave in robosuite's controller what it would hold after the control step."""
        control = self.control
        control.ref_pos[:], control.ref_ori_mat[:] = self._pos, self._ori
        control.mass_matrix, control.torques = self._mass.copy(order="F"), self._torques.copy()


class _Gripper:
    def __init__(self, robot: Any, name: str, mine: slice) -> None:
        """Its part of the action is `mine`."""
        self._control, self._gripper, self._mine = robot.part_controllers[name], robot.composite_controller.grippers[name], mine
        self._actuators, self._ctrl = robot._ref_actuators_indexes_dict[name], robot.sim.data._data.ctrl
        self._low, self._high = robot.sim.model.actuator_ctrlrange[self._actuators].T.copy()

    def command(self, action: npt.NDArray[np.floating[Any]]) -> None:
        """Do what `SimpleGripController` does with set_goal and run_controller."""
        control = self._control
        wanted = self._gripper.format_action(action[self._mine])
        if control.use_action_scaling:
            control.goal_qvel = wanted = _scaled(control, wanted)
            low, high = control.actuator_min, control.actuator_max
            wanted = 0.5 * (high + low) + 0.5 * (high - low) * wanted
        self._ctrl[self._actuators] = np.minimum(np.maximum(wanted, self._low), self._high)


def _scaled(control: Any, action: npt.NDArray[np.floating[Any]]) -> Array:
    """What `Controller.scale_action` gives once it has been asked before, as it has in the first control step."""
    clipped = np.minimum(np.maximum(action, control.input_min), control.input_max)
    scaled: Array = (clipped - control.action_input_transform) * control.action_scale + control.action_output_transform
    return scaled


@jit_decorator
def _towards_goal(
    goal_pos: Array, goal_ori: Array, pos: Array, ori: Array, pos_vel: Array, ori_vel: Array, kp: Array, kd: Array,
    inertia: Array, entries: npt.NDArray[np.int64], mass: Array, linear: Array, angular: Array, first_dof: int,
    J_pos: Array, J_ori: Array, J_full: Array, initial_joint: Array, joint_pos: Array, joint_vel: Array,
    force: Array, torque: Array, lambda_pos: Array, lambda_ori: Array, posture: Array,
) -> None:  # fmt: skip
    """Fill what the rest is numpy's business with: the hand's wanted `force` and `torque` (3,), their inertias `lambda_*` (3, 3), the torques
    `posture` (J,) that keep the arm's posture; and on the way `mass` (J, J) and the Jacobians `J_*` (3, J), (3, J), (6, J).

    Only what rounds alike wherever it is computed (sums and products of single numbers), and robosuite's own compiled functions: the other matrix
    products must stay numpy's. The base stands still: its velocity, which robosuite subtracts, is 0.
    """
    for column in range(mass.shape[1]):
        for row in range(mass.shape[0]):
            mass[row, column] = inertia[entries[row, column]]
        for row in range(3):
            J_pos[row, column] = linear[row, first_dof + column]
            J_ori[row, column] = angular[row, first_dof + column]
            J_full[row, column] = linear[row, first_dof + column]
            J_full[3 + row, column] = angular[row, first_dof + column]
    force[:] = (goal_pos - pos) * kp[0:3] + -pos_vel * kd[0:3]
    torque[:] = orientation_error(goal_ori, ori) * kp[3:6] + -ori_vel * kd[3:6]
    _, lambda_pos[:], lambda_ori[:], nullspace = opspace_matrices(mass, J_full, J_pos, J_ori)
    posture[:] = nullspace_torques(mass, nullspace, initial_joint, joint_pos, joint_vel)


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
        raise ValueError(
            f"the fast control step stands in for robosuite's plain one with lite_physics and without a viewer; {kind.__name__} has another"
        )
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
        and control.input_ref_frame == "base"
        and control._goal_update_mode == "achieved"
        and control.uncoupling
        and control.lite_physics
        and control.interpolator_pos is None
        and control.interpolator_ori is None
        and control.num_ref_sites == 1
        and model.body_weldid[base] == 0
    )
