"""Checkpoints and pretrained weights, read as untrusted input, cached per node."""
