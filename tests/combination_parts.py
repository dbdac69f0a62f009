"""Data and a model of a person's own, small enough to be trained thousands of times: see combinations.py."""

import torch
from torch import nn
from torch.utils.data import Dataset

from launcher.data import Data, DatasetSplit, TensorSplit
from launcher.data.augmentation import augmentation
from launcher.tasks.task import Losses, Task

TRAIN, VALIDATION, TEST, CLASSES = 29, 13, 9, 4  # no last update of a size in combinations.py has a single sample
NAN = 255  # the first pixel of a sample that comes out as NaN


class Scale:
    """Raw pixels to numbers, and a pixel that no model gets over to NaN."""

    def __call__(self, raw):
        scaled = raw.float() / 64 - 1
        return torch.where((raw.flatten(1)[:, 0] == NAN).view(-1, *[1] * (raw.dim() - 1)), torch.nan, scaled)


class Drawn(Dataset):
    """Images with noise from torch's, NumPy's and Python's generators, one at a time."""

    def __init__(self, inputs, targets, noisy):
        self.inputs, self.targets, self.noisy = inputs, targets, noisy

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        image = self.inputs[index]
        if self.noisy:
            import random

            import numpy

            noise = torch.randint(-9, 9, image.shape) + random.randint(-3, 3) + int(numpy.random.randint(-3, 3))
            image = (image + noise).clamp(0, NAN - 1).to(torch.uint8).where(image != NAN, image)
        return image, self.targets[index]


class Whole(Drawn):
    """The same without noise, a batch at a time."""

    def __getitems__(self, indices):
        return [(self.inputs[i], self.targets[i]) for i in indices]


def load(kind, source="memory", augment=False, poisoned=False):
    """Made data: vectors, images, numbers (a regression), tokens or scenes; in memory or by a Dataset."""
    generator = torch.Generator().manual_seed(5)
    parts = []
    for n in (TRAIN, VALIDATION, TEST):
        labels = torch.tensor([0, 0, 0, 1, 1, 2, 3])[torch.arange(n) % 7]  # out of balance
        shape = {"images": (3, 8, 8), "scenes": (3, 8, 8), "tokens": (9,)}.get(kind, (12,))
        raw = torch.randint(0, 150, (n, *shape), generator=generator, dtype=torch.uint8)
        raw += (20 * labels).to(torch.uint8).view(-1, *[1] * len(shape))
        if poisoned and n == TRAIN:
            raw[22].view(-1)[0] = NAN
        if kind == "tokens":
            stream = (raw // 16).long()
            parts.append(TensorSplit(stream[:, :-1].contiguous(), stream[:, 1:].contiguous()))
            continue
        targets = labels
        if kind == "scenes":  # a class for each pixel by what is left of it, some of which count nowhere
            targets = (raw[:, 0].roll(1, -1).long() // 40).clamp(max=CLASSES - 1)
            targets[torch.rand(targets.shape, generator=generator) < 0.3] = -100
        if kind == "numbers":
            targets = torch.stack([raw.float().mean(1) / 50 - 2, raw[:, 0] / 100 - 1], 1)
        if source == "memory":
            changed = augmentation(True, 1, 0.5, 8, [64.0] * 3) if augment and kind == "images" else None
            changed = changed if n == TRAIN else None
            parts.append(TensorSplit(raw, targets, Scale(), changed, changed.draws if changed else 0))
        else:
            plain = Drawn(raw, targets, False)
            dataset = Whole(raw, targets, False) if source == "batched" else Drawn(raw, targets, augment and n == TRAIN)
            known = targets if kind != "numbers" else None
            parts.append(
                DatasetSplit(
                    dataset,
                    known,
                    Scale(),
                    batched=source == "batched",
                    plain=plain,
                    shards=(5, n - 8, 1, 2),
                    open_shards=2,
                )
            )
    task = {"numbers": "regression", "tokens": "language", "scenes": "segmentation"}.get(kind, "classification")
    outputs = {"numbers": 2, "tokens": 16}.get(kind, CLASSES)
    return Data("made", task, (8,) if kind == "tokens" else shape, outputs, *parts)


class Teacher(nn.Module):
    """Scores that are a fixed function of the inputs, of any shape; of no run."""

    def __init__(self, run_dir):
        super().__init__()

    def forward(self, inputs):
        flat = inputs.flatten(1)
        return flat @ torch.arange(flat.shape[1] * CLASSES, device=flat.device).cos().view(-1, CLASSES).to(flat.dtype)


class Agree(Task):
    """Two views of a sample shall have the same outputs, and small ones; some samples weigh twice as much."""

    terms = ("agreement", "size")

    def losses(self, model, inputs, targets):
        left, right = (model(view).flatten(1).float() for view in (inputs, inputs.flip(-1)))
        weights = 1 + (inputs.flatten(1)[:, 1] > 0).float()
        agreement, size = ((values.square().mean(1) * weights) for values in (left - right, left))
        return Losses(agreement + 0.3 * size, weights, {"agreement": agreement, "size": size})


class Pixels(nn.Module):
    """Scores of the classes at each pixel, from it and those beside it."""

    def __init__(self, input_shape, num_outputs):
        super().__init__()
        layers = nn.Conv2d(input_shape[0], 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, num_outputs, 1)
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs):
        return self.layers(inputs)


class Probe:
    """A hook that logs, draws and remembers."""

    def __init__(self):
        self.drawn = 0.0

    def after_step(self, run):
        run.model.eval()
        if run.step % 2:
            self.drawn += float(torch.rand(()))
            run.log("probe/drawn", self.drawn)
            some = next(p for p in run.model.parameters() if p.requires_grad)
            run.log("probe/weight", some.abs().sum())

    def after_evaluation(self, run):
        run.log("probe/loss", run.metrics["eval/loss"])

    def state_dict(self):
        return {"drawn": self.drawn}

    def load_state_dict(self, state):
        self.drawn = state["drawn"]


class Normalised(nn.Module):
    """A small network with a BatchNorm, for vectors and images."""

    def __init__(self, input_shape, num_outputs):
        super().__init__()
        first = nn.Conv2d(input_shape[0], 6, 3) if len(input_shape) == 3 else nn.Linear(input_shape[0], 6)
        norm = nn.BatchNorm2d(6) if len(input_shape) == 3 else nn.BatchNorm1d(6)
        self.body = nn.Sequential(first, norm, nn.ReLU(), nn.Flatten())
        with torch.no_grad():
            width = self.body.eval()(torch.zeros(1, *input_shape)).shape[1]
        self.body.train()
        self.head = nn.Linear(width, num_outputs)

    def forward(self, inputs):
        return self.head(self.body(inputs))
