"""What a person looks at of a run that has ended, drawn of its files: curves.png and report.html."""

import logging
import os
from pathlib import Path

from launcher.core.files import ends

log = logging.getLogger("launcher")

# How a whole one ends.
PICTURES = {"curves.png": b"IEND\xaeB`\x82", "report.html": b"</html>\n"}
# Set in the environment of the trials of a sweep whose executor draws them, when devices idle or all trials have ended.
LATER = "LAUNCHER_DRAWN_LATER"


def undrawn(path: Path) -> bool:
    """Whether one of the pictures of a run directory is missing or broken."""
    return not all(ends(path / name, mark) for name, mark in PICTURES.items())


def left_to_others(path: Path) -> bool:
    """Whether somebody else draws them; those of an earlier start are gone then."""
    if not os.environ.get(LATER):
        return False
    for name in PICTURES:
        (path / name).unlink(missing_ok=True)
    return True


def draw(path: Path) -> None:
    """Draw both; what cannot be drawn is said in the log."""
    from launcher.run import curves, report

    drawn = curves.Curves(path)
    for name, write in (
        ("curves.png", lambda: drawn.write_png(path / "curves.png")),
        ("report.html", lambda: report.write_report(path, drawn)),
    ):
        try:
            write()
        except Exception as error:  # a full disk, or a matplotlib of somebody's own: the result is written
            log.warning("%s is not drawn (%s: %s); the same command tries again.", name, type(error).__name__, error)
