"""Export an episode store: `demoscale export`, as a Ray job runs it."""

from orchestrator.cli.export_command import export

if __name__ == "__main__":
    export()
