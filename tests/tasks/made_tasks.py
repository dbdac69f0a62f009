"""Tasks, models and data of a person's own, in a module that runs import by name."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from launcher.data import Data, DatasetSplit, TensorSplit
from launcher.tasks.task import Losses, Task


class Views(Dataset):
    """Two views of a sample and its weight, in a dict alone: there are no targets."""

    def __init__(self, count: int, first: int) -> None:
        generator = torch.Generator().manual_seed(7)
        rows = torch.randn(60, 6, generator=generator)
        self.rows = rows[first : first + count]
        self.weights = torch.rand(60, generator=generator)[first : first + count] * 2

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int):
        return {"left": self.rows[i], "right": self.rows[i].flip(0), "weight": self.weights[i]}


def views() -> Data:
    train, validation, test = (DatasetSplit(Views(*cut)) for cut in ((37, 0), (11, 37), (12, 48)))
    return Data("views", "own", (6,), 4, train, validation, test)


class Encoder(nn.Module):
    """An encoder that is trained, a head that is not, and outputs in a dict."""

    def __init__(self, in_features: int, num_outputs: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(in_features, 8), nn.Linear(8, num_outputs).requires_grad_(False)

    def forward(self, x):
        hidden = self.body(x).tanh()
        return {"hidden": hidden, "out": self.head(hidden)}


class Agree(Task):
    """Both views shall give the same outputs, and small hidden values; samples weigh differently."""

    terms = ("agreement", "size")

    def __init__(self, share: float = 0.5) -> None:
        super().__init__()
        self.share = share

    def losses(self, model, inputs, targets):
        left, right = model(inputs["left"]), model(inputs["right"])
        weight = inputs["weight"]
        agreement = (left["out"] - right["out"]).square().mean(1) * weight
        size = left["hidden"].square().mean(1) * weight
        return Losses(agreement + self.share * size, weight, {"agreement": agreement, "size": size})


class Contrast(Task):
    """In-batch: each left view against the right views of all others."""

    def losses(self, model, inputs, targets):
        left, right = model(inputs["left"])["hidden"], model(inputs["right"])["hidden"]
        return Losses(F.cross_entropy(left @ right.T, torch.arange(len(left)), reduction="none"))


class Silent(Task):
    """A class without the one method that it must have."""


class Wrong(Agree):
    """What `kind` names is wrong with its losses."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        if kind == "trained":
            self.head = nn.Linear(2, 2)
        if kind == "called":
            self.terms = ("loss", "size")

    def losses(self, model, inputs, targets):
        found = super().losses(model, inputs, targets)
        return {
            "mean": found._replace(values=found.values.mean()),
            "terms": found._replace(terms={"other": found.values}),
            "tensor": found.values,
            "negative": found._replace(weights=-torch.ones_like(found.values)),
            "detached": found._replace(values=found.values.detach()),
        }.get(self.kind, found)


def scenes() -> Data:
    """Pictures of 5x4 pixels, each of one of three classes by its first channel, some of which count nowhere."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(61, 2, 5, 4, generator=generator)
    classes = (inputs[:, 0] > 0).long() + (inputs[:, 0] > 1).long()
    classes[torch.rand(classes.shape, generator=generator) < torch.rand(61, 1, 1, generator=generator)] = -100
    cuts = (slice(0, 37), slice(37, 49), slice(49, 61))
    splits = [TensorSplit(inputs[cut], classes[cut]) for cut in cuts]
    return Data("scenes", "segmentation", (2, 5, 4), 3, *splits, ["sky", "sea", "sand"])


class Pixels(nn.Module):
    """Scores of each pixel by itself."""

    def __init__(self, in_channels: int, num_outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(in_channels, 6, 1), nn.Tanh(), nn.Conv2d(6, num_outputs, 1))

    def forward(self, x):
        return self.layers(x)


def small() -> Data:
    """Rows of four classes, as numbers in 0..1."""
    generator = torch.Generator().manual_seed(9)
    inputs = torch.rand(61, 6, generator=generator)
    classes = (inputs[:, :4] + 0.2 * torch.rand(61, 4, generator=generator)).argmax(1)
    cuts = (slice(0, 37), slice(37, 49), slice(49, 61))
    splits = [TensorSplit(inputs[cut], classes[cut]) for cut in cuts]
    return Data("small", "classification", (6,), 4, *splits)


class Guess(Task):
    """Classes by a loss of its own, measured by what metrics are given: probabilities, and the classes as they are."""

    def __init__(self, silent: bool = False) -> None:
        super().__init__()
        self.silent = silent

    def losses(self, model, inputs, targets):
        return Losses(F.cross_entropy(model(inputs), targets, reduction="none"))

    def measure(self, model, inputs, targets):
        probabilities = model(inputs).softmax(1)
        losses = Losses(F.nll_loss(probabilities.log(), targets, reduction="none"))
        return losses, None if self.silent else probabilities
