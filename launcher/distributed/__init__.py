"""The ranks of a run: who they are, their process group, devices, signals and watchdog, and what SLURM says of them."""
