"""Replay recordings into an episode store: `demoscale replay`, as a Ray job runs it."""

from orchestrator.cli.replay_command import replay

if __name__ == "__main__":
    replay()
