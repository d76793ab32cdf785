"""Simulators: robosuite, LIBERO, RoboCasa, and their shifted worlds."""
