"""The console commands: `launcher-train` is launcher/train.py, and so on, wherever the package is installed."""

import os
import sys
from importlib import import_module
from pathlib import Path


def main() -> None:
    """Run the command that this process was started as, as if its file were: a person's own classes are found here.

    The script that pip makes puts its own directory first on the path, where no class of anybody is.
    """
    script = Path(sys.argv[0])
    if sys.path and Path(sys.path[0]).resolve() == script.resolve().parent:
        sys.path[0] = os.getcwd()
    else:
        sys.path.insert(0, os.getcwd())
    import_module(f"launcher.{script.stem.removeprefix('launcher-')}").main()
