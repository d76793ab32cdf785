"""`python -m orchestrator` is `demoscale`."""

from orchestrator.cli.main import main

main()
