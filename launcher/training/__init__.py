"""An update and an evaluation: trainers, their state in checkpoints, and what is tried before a run."""
