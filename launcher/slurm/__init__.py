"""Sweeps as job arrays, batch jobs that come back, and the code that they run."""
