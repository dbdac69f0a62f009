"""Distributed multi-GPU training with Hydra, Accelerate and Weights & Biases."""

__version__ = "0.1.0"
