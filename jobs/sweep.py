"""Run a sweep file: what a Ray job runs on the cluster's head. The same as `demoscale run`.

python -m jobs.sweep jobs/quickstart.yaml
"""

from orchestrator.cli import run

if __name__ == "__main__":
    run()
