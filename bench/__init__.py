"""One script per claim about speed: see README.md."""
