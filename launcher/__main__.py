"""The console command `launcher COMMAND ...`, which is also `python -m launcher COMMAND ...`, alone or in each rank.

launcher train optimizer=sgd
torchrun --nproc_per_node 2 -m launcher evaluate run_dir=outputs/RUN
"""

import difflib
import sys
from importlib import import_module
from pathlib import Path

import launcher

COMMANDS = {  # name: the module whose main() it is, and what it does
    "train": ("launcher.train", "train a run; with -m, every trial of a sweep"),
    "check": ("launcher.train", "say what a run would need, and whether it can begin"),
    "find-lr": ("launcher.commands.find_lr", "look for a learning rate by a range test"),
    "evaluate": ("launcher.commands.evaluate", "measure a checkpoint on a split"),
    "predict": ("launcher.commands.predict", "write a model's predictions for samples of your own"),
    "export": ("launcher.commands.export", "write a model for others: PyTorch, ONNX, safetensors, with a card"),
    "rerun": ("launcher.commands.rerun", "repeat a run from its directory"),
    "compare": ("launcher.commands.compare", "compare the trials of a sweep"),
    "doctor": ("launcher.commands.doctor", "check the ranks, devices, network and clocks of a launch"),
    "sync": ("launcher.commands.sync", "upload runs that W&B recorded offline"),
}


def usage() -> str:
    """What `launcher --help` prints."""
    lines = [f"  {name:<10} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(["usage: launcher COMMAND ...", "", *lines, "", "launcher COMMAND --help says more of each."])


def main() -> None:
    """Run the command that the first word names; exit status 2 where it names none."""
    script = Path(sys.argv[0])
    if script.name != "__main__.py":  # the script that pip makes puts its own directory first on the path
        launcher.order_path(int(Path(sys.path[0]).resolve() == script.resolve().parent))
    name = sys.argv[1] if len(sys.argv) > 1 else None
    if name in (None, "-h", "--help", "help"):
        print(usage(), file=sys.stderr if name is None else sys.stdout)
        sys.exit(2 if name is None else 0)
    if name == "--version":
        print(f"launcher {launcher.__version__}")
        sys.exit(0)
    if name not in COMMANDS:
        near = difflib.get_close_matches(name.replace("_", "-"), COMMANDS, n=1)
        meant = f" Did you mean `launcher {near[0]}`?" if near else ""
        train = f" To train: launcher train {name}" if "=" in name or name.startswith("-") else ""
        print(f"error: launcher {name}: there is no such command.{meant}{train}\n{usage()}", file=sys.stderr)
        sys.exit(2)
    launcher.command = "train" if name == "check" else name
    sys.argv[1:] = [*sys.argv[2:], *(["check=true"] if name == "check" else [])]
    import_module(COMMANDS[name][0]).main()


if __name__ == "__main__":
    main()
