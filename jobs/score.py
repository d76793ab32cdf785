"""Score any policy on a fixed list of simulated episodes, without a sweep: `demoscale score` by another name.

python -m jobs.score http://127.0.0.1:8000 --task Lift --episodes 20
"""

from orchestrator.cli.score_command import score

if __name__ == "__main__":
    score()
