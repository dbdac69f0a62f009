"""The directory of a run: made once, locked while a run is in it, resumed when it is started again."""

import contextlib
import itertools
import logging
import os
import shlex
import shutil
import socket
import sys
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.config.components import KEPT
from launcher.config.composed import Composed, publish
from launcher.config.places import check_writable, make_directory
from launcher.config.tree import directory_override
from launcher.core.errors import ConfigError
from launcher.core.files import read_json, write_json, write_text
from launcher.distributed.ranks import Ranks
from launcher.distributed.rendezvous import by_rank_0, judged_by_rank_0
from launcher.run import provenance, shared
from launcher.run.command_line import config_options, launch_words
from launcher.run.config_file import CONFIG, read_config, write_config
from launcher.run.earlier_run import RECORDS, Found, check_same, has_checkpoint, is_finished, look_into
from launcher.run.lock import LOCK, launch_names, lock

if TYPE_CHECKING:
    from launcher.build import Parts

log = logging.getLogger("launcher")

UNSHOWN = ".hydra/unshown"  # there from the summary of a run to the end of its trackers
LEAST = 1 << 20  # bytes that must be free for a run to start
# What else a run that has saved nothing may have left; W&B's own files are set aside by their tracker.
LEFT = (
    "*.json", "changes-*.patch", "metrics.csv", "tb", "dvclive", "*.png", "report.html", "lr_range.csv", "checkpoints",
    "*.npz",
)  # fmt: skip


class RunDirectory:
    """A run directory that this process holds the lock of: what was in it before, and lines for the log about that."""

    def __init__(self, path: Path, lock: int, found: Found) -> None:
        self.path, self.found, self.notes, self._lock = path, found, found.notes, lock

    def run_id(self, wanted: str | None) -> str:
        """A name that the run keeps over every resume, for trackers that know runs by an id: as wanted, or made up."""
        file = self.path / ".hydra" / "run_id"
        if wanted is not None or not file.exists():
            write_text(file, wanted or uuid.uuid4().hex[:12])
        return file.read_text().strip()

    def stopped(self, step: int, reason: str | None, overrides: list[str]) -> None:
        """Note and say that a run ended before its last step, why, and by which command it goes on."""
        here = os.path.relpath(self.path)
        kept = [o for o in overrides if not o.startswith("hydra.run.dir=")]
        named = directory_override(self.path if here.startswith("..") else here)
        command = shlex.join([*launch_words(), *config_options(sys.argv[1:]), *kept, named])
        write_json(self.path / "stopped.json", {"step": step, "reason": reason, "resume": command})
        log.info("stopped    at step %d (%s), everything is saved. To go on:\n  %s", step, reason, command)

    def close(self) -> None:
        """Let go of the lock; the kernel does it for a process that is killed."""
        os.close(self._lock)


def _places(composed: Composed) -> tuple[Path, Path | None]:
    """The directory that the config names, and that of the run to go on with: the one named by a person, or none."""
    path = Path(str(composed.hydra.run.dir)).resolve()
    return path, path if composed.chose_directory else _of_this_launch(path, composed)


@contextlib.contextmanager
def settled(composed: Composed, ranks: Ranks) -> Iterator[Composed]:
    """The settings as rank 0 has them, on every rank; where they refer to the run directory, it is there.

    As Hydra's users expect, what is built finds it; what refuses to be built takes it away again. What settings take
    from the clock and from Hydra stays what it was when the run began.

    Raises:
        ConfigError: The directory cannot be made.
    """
    made: list[Path] = []

    def settle() -> tuple[dict[str, Any], str]:
        path, before = _places(composed)
        found = composed
        if before is not None and (before / CONFIG).is_file():
            found = composed.as_begun(read_config(before, "hydra.run.dir"))
        if composed.names_directory:
            check_writable(path)
            missing = [place for place in path.parents if not place.exists()]
            new = before is None or not before.exists()
            path = before or _make_new(path)
            make_directory(path, "hydra.run.dir")
            made.extend([path, *missing] if new else [])
        return found.plain(), str(path)

    if composed.local or composed.names_directory:
        timeout = float(composed.settings.timeout)
        composed = composed.told_by(*by_rank_0("the run directory to be found", settle, ranks, timeout))
    publish(composed.hydra, composed.hydra.run.dir if composed.chose_directory else None)
    try:
        yield composed
    except BaseException:
        for place in made:
            with contextlib.suppress(OSError):
                place.rmdir()
        raise


