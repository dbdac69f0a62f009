"""A task of one's own: two views of a sample shall be told alike, by a batch that is a dict."""

import torch
from torch import nn
from torch.utils.data import Dataset

from launcher.data import Data, DatasetSplit
from launcher.tasks.task import Losses, Task


class Views(Dataset):
    """Rows of numbers, each in two noisy views; there are no targets."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        left, right = self.rows[i] + 0.1 * torch.randn(2, 8)
        return {"left": left, "right": right}


def load() -> Data:
    """300 rows to train on, 100 to choose by, 100 to measure on."""
    rows = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    train, validation, test = (DatasetSplit(Views(part)) for part in rows.split([300, 100, 100]))
    return Data("views", "views", (8,), 4, train, validation, test)


class Encoder(nn.Module):
    """What is hidden, and what is told of it by a head that stays as it is."""

    def __init__(self, in_features: int, num_outputs: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(in_features, 16), nn.Linear(16, num_outputs).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map [n, in_features] to hidden [n, 16] and out [n, num_outputs]."""
        hidden = self.body(x).tanh()
        return {"hidden": hidden, "out": self.head(hidden)}


class Agree(Task):
    """Both views tell the same, from small hidden numbers."""

    terms = ("agreement", "size")  # logged as train/agreement, eval/agreement, ...

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def losses(self, model, inputs, targets) -> Losses:
        """The losses of the samples of a batch."""
        left, right = model(inputs["left"]), model(inputs["right"])
        agreement = (left["out"] - right["out"]).square().mean(1)
        size = left["hidden"].square().mean(1)
        return Losses(agreement + self.share * size, None, {"agreement": agreement, "size": size})
