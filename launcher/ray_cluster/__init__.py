"""Sweeps on a Ray cluster: where trials are placed, one actor for each rank, and what becomes of them.

May use slurm, for its copies of the code, and what is below it. Nothing else imports the package ray.
"""
