"""Ray runtime, placement, job submission and preflight checks."""
