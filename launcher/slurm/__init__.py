"""Sweeps as job arrays, batch jobs that come back, and the code that they run.

May use sweep and what is below it. SLURM's commands are called in distributed/slurm_commands.py alone.
"""
