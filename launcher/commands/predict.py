"""What a trained model says of other samples, as a table: one row per sample, its class and probabilities, or a number.

    launcher predict run_dir=outputs/2026-01-31/12-00-00 input=new.csv output=predictions.csv
    launcher predict run_dir=outputs/2026-01-31/12-00-00 part=test checkpoint=last

One process, on one device.
"""

import csv
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from launcher.config import composition
from launcher.config.places import check_file
from launcher.config.schema import PREDICT_SCHEMA
from launcher.core.errors import ConfigError, explained_kernels
from launcher.core.files import replacing
from launcher.distributed import process_group
from launcher.distributed.watch import guarded
from launcher.run import saved

TIMEOUT = 600.0  # of collectives, of which one process has none


def main() -> None:
    """The console command: exit status 0, 2 for wrong input, 1 for a failure."""
    sys.exit(guarded(lambda: command(sys.argv[1:])))


def command(argv: list[str]) -> int:
    """Read a command line and predict."""
    composed = composition.compose_tool("predict", argv, PREDICT_SCHEMA)
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
    check_file(output, "output")
    if (settings["input"] is None) == (settings["part"] is None):
        raise ConfigError("input, part: give one of them: input=FILE_OR_FOLDER, or part=test for the run's own data.")
    ranks = process_group.join()
    if ranks.world_size > 1:
        raise ConfigError(f"launcher predict is one process, and {ranks.world_size} were started: call it alone.")
    on_cpu, precision = saved.choose_device(run, settings["device"], ranks)
    chosen = saved.choose_checkpoint(path, settings["checkpoint"])
    record = saved.read_record(path, run)
    if record["task"] == "language":
        raise ConfigError(f"run_dir={path}: predictions of the task {record['task']} have no table.")
    if settings["input"] is not None:
        others = saved.read_others(record, settings["input"])
        data, part, names, labelled = saved.data_of_others(record, others), others.part, others.names, others.labelled
    else:
        data = saved.own_data(run, settings["data"], record)
        part = getattr(data, settings["part"])
        names, labelled = [str(number) for number in range(len(part))], True
    model = saved.load_model(run, record["facts"], chosen.path)

    import torch

    from launcher.batching.stream import in_order
    from launcher.models.mirrored import Mirrored
    from launcher.training.outputs import Outputs
    from launcher.training.tryout import read_outputs

    meaning = read_outputs(model, part, Outputs.of(data, run["loss"]))

    if run["test_time_flip"]:  # as its test part was measured
        model = Mirrored(model)

    accelerator = process_group.start(
        ranks, on_cpu, precision, settings["threads"], TIMEOUT, run["deterministic"], run["strategy"],
        run["float32_matmul_precision"],
    )  # fmt: skip
    model.to(accelerator.device).eval()
    batches = in_order(part, 0, 1, settings["batch_size"], accelerator.device, settings["num_workers"])
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(explained_kernels("use device=cpu"))
        try:
            file = stack.enter_context(replacing(output, newline=""))
        except OSError as error:
            raise ConfigError(f"output={output}: cannot be written: {error.strerror}. Name another file.") from error
        writer, named, head = csv.writer(file), iter(names), False
        for inputs, targets in batches:
            with accelerator.autocast():
                scores = meaning.scores(model(inputs).float().cpu())
            truth = targets.cpu() if labelled else None
            if not head:
                writer.writerow(["sample", *meaning.columns(scores, truth, True)])
                head = True
            for row in meaning.rows(scores, truth):
                writer.writerow([next(named), *row])
    print(f"{len(names)} samples, {chosen}: {output}")
    return 0
