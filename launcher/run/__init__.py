"""What a run leaves: its directory, its record, what shows that (terminal, trackers, pages), and what it was made by.

Uses the rooms from training downwards. Rank 0 alone writes in a run directory.
"""
