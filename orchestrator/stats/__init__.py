"""Statistics: fixed samples, sequential tests, sample efficiency."""
