"""Experiments whose results are findings, not speeds: see README.md."""
