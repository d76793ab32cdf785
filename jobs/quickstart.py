"""The whole loop on this machine: collect demonstrations of Lift, run jobs/quickstart.yaml, print the curve.
What `make demo` runs.

    python -m jobs.quickstart

A second run finds everything done and says so.
"""

import subprocess
import sys
import time

import yaml

from orchestrator.data.subset import num_action_free
from orchestrator.provenance import CHECKOUT

SWEEP_FILE = "jobs/quickstart.yaml"


def main() -> None:
    """Each phase is a command a person could type; their times are printed at the end."""
    data = yaml.safe_load((CHECKOUT / SWEEP_FILE).read_text())["data"]
    episodes = max(data["demo_count"]) + num_action_free(
        max(data["demo_count"]), max(data["action_free_ratio"])
    )
    phases = {
        "check this machine": ["-m", "orchestrator", "doctor"],
        "collect demonstrations": [
            "-m",
            "orchestrator",
            "collect",
            "--task",
            "Lift",
            "--episodes",
            str(episodes),
            "--store",
            data["episodes"],
        ],
        "run the sweep": ["-m", "orchestrator", "run", SWEEP_FILE],
    }
    times = {}
    for name, command in phases.items():
        print(f"\n== {name}: {'python ' + ' '.join(command)}", flush=True)
        began = time.monotonic()
        code = subprocess.run([sys.executable, *command], cwd=CHECKOUT).returncode
        times[name] = time.monotonic() - began
        if code:
            sys.exit(code)
    print(
        "\n== time: "
        + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in times.items())
        + f"; {sum(times.values()) / 60:.1f} min in all"
    )


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
