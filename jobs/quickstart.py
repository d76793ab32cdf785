"""The whole loop on this machine: collect demonstrations of Lift, run a sweep file, print the curve. What
`make demo` and `make lines` run.

    python -m jobs.quickstart
    python -m jobs.quickstart jobs/lines_lift.yaml

A second run finds everything done and says so.
"""

import subprocess
import sys
import time

import yaml

from orchestrator.data.subset import num_action_free
from orchestrator.provenance import CHECKOUT

SWEEP_FILE = "jobs/quickstart.yaml"


def main(sweep_file: str = SWEEP_FILE) -> None:
    """Each phase is a command a person could type; their times are printed at the end."""
    data = yaml.safe_load((CHECKOUT / sweep_file).read_text())["data"]
    demos, ratio = max(data["demo_count"]), max(data.get("action_free_ratio", [0]))
    episodes = demos + num_action_free(demos, ratio)
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
        "run the sweep": ["-m", "orchestrator", "run", sweep_file],
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
        main(*sys.argv[1:2])
    except KeyboardInterrupt:
        sys.exit(130)
