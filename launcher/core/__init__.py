"""Errors, files and kernels: used everywhere, and knowing nothing of the rooms above."""
