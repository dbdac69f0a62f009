"""Accelerate as in its complete examples: all prepared, log_with W&B, tqdm, save_state at each epoch."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm
from workload import (
    LEARNING_RATE,
    LOG_EVERY,
    MOMENTUM,
    Clock,
    Data,
    Options,
    build_model,
    load_data,
    parse_options,
    report,
)


def train(data: Data, options: Options, clock: Clock, accelerator: Accelerator) -> nn.Module:
    if options.features:
        accelerator.init_trackers("benchmark", {"lr": LEARNING_RATE, "batch_size": options.batch, "seed": options.seed})
    batch = options.batch // accelerator.num_processes
    train_dataloader = DataLoader(TensorDataset(*data.train), batch_size=batch, shuffle=True)
    eval_dataloader = DataLoader(TensorDataset(*data.validation), batch_size=500)
    model = build_model(options.workload)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    # A prepared scheduler steps once per process at each update, so its length counts them all.
    lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, T_max=options.steps * accelerator.num_processes
    )
    model, optimizer, train_dataloader, eval_dataloader, lr_scheduler = accelerator.prepare(
        model, optimizer, train_dataloader, eval_dataloader, lr_scheduler
    )

    progress_bar = tqdm(range(options.steps), disable=not (options.features and accelerator.is_local_main_process))
    step = epoch = 0
    while step < options.steps:
        model.train()
        total_loss = torch.zeros(())
        for inputs, targets in train_dataloader:
            outputs = model(inputs)
            loss = nn.functional.cross_entropy(outputs, targets)
            if options.features:
                total_loss += loss.detach().float()
            accelerator.backward(loss)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
            progress_bar.update(1)
            clock.tick()
            step += 1
            if options.features and step % LOG_EVERY == 0:
                accelerator.log({"train_loss": loss.item(), "lr": lr_scheduler.get_last_lr()[0]}, step=step)
            if step == options.steps:
                break
        if options.features:
            model.eval()
            accurate, num_elems = torch.tensor(0), 0
            for inputs, targets in eval_dataloader:
                with torch.no_grad():
                    outputs = model(inputs)
                predictions, references = accelerator.gather_for_metrics((outputs.argmax(dim=-1), targets))
                accurate += (predictions == references).long().sum()
                num_elems += references.shape[0]
            accelerator.log(
                {
                    "accuracy": accurate.item() / num_elems,
                    "epoch_loss": total_loss.item() / len(train_dataloader),
                    "epoch": epoch,
                },
                step=step,
            )
            accelerator.save_state(f"epoch_{epoch}")
        epoch += 1
    accelerator.end_training()
    return accelerator.unwrap_model(model)


if __name__ == "__main__":
    options = parse_options(features=True)
    accelerator = Accelerator(cpu=True, log_with="wandb" if options.features else None)
    torch.set_num_threads(options.threads)  # Accelerator() sets its own
    data, clock = load_data(options.data), Clock(options.steps)
    model = train(data, options, clock, accelerator)
    if accelerator.is_main_process:
        report("Accelerate", options, clock, model, data)
