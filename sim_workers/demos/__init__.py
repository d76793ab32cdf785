"""Scripted experts and the recording of their episodes."""
