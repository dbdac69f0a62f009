"""The directory of a run: made once, locked while a run is in it, resumed when it is started again."""

import contextlib
import fcntl
import itertools
import json
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
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import OmegaConf
from yaml import YAMLError

from launcher.config.checks import filled
from launcher.config.composed import Composed, publish
from launcher.config.places import check_writable, make_directory
from launcher.config.resume import differences
from launcher.config.schema import COMPONENTS
from launcher.config.tree import directory_override
from launcher.core.errors import ConfigError
from launcher.core.files import last_step, read_json, write_json, write_text
from launcher.distributed import process_group
from launcher.distributed.process_group import Ranks
from launcher.run import shared
from launcher.run.command_line import config_options, launch_words
from launcher.run.tracking import Record
from launcher.schedulers.schedule import depends_on_length

if TYPE_CHECKING:
    from launcher.build import Parts

log = logging.getLogger("launcher")

CONFIG = ".hydra/config.yaml"
LOCK = ".lock"
UNSHOWN = ".hydra/unshown"  # there from the summary of a run to the end of its trackers
LEAST = 1 << 20  # bytes that must be free for a run to start
MOVABLE = ("data.path", "data.root", "data.tokenizer")  # where the same data may lie in another place
RECORDS = ("train.log", "metrics.jsonl", "timings.jsonl", "histograms.jsonl")  # what is appended to
# What else a run that has saved nothing may have left; W&B's own files are set aside by their tracker.
LEFT = ("*.json", "changes-*.patch", "metrics.csv", "tb", "*.png", "report.html", "lr_range.csv", "checkpoints")


class Found(NamedTuple):
    """What is in the directory that a start was given.

    Attributes:
        resumed: A run.
        complete: One that has ended, with everything measured and written.
        other: One of other settings or other data that has saved nothing: its files make room.
        notes: Lines for the log.
    """

    resumed: bool = False
    complete: bool = False
    other: bool = False
    notes: tuple[str, ...] = ()


class RunDirectory:
    """A run directory that this process holds the lock of.

    Attributes:
        path: Absolute.
        resumed: True where a run was in it before.
        complete: True where that has ended and nothing is left to do: what is in it stays as it is.
        notes: Lines for the log about what was found in it.
    """

    def __init__(self, path: Path, lock: int, found: Found) -> None:
        self.path, self._lock = path, lock
        self.resumed, self.complete, self.notes = found.resumed, found.complete, found.notes

    def run_id(self, wanted: str | None) -> str:
        """A name that the run keeps over every resume, for trackers that know runs by an id.

        Args:
            wanted: What a person calls it; None: as before, or a new name.
        """
        file = self.path / ".hydra" / "run_id"
        if wanted is not None or not file.exists():
            write_text(file, wanted or uuid.uuid4().hex[:12])
        return file.read_text().strip()

    def resume_command(self, overrides: list[str]) -> str:
        """The command that goes on with this run: the one that started it, with the directory named."""
        kept = [o for o in overrides if not o.startswith("hydra.run.dir=")]
        words = [*launch_words(), *config_options(sys.argv[1:]), *kept]
        here = os.path.relpath(self.path)
        return shlex.join([*words, directory_override(self.path if here.startswith("..") else here)])

    def stopped(self, step: int, reason: str | None, overrides: list[str]) -> None:
        """Note and say that a run ended before its last step, why, and how it goes on."""
        command = self.resume_command(overrides)
        write_json(self.path / "stopped.json", {"step": step, "reason": reason, "resume": command})
        log.info("stopped    at step %d (%s), everything is saved. To go on:\n  %s", step, reason, command)

    def close(self) -> None:
        """Let go of the lock; the kernel does it for a process that is killed."""
        os.close(self._lock)


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
        path = Path(str(composed.hydra.run.dir)).resolve()
        before = path if composed.chose_directory else _of_this_launch(path, composed)
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
        composed = composed.told_by(*process_group.told_by_rank_0(settle, ranks, float(composed.settings.timeout)))
    publish(composed.hydra, composed.hydra.run.dir if composed.chose_directory else None)
    try:
        yield composed
    except BaseException:
        for place in made:
            with contextlib.suppress(OSError):
                place.rmdir()
        raise


