"""Directories and files that a person names: whether they can be there."""

import os
from pathlib import Path

import launcher
from launcher.config import messages
from launcher.core.errors import ConfigError

PACKAGE = Path(launcher.PACKAGE)
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"
LONGEST_NAME, LONGEST_PATH = 255, 4096 - 256  # bytes; with room for the files in a directory


def make_directory(directory: Path, setting: str, exist_ok: bool = True) -> None:
    """Make a directory, where `check_writable` could not tell that the system would not have it.

    Raises:
        ConfigError: It cannot be made.
        FileExistsError: It is there, and must not.
    """
    try:
        directory.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        raise
    except OSError as error:
        raise ConfigError(f"{setting}={directory}: cannot be made: {error.strerror}. Choose another.") from error


def check_length(path: Path, setting: str) -> None:
    """Check that a file system takes a path by its length, with some room for the names of files below it.

    Raises:
        ConfigError: It or one of its parts is too long.
    """
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    whole_length = len(os.fsencode(path.absolute()))
    if longest > LONGEST_NAME or whole_length > LONGEST_PATH:
        what = f"a name of {longest} bytes, and file systems take {LONGEST_NAME}"
        if longest <= LONGEST_NAME:
            what = f"{whole_length:,} bytes, and file systems take {LONGEST_PATH:,} with the files in it"
        named = f"{setting}=" if setting else ""
        raise ConfigError(f"{named}{messages.short(str(path))}: {what}. Choose a shorter one.")


def check_writable(directory: Path, setting: str = "hydra.run.dir") -> None:
    """Check that a directory could be made, without making it.

    Raises:
        ConfigError: A file stands in the way, or the permission is missing.
    """
    check_length(directory, setting)
    for place in (directory, *directory.parents):
        if place.exists():
            if not place.is_dir():
                raise ConfigError(f"{setting}={directory}: {place} is a file. Choose another directory.")
            if not os.access(place, os.W_OK | os.X_OK) or os.statvfs(place).f_flag & os.ST_RDONLY:
                raise ConfigError(f"{setting}={directory}: no permission to write in {place}. Choose another.")
            return


def check_file(file: Path, setting: str) -> None:
    """Check that a file could be written.

    Raises:
        ConfigError: It is a directory, its directory is not there, or the permission is missing.
    """
    parent = file.absolute().parent
    if file.is_dir() or not parent.is_dir():
        raise ConfigError(f"{setting}={file}: name a file in a directory that is there.")
    check_writable(parent, setting)
