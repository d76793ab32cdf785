"""Importers, one module per file format."""
