"""A checkpoint of a finished run, measured on any part of its data.

python launcher/evaluate.py run_dir=outputs/2026-01-31/12-00-00
torchrun --nproc_per_node 2 launcher/evaluate.py run_dir=... part=validation checkpoint=best
"""

import os
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a file: launcher/ itself stands first on the path and would hide modules
    sys.path[0] = os.getcwd()
    sys.path.append(str(Path(__file__).resolve().parent.parent))

from omegaconf import OmegaConf

from launcher import config, distributed
from launcher.errors import ConfigError
from launcher.watch import Watch, finish, guarded


def main() -> None:
    """The console command: prints the figures, and writes them beside the run as evaluation_PART.json."""
    sys.exit(guarded(lambda: command(sys.argv[1:])))


def command(argv: list[str]) -> int:
    """Read a command line and evaluate."""
    arguments = config.parse_arguments(argv)
    if config.show(arguments, "evaluate"):
        return 0
    with config.opened(arguments, "evaluate") as (hydra, name):
        composed = config.compose(hydra, name, arguments.overrides, config.EVALUATE_SCHEMA)
    return evaluate(composed.plain())


def evaluate(settings: dict[str, Any]) -> int:
    """Measure a checkpoint.

    Args:
        settings: Those of conf/evaluate.yaml.

    Returns:
        Exit status.
    """
    path = Path(settings["run_dir"])
    if not (path / ".hydra" / "config.yaml").is_file():
        raise ConfigError(f"run_dir={path}: no run is there (it has no .hydra/config.yaml).")
    run: Any = OmegaConf.to_container(OmegaConf.load(path / ".hydra" / "config.yaml"))
    distributed.join_slurm()
    ranks = distributed.find_ranks(os.environ, distributed.parent_command())
    on_cpu = distributed.choose_device(settings["device"], run["mixed_precision"], ranks)
    chosen = _choose_checkpoint(path, settings["checkpoint"])

    from launcher import checkpoint, engine, losses
    from launcher.components import build
    from launcher.models.mirrored import Mirrored, check_mirror
    from launcher.run_directory import write_json

    data = build("data", run["data"] | settings["data"])
    model = build("model", run["model"], **data.facts())
    loss = losses.build_loss(run["loss"], data)
    weights, _ = checkpoint.read_checkpoint(chosen)
    model.load_state_dict(weights)
    flip = settings["test_time_flip"]
    if run.get("test_time_flip", False) if flip is None else flip:
        check_mirror(data)
        model = Mirrored(model)
    accelerator = distributed.start(
        ranks,
        on_cpu,
        run["mixed_precision"],
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
        model, loss, getattr(data, settings["part"]), data, accelerator, ranks, settings["batch_size"],
        settings["num_workers"], [*run["metrics"], *(m for m in settings["metrics"] if m not in run["metrics"])],
    )  # fmt: skip
    assert found is not None
    if ranks.rank == 0:
        content = found.as_dict(settings["part"], data.class_names) | {"checkpoint": chosen.name}
        write_json(path / f"evaluation_{settings['part']}.json", content)
        print(f"{settings['part']} part, {found.samples} samples, {chosen.name}")
        for name, value in found.figures.items():
            print(f"  {name:<16} {value:.4g}")
    finish(watch)
    return 0


def _choose_checkpoint(path: Path, wanted: str | int) -> Path:
    """The checkpoint that `last`, `best` or a step names, verified."""
    from launcher import checkpoint

    saved = checkpoint.checkpoints(path / "checkpoints")
    if not saved:
        raise ConfigError(f"run_dir={path}: no checkpoint is there.")
    steps = [checkpoint.step_of(one) for one in saved]
    if wanted == "last":
        found = checkpoint.newest_good(path / "checkpoints")
        assert found is not None
        return found
    if wanted == "best":
        _, state = checkpoint.read_checkpoint(saved[-1])
        wanted = state["progress"]["best_step"]
    if wanted not in steps:
        raise ConfigError(f"checkpoint={wanted}: no such checkpoint. There are: last, {', '.join(map(str, steps))}.")
    found = saved[steps.index(int(wanted))]
    checkpoint.verify(found)
    return found


if __name__ == "__main__":
    main()
