"""Episodes: suites, one episode, worker processes and their pool."""
