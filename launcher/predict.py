"""What a trained model says of other samples, as a table: one row per sample, its class and probabilities, or a number.

    python launcher/predict.py run_dir=outputs/2026-01-31/12-00-00 input=new.csv output=predictions.csv
    python launcher/predict.py run_dir=outputs/2026-01-31/12-00-00 part=test checkpoint=best

One process, on one device.
"""

import csv
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__" and not __package__:  # started as a file; launcher/__init__.py then puts the path in order
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from launcher import config, distributed, provenance, saved
from launcher.errors import ConfigError
from launcher.watch import guarded

if TYPE_CHECKING:
    from torch import Tensor

TIMEOUT = 600.0  # of collectives, of which one process has none


def main() -> None:
    """The console command: exit status 0, 2 for wrong input, 1 for a failure."""
    sys.exit(guarded(lambda: command(sys.argv[1:])))


def command(argv: list[str]) -> int:
    """Read a command line and predict."""
    composed = config.compose_tool("predict", argv, config.PREDICT_SCHEMA)
    with saved.reading():
        return 0 if composed is None else predict(composed.plain())


def predict(settings: dict[str, Any]) -> int:
    """Write a model's predictions.

    Args:
        settings: Those of conf/predict.yaml.

    Returns:
        Exit status.
    """
    path, run = saved.open_run(settings["run_dir"])
    output = Path(settings["output"]).expanduser()
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise ConfigError(f"output={output}: name a file in a directory that is there, such as predictions.csv.")
    if (settings["input"] is None) == (settings["part"] is None):
        raise ConfigError("input, part: give one of them: input=FILE_OR_FOLDER, or part=test for the run's own data.")
    ranks = distributed.join()
    if ranks.world_size > 1:
        raise ConfigError(f"launcher/predict.py is one process, and {ranks.world_size} were started: use python alone.")
    on_cpu, precision = saved.choose_device(run, settings["device"], ranks)
    chosen = saved.choose_checkpoint(path, settings["checkpoint"])
    record = provenance.read_data(path)
    if record["task"] not in ("classification", "regression"):
        raise ConfigError(f"run_dir={path}: predictions of the task {record['task']} have no table.")
    if settings["input"] is not None:
        others = saved.read_others(record, settings["input"])
        part, names, labelled = others.part, others.names, others.labelled
    else:
        part = getattr(saved.own_data(run, settings["data"], record), settings["part"])
        names, labelled = [str(number) for number in range(len(part))], True
    model = saved.load_model(run, record["facts"], chosen)

    import torch

    from launcher.models.mirrored import Mirrored
    from launcher.stream import in_order

    if run.get("test_time_flip", False):  # as its test part was measured
        model = Mirrored(model)

    accelerator = distributed.start(
        ranks, on_cpu, precision, settings["threads"], TIMEOUT, True, run["strategy"],
        run["float32_matmul_precision"],
    )  # fmt: skip
    model.to(accelerator.device).eval()
    head, rows_of = _table(record, run, labelled)
    fresh = output.with_name(f".{output.name}.new")
    try:
        fresh.touch()
    except OSError as error:
        raise ConfigError(f"output={output}: cannot be written: {error.strerror}. Name another file.") from error
    batches = in_order(part, 0, 1, settings["batch_size"], accelerator.device, settings["num_workers"])
    try:
        with fresh.open("w", newline="", encoding="utf-8") as file, torch.no_grad():
            writer = csv.writer(file)
            writer.writerow(["sample", *head])
            named = iter(names)
            for inputs, targets in batches:
                with accelerator.autocast():
                    outputs = model(inputs)
                for row in rows_of(outputs.float().cpu(), targets.cpu()):
                    writer.writerow([next(named), *row])
        os.replace(fresh, output)
    finally:
        fresh.unlink(missing_ok=True)  # where a sample could not be read
    print(f"{len(names)} samples, {chosen.name}: {output}")
    return 0


def _table(
    record: dict[str, Any], run: dict[str, Any], labelled: bool
) -> "tuple[list[str], Callable[[Tensor, Tensor], Iterator[list[Any]]]]":
    """The names of the columns after the first, and what makes rows of outputs [n, k] and targets."""
    import torch

    from launcher.losses import probabilities

    if record["task"] == "classification":
        names = record["class_names"] or [str(number) for number in range(record["num_outputs"])]

        def classes(outputs: "Tensor", targets: "Tensor") -> Iterator[list[Any]]:
            shares = probabilities(run["loss"], outputs)
            found = outputs.argmax(1).tolist()  # as the accuracy counts: rounding may make two shares equal
            for guess, target, row in zip(found, targets.tolist(), shares.tolist(), strict=True):
                yield [names[guess], *([names[target]] if labelled else []), *(f"{share:.9g}" for share in row)]

        return ["predicted", *(["target"] if labelled else []), *(f"p_{name}" for name in names)], classes

    mean, std = saved.tensor(record["target_mean"]), saved.tensor(record["target_std"])

    def numbers(outputs: "Tensor", targets: "Tensor") -> Iterator[list[Any]]:
        columns = [outputs.double().reshape(len(outputs), -1)]
        if labelled:
            columns.append(targets.double().reshape(len(targets), -1))
        if mean is not None and std is not None:
            columns = [column * std + mean for column in columns]
        for row in torch.cat(columns, 1).tolist():
            yield [f"{number:.9g}" for number in row]

    count = record["num_outputs"]
    each = ["predicted", *(["target"] if labelled else [])]
    return [f"{name}_{i}" if count > 1 else name for name in each for i in range(count)], numbers


if __name__ == "__main__":
    main()
