"""Image files that cannot be read, found before any is trained on; what was found whole is remembered."""

import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from launcher.core.errors import ConfigError
from launcher.core.files import cache_folder
from launcher.core.locks import locked
from launcher.core.processes import cores
from launcher.data.pillow import check_depth

ON_ERROR = ("stop", "skip", None)
SHOWN = 10  # broken files that are named
AT_ONCE = 512  # files between two steps of the progress bar


def without_broken(paths: Sequence[str], root: Path, on_error: str | None) -> tuple[set[str], list[str]]:
    """Read all images once, in threads, but for those that an earlier look found whole and that are as they were.

    Those are remembered by path, size and time of change in ~/.cache/launcher (XDG_CACHE_HOME), not beside the images.

    Args:
        paths: Files to look at.
        root: Folder that they lie in, which names the file of what is remembered.
        on_error: `stop`, `skip`, or None: nothing is read here.

    Returns:
        The files to leave out, and lines for the log.

    Raises:
        ConfigError: on_error is something else, or it is `stop` and a file cannot be read.
    """
    if on_error not in ON_ERROR:
        raise ConfigError(f"data.on_error: {on_error!r} is unknown; pick stop, skip or null.")
    if on_error is None:
        return set(), []
    name = hashlib.sha256(os.path.realpath(root).encode()).hexdigest()[:24]
    memory = cache_folder() / f"images-{name}.npy"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # without a place to remember, all are read each time
            memory.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(memory.with_suffix(".lock")))
        broken = _broken(paths, memory)
    if not broken:
        return set(), []
    listed = [f"  {path}: {reason}" for path, reason in sorted(broken.items())[:SHOWN]]
    if len(broken) > SHOWN:
        listed.append(f"  and {len(broken) - SHOWN:,} more")
    what = f"{len(broken):,} of {len(paths):,} images under {root} cannot be read"
    if on_error == "stop":
        raise ConfigError(
            f"data.root: {what}; repair or remove them, or set data.on_error=skip to leave them out:\n"
            + "\n".join(listed)
        )
    return set(broken), ["\n".join([f"{what} and are left out:", *listed])]


def _broken(paths: Sequence[str], memory: Path) -> dict[str, str]:
    """The files that cannot be read, each with the reason."""
    with ThreadPoolExecutor(min(32, 2 * len(cores()))) as pool:
        marks = np.fromiter(pool.map(_mark, paths, chunksize=AT_ONCE), np.uint64, len(paths))
        whole = np.isin(marks, _remembered(memory))
        unknown = np.flatnonzero(~whole).tolist()
        broken = {}
        for index, reason in zip(unknown, _shown(pool.map(reason_against, (paths[i] for i in unknown)), len(unknown)),
                                 strict=True):  # fmt: skip
            whole[index] = reason is None
            if reason is not None:
                broken[paths[index]] = reason
    if len(broken) < len(unknown):
        _remember(memory, np.unique(marks[whole]))
    return broken


def _mark(path: str) -> int:
    """64 bits that stand for a file as it is: its path, size and time of change."""
    try:
        state = os.stat(path)
    except OSError:
        return 0
    told = f"{os.path.realpath(path)}\0{state.st_size}\0{state.st_mtime_ns}"
    return int.from_bytes(hashlib.blake2b(told.encode(errors="surrogateescape"), digest_size=8).digest(), "little") or 1


def _remembered(memory: Path) -> np.ndarray:
    try:
        return np.load(memory, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # none yet, or of something else
        return np.empty(0, np.uint64)


def _remember(memory: Path, marks: np.ndarray) -> None:
    """Replace what is remembered; where nothing can be written, nothing is."""
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=memory.parent, prefix=".images-") as making:
        np.save(Path(making, "marks.npy"), marks, allow_pickle=False)
        os.replace(Path(making, "marks.npy"), memory)


def _shown(reasons: Iterator[str | None], total: int) -> Iterator[str | None]:
    """The same, with a progress bar on a terminal."""
    if not sys.stderr.isatty() or total < AT_ONCE:
        yield from reasons
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(reasons, "reading images once", total, console=Console(stderr=True), transient=True)


def reason_against(path: str) -> str | None:
    """Why an image cannot be read; None where it can.

    All bytes are read. Of a JPEG only an eighth of each side is computed; of a PNG the sums of its pieces are checked.
    """
    from PIL import Image

    try:
        if os.stat(path).st_size == 0:
            return "it has no bytes"
        with Image.open(path) as image:
            check_depth(image)
            _read(image)
    except Exception as error:  # Pillow raises a dozen kinds
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _read(image: Any) -> None:
    if image.format == "PNG":
        image.verify()  # which must be the first that is done with it
        return
    image.getexif()
    if image.format == "JPEG":
        image.draft(image.mode, (1, 1))
    image.load()
