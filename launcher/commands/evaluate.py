"""A checkpoint of a finished run, measured on any part of its data, or on other samples.

launcher evaluate run_dir=outputs/2026-01-31/12-00-00
torchrun --nproc_per_node 2 -m launcher evaluate run_dir=... part=validation checkpoint=last
launcher evaluate run_dir=... input=other.csv
"""

import sys
from pathlib import Path
from typing import Any

from launcher.config import composition
from launcher.config.places import check_file
from launcher.config.schema import EVALUATE_SCHEMA
from launcher.core.errors import ConfigError, explained_kernels
from launcher.distributed import process_group
from launcher.distributed.watch import Watch, finish, guarded
from launcher.run import saved


def main() -> None:
    """The console command: prints the figures, and writes them beside the run as evaluation_PART.json."""
    sys.exit(guarded(lambda: command(sys.argv[1:])))


def command(argv: list[str]) -> int:
    """Read a command line and evaluate."""
    composed = composition.compose_tool("evaluate", argv, EVALUATE_SCHEMA)
    with saved.reading():
        return 0 if composed is None else evaluate(composed.plain())


def evaluate(settings: dict[str, Any]) -> int:
    """Measure a checkpoint.

    Args:
        settings: Those of conf/evaluate.yaml.

    Returns:
        Exit status.
    """
    path, run = saved.open_run(settings["run_dir"])
    output = None if settings["output"] is None else Path(settings["output"]).expanduser()
    if output is not None:
        check_file(output, "output")
    ranks = process_group.join()
    on_cpu, precision = saved.choose_device(run, settings["device"], ranks)
    process_group.compare_devices(settings["device"], ranks, on_cpu, settings["timeout"])
    chosen = saved.choose_checkpoint(path, settings["checkpoint"])

    from launcher.batching.stream import seed_generators
    from launcher.core.files import write_json
    from launcher.losses.loss import build_loss
    from launcher.models.mirrored import Mirrored, check_mirror
    from launcher.training import engine, tryout
    from launcher.training.outputs import Outputs

    seed_generators(run["seed"])
    record, part = saved.read_record(path, run), settings["part"]
    if settings["input"] is None:
        data = saved.own_data(run, settings["data"], record)
    else:
        others = saved.read_others(record, settings["input"])
        if not others.labelled:
            raise ConfigError(
                f"input={settings['input']}: has no true targets to measure by; `launcher predict` needs none."
            )
        data, part = saved.data_of_others(record, others), "test"
    model = saved.load_model(run, record["facts"], chosen.path)
    loss = build_loss(run["loss"], data)
    meaning = tryout.read_outputs(model, getattr(data, part), Outputs.of(data, run["loss"]))
    flip = settings["test_time_flip"]
    if run["test_time_flip"] if flip is None else flip:
        check_mirror(data)
        model = Mirrored(model)
    accelerator = process_group.start(
        ranks,
        on_cpu,
        precision,
        settings["threads"],
        settings["timeout"],
        run["deterministic"],
        run["strategy"],
        run["float32_matmul_precision"],
        settings["device"] == "shared",
    )
    watch = Watch(ranks, settings["timeout"]) if ranks.world_size > 1 else None
    model.to(accelerator.device)
    loss.to(accelerator.device)
    with explained_kernels("use device=cpu"):
        found = engine.evaluate(
            model, loss, getattr(data, part), meaning, accelerator, ranks, settings["batch_size"],
            settings["num_workers"], [*run["metrics"], *(m for m in settings["metrics"] if m not in run["metrics"])],
        )  # fmt: skip
    assert found is not None
    if ranks.rank == 0:
        name, what = settings["part"], f"{settings['part']} part"
        if settings["input"] is not None:
            name, what = "input", str(settings["input"])
        content = found.as_dict(name, data.class_names) | chosen.record()
        content |= {"input": settings["input"]} if settings["input"] is not None else {}
        print(f"{what}, {found.samples} samples, {chosen}")
        for figure, value in found.figures.items():
            print(f"  {figure:<16} {value:.4g}")
        file = path / f"evaluation_{name}.json" if output is None else output
        try:
            write_json(file, content)
        except OSError as error:
            if output is not None:
                raise ConfigError(
                    f"output={output}: cannot be written: {error.strerror}. Name another file."
                ) from error
            print(f"not written: {file} ({error.strerror}). Name another file by output=FILE.")
    finish(watch)
    return 0
