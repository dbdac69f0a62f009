"""Metrics: sums that add up over batches and ranks, and torchmetrics by name."""
