"""Trainers as train.py builds them, for tests that look at single updates: also in processes that a test starts."""

import os

from launcher.distributed.numerics import choose_workspace
from launcher.distributed.process_group import start as bring_up
from launcher.distributed.ranks import find_ranks
from launcher.losses.loss import build_loss
from launcher.schedulers.schedule import build_schedule
from launcher.tasks.outputs import Outputs
from launcher.tasks.supervised import Supervised
from launcher.tasks.task import Task
from launcher.training.trainer import Learner, Trainer, TrainerSettings

DDP = {"find_unused_parameters": False, "gradient_as_bucket_view": True}
CONSTANT = {"_target_": "torch.optim.lr_scheduler.ConstantLR", "factor": 1, "interval": "step"}


def make_accelerator(device="cpu", precision="no", strategy=DDP):
    """The ranks of this process and their accelerator, with one thread."""
    ranks = find_ranks(os.environ)
    choose_workspace(os.environ, True, device == "cpu")
    settings = {
        "device": device, "mixed_precision": precision, "threads": 1, "timeout": 60, "deterministic": True,
        "strategy": strategy, "float32_matmul_precision": "highest",
    }  # fmt: skip
    return ranks, bring_up(ranks, settings, device == "cpu")


def supervised(data, loss):
    """The task of a data source, by a loss that settings describe."""
    return Supervised(build_loss(loss, data), Outputs.of(data, loss))


def make_trainer(
    model, loss, optimizer, schedule=CONSTANT, *, steps=100, epoch=10, devices=None, kind=Trainer, rollbacks=None,
    **settings,
):  # fmt: skip
    """A trainer of any kind.

    Args:
        model: On the device.
        loss: Per-sample losses, there too; or a task.
        optimizer: Over the model's parameters.
        schedule: Settings of its learning rate.
        steps: Of the run.
        epoch: Steps of one.
        devices: What `make_accelerator` gave; None: CPUs.
        kind: Trainer, or what makes one of the same arguments.
        rollbacks: What was left out.
        **settings: Those of TrainerSettings.
    """
    ranks, accelerator = devices or make_accelerator()
    task = loss if isinstance(loss, Task) else Supervised(loss, Outputs("classification", 0))
    learner = Learner(model, task, optimizer, build_schedule(schedule, optimizer, steps, epoch))
    return kind(learner, TrainerSettings(**settings), accelerator, ranks, rollbacks)
