"""Run a sweep: `demoscale run`, as a Ray job runs it. SIGTERM, with which Ray stops a job, ends it in good
order.
"""

from orchestrator.cli.main import run

if __name__ == "__main__":
    run()
