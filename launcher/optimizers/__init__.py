"""Optimizers: those that torch lacks, and what builds one from its settings: parameter groups, layer-wise decay."""
