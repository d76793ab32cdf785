"""Encode an episode store: `demoscale encode`, as a Ray job runs it."""

from orchestrator.cli.encode_command import encode

if __name__ == "__main__":
    encode()
