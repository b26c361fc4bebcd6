"""Judges: the protocols of their roles."""