def open_run_directory(composed: Composed, total_steps: int, parts: "Parts | None" = None) -> RunDirectory:
    """Make a new run directory, or take up one that a run was in before. For rank 0 alone.

    A directory that the person named is resumed where a run was in it. So is the unfinished one of the same launch,
    where torchrun restarts a group or SLURM requeues a job. A name made from the clock is never shared: two runs that
    start in the same second get two directories.

    Args:
        composed: The config of the run.
        total_steps: Updates that it is to have.
        parts: What the run is made of, which must fit what is there.

    Raises:
        ConfigError: Another run is in it, it belongs to another config or has gone further, or it cannot be written.
    """
    path = Path(str(composed.hydra.run.dir)).resolve()
    check_writable(path)
    existing = next(place for place in (path, *path.parents) if place.is_dir())
    if (free := shutil.disk_usage(existing).free) < LEAST:
        raise ConfigError(f"hydra.run.dir={path}: {existing} has {free:,} bytes free. Make room, or choose another.")
    before = path if composed.chose_directory else _of_this_launch(path, composed)
    if before is None:
        path, found = _make_new(path), Found()
        lock = _lock(path)
    else:
        path = before
        look_into(path, composed, total_steps, parts)
        make_directory(path, "hydra.run.dir")
        lock = _lock(path)
        found = look_into(path, composed, total_steps, parts, ours=True)  # another start may have been in it meanwhile
    if found.other:
        aside = _make_room(path)
        found = Found(notes=(f"begun anew: what was begun here by other settings had saved nothing, see {aside}",))
    if not found.complete:
        _write_config(path, composed)
    return RunDirectory(path, lock, found)


def open_for_all(
    composed: Composed, total_steps: int, parts: "Parts", ranks: Ranks
) -> tuple[RunDirectory | None, Path, bool]:
    """The run directory, opened by rank 0; what is wrong with it ends every rank.

    Where a node does not see it, a run that begins can be trained, and says so; one that goes on cannot: every rank
    reads its checkpoint.

    Args:
        composed: The config of the run.
        total_steps: Updates that it is to have.
        parts: As for `open_run_directory`.
        ranks: What find_ranks found.

    Returns:
        The directory on rank 0 and None elsewhere; where it is, and whether its run is complete.

    Raises:
        ConfigError: As for `open_run_directory`; or a rank does not see the checkpoint to go on from.
    """
    opened: list[RunDirectory] = []
    timeout = float(composed.settings.timeout)
    with contextlib.ExitStack() as stack:

        def make() -> tuple[Path, bool, str | None]:
            opened.append(open_run_directory(composed, total_steps, parts))
            path, complete = opened[0].path, opened[0].complete
            alone = ranks.world_size == 1 or complete
            return path, complete, None if alone else stack.enter_context(shared.mark(path))

        path, complete, mark = process_group.told_by_rank_0(make, ranks, timeout)
        if mark is not None:
            fact = socket.gethostname(), shared.sees(path / mark, shared.SECONDS)
            resumes = bool(opened) and _has_checkpoint(path)
            judge = partial(shared.judge, path, resumes)
            notes = process_group.judged_by_rank_0(fact, judge, ranks, timeout)
            if opened:
                opened[0].notes += notes
    return (opened[0] if opened else None), path, complete


def look_into(
    path: Path, composed: Composed, total_steps: int, parts: "Parts | None" = None, ours: bool = False
) -> Found:
    """What a start finds in a directory, which stays as it is.

    Args:
        path: The directory; need not exist.
        composed: The config of the run.
        total_steps: Updates that it is to have.
        parts: As for `open_run_directory`.
        ours: Whether this process holds its lock.

    Raises:
        ConfigError: As for `open_run_directory`.
    """
    summary, saved = read_json(path / "summary.json"), _has_checkpoint(path)
    aside = any(any((path / "checkpoints").glob(name)) for name in (".damaged-*", ".replaced-*"))
    done = max(last_step(path), summary.get("step", 0))
    if not (path / CONFIG).is_file():
        if saved or done or (path / "metrics.jsonl").exists():
            raise ConfigError(
                f"hydra.run.dir={path}: files of a run are in it, but not {CONFIG}, which says of which. Put it back, "
                "or choose another directory."
            )
        return Found()
    for name in (".hydra", "checkpoints", LOCK, *RECORDS):
        if (path / name).exists() and not os.access(path / name, os.W_OK):
            raise ConfigError(f"hydra.run.dir={path}: no permission to write {name} in it. Choose another directory.")
    old = read_config(path, "hydra.run.dir")
    something = bool(done or aside)  # a checkpoint of step 0, which rollback wants, is none
    try:
        notes = check_same(path, old, composed, parts, strictly=not something)
    except ConfigError:
        if something or (not ours and is_held(path)):
            raise
        return Found(other=True)
    if done > total_steps:
        raise ConfigError(f"epochs, max_steps: {total_steps} updates, but this run has done {done} already.")
    as_before = filled(old)["early_stopping"] == composed.plain()["early_stopping"]
    finished = summary.get("status") == "finished"
    ended = done == total_steps or ("reason" in summary and as_before)
    if not saved and something and not (finished and ended):
        raise ConfigError(
            f"hydra.run.dir={path}: this run has done {done} updates, and its checkpoints are not there any more. Put "
            "them back, or choose another directory."
        )
    if not saved:
        notes.append("its checkpoints have been removed" if done else "nothing was saved before: it begins again")
    elif parts is not None and (glanced := _check_state(path, composed, total_steps, parts)) is not None:
        ended, notes = glanced[0] or done == total_steps, notes + glanced[1]
    return Found(True, finished and ended, notes=tuple(notes))


