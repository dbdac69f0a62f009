"""The text of a table's file: unpacked, decoded, and which character parts its columns."""

import csv
import io
from pathlib import Path
from typing import Any

from launcher.core.errors import ConfigError
from launcher.data import packed

SEPARATORS = ",;\t|"
PARQUET = b"PAR1"
LOOKED_AT = 100  # lines by which the separator is recognised
# Begins with a mark that says how it is encoded. UTF-32 is no format of tables.
MARKED = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def check_encoding(encoding: Any) -> None:
    """An encoding that Python knows, or None, else a ConfigError."""
    try:
        if encoding is not None:
            "".encode(encoding)
    except (LookupError, TypeError) as error:
        raise ConfigError(
            f"data.encoding: {encoding!r} is no encoding; give one such as utf-8, cp1252 or utf-16, or null to have it "
            "recognised."
        ) from error


def separator(delimiter: Any) -> str | None:
    r"""The character that `data.delimiter` names: one character, `tab` or `\t`; None: to be recognised.

    Raises:
        ConfigError: It is something else.
    """
    named = {"tab": "\t", r"\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}
    found = named.get(delimiter, delimiter) if isinstance(delimiter, str) else delimiter
    if found is not None and (not isinstance(found, str) or len(found) != 1 or found in '"\r\n'):
        raise ConfigError(
            f"data.delimiter: {delimiter!r} is not one character, such as ',' or ';', nor tab; null recognises it."
        )
    return found


def content(path: Any, setting: str) -> bytes:
    """The bytes of a file; of one that is packed, those of the one file in it.

    Raises:
        ConfigError: No path, no such file, a damaged one, or an archive of several.
    """
    if not path or not isinstance(path, str):
        raise ConfigError(f"{setting}: {path!r} is no file; name a table, as in {setting}=table.csv.")
    return b"".join(packed.pieces(Path(path).expanduser(), setting))


def decoded(found: bytes, encoding: str | None, path: str, setting: str) -> tuple[str, list[str]]:
    """Text without a byte-order mark, and a line about an encoding that was guessed.

    Args:
        found: The bytes.
        encoding: `data.encoding`; None: by the mark, UTF-8, or else that of Western Europe's Windows, cp1252.
        path: For messages.
        setting: Which one named the file, for messages.

    Raises:
        ConfigError: The bytes are no text in the encoding.
    """
    marked = next((name for mark, name in MARKED.items() if found.startswith(mark)), None)
    if encoding is not None:
        same = encoding.lower().replace("_", "-") in ("utf-8", "utf8")
        try:
            return found.decode("utf-8-sig" if same else encoding).removeprefix("\ufeff"), []
        except UnicodeError as error:
            raise ConfigError(f"{setting}: {path} is no text in data.encoding={encoding}: {error}.") from error
    try:
        text = found.decode(marked or "utf-8")
        fault = "\0" in text
    except UnicodeError:
        fault, text = b"\0" in found, ""
    if fault:
        raise ConfigError(
            f"{setting}: {path} is no text; a table is text with a separator, packed or not, or parquet. A text in "
            "another encoding needs data.encoding, such as utf-16-le."
        )
    if text or not found:
        return text.removeprefix("\ufeff"), []
    for name in ("cp1252", "latin-1"):  # each byte is a letter of the latter
        try:
            text = found.decode(name)
            break
        except UnicodeError:
            continue
    return text, [f"{path} is no UTF-8 and was read as {name}, a guess (data.encoding says otherwise)"]


def recognised(text: str, decimal: str | None) -> str:
    """The character that seems to part the columns.

    Args:
        text: Of the file.
        decimal: `data.decimal`, which parts nothing where it is a comma.
    """
    end = 0
    for _ in range(LOOKED_AT):
        if (line_end := text.find("\n", end)) < 0:
            end = len(text)
            break
        end = line_end + 1
    found: list[tuple[bool, int, str]] = []
    for one in SEPARATORS:
        if one != decimal:
            rows = [row for row in csv.reader(io.StringIO(text[:end], newline=""), delimiter=one) if row]
            widths = {len(row) for row in rows}
            if rows and len(rows[0]) > 1:
                found.append((len(widths) == 1, len(rows[0]), one))
    # Those by which all lines have as many columns come first, then more columns, then the commoner one.
    return max(found, key=lambda one: (one[0], one[1], -SEPARATORS.index(one[2])), default=(True, 1, ","))[2]
