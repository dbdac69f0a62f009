"""What a trained model says of other samples, as a table: one row per sample, its class and probabilities, or a number.

    launcher predict run_dir=outputs/2026-01-31/12-00-00 input=new.csv output=predictions.csv
    launcher predict run_dir=outputs/2026-01-31/12-00-00 part=test checkpoint=last

One process, on one device.
"""

import csv
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from launcher.commands.command import alone, of_settings, open_subject
from launcher.config.places import check_file
from launcher.core.errors import ConfigError, explained_kernels
from launcher.core.files import replacing
from launcher.distributed.process_group import start
from launcher.run import saved


@of_settings("predict")
def command(settings: dict[str, Any]) -> int:
    """Write a model's predictions."""
    path, run = saved.open_run(settings["run_dir"])
    output = Path(settings["output"]).expanduser()
    check_file(output, "output")
    if (settings["input"] is None) == (settings["part"] is None):
        raise ConfigError("input, part: give one of them: input=FILE_OR_FOLDER, or part=test for the run's own data.")
    ranks = alone("predict")
    on_cpu, precision = saved.choose_device(run, settings["device"], ranks)
    subject = open_subject(path, run, settings)
    model = subject.load_model()

    from launcher.batching.stream import in_order
    from launcher.run.trained import outputs_in_batches
    from launcher.tasks.mirrored import Mirrored

    meaning = subject.read_outputs(model)
    if meaning is None or meaning.dense:
        name = run["task"]["_target_"] if meaning is None else meaning.task
        raise ConfigError(f"run_dir={path}: predictions of the task {name} have no table.")
    if run["test_time_flip"]:  # as its test part was measured
        model = Mirrored(model)
    here = {name: settings[name] for name in ("threads", "device")} | {"mixed_precision": precision}
    accelerator = start(ranks, run | here, on_cpu)
    model.to(accelerator.device).eval()
    batches = in_order(subject.split, 0, 1, settings["batch_size"], accelerator.device, settings["num_workers"])
    with ExitStack() as stack:
        stack.enter_context(explained_kernels("use device=cpu"))
        try:
            file = stack.enter_context(replacing(output, newline=""))
        except OSError as error:
            raise ConfigError(f"output={output}: cannot be written: {error.strerror}. Name another file.") from error
        writer, names, head = csv.writer(file), iter(subject.names), False
        for outputs, targets in outputs_in_batches(model, batches, accelerator.autocast):
            scores, truth = meaning.scores(outputs), targets if subject.labelled else None
            if not head:
                writer.writerow(["sample", *meaning.columns(scores, truth, True)])
                head = True
            for row in meaning.rows(scores, truth):
                writer.writerow([next(names), *row])
    print(f"{len(subject.names)} samples, {subject.chosen}: {output}")
    return 0
