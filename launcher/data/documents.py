"""The documents of a text: a file, the files of a list or a directory, or the rows of JSON Lines, packed or not."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.core.errors import ConfigError
from launcher.data import packed

PIECE = 1 << 18  # bytes of text that are encoded as one, up to the end of the line
ROWS = (".jsonl", ".ndjson")
PACKED_NAMES = (".gz", ".bz2", ".xz", ".zip")


@dataclass(frozen=True)
class Documents:
    """Where the documents of a text are.

    Args:
        files: In their order.
        field: The one of each row that holds the text, where the files are JSON Lines; None: each file is a document.
    """

    files: tuple[Path, ...]
    field: str | None = None

    @property
    def alone(self) -> bool:
        """Whether it is one document, a file as it is."""
        return len(self.files) == 1 and self.field is None

    def pieces(self) -> Iterator[tuple[str, bool]]:
        """Pieces of text, and whether a document begins with each.

        Raises:
            ConfigError: A file is no text in UTF-8, or a row lacks the field.
        """
        for file in self.files:
            if self.field is not None:
                yield from ((text, True) for text in _rows(file, self.field) if text)
            else:
                for number, text in enumerate(_decoded(file)):
                    # A mark of a byte order in the midst of a text is none.
                    yield text if self.alone or number else text.removeprefix("\ufeff"), number == 0


def find_documents(path: Any, field: Any) -> Documents:
    """The files that `data.path` names: one, a list, or all in a directory that are not hidden, by path.

    Args:
        path: `data.path`.
        field: `data.field`; in a directory the files of JSON Lines alone are read where it is given.

    Raises:
        ConfigError: There is none, one cannot be read, or the field is no name.
    """
    if field is not None and (not isinstance(field, str) or not field):
        raise ConfigError(
            f"data.field: {field!r} is no name; give that of the text in each row, as in data.field=text."
        )
    listed = isinstance(path, Sequence) and not isinstance(path, str)
    if listed and not path:
        raise ConfigError("data.path: the list is empty; name files, as in data.path=[a.txt,b.txt].")
    named = list(path) if listed else [path]
    if not listed and path and isinstance(path, str) and Path(path).expanduser().is_dir():
        return Documents(_in_directory(Path(path).expanduser(), field), field)
    return Documents(tuple(find("data.path", one, "a text, as in data.path=book.txt") for one in named), field)


def find(setting: str, path: Any, what: str) -> Path:
    """A file that can be read, else a ConfigError that names the setting."""
    if not path or not isinstance(path, str):
        raise ConfigError(f"{setting}: {path!r} is no file; name {what}.")
    file = Path(path).expanduser()
    try:
        with file.open("rb"):
            return file
    except OSError as error:
        raise ConfigError(f"{setting}: cannot read {path}: {error.strerror}. Name {what}.") from error


def has_rows(file: Path) -> bool:
    """Whether the name of a file says that it is JSON Lines, packed or not."""
    name = file.name.lower()
    for ending in PACKED_NAMES:
        name = name.removesuffix(ending)
    return name.endswith(ROWS)


def _in_directory(place: Path, field: str | None) -> tuple[Path, ...]:
    """The files in a directory at any depth, by path, but for those that are hidden or empty."""
    found = []
    for folder, folders, names in os.walk(place):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    files = sorted(file for file in found if file.is_file() and file.stat().st_size)
    chosen = files if field is None else [file for file in files if has_rows(file)]
    if not chosen:
        what = f"file of JSON Lines ({', '.join(ROWS)}), whose field data.field={field} is" if field else "text"
        raise ConfigError(f"data.path: the directory {place} has no {what}; put one in it, or name another.")
    for file in chosen:
        find("data.path", str(file), "files that can be read")
    return tuple(chosen)


def _decoded(file: Path) -> Iterator[str]:
    """The text of a file in pieces of whole lines."""
    start = 0
    for piece in packed.pieces(file, "data.path", PIECE):
        if b"\0" in piece:
            raise ConfigError(
                f"data.path: {file} is binary, not text (byte {start + piece.index(0)} is zero); leave it out."
            )
        try:
            yield piece.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"data.path: {file} is no text in UTF-8 (byte {start + error.start}: {error.reason}); convert it, as "
                "by iconv -f latin1 -t utf-8. The bytes of one file alone, without data.tokenizer, may be anything."
            ) from error
        start += len(piece)


def _rows(file: Path, field: str) -> Iterator[str]:
    """The field of each row of a file of JSON Lines; empty lines are no rows."""
    row = 0
    for text in _decoded(file):
        for line in text.removeprefix("\ufeff").split("\n"):  # JSON may hold other ends of lines within a text
            if not line.strip():
                continue
            row += 1
            try:
                found = json.loads(line)
            except ValueError as error:
                raise ConfigError(
                    f"data.path: row {row} of {file} is no JSON ({error}); data.field reads JSON Lines, an object in "
                    "each line."
                ) from error
            value = found.get(field) if isinstance(found, dict) else None
            if not isinstance(value, str):
                had = ", ".join(map(str, found)) if isinstance(found, dict) else type(found).__name__
                what = "has no text in" if isinstance(found, dict) and field in found else "lacks"
                raise ConfigError(f"data.field: row {row} of {file} {what} the field {field!r}; it has: {had[:200]}.")
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ConfigError(
                    f"data.field: row {row} of {file} has half a character ({value[error.start]!a}) in {field!r}; "
                    "mend the row, or leave it out."
                ) from error
            yield value
