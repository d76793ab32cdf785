"""What learns: torch and diffusers, no cluster, no simulator."""
