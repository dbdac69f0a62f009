"""A run as it lies on the disk, taken up for other ends than training: to be measured, used, exported or repeated."""

import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from launcher.config import trust
from launcher.config.checks import filled
from launcher.config.components import KEPT
from launcher.config.schema import FOUNDING
from launcher.config.tree import UNSTATED, at, get
from launcher.core.errors import BrokenFile, ConfigError
from launcher.core.files import number
from launcher.distributed import devices
from launcher.distributed.ranks import Ranks
from launcher.run import provenance
from launcher.run.config_file import CONFIG, read_config

if TYPE_CHECKING:
    from torch import Tensor, nn

    from launcher.data.source import Data, Others

log = logging.getLogger("launcher")


def open_run(run_dir: str) -> tuple[Path, dict[str, Any]]:
    """A run directory and the settings that the run was made with.

    Raises:
        ConfigError: No run is there, or its settings cannot be read.
    """
    path = Path(run_dir).expanduser()
    if not (path / CONFIG).is_file():
        why = f"it has no {CONFIG}" if path.is_dir() else "there is no such directory"
        raise ConfigError(f"run_dir={run_dir}: no run is there ({why}). Name a directory that launcher/train.py made.")
    settings = filled(read_config(path, "run_dir"))
    if absent := [key for key in FOUNDING if get(settings, key) is UNSTATED]:
        raise ConfigError(f"run_dir={run_dir}: {CONFIG} has no {absent[0]}, which every run has; the run wrote it.")
    trust.check_names(settings, path)
    return path, at(settings, path.resolve())


