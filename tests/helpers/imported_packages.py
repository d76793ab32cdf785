"""The packages that a command imports."""

import subprocess

HEAVY = {"torch", "ray", "mlflow", "diffusers", "robosuite", "mujoco"}
"""Packages that take seconds to import."""


def imported_modules(done: subprocess.CompletedProcess[str]) -> set[str]:
    """List the modules that a process imported which ran with `-X importtime`."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


def imported_packages(done: subprocess.CompletedProcess[str]) -> set[str]:
    """List the top-level packages that a process imported which ran with `-X importtime`."""
    return {module.split(".")[0] for module in imported_modules(done)}
