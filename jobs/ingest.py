"""Import recordings: `demoscale import`, as a Ray job runs it."""

from orchestrator.cli.import_command import import_

if __name__ == "__main__":
    import_()
