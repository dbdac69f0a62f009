"""The trials of a sweep: what one is, how it is called, and what files and the queue of SLURM tell of it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from launcher.config.tree import key_of
from launcher.core.files import numbers, read_json
from launcher.distributed import slurm_commands
from launcher.run.config_file import CONFIG
from launcher.run.pruning import PRUNED
from launcher.sweep.failure import FAILED
from launcher.sweep.trial_state import State, TrialState

LONGEST = 150  # characters of a trial's directory name; file systems take 255 bytes
SUBMISSIONS = "submissions"  # in the directory of a sweep; a directory for each job array that it was submitted as


@dataclass(frozen=True)
class Program:
    """What the processes of trials run, as data: processes of any program are started, watched and ended alike."""

    entry: str  # dotted name of a function; what it returns is the exit status
    preload: str  # module that the process which they are forked from imports in advance; see fork_server.py
    state_of: Callable[[Path], State]  # what the files of a trial's directory tell, one of AT_REST
    shared: tuple[Any, ...] = ()  # the first arguments of `entry`, before those that each trial has packed
    one_process: bool = False  # one process has all devices of a trial; else each process has one


@dataclass
class Trial:
    """One trial of a sweep."""

    index: int  # its place in the sweep
    overrides: list[str]  # those of the command line that make it
    label: str  # what varies, for people
    path: Path  # its run directory
    world: int  # its devices, now: a process for each, or one process for all of them
    kind: str  # gpu, cpu, or slurm
    threads: int  # CPU threads of each process
    timeout: float  # seconds without a sign of life after which it counts as hung; infinite: it need give none
    metric: str | None  # name of the one that counts
    epochs: int  # of the whole run
    packed: bytes  # arguments, pickled: settings, Hydra's node and overrides take a hundred times those few KB open
    lifecycle: TrialState  # where it stands; only its transitions change that
    program: Program = field(default_factory=lambda: TRAINING)  # what its processes run
    sizes: tuple[int, ...] = ()  # numbers of processes that it may have, ascending; empty: `world` alone
    max_steps: int | None = None  # updates after which it ends, where its epochs have more

    @property
    def state(self) -> State:
        """Where it stands."""
        return self.lifecycle.current

    @property
    def is_malleable(self) -> bool:
        """Whether it may have more than one number of processes."""
        return len(self.sizes) > 1

    @property
    def reason(self) -> str:
        """Why it failed."""
        return self.lifecycle.reason

    @property
    def processes(self) -> int:
        """How many it has."""
        return 1 if self.program.one_process else self.world

    def found(self) -> State:
        """What its files tell, one of AT_REST."""
        return self.program.state_of(self.path)


# --- What its files tell ---------------------------------------------------------------------------------------------


def state_of(path: Path) -> State:
    """What the files of a run directory tell, one of AT_REST: new where there are none."""
    if not (path / CONFIG).is_file():
        return State.FAILED if (path / FAILED).exists() else State.NEW
    status = read_json(path / "summary.json").get("status")
    if status == "finished":
        return State.FINISHED
    if (path / FAILED).exists():
        return State.FAILED
    if read_json(path / "stopped.json").get("reason") == PRUNED:
        return State.PRUNED
    return State.STOPPED if status == "stopped" or (path / "stopped.json").exists() else State.INTERRUPTED


# The story of a run stands above this room, which names it and does not import it.
TRAINING: Program = Program("launcher.trial.train_composed", "launcher.sweep.preload", state_of)


def metric_of(path: Path, metric: str | None) -> float | None:
    """A metric of a finished run: of its best evaluation where that is kept, else of its last."""
    summary = read_json(path / "summary.json")
    value = (numbers(summary.get("final")) | numbers(summary.get("best"))).get(str(metric))
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def next_submission(path: Path) -> Path:
    """The directory for what is submitted next of the sweep in `path`; not made."""
    numbers = [int(place.name) for place in path.glob(f"{SUBMISSIONS}/*") if place.name.isdigit()]
    return path / SUBMISSIONS / str(max(numbers, default=0) + 1)


def in_queue(path: Path) -> dict[str, State]:
    """The trials of a sweep that a job array of it still has: name to `queued` or `running`.

    Raises:
        RuntimeError: SLURM does not answer.
    """
    tasks: dict[str, str] = {}
    for file in sorted(path.glob(f"{SUBMISSIONS}/*/job.json")):
        known = read_json(file)
        tasks |= {f"{known['job']}_{index}": name for index, name in enumerate(known["points"])}
    active = slurm_commands.active_tasks(sorted({task.partition("_")[0] for task in tasks}))
    return {tasks[task]: State.QUEUED if state == "PENDING" else State.RUNNING for task, state in active.items()}


# --- Names -----------------------------------------------------------------------------------------------------------


def directory_name(overrides: Sequence[str], varying: frozenset[str], form: Any = None) -> str:
    """The directory name of a trial, of letters, digits and `.,_=+-`: made from the overrides that it consists of.

    Those that do not change the result are left out, unless their keys are `varying` in the sweep. Where characters had
    to go, or the name would be too long, it ends in eight letters of a hash of the full text: different trials never
    share a name. `form` is hydra.job.config.override_dirname, which leaves out keys and says what stands in between.
    """
    left_out = set(form.exclude_keys) if form is not None else set()
    kept = [o for o in overrides if (key_of(o) in varying or not is_free(key_of(o))) and key_of(o) not in left_out]
    text = ",".join(sorted(kept)) or "defaults"
    if form is not None and (form.kv_sep, form.item_sep) != ("=", ","):
        text = form.item_sep.join(sorted(kept)).replace("=", form.kv_sep) or "defaults"
    safe = re.sub(r"[^\w.,=+-]+", "", text, flags=re.ASCII).lstrip(".-")
    if safe == text and len(text) <= LONGEST:
        return text
    return f"{safe[: LONGEST - 9]}-{sha256(text.encode()).hexdigest()[:8]}"


def varying_keys(job_overrides: Sequence[Sequence[str]]) -> frozenset[str]:
    """The settings that not all trials have in common."""
    chosen = [{key_of(override): override for override in overrides} for overrides in job_overrides]
    keys = {key for own in chosen for key in own}
    return frozenset(key for key in keys if len({own.get(key) for own in chosen}) > 1)


def is_free(key: str) -> bool:
    """Whether a setting may differ between two trials that give the same result."""
    from launcher.config.schema import MAY_DIFFER_ON_RESUME  # 0.3 s, which the jobs of other programs need not take

    # A longer run is another trial of a comparison, and so is one that goes back where another ends.
    lasting = key in ("epochs", "max_steps") or key.startswith("divergence.")
    return not lasting and any(key == free or key.startswith(free + ".") for free in MAY_DIFFER_ON_RESUME)
