"""Episodes in other formats."""
