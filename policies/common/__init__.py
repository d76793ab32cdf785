"""What the shipped external policies share: their side of training and of serving, in the standard library alone."""