def read_record(path: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """What a run wrote of its data (see `provenance.record_of`).

    Raises:
        ConfigError: That or the run's settings name what no run is made of, or it cannot be read.
    """
    record = provenance.read_data(path)
    trust.check_targets({**run, "reader": record.get("reader")}, path)
    return record


def choose_device(run: Mapping[str, Any], device: str, ranks: Ranks) -> tuple[bool, str]:
    """Whether to measure a run on the CPU, and in which precision: its own, but for fp16, which no CPU has.

    Raises:
        ConfigError: More processes than GPUs.
    """
    precision = run["mixed_precision"]
    on_cpu = devices.choose_device({**run, "device": device, "mixed_precision": "no"}, ranks)
    if on_cpu and precision == "fp16":
        log.warning("mixed_precision=fp16 of the run: a CPU has none, this is in float32.")
        precision = "no"
    return on_cpu, precision


class Chosen(NamedTuple):
    """A checkpoint that a command takes."""

    path: Path
    which: str  # `best`, `last`, `best and last`, or nothing where it is neither

    def __str__(self) -> str:
        return f"{self.path.name} ({self.which})" if self.which else self.path.name

    def record(self) -> dict[str, Any]:
        """What a file says of it."""
        return {"checkpoint": self.path.name, "step": int(self.path.name.rpartition("_")[2]), "which": self.which}


def choose_checkpoint(path: Path, wanted: str | int) -> Chosen:
    """The checkpoint that `auto` (the best where one is kept, else the last), `best`, `last` or a step names, verified.

    Raises:
        ConfigError: There is no such checkpoint, or its files are not what was written.
    """
    from launcher.training import checkpoint

    saved = checkpoint.checkpoints(path / "checkpoints")
    if not saved:
        raise ConfigError(f"run_dir={path}: no checkpoint is there.")
    steps = [checkpoint.step_of(one) for one in saved]
    if isinstance(wanted, int) and wanted not in steps:
        raise ConfigError(f"checkpoint={wanted}: no such checkpoint. There are: last, {', '.join(map(str, steps))}.")
    try:
        last = checkpoint.newest_good(path / "checkpoints")
        assert last is not None
        found = last
        if wanted in ("auto", "best"):
            best = checkpoint.best_of(last)
            if best is None and wanted == "best":
                raise ConfigError("checkpoint=best: this run has measured none as its best; use checkpoint=last.")
            found = best or last
        elif isinstance(wanted, int):
            found = saved[steps.index(wanted)]
            checkpoint.verify(found)
        best_step = checkpoint.best_step(last)
    except checkpoint.DamagedCheckpoint as error:
        raise ConfigError(f"checkpoint={wanted}: {error}.") from error
    words = {"best": checkpoint.step_of(found) == best_step, "last": found == saved[-1]}
    return Chosen(found, " and ".join(word for word, true in words.items() if true))


def load_model(run: Mapping[str, Any], facts: Mapping[str, Any], chosen: Path) -> "nn.Module":
    """The model of a run with the weights of a checkpoint: the moving average where the run kept one.

    Where the checkpoint holds an adapter alone, the weights beside it are read again where the run began with them.

    Args:
        run: Its settings.
        facts: What the run's data told the model.
        chosen: The checkpoint.

    Raises:
        ConfigError: They do not fit the model as its code is now, or the weights beside them are not what they were.
    """
    from functools import partial

    from safetensors.torch import load_file

    from launcher.models.adapters import adapt
    from launcher.models.build import build_model
    from launcher.training import checkpoint, finetune, frozen_base

    alone = frozen_base.leaves_out(run.get("adapter"))
    run = _from_where_it_began(run, chosen.parent.parent) if alone else run
    sources = finetune.sources_of(run) if alone else {}
    given = {key: tuple(fact) if isinstance(fact, list) else fact for key, fact in facts.items()}
    given = {key: fact for key, fact in given.items() if key != KEPT or not alone}  # as when the run began
    model = build_model(run["model"], given, begins=alone)
    put = partial(adapt, settings=run.get("adapter"), facts=given)
    finetune.begin(model, sources, int(facts["num_outputs"]), run["freeze"] if alone else [], put)
    base = frozen_base.find_base(model, run, with_digest=True)
    if alone:
        base.check(checkpoint.read_state(chosen).get("base"), chosen)
    try:
        model.load_state_dict(load_file(chosen / "model.safetensors"), strict=not alone)
    except RuntimeError as error:
        what = " ".join(str(error).split()[:40])
        raise ConfigError(
            f"model: its code has changed since {chosen.name} was saved, whose weights no longer fit it ({what})."
        ) from error
    return model


def _from_where_it_began(run: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The settings of a run, with files of weights that are not here looked for from where the run was started."""
    begun = Path(provenance.read(path)["directory"]) if (path / provenance.FILE).is_file() else Path()

    def found(name: Any) -> Any:
        there = isinstance(name, str) and not Path(name).exists() and (begun / name).exists()
        return str(begun / name) if there else name

    model = {key: found(value) if key in ("name", "checkpoint") else value for key, value in run["model"].items()}
    return {**run, "init_from": found(run["init_from"]), "model": model}


def read_others(record: Mapping[str, Any], path: Any) -> "Others":
    """Samples from where `input` names, read and prepared as those that a run learned from, by its data.json.

    Raises:
        ConfigError: The run's data source reads nothing else, or there is nothing fit to read.
    """
    from launcher.config.components import build

    if record["reader"] is None:
        raise ConfigError(
            f"input={path}: data={record['name']} reads nothing but its own parts; use part=test, validation or train."
        )
    others: Others = build("reader", record["reader"], path, record=record)
    return others


@contextmanager
def reading() -> Iterator[None]:
    """Read samples one by one; a broken file among them is a ConfigError."""
    try:
        yield
    except BrokenFile as error:
        raise ConfigError(error.in_short()) from error


def own_data(run: Mapping[str, Any], changes: Mapping[str, Any], record: Mapping[str, Any]) -> "Data":
    """The data of a run, read again: prepared as it was, or refused.

    Args:
        run: Settings of the run.
        changes: Other settings for the data source, such as another root.
        record: data.json of the run.

    Raises:
        ConfigError: What is read now is prepared by other numbers, or has other classes.
    """
    from launcher.data.source import build_data
    from launcher.losses.loss import fit_task

    leaves_out = run["divergence"]["action"] == "rollback"
    limit = (run["limit_batches"] or 0) * run["batch"]["global_size"]
    data = fit_task(build_data({**run["data"], **changes}, leaves_out, limit), run["loss"])
    now = provenance.record_of(data)
    for key in ("task", "input_shape", "num_outputs", "class_names", "input_mean", "input_std", "prepare", "reader"):
        earlier = key == "reader" and record[key] is None  # of a run that could not read others yet
        if not earlier and not _same(provenance.placeless(record[key]), provenance.placeless(now[key])):
            raise ConfigError(
                f"data: this is not what the run learned from: its {key.replace('_', ' ')} would be another "
                f"({provenance.short(record[key])} then, {provenance.short(now[key])} now). To take other samples as "
                "the run prepares them, use input=FILE_OR_FOLDER."
            )
    if os.environ.get("RANK", "0") == "0":
        for line in provenance.data_differences(record, now):
            log.warning("changed    %s; samples that the run learned from may be in any part now", line)
    return data


def _same(then: Any, now: Any) -> bool:
    """Whether a value is what it was: numbers but for rounding, settings but for those that there were not yet."""
    if isinstance(then, dict) and isinstance(now, dict):
        return all(key in now and _same(value, now[key]) for key, value in then.items())
    if isinstance(then, list) and isinstance(now, list):
        return len(then) == len(now) and all(map(_same, then, now))
    if isinstance(then, float) and isinstance(now, float):
        return math.isclose(then, now, rel_tol=1e-9)
    return bool(then == now)


def data_of_others(record: Mapping[str, Any], others: "Others") -> "Data":
    """Labelled samples from elsewhere as a data source whose test split they are; for a loss it is the run's own."""
    import torch

    from launcher.batching.splits import DatasetSplit
    from launcher.data.source import Data

    # Balanced weights of a loss are those of training: the labels of its training part, and no samples.
    counts = record["class_counts"]
    labels = None if counts is None else torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    train = DatasetSplit([], labels)
    return Data(
        name=record["name"],
        task=record["task"],
        input_shape=tuple(record["input_shape"]),
        num_outputs=record["num_outputs"],
        train=train,
        validation=train,
        test=others.split,
        class_names=record["class_names"],
        target_mean=_tensor(record["target_mean"]),
        target_std=_tensor(record["target_std"]),
    )


def _tensor(numbers: list[float] | None) -> "Tensor | None":
    import torch

    return None if numbers is None else torch.tensor([number(one) for one in numbers], dtype=torch.float64)
