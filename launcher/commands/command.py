"""What the commands have in common that take a run as it lies on the disk: evaluate, predict and export."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from launcher.config import composition
from launcher.core.errors import ConfigError
from launcher.distributed.ranks import Ranks, join
from launcher.run import saved

if TYPE_CHECKING:
    from torch import nn

    from launcher.batching.splits import Split
    from launcher.data.source import Data
    from launcher.tasks.outputs import Outputs
    from launcher.tasks.task import Task

Use = Callable[[dict[str, Any]], int]


def of_settings(name: str) -> Callable[[Use], Callable[[list[str]], int]]:
    """Make a command of what takes the settings of conf/NAME.yaml; a broken file among the samples is wrong input."""

    def decorate(use: Use) -> Callable[[list[str]], int]:
        def command(argv: list[str]) -> int:
            composed = composition.compose_tool(name, argv)
            with saved.reading():
                return 0 if composed is None else use(composed.plain())

        return command

    return decorate


def alone(name: str) -> Ranks:
    """This process; a ConfigError where there are others beside it."""
    ranks = join()
    if ranks.world_size > 1:
        raise ConfigError(f"launcher {name} is one process, and {ranks.world_size} were started: call it alone.")
    return ranks


class Subject(NamedTuple):
    """What a command looks at: a checkpoint of a run, and samples."""

    run: dict[str, Any]  # settings of the run
    chosen: saved.Chosen
    record: dict[str, Any]  # data.json of the run
    data: "Data"  # the source of the samples, as the run learned from it or prepared like that
    split: "Split"  # the samples
    part: str  # which they are: train, validation or test; or input
    names: list[str] | range  # one for each sample
    labelled: bool  # whether their true targets are known

    def load_model(self) -> "nn.Module":
        """The model with the weights of the checkpoint; see saved.load_model."""
        return saved.load_model(self.run, self.record["facts"], self.chosen.path)

    def build_task(self, model: "nn.Module") -> "Task":
        """The task of the run, as the outputs of the model for the samples fit it."""
        from launcher.tasks.build import build_task
        from launcher.tasks.supervised import Supervised
        from launcher.training import tryout

        _, task = build_task(self.run.get("task"), self.data, self.run["loss"])
        if isinstance(task, Supervised):
            task.outputs = tryout.read_outputs(model, self.split, task.outputs)
        return task

    def read_outputs(self, model: "nn.Module") -> "Outputs | None":
        """What the outputs of the model mean, from a try on the samples; None where the task does not say it."""
        from launcher.tasks.build import is_supervised
        from launcher.tasks.outputs import Outputs
        from launcher.training import tryout

        if not is_supervised(self.run.get("task")):
            return None
        return tryout.read_outputs(model, self.split, Outputs.of(self.data, self.run["loss"]))


def open_subject(path: Path, run: dict[str, Any], settings: Mapping[str, Any]) -> Subject:
    """What the settings `checkpoint`, `data`, `part` and `input` of a command name.

    Raises:
        ConfigError: Something of it is not there, or does not fit the run.
    """
    chosen = saved.choose_checkpoint(path, settings["checkpoint"])
    record = saved.read_record(path, run)
    if settings["input"] is not None:
        others = saved.read_others(record, settings["input"])
        data = saved.data_of_others(record, others)
        return Subject(run, chosen, record, data, others.split, "input", others.names, others.labelled)
    data = saved.own_data(run, settings["data"], record)
    split = getattr(data, settings["part"])
    return Subject(run, chosen, record, data, split, settings["part"], range(len(split)), True)
