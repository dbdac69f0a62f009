"""Small texts and models of them."""

from pathlib import Path

import numpy as np
import torch

CONF = Path(__file__).parents[2] / "conf"
CPU = torch.device("cpu")


def book(path, length=5000, seed=0):
    """A text in which much can be learnt: words of a small vocabulary, in lines."""
    words = ["the", "cat", "sat", "on", "mat", "and", "then", "it", "saw", "another", "naïve", "dog"]
    drawn = np.random.RandomState(seed).randint(len(words), size=length)
    written = "".join(words[i] + (".\n" if n % 9 == 8 else " ") for n, i in enumerate(drawn))
    path.write_text(written, encoding="utf-8")
    return path


def scored(n=9, t=6, v=11):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, t, v, generator=generator), torch.randint(v, (n, t), generator=generator)
