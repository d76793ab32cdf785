"""Sweep files, and the entry points of Ray jobs."""
