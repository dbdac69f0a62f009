"""Hand-written PyTorch as in its tutorials: a TensorDataset in a shuffling DataLoader, the optimizer fused."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from workload import (
    LEARNING_RATE,
    MOMENTUM,
    Clock,
    Data,
    Options,
    build_model,
    load_data,
    parse_options,
    report,
)


def train(data: Data, options: Options, clock: Clock, sampler: Iterable[int] | None = None) -> nn.Module:
    loader = DataLoader(TensorDataset(*data.train), batch_size=options.batch, shuffle=sampler is None, sampler=sampler)
    model = build_model(options.workload)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=options.steps)

    model.train()
    step = 0
    while step < options.steps:
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
            scheduler.step()
            clock.tick()
            step += 1
            if step == options.steps:
                break
    return model


if __name__ == "__main__":
    options = parse_options(features=False)
    data, clock = load_data(options.data), Clock(options.steps)
    report("DataLoader loop", options, clock, train(data, options, clock), data)
