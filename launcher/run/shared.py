"""Whether all nodes share a directory: a mark that rank 0 makes in it, and what it means not to see that."""

import contextlib
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher.core.errors import ConfigError

SECONDS = 5.0  # in which another node sees what one has made: NFS may keep an answer for 3, see `sees`


@contextlib.contextmanager
def mark(path: Path) -> Iterator[str]:
    """A file in a run directory for a while, of a name that nobody has asked for before."""
    for old in path.glob(".seen-*"):  # of a start that was killed meanwhile
        old.unlink(missing_ok=True)
    name = f".seen-{uuid.uuid4().hex[:12]}"
    (path / name).touch()
    try:
        yield name
    finally:
        (path / name).unlink(missing_ok=True)


def sees(file: Path, seconds: float) -> bool:
    """Whether a file that another node has just made is there.

    That its directory was not, a moment ago, NFS may believe for up to a minute. It asks the server again for a
    directory that is opened (Linux, fs/nfs/dir.c, `nfs_lookup_verify_inode`): so all on the way to the file are. For
    the file's own name, this node must not have asked before.
    """
    deadline = time.monotonic() + seconds
    while not os.path.exists(file):
        if time.monotonic() > deadline:
            return False
        for place in reversed(file.parents):
            with contextlib.suppress(OSError):
                os.close(os.open(place, os.O_RDONLY | os.O_DIRECTORY))
        time.sleep(0.1)
    return True


def judge(path: Path, resumes: bool, facts: Sequence[tuple[str, bool]]) -> tuple[str, ...]:
    """What to say of ranks that do not see a run directory; ConfigError where the run is to go on from a checkpoint.

    Args:
        path: The directory.
        resumes: Whether there is a checkpoint in it.
        facts: Host of each rank, and whether it sees what rank 0 has made there.
    """
    blind = [(rank, host) for rank, (host, seen) in enumerate(facts) if not seen]
    if not blind:
        return ()
    (rank, host), more = blind[0], f" and {len(blind) - 1} more" if len(blind) > 1 else ""
    what = f"hydra.run.dir={path}: rank {rank} on {host}{more} cannot see this directory of rank 0 on {facts[0][0]}"
    if resumes:
        raise ConfigError(
            f"{what}, and every rank reads the checkpoint to go on from. Move it to a file system that all nodes "
            "share, and name it there."
        )
    return (f"{what}. To be resumed, or to go back to a checkpoint, the run needs one that all nodes share",)
