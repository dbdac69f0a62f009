"""Compare the trials of sweeps: launcher compare outputs/grids/NAME."""

import argparse
from pathlib import Path

from launcher.sweep.conclusion import compare


def command(argv: list[str]) -> int:
    """Read a command line and compare."""
    parser = argparse.ArgumentParser(description="Compare the trials of sweeps.", prog="launcher compare")
    parser.add_argument(
        "paths", type=Path, nargs="+", metavar="SWEEP",
        help="directory of a sweep, such as outputs/grids/NAME; several are compared as if they were one",
    )  # fmt: skip
    parser.add_argument(
        "--metric",
        help="what counts, such as eval/accuracy; by default checkpoint.best; several with commas: their Pareto front",
    )
    parser.add_argument("--mode", type=_modes, help="min or max for each metric; by default as its name tells")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where files are written; by default the first SWEEP"
    )
    parser.add_argument("--latex", action="store_true", help="write a table for LaTeX, grid.tex, too")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the tables")
    arguments = parser.parse_args(argv)
    compare(arguments.paths, arguments.metric, arguments.mode, arguments.output, arguments.latex, arguments.json)
    return 0


def _modes(text: str) -> str:
    if not set(text.split(",")) <= {"min", "max"}:
        raise argparse.ArgumentTypeError(f"{text}: give min or max, with commas between for several metrics")
    return text
