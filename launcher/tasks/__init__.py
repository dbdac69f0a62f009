"""What is learned: from a model and a batch to a loss for each sample, and to what an evaluation counts.

May use what a person picks (data, losses, metrics, models) and the rooms below; one task a file.
"""
