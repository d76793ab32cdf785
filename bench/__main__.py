"""Run every bench and write what it printed to bench/README.md: `make bench`, or `python -m bench --quick` for a look without writing."""

import datetime
import importlib
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from sim_workers.selftest import processor_name

BENCHES = [
    "loop",
    "data",
    "train_step",
    "replan",
    "sizes",
    "control_step",
    "rollout",
    "nodes",
    "drivers",
    "ceiling",
    "ledger",
    "search",
    "decisions",
    "stall",
    "telling",
    "curve",
]
HEAD = """# Benches

One script per claim about speed. Each prints a table and, last, one line of JSON; `--quick` is a short look. `make bench` runs them all and
writes this page. Read the ratios: they are taken within one run.

"""


def main() -> None:
    """Stops at the first bench that fails."""
    quick = "--quick" in sys.argv[1:]
    packages = ", ".join(f"{name} {version(name)}" for name in ("ray", "torch", "diffusers", "robosuite", "mujoco"))
    cores = len(os.sched_getaffinity(0))
    page = HEAD + f"{datetime.date.today()}; {processor_name()}, {cores} cores, {_card()}; Python {platform.python_version()}, {packages}.\n"
    for name in BENCHES:
        done = subprocess.run([sys.executable, "-m", f"bench.{name}", *["--quick"] * quick], stdout=subprocess.PIPE, text=True)
        print(done.stdout, end="", flush=True)
        if done.returncode:
            sys.exit(done.returncode)
        about = (importlib.import_module(f"bench.{name}").__doc__ or "").splitlines()[0]
        page += f"\n## {name}\n\n{about}\n\n```\n{done.stdout.strip()}\n```\n"
    if not quick:
        (Path(__file__).parent / "README.md").write_text(page)


def _card() -> str:
    """The GPU's name, asked in a process of its own: this one keeps none of its memory."""
    question = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU')"
    return subprocess.run([sys.executable, "-c", question], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
