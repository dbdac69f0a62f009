"""The Hugging Face Trainer with a model of one's own, as its documentation has it."""

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments
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


class Images(Dataset):
    def __init__(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"inputs": self.inputs[index], "labels": self.targets[index]}


class Classifier(nn.Module):
    def __init__(self, workload: str) -> None:
        super().__init__()
        self.net = build_model(workload)

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.net(inputs)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Ticks(TrainerCallback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        self.clock.tick()


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


def train(data: Data, options: Options, clock: Clock) -> tuple[Trainer, Classifier]:
    arguments = TrainingArguments(
        output_dir="trainer",
        use_cpu=True,
        max_steps=options.steps,
        per_device_train_batch_size=options.batch // options.processes,
        per_device_eval_batch_size=500,
        learning_rate=LEARNING_RATE,
        max_grad_norm=0,  # clips at 1 unless told otherwise, which nobody else here does
        seed=options.seed,
        ddp_backend="gloo" if options.processes > 1 else None,
        logging_strategy="steps" if options.features else "no",
        logging_steps=LOG_EVERY,
        eval_strategy="epoch" if options.features else "no",
        save_strategy="epoch" if options.features else "no",
        report_to=["wandb"] if options.features else [],
        disable_tqdm=not options.features,
    )
    model = Classifier(options.workload)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=options.steps)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Images(*data.train),
        eval_dataset=Images(*data.validation) if options.features else None,
        compute_metrics=compute_metrics if options.features else None,
        optimizers=(optimizer, scheduler),
        callbacks=[Ticks(clock)],
    )
    trainer.train()
    return trainer, model


if __name__ == "__main__":
    options = parse_options(features=True)
    data, clock = load_data(options.data), Clock(options.steps)
    trainer, model = train(data, options, clock)
    if trainer.is_world_process_zero():
        report("HF Trainer", options, clock, model.net, data)
