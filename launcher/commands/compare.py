"""Compare the trials of a sweep: launcher compare outputs/grids/NAME."""

import argparse
import sys
from pathlib import Path

from launcher.distributed.watch import guarded
from launcher.sweep.conclusion import compare


def main() -> None:
    """The console command: exit status 0, or 2 for wrong input."""
    sys.exit(guarded(lambda: command(sys.argv[1:])))


def command(argv: list[str]) -> int:
    """Read a command line and compare."""
    parser = argparse.ArgumentParser(description="Compare the trials of a sweep.", prog="launcher compare")
    parser.add_argument("path", type=Path, help="directory of the sweep, such as outputs/grids/NAME")
    parser.add_argument("--metric", help="what counts, such as eval/accuracy; by default checkpoint.best")
    parser.add_argument("--mode", choices=("min", "max"), help="by default as the metric's name tells")
    arguments = parser.parse_args(argv)
    compare(arguments.path, arguments.metric, arguments.mode)
    return 0
