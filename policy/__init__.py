"""Models, their training step and their serving: torch and diffusers, no cluster, no simulator."""
