"""Serve a policy: `demoscale serve`, as a Ray job runs it."""

from orchestrator.cli.serve_command import serve

if __name__ == "__main__":
    serve()
