"""The driver: what runs a sweep, and keeps its state."""
