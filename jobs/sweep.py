"""Run a sweep file: what a Ray job runs on the cluster's head (`demoscale submit`). The same as `demoscale
run`; SIGTERM, with which Ray stops a job, ends it in good order.

python -m jobs.sweep jobs/quickstart.yaml
"""

from orchestrator.cli.main import run

if __name__ == "__main__":
    run()
