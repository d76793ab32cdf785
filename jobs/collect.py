"""Record demonstrations: `demoscale collect`, as a Ray job runs it."""

from orchestrator.cli.collect_command import collect

if __name__ == "__main__":
    collect()
