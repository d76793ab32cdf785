"""Thresholds of the quality checks."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Thresholds of the findings. Shares are fractions of 1; ranges are those of a dimension over the whole
    store.
    """

    frozen_s: float = 1.0
    """Seconds without change from which a camera or a proprioception counts as frozen."""
    same_level: float = 1.0
    """Gray levels, of 255: largest change of any part of an unchanged picture."""
    coded_level: float = 5.0
    """Gray levels: the same limit where a key frame encodes an unchanged picture again, every eighth
    frame.
    """
    same_share: float = 0.6
    """Minimum share of a frozen stretch's steps that stay within `same_level`, which key frames may
    exceed.
    """
    moving_proprio: float = 0.15
    """Share of its range that a proprioceptive value covers where the robot moves; a gripper alone is hardly
    visible.
    """
    moving_action: float = 0.25
    """Share of its range that an action covers where the robot moves."""
    blank_level: float = 2.5
    """Standard deviation in gray levels below which a picture is of one colour."""
    blank_share: float = 0.05
    """Share of an episode's pictures from which pictures of one colour are a finding."""
    repeated_share: float = 0.3
    """Share of the faster half of the steps that bring no new picture, from which it is a finding."""
    same_camera_level: float = 1.0
    """Mean difference in gray levels below which two cameras show the same."""
    lag_steps: int = 2
    """Steps of delay or advance from which a lag is a finding."""
    lag_correlation: float = 0.7
    """Minimum correlation of picture change and speed at the lag."""
    lag_gain: float = 0.15
    """Minimum gain of that correlation over the one without lag."""
    lag_reach_s: float = 1.0
    """Longest lag that is tried, in seconds."""
    saturated_share: float = 0.5
    """Share of an episode's steps at a limit from which a dimension is saturated."""
    clipped_share: float = 0.25
    """Share of the store's steps at one limit from which a dimension is clipped."""
    two_valued_share: float = 0.9
    """Share of steps at either limit from which a dimension is a switch, such as a gripper, which is at its
    limits by design.
    """
    constant_elsewhere: float = 0.25
    """Share of the episodes above which a dimension's being constant is no finding in one of them."""
    gripper_share: float = 0.1
    """Minimum share of its range that a moving gripper covers."""
    jump_deviations: float = 8.0
    """Scaled median absolute deviations beyond the store's usual step from which a step is a jump."""
    jump_neighbours: float = 5.0
    """Minimum ratio of a jump to the steps around it."""
    jump_range: float = 0.05
    """Minimum share of the range that a jump covers."""
    quaternion_norm: float = 0.05
    """Largest deviation from 1 of an orientation's length."""
    duplicate_motion: float = 0.01
    """Root mean square difference, in ranges, below which two motions are the same."""
    duplicate_level: float = 1.5
    """Root mean square difference, in gray levels, below which two action-free films are the same."""
    shortest_steps: int = 8
    """Minimum steps of an episode."""
    length_ratio: float = 3.0
    """Largest ratio, either way, of an episode's length to the median of its task."""
    idle_step: float = 0.001
    """Largest share of its range that a value moves in one step where the robot stands still."""
    idle_s: float = 2.0
    """Minimum seconds of standing still that are a finding, if they are also `idle_share` of the episode."""
    idle_share: float = 0.4
    """Minimum share of the episode that is spent standing still, for a finding."""
    far_deviations: float = 8.0
    """Scaled median absolute deviations from the median of the task from which an episode is far from the
    others.
    """
    fewest: int = 8
    """Episodes of a task below which its episodes are not compared with each other."""
    systematic: float = 0.5
    """Share of the episodes above which a finding that they have in common is reported once."""
