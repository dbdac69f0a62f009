"""Plain PyTorch with nothing around it: a batch is one gather by a random order, the optimizer is fused."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
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


def train(
    data: Data, options: Options, clock: Clock, permutation: Callable[[int], Tensor] = torch.randperm
) -> nn.Module:
    inputs, targets = data.train
    model = build_model(options.workload)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=options.steps)

    model.train()
    step = 0
    while step < options.steps:
        order = permutation(len(inputs))
        for start in range(0, len(inputs), options.batch):
            index = order[start : start + options.batch]
            optimizer.zero_grad()
            loss = criterion(model(inputs[index]), targets[index])
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
    report("sliced loop", options, clock, train(data, options, clock), data)
