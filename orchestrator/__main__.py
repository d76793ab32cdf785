"""`python -m orchestrator` is `demoscale`."""

from orchestrator.cli import main

main()
