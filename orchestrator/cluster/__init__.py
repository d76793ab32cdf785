"""Ray: runtime, placement, job submission, preflight."""
