"""A checkpoint of a finished run, measured on any part of its data, or on other samples.

launcher evaluate run_dir=outputs/2026-01-31/12-00-00
torchrun --nproc_per_node 2 -m launcher evaluate run_dir=... part=validation checkpoint=last
launcher evaluate run_dir=... input=other.csv
"""

from pathlib import Path
from typing import Any

from launcher.commands.command import Subject, of_settings, open_subject
from launcher.config.places import check_file
from launcher.core.errors import ConfigError, explained_kernels
from launcher.core.files import write_json
from launcher.distributed.devices import compare_devices
from launcher.distributed.process_group import start
from launcher.distributed.ranks import join
from launcher.distributed.watchdog import Watchdog, finish
from launcher.run import saved


@of_settings("evaluate")
def command(settings: dict[str, Any]) -> int:
    """Measure a checkpoint: print the figures, and write them beside the run as evaluation_PART.json."""
    path, run = saved.open_run(settings["run_dir"])
    output = None if settings["output"] is None else Path(settings["output"]).expanduser()
    if output is not None:
        check_file(output, "output")
    ranks = join()
    on_cpu, precision = saved.choose_device(run, settings["device"], ranks)
    compare_devices(settings["device"], ranks, on_cpu, settings["timeout"])

    from launcher.batching.generators import seed_generators
    from launcher.tasks.mirrored import Mirrored, check_mirror
    from launcher.training.evaluation import EvaluationSettings, Evaluator

    seed_generators(run["seed"])
    subject = open_subject(path, run, settings)
    if not subject.labelled:
        raise ConfigError(
            f"input={settings['input']}: has no true targets to measure by; `launcher predict` needs none."
        )
    model = subject.load_model()
    task = subject.build_task(model)
    flip = settings["test_time_flip"]
    if run["test_time_flip"] if flip is None else flip:
        check_mirror(subject.data, task)
        model = Mirrored(model)
    here = {name: settings[name] for name in ("threads", "timeout", "device")} | {"mixed_precision": precision}
    accelerator = start(ranks, run | here, on_cpu)
    watchdog = Watchdog(ranks, settings["timeout"]) if ranks.world_size > 1 else None
    model.to(accelerator.device)
    task.to(accelerator.device)
    with explained_kernels("use device=cpu"):
        metrics = [*run["metrics"], *(m for m in settings["metrics"] if m not in run["metrics"])]
        how = EvaluationSettings(settings["batch_size"], settings["num_workers"], metrics)
        found = Evaluator(task, accelerator, ranks, how).evaluate(model, subject.split)
    assert found is not None
    if ranks.rank == 0:
        _tell(found, subject, settings["input"], path, output)
    finish(watchdog)
    return 0


def _tell(found: Any, subject: Subject, others: str | None, path: Path, output: Path | None) -> None:
    """Print what was measured, and write it."""
    print(f"{f'{subject.part} part' if others is None else others}, {found.samples} samples, {subject.chosen}")
    for name, value in found.metrics.items():
        print(f"  {name:<16} {value:.4g}")
    content = found.as_dict(subject.part, subject.data.class_names) | subject.chosen.record()
    content |= {} if others is None else {"input": others}
    file = path / f"evaluation_{subject.part}.json" if output is None else output
    try:
        write_json(file, content)
    except OSError as error:
        if output is not None:
            raise ConfigError(f"output={output}: cannot be written: {error.strerror}. Name another file.") from error
        print(f"not written: {file} ({error.strerror}). Name another file by output=FILE.")
