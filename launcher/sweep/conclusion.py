"""A sweep compared: grid.csv, grid.png, grid.html and a table on the terminal, from the files of its run directories.

launcher compare outputs/grids/NAME --metric eval/accuracy
"""

from pathlib import Path

from launcher.config.places import check_length
from launcher.core.errors import ConfigError
from launcher.sweep.comparison import read_sweep
from launcher.sweep.pages import write_page
from launcher.sweep.pictures import draw
from launcher.sweep.tables import print_table, write_csv


def compare(path: Path, metric: str | None, mode: str | None) -> None:
    """Write grid.csv, grid.png and grid.html, and print the table; see `read_sweep` for what it takes and raises."""
    check_length(path, "")
    path = path.resolve()
    sweep = read_sweep(path, metric, mode)
    unwritten = None
    try:
        write_csv(sweep)
        draw(sweep)
        write_page(sweep)
    except OSError as error:  # somebody else's sweep, or a full disk
        unwritten = error
    print_table(sweep)
    if unwritten is not None:
        print(f"grid.csv, grid.png and grid.html cannot be written into {path}: {unwritten.strerror}")


def conclude(path: Path, metric: str | None, mode: str | None) -> None:
    """Compare a sweep that has just run, by checkpoint.best where none of its trials turned out to have the metric."""
    try:
        compare(path, metric, mode)
    except ConfigError as error:
        if metric is None:
            raise
        print(f"{error} Compared by checkpoint.best in its place.", flush=True)
        compare(path, None, None)
