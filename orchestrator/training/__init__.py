"""Training run: job, loop, Ray Train, control channel."""