def _check_state(path: Path, composed: Composed, total_steps: int, parts: "Parts") -> tuple[bool, list[str]] | None:
    """Check that the newest checkpoint fits, before it is read as a whole.

    Returns:
        Whether early stopping has ended its run, and lines for the log; None where it is damaged.

    Raises:
        ConfigError: It does not.
    """
    from launcher.training import checkpoint

    if (found := checkpoint.glance(path / "checkpoints")) is None:
        return None
    state, shapes = found
    for name, tensor in parts.model.state_dict().items():
        if shapes.get(name) != list(getattr(tensor, "shape", ())):
            raise ConfigError(
                f"hydra.run.dir={path}: its checkpoints do not fit the model, whose {name} is {list(tensor.shape)} now "
                f"and was {shapes.get(name, 'absent')}: its code has changed. Restore it, or choose another directory."
            )
    rules, record = checkpoint.rules_of(composed.settings), Record(path / "metrics.jsonl")
    every = parts.plan.interval(composed.settings.eval_every)
    ended = checkpoint.rejoin(state, total_steps, rules, record, every)["progress"]["ended"] is not None
    if "record" in state and not record.holds(state["record"]):
        return ended, ["metrics.jsonl has been changed or removed: it goes on without the rows that are not there"]
    return ended, []


def holds_checkpoint(composed: Composed) -> bool:
    """Whether this start will go on from a checkpoint, as any rank can see it, before anything is made."""
    path = Path(str(composed.hydra.run.dir)).resolve()
    before = path if composed.chose_directory else _of_this_launch(path, composed)
    return before is not None and _has_checkpoint(before)


def _has_checkpoint(path: Path) -> bool:
    return any(any((path / "checkpoints").glob(name)) for name in ("step_*", ".replaced-step_*"))


def _make_new(path: Path) -> Path:
    for number in range(1000):
        attempt = path if number == 0 else path.with_name(f"{path.name}_{number}")
        try:
            make_directory(attempt, "hydra.run.dir", exist_ok=False)
            return attempt
        except FileExistsError:
            continue
    raise ConfigError(f"hydra.run.dir={path}: taken a thousand times over. Name a directory of your own.")


def read_config(path: Path, setting: str) -> dict[str, Any]:
    """The settings that a run was made with.

    Args:
        path: Run directory.
        setting: That names it, for messages.

    Raises:
        ConfigError: They cannot be read.
    """
    try:
        settings: Any = OmegaConf.to_container(OmegaConf.load(path / CONFIG))
    except (OSError, ValueError, YAMLError) as error:
        what = " ".join(str(error).split())
        raise ConfigError(f"{setting}={path}: {CONFIG} cannot be read ({what}); the run wrote it.") from error
    if not isinstance(settings, dict) or not set(COMPONENTS) & settings.keys():
        raise ConfigError(f"{setting}={path}: {CONFIG} does not hold the settings of a run; the run wrote it.")
    return settings


