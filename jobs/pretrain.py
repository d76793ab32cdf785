"""Pretrain a video model: `demoscale pretrain`, as a Ray job runs it."""

from orchestrator.cli.pretrain_command import pretrain

if __name__ == "__main__":
    pretrain()
