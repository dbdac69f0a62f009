"""Files that are there whole or not at all, whatever is killed or full, and JSON that any reader takes.

Needs the standard library alone: batch scripts and the trackers' processes use it too.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # what JSON has no number for, and how it is written


@contextlib.contextmanager
def replacing(path: Path, mode: str = "w", durable: bool = False, newline: str | None = None) -> Iterator[IO[Any]]:
    """Write a file beside its place and rename it: a reader sees the old one or the new one, and a failure the old one.

    Args:
        path: Of the file; its directory is there.
        mode: `w` for text, in UTF-8, or `wb`.
        durable: Wait until it is on the disk.
        newline: As `open` takes it.

    Raises:
        OSError: It cannot be written; what was there before is as it was.
    """
    fresh = path.with_name(f".{path.name}.new")
    try:
        with fresh.open(mode, encoding=None if "b" in mode else "utf-8", newline=newline) as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(fresh, path)
    except BaseException:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    if durable:
        flush(path.parent)


def flush(path: Path) -> None:
    """Wait until a file's bytes, or the names in a directory, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str, durable: bool = False) -> None:
    """Write a text file in one go; see `replacing`."""
    with replacing(path, durable=durable) as file:
        file.write(text)


def write_json(path: Path, content: Mapping[str, Any], durable: bool = False) -> None:
    """Write a JSON object in one go; see `replacing` and `plain`."""
    write_text(path, json.dumps(plain(content), indent=1, default=str, allow_nan=False) + "\n", durable)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def ends(path: Path, mark: bytes) -> bool:
    """Whether a file is there and ends in some bytes."""
    try:
        with path.open("rb") as file:
            file.seek(-len(mark), os.SEEK_END)
            return file.read() == mark
    except OSError:
        return False


def plain(tree: Any) -> Any:
    """A tree of dicts and lists in which NaN and the infinities, which JSON lacks, are "nan", "inf" and "-inf"."""
    if isinstance(tree, float) and not math.isfinite(tree):
        return str(float(tree))
    if isinstance(tree, Mapping):
        return {key: plain(value) for key, value in tree.items()}
    return [plain(value) for value in tree] if isinstance(tree, list | tuple) else tree


def number(value: Any) -> Any:
    """A number as `plain` wrote it, a number again; anything else as it is."""
    return NON_FINITE.get(value, value) if isinstance(value, str) else value


def numbers(values: Any) -> dict[str, Any]:
    """An object of a JSON file whose values are numbers, such as `final` of summary.json; empty where it is none."""
    return {key: number(value) for key, value in values.items()} if isinstance(values, Mapping) else {}


def last_step(run_dir: Path) -> int:
    """Optimizer updates in the newest checkpoint of a run by its name, 0 without one."""
    names = (p.name.partition("step_")[2] for p in run_dir.glob("checkpoints/step_*"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def cache_folder() -> Path:
    """Where things are kept that can be made again: ~/.cache/launcher, or in XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "launcher"
