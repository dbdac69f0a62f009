"""Lightning as its documentation and the Lightning-Hydra-Template have it."""

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import WandbLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy
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


class Classifier(L.LightningModule):
    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options
        self.net = build_model(options.workload)
        self.criterion = nn.CrossEntropyLoss()
        if options.features:
            self.train_acc = MulticlassAccuracy(10, average="micro")
            self.val_acc = MulticlassAccuracy(10, average="micro")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        x, y = batch
        logits = self(x)
        loss = self.criterion(logits, y)
        if self.options.features:
            self.train_acc(logits, y)
            self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True)
            self.log("train/acc", self.train_acc, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        x, y = batch
        logits = self(x)
        self.val_acc(logits, y)
        self.log("val/loss", self.criterion(logits, y), on_step=False, on_epoch=True, prog_bar=True)
        self.log("val/acc", self.val_acc, on_step=False, on_epoch=True, prog_bar=True)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.SGD(self.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.options.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Ticks(Callback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, *args: object) -> None:
        self.clock.tick()


def train(data: Data, options: Options, clock: Clock) -> tuple[L.Trainer, Classifier]:
    callbacks: list[Callback] = [Ticks(clock)]
    if options.features:
        callbacks += [ModelCheckpoint(monitor="val/acc", mode="max", save_last=True), RichProgressBar()]
    trainer = L.Trainer(
        accelerator="cpu",
        devices=options.processes,
        strategy="ddp" if options.processes > 1 else "auto",
        max_epochs=-1,
        max_steps=options.steps,
        log_every_n_steps=LOG_EVERY,
        logger=WandbLogger(project="benchmark", offline=True) if options.features else False,
        callbacks=callbacks,
        enable_progress_bar=options.features,
        enable_checkpointing=options.features,
        enable_model_summary=options.features,
    )
    batch = options.batch // options.processes
    loaders = [DataLoader(TensorDataset(*data.train), batch_size=batch, shuffle=True)]
    if options.features:
        loaders.append(DataLoader(TensorDataset(*data.validation), batch_size=500))
    model = Classifier(options)
    trainer.fit(model, *loaders)
    return trainer, model


if __name__ == "__main__":
    options = parse_options(features=True)
    L.seed_everything(options.seed, verbose=False)
    data, clock = load_data(options.data), Clock(options.steps)
    trainer, model = train(data, options, clock)
    if trainer.is_global_zero:
        report("Lightning", options, clock, model.net, data)
