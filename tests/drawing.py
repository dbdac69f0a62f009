"""A dataset that draws from the generators of its process."""

import random

import numpy as np
import torch
from torch.utils.data import Dataset

DRAWS = {
    "torch": lambda: torch.rand(()).item(),
    "python": random.random,
    "numpy": np.random.rand,
}


class Drawing(Dataset):
    """Draws from some generators, the last of them at one sample alone; counts what it was asked."""

    def __init__(self, names, rare=None, size=20):
        self.names, self.rare, self.size, self.asked = names, rare, size, []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.asked.append(index)
        found = [DRAWS[name]() for name in self.names]
        found.append(DRAWS[self.rare]() if self.rare and index == 7 else float(index))
        return torch.tensor(found, dtype=torch.float64), index
