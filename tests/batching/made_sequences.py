"""Sequences of different lengths with a target at each place, and a model of them."""

import torch
from torch import nn

from launcher.batching.padding import Pad
from launcher.data import Data, DatasetSplit

TOKENS = 7


class Pairs(torch.utils.data.Dataset):
    def __init__(self, first, last):
        self.numbers = range(first, last)

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        number = self.numbers[index]
        random = torch.Generator().manual_seed(number)
        tokens = torch.randint(TOKENS, (2 + 5 * number % 11,), generator=random)
        targets = tokens.roll(-1)
        targets[number % len(targets)] = -100  # one in each sequence that counts nowhere
        return {"input_ids": tokens}, targets


def load():
    train, validation, test = (
        DatasetSplit(Pairs(first, last), collate=Pad({"input_ids": 0}), lengths=torch.tensor(lengths))
        for first, last in ((0, 37), (37, 48), (48, 60))
        for lengths in [[2 + 5 * number % 11 for number in range(first, last)]]
    )
    return Data("pairs", "language", (12,), TOKENS, train, validation, test)


class Tagger(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.embedding, self.output = nn.Embedding(num_classes, 8), nn.Linear(16, num_classes)

    def forward(self, input_ids, attention_mask):
        hidden = self.embedding(input_ids) * attention_mask[..., None]
        mean = hidden.sum(1, keepdim=True) / attention_mask.sum(1)[:, None, None]
        return self.output(torch.cat([hidden, mean.expand_as(hidden)], 2).tanh())
