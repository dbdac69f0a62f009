"""A checkpoint of a finished run, measured on any part of its data, or on other samples.

python launcher/evaluate.py run_dir=outputs/2026-01-31/12-00-00
torchrun --nproc_per_node 2 launcher/evaluate.py run_dir=... part=validation checkpoint=best
python launcher/evaluate.py run_dir=... input=other.csv
"""

import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:  # started as a file; launcher/__init__.py then puts the path in order
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from launcher import config, distributed, provenance, saved
from launcher.errors import ConfigError
from launcher.watch import Watch, finish, guarded


def main() -> None:
    """The console command: prints the figures, and writes them beside the run as evaluation_PART.json."""
    sys.exit(guarded(lambda: command(sys.argv[1:])))


def command(argv: list[str]) -> int:
    """Read a command line and evaluate."""
    composed = config.compose_tool("evaluate", argv, config.EVALUATE_SCHEMA)
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
    ranks = distributed.join()
    on_cpu, precision = saved.choose_device(run, settings["device"], ranks)
    chosen = saved.choose_checkpoint(path, settings["checkpoint"])

    from launcher import engine, losses
    from launcher.models.mirrored import Mirrored, check_mirror
    from launcher.run_directory import write_json
    from launcher.stream import seed_generators

    seed_generators(run["seed"])
    record, part = provenance.read_data(path), settings["part"]
    if settings["input"] is None:
        data = saved.own_data(run, settings["data"], record)
    else:
        others = saved.read_others(record, settings["input"])
        if not others.labelled:
            raise ConfigError(
                f"input={settings['input']}: has no true targets to measure by; launcher/predict.py needs none."
            )
        data, part = saved.data_of_others(record, others), "test"
    model = saved.load_model(run, record["facts"], chosen)
    loss = losses.build_loss(run["loss"], data)
    flip = settings["test_time_flip"]
    if run.get("test_time_flip", False) if flip is None else flip:
        check_mirror(data)
        model = Mirrored(model)
    accelerator = distributed.start(
        ranks,
        on_cpu,
        precision,
        settings["threads"],
        settings["timeout"],
        True,
        run["strategy"],
        run["float32_matmul_precision"],
    )
    watch = Watch(ranks, settings["timeout"]) if ranks.world_size > 1 else None
    model.to(accelerator.device)
    loss.to(accelerator.device)
    found = engine.evaluate(
        model, loss, getattr(data, part), data, accelerator, ranks, settings["batch_size"],
        settings["num_workers"], [*run["metrics"], *(m for m in settings["metrics"] if m not in run["metrics"])],
    )  # fmt: skip
    assert found is not None
    if ranks.rank == 0:
        name, what = settings["part"], f"{settings['part']} part"
        if settings["input"] is not None:
            name, what = "input", str(settings["input"])
        content = found.as_dict(name, data.class_names) | {"checkpoint": chosen.name}
        content |= {"input": settings["input"]} if settings["input"] is not None else {}
        print(f"{what}, {found.samples} samples, {chosen.name}")
        for figure, value in found.figures.items():
            print(f"  {figure:<16} {value:.4g}")
        try:
            write_json(path / f"evaluation_{name}.json", content)
        except OSError as error:
            raise ConfigError(
                f"run_dir={path}: evaluation_{name}.json cannot be written ({error.strerror})."
            ) from error
    finish(watch)
    return 0


if __name__ == "__main__":
    main()
