"""Building the task that the settings name, for the data and the loss."""

from collections.abc import Mapping
from typing import Any

from launcher.config.components import build, locate, named
from launcher.core.errors import ConfigError
from launcher.data.source import Data
from launcher.losses.loss import build_loss, fit_task, is_of_task, set_arguments
from launcher.tasks.outputs import TASKS, Outputs
from launcher.tasks.supervised import Supervised
from launcher.tasks.task import Task, check_task


def of_data(loss: Any, outputs: Outputs) -> Supervised:
    """The task that the data source names, by a loss of outputs and targets."""
    return Supervised(loss, outputs)


AUTO = f"{of_data.__module__}.{of_data.__name__}"


def is_supervised(settings: Mapping[str, Any] | None) -> bool:
    """Whether the task that settings describe is learned by the loss of conf/loss, from outputs and targets."""
    return not settings or "loss" in named(locate(str(settings.get("_target_")), "task"))


def build_task(settings: Mapping[str, Any] | None, data: Data, loss: Mapping[str, Any]) -> tuple[Data, Task]:
    """Build the task that conf/task describes; of a run from before there were tasks, that of its data.

    A constructor may ask by name for the facts that a model may ask for, for `loss`, the loss as values and weights per
    sample, for `outputs`, the meaning of a model's outputs, and for `data`.

    Returns:
        The data as their task understands them, and the task.

    Raises:
        ConfigError: Task, loss and data do not fit together.
    """
    settings = settings or {"_target_": AUTO}
    target = str(settings.get("_target_"))
    facts: dict[str, Any] = {}
    if is_supervised(settings):
        if data.task not in TASKS:
            raise ConfigError(
                f"data={data.name}: its task, {data.task!r}, is none of {', '.join(TASKS)}. Let the data source name "
                "one of them, or name a class of your own: task._target_=my.module.Task."
            )
        data = fit_task(data, loss)
        facts = {"loss": build_loss(loss, data), "outputs": Outputs.of(data, loss)}
    elif not is_of_task(loss):
        raise ConfigError(f"loss: the task {target} has a loss of its own. Leave the group loss out.")
    elif given := set_arguments(loss):
        name, value = next(iter(given.items()))
        raise ConfigError(f"loss.{name} is {value!r}: the task {target} has a loss of its own. Leave loss.{name} out.")
    task = build("task", settings, **data.facts(), data=data, **facts)
    check_task(task, target)
    data.model_facts = dict(task.model_facts)
    return data, task
