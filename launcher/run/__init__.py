"""What a run leaves: its directory, record, report and terminal, and where it came from."""
