"""Files that are packed by gzip, bzip2, xz or zip, whatever their names say: read as what is in them."""

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from launcher.core.errors import ConfigError

# By the first bytes of a file.
MARKS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstd",
}
UNPACK: dict[str, Any] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
DAMAGED = (EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile, gzip.BadGzipFile)


def packing(file: Path) -> str | None:
    """What packed a file: a name of `MARKS`; None where it is plain."""
    with file.open("rb") as opened:
        begin = opened.read(max(map(len, MARKS)))
    return next((name for mark, name in MARKS.items() if begin.startswith(mark)), None)


def pieces(file: Path, setting: str, size: int = -1) -> Iterator[bytes]:
    """The bytes of a file, unpacked, in pieces of whole lines.

    Args:
        file: The file.
        setting: Which one named it, for messages.
        size: Bytes of a piece, which then goes on to the end of the line; -1: all in one.

    Raises:
        ConfigError: It cannot be read, is damaged, or is packed in a way that is not known or by a password.
    """
    try:
        with _unpacked(file, setting) as content:
            while piece := content.read(size) + content.readline():
                yield piece
    except ConfigError:
        raise
    except DAMAGED as error:
        raise ConfigError(f"{setting}: {file} is packed and damaged: {error}. Fetch or pack it again.") from error
    except (OSError, ValueError, RuntimeError) as error:
        words = getattr(error, "strerror", None) or error
        raise ConfigError(f"{setting}: cannot read {file}: {words}.") from error


@contextmanager
def _unpacked(file: Path, setting: str) -> Iterator[IO[bytes]]:
    """A file that is opened, and unpacked as it is read."""
    kind = packing(file)
    if kind == "zstd":
        raise ConfigError(f"{setting}: {file} is packed by zstd; unpack it first: unzstd {file.name}.")
    if kind == "zip":
        with zipfile.ZipFile(file) as archive, archive.open(_member(archive, file, setting)) as content:
            yield content
    elif kind is not None:
        with UNPACK[kind](file) as content:
            yield content
    else:
        with file.open("rb") as content:
            yield content


def _member(archive: zipfile.ZipFile, file: Path, setting: str) -> str:
    """The name of the one file in a zip archive."""
    names = [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX" not in name]
    if any(name.startswith(("xl/", "content.xml")) for name in names):
        raise ConfigError(f"{setting}: {file} is a workbook of a spreadsheet; save the sheet as CSV.")
    if len(names) != 1:
        raise ConfigError(
            f"{setting}: {file} holds {len(names)} files ({', '.join(names)[:200]}); unpack it and name one."
        )
    return names[0]
