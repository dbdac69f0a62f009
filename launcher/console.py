"""The console commands: `launcher-train` is launcher/train.py, and so on, wherever the package is installed."""

import sys
from importlib import import_module
from pathlib import Path

import launcher


def main() -> None:
    """Run the command that this process was started as, as if its file were: a person's own classes are found here."""
    script = Path(sys.argv[0])
    # The script that pip makes puts its own directory first on the path.
    launcher.order_path(int(Path(sys.path[0]).resolve() == script.resolve().parent))
    import_module(f"launcher.{script.stem.removeprefix('launcher-').replace('-', '_')}").main()
