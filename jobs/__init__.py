"""What is submitted: one file, one thing that can be run here or on a cluster."""
