"""Score a policy: `demoscale score`, as a Ray job runs it."""

from orchestrator.cli.score_command import score

if __name__ == "__main__":
    score()
