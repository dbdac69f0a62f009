"""Hand-written PyTorch with DistributedDataParallel as in its tutorials, but a fused optimizer; run by torchrun."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler
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


def train(data: Data, options: Options, clock: Clock) -> nn.Module:
    dataset = TensorDataset(*data.train)
    sampler: DistributedSampler[int] = DistributedSampler(dataset, shuffle=True, seed=options.seed)
    loader = DataLoader(dataset, batch_size=options.batch // dist.get_world_size(), sampler=sampler)
    model = DistributedDataParallel(build_model(options.workload))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=options.steps)

    model.train()
    step = epoch = 0
    while step < options.steps:
        sampler.set_epoch(epoch)
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
        epoch += 1
    return model.module


if __name__ == "__main__":
    options = parse_options(features=False)
    dist.init_process_group("gloo")
    data, clock = load_data(options.data), Clock(options.steps)
    model = train(data, options, clock)
    if dist.get_rank() == 0:
        report("DDP loop", options, clock, model, data)
    dist.barrier()
    dist.destroy_process_group()
