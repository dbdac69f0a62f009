"""Learning-rate schedules: warmup, torch schedulers by name, and what they need to know of the run."""
