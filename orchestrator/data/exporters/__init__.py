"""Exporters of episodes to other formats."""