def open_run_directory(composed: Composed, parts: "Parts") -> RunDirectory:
    """Make a new run directory, or take up one that a run was in before. For rank 0 alone.

    A directory that the person named is resumed where a run was in it. So is the unfinished one of the same launch,
    where torchrun restarts a group or SLURM requeues a job. A name made from the clock is never shared: two runs that
    start in the same second get two directories.

    Raises:
        ConfigError: Another run is in it, it belongs to another config or has gone further, or it cannot be written.
    """
    path, before = _places(composed)
    check_writable(path)
    existing = next(place for place in (path, *path.parents) if place.is_dir())
    if (free := shutil.disk_usage(existing).free) < LEAST:
        raise ConfigError(f"hydra.run.dir={path}: {existing} has {free:,} bytes free. Make room, or choose another.")
    if before is None:
        path, found = _make_new(path), Found()
        handle = lock(path)
    else:
        path = before
        look_into(path, composed, parts)
        make_directory(path, "hydra.run.dir")
        handle = lock(path)
        found = look_into(path, composed, parts, ours=True)  # another start may have been in it meanwhile
    if found.other:
        aside = _make_room(path)
        found = Found(notes=(f"begun anew: what was begun here by other settings had saved nothing, see {aside}",))
    if not found.complete:
        write_config(path, composed)
    return RunDirectory(path, handle, found)


def open_for_all(composed: Composed, parts: "Parts", ranks: Ranks) -> tuple[RunDirectory | None, Path, bool]:
    """The run directory, opened by rank 0; what is wrong with it (see `open_run_directory`) ends every rank.

    Where a node does not see it, a run that begins can be trained, and says so; one that goes on cannot: every rank
    reads its checkpoint.

    Returns:
        The directory on rank 0 and None elsewhere; where it is, and whether its run is complete.
    """
    opened: list[RunDirectory] = []
    timeout = float(composed.settings.timeout)
    with contextlib.ExitStack() as stack:

        def make() -> tuple[Path, bool, str | None]:
            opened.append(open_run_directory(composed, parts))
            path, complete = opened[0].path, opened[0].found.complete
            alone = ranks.world_size == 1 or complete
            return path, complete, None if alone else stack.enter_context(shared.mark(path))

        path, complete, mark = by_rank_0("the run directory to be opened", make, ranks, timeout)
        if mark is not None:
            fact = socket.gethostname(), shared.sees(path / mark, shared.SECONDS)
            resumes = bool(opened) and has_checkpoint(path)
            notes = judged_by_rank_0(fact, partial(shared.judge, path, resumes), ranks, timeout)
            if opened:
                opened[0].notes += notes
    return (opened[0] if opened else None), path, complete


def holds_checkpoint(composed: Composed) -> bool:
    """Whether this start will go on from a checkpoint, as any rank can see it, before anything is made."""
    _, before = _places(composed)
    return before is not None and has_checkpoint(before)


def kept_facts(composed: Composed) -> dict[str, Any]:
    """What the run that this start goes on with has kept for its model: then no other file needs to be there."""
    _, before = _places(composed)
    if before is None or not has_checkpoint(before):
        return {}
    return {key: fact for key, fact in provenance.read_data(before)["facts"].items() if key == KEPT}


def _make_new(path: Path) -> Path:
    for number in range(1000):
        attempt = path.with_name(f"{path.name}_{number}") if number else path
        with contextlib.suppress(FileExistsError):
            make_directory(attempt, "hydra.run.dir", exist_ok=False)
            return attempt
    raise ConfigError(f"hydra.run.dir={path}: taken a thousand times over. Name a directory of your own.")


def _of_this_launch(path: Path, composed: Composed) -> Path | None:
    """The run directory that an earlier start of this launch made, beside the one for now.

    An unfinished one; a finished one where the launch begins anew, as when something failed after the run's end.
    """
    names = set(launch_names())
    requeued, restarted = (int(os.environ.get(f"{by}_RESTART_COUNT") or 0) for by in ("SLURM", "TORCHELASTIC"))
    if not (requeued or restarted):  # what else this job or allocation runs is another run
        names = {name for name in names if not name.startswith("slurm ")}
    found: dict[bool, Path] = {}
    for file in [*path.parent.glob(f"*/{LOCK}"), *path.parent.parent.glob(f"*/*/{LOCK}")] if names else ():
        with contextlib.suppress(ConfigError):
            if names & set(read_json(file).get("launches") or ()):
                check_same(file.parent, read_config(file.parent, "hydra.run.dir"), composed)
                found[is_finished(file.parent)] = file.parent
    return found.get(False) or (found.get(True) if requeued or restarted else None)


def _make_room(path: Path) -> str:
    """Set aside what a run has left that had saved nothing: files whose names others count as a run's get others."""
    name = next(f"earlier-{number}" for number in itertools.count(1) if not (path / f"earlier-{number}").exists())
    (path / name).mkdir()
    for pattern in (*LEFT, *RECORDS, ".hydra"):  # the config last: one that is killed in here begins again
        for place in path.glob(pattern):
            os.rename(place, path / name / place.name.lstrip("."))
    return name
