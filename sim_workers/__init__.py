"""Simulators and evaluation rollouts: robosuite and numpy, no torch; Ray only in `rollout`."""
