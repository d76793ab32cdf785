"""One training run: job, loop, Ray Train, control channel."""