def check_same(
    path: Path, old: dict[str, Any], composed: Composed, parts: "Parts | None" = None, strictly: bool = False
) -> list[str]:
    """Check that a run directory can be resumed with a config, and with the data that this names.

    Args:
        path: Run directory.
        old: The settings that it was made with.
        composed: The config now.
        parts: With the data; None leaves that aside.
        strictly: Whether all that is known of the data must be the same, as it must where it was moved.

    Returns:
        Lines about what is in another place now.

    Raises:
        ConfigError: It belongs to a run with another config, or has learned from other data.
    """
    from launcher.run import provenance

    old = filled(old)
    new = composed.as_begun(old).plain()
    lines = [line for line in differences(old, new) if not line.startswith("early_stopping.")]  # see checkpoint.rejoin
    moved = [line for line in lines if line.partition(": ")[0] in MOVABLE]
    reasons: list[str] = []
    if (path / provenance.FILE).is_file():
        provenance.read(path)  # what is broken is said now
    if parts is not None and (path / provenance.DATA).is_file():
        then, now = provenance.read_data(path), provenance.record_of(parts.data)
        reasons = provenance.unlike(then, now, strictly or bool(moved))
        lines = [line for line in lines if line not in moved] if moved and not reasons else lines
    longer = [f"{key}: {old.get(key)} -> {new[key]}" for key in ("epochs", "max_steps") if old.get(key) != new[key]]
    hint = ""
    if longer and depends_on_length(new["scheduler"]):
        lines += longer
        hint = (
            "\nIts learning rates follow its length (T_max, total_iters or the like of null, or a warmup that is a "
            "fraction), so it cannot be prolonged; with scheduler=constant, or lengths of its own, it could."
        )
    if lines:
        raise ConfigError(
            f"hydra.run.dir={path} belongs to a run with another config:\n  "
            + "\n  ".join([*lines, *reasons])
            + hint
            + "\nUse the settings it was made with to resume it, or another directory for a new run."
        )
    if reasons:
        raise ConfigError(
            f"hydra.run.dir={path}: this is not the data that the run in it has learned from:\n  "
            + "\n  ".join(reasons)
            + "\nRestore it to resume the run, or use another directory for a new run."
        )
    return [f"moved {line}; by data.json these are the same samples" for line in moved]


def launch_names() -> list[str]:
    """What a restart by torchrun and a requeue by SLURM have in common with the first start; none outside of both."""
    names, run = [], os.environ.get("TORCHELASTIC_RUN_ID")
    if run not in (None, "", "none"):
        names.append(f"elastic {run}")
    elif run is not None:
        # accelerate names no run: its agent, the parent of all ranks of a node, is known by its pid and start
        with contextlib.suppress(OSError, IndexError):
            started = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19]
            names.append(f"agent {socket.gethostname()} {os.getppid()} {started}")
    if job := os.environ.get("SLURM_JOB_ID"):
        names.append(f"slurm {job}")
    return names


def _of_this_launch(path: Path, composed: Composed) -> Path | None:
    """The run directory that an earlier start of this launch made, beside the one for now.

    An unfinished one; a finished one where the launch begins anew, as when something failed after the run's end.
    """
    names = set(launch_names())
    requeued, restarted = (int(os.environ.get(f"{by}_RESTART_COUNT") or 0) for by in ("SLURM", "TORCHELASTIC"))
    if not (requeued or restarted):  # what else this job or allocation runs is another run
        names = {name for name in names if not name.startswith("slurm ")}
    found: dict[bool, Path] = {}
    for lock in [*path.parent.glob(f"*/{LOCK}"), *path.parent.parent.glob(f"*/*/{LOCK}")] if names else ():
        with contextlib.suppress(OSError, ValueError, ConfigError):
            if names & set(json.loads(lock.read_text()).get("launches") or ()):
                check_same(lock.parent, read_config(lock.parent, "hydra.run.dir"), composed)
                found[read_json(lock.parent / "summary.json").get("status") == "finished"] = lock.parent
    return found.get(False) or (found.get(True) if requeued or restarted else None)


def is_locked(file: Path) -> bool:
    """Whether a process holds the lock (flock) of a file that is there, or would if one may not look."""
    try:
        handle = os.open(file, os.O_RDWR)
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def is_held(path: Path) -> bool:
    """Whether a run is in a run directory."""
    return (path / LOCK).exists() and is_locked(path / LOCK)


def _lock(path: Path) -> int:
    handle = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(handle, 1000).decode(errors="replace") or "an unknown process"
        os.close(handle)
        raise ConfigError(
            f"hydra.run.dir={path}: a run is in it ({holder.strip()}). Stop it, or choose another."
        ) from error
    who = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "launches": launch_names(),
    }
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(who).encode(), 0)
    return handle


def _make_room(path: Path) -> str:
    """Set aside what a run has left that had saved nothing: files whose names others count as a run's get others."""
    name = next(f"earlier-{number}" for number in itertools.count(1) if not (path / f"earlier-{number}").exists())
    (path / name).mkdir()
    for pattern in (*LEFT, *RECORDS, ".hydra"):  # the config last: one that is killed in here begins again
        for place in path.glob(pattern):
            os.rename(place, path / name / place.name.lstrip("."))
    return name


def _write_config(path: Path, composed: Composed) -> None:
    """The three files that Hydra leaves in a run directory."""
    (path / ".hydra").mkdir(exist_ok=True)
    for name, text in (
        ("hydra.yaml", OmegaConf.to_yaml(OmegaConf.create({"hydra": composed.hydra}))),
        ("overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(composed.overrides))),
        ("config.yaml", OmegaConf.to_yaml(composed.settings)),
    ):
        write_text(path / ".hydra" / name, text, durable=True)
