"""Draw shifted worlds: `demoscale sheet`, as a Ray job runs it."""

from orchestrator.cli.sheet_command import sheet

if __name__ == "__main__":
    sheet()
