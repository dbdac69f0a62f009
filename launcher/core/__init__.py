"""Errors, files and processes: used everywhere, and knowing nothing of the rooms above."""
