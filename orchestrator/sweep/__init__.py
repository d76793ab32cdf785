"""Driver of a sweep: its run and its state."""
