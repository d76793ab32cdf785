"""The packages that a command imports."""

import subprocess

HEAVY = {"torch", "ray", "mlflow", "diffusers", "robosuite", "mujoco"}
"""Packages that take seconds to import."""


def imported_packages(done: subprocess.CompletedProcess[str]) -> set[str]:
    """List the top-level packages that a process imported which ran with `-X importtime`."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().split(".")[0] for line in lines}
