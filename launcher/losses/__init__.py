"""Losses: what torch lacks, and one form for all, values and weights per sample."""
