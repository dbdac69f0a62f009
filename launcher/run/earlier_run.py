"""What a start finds in a run directory: whether its run may resume with these settings (`check_same`), and why not."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from launcher.config.checks import filled
from launcher.config.composed import Composed
from launcher.config.differences import differences
from launcher.core.errors import ConfigError
from launcher.core.files import last_step, read_json
from launcher.run import provenance
from launcher.run.config_file import CONFIG, read_config
from launcher.run.lock import LOCK, is_held
from launcher.run.record import Record
from launcher.schedulers.schedule import depends_on_length

if TYPE_CHECKING:
    from launcher.build import Parts

MOVABLE = ("data.path", "data.root", "data.tokenizer")  # where the same data may lie in another place
RECORDS = ("train.log", "metrics.jsonl", "timings.jsonl", "histograms.jsonl", "media.jsonl")  # what is appended to


class Found(NamedTuple):
    """What is in the directory that a start was given."""

    resumed: bool = False  # a run
    complete: bool = False  # one that has ended, with everything measured and written
    other: bool = False  # one of other settings or other data that has saved nothing: its files make room
    notes: tuple[str, ...] = ()  # lines for the log


def look_into(path: Path, composed: Composed, parts: "Parts", ours: bool = False) -> Found:
    """What a start finds in a directory, which stays as it is and need not exist; `ours`: this process holds its lock.

    Raises:
        ConfigError: As for `open_run_directory`.
    """
    summary, saved = read_json(path / "summary.json"), has_checkpoint(path)
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
    if done > parts.total_steps:
        raise ConfigError(f"epochs, max_steps: {parts.total_steps} updates, but this run has done {done} already.")
    as_before = filled(old)["early_stopping"] == composed.plain()["early_stopping"]
    finished = is_finished(path)
    ended = done == parts.total_steps or ("reason" in summary and as_before)
    if not saved and something and not (finished and ended):
        raise ConfigError(
            f"hydra.run.dir={path}: this run has done {done} updates, and its checkpoints are not there any more. Put "
            "them back, or choose another directory."
        )
    if not saved:
        notes.append("its checkpoints have been removed" if done else "nothing was saved before: it begins again")
    elif (glanced := _check_state(path, composed, parts)) is not None:
        ended, notes = glanced[0] or done == parts.total_steps, notes + glanced[1]
    return Found(True, finished and ended, notes=tuple(notes))


def _check_state(path: Path, composed: Composed, parts: "Parts") -> tuple[bool, list[str]] | None:
    """Check that the newest checkpoint fits, before it is read as a whole.

    Returns:
        Whether early stopping has ended its run, and lines for the log; None where it is damaged.
    """
    from launcher.training import checkpoint
    from launcher.training.progress import rules_of
    from launcher.training.resume import adapt_state

    if (found := checkpoint.peek_newest(path / "checkpoints")) is None:
        return None
    state, shapes = found
    parts.learner.base.check(state.get("base"), path)
    for name, tensor in parts.model.state_dict().items():
        if name not in parts.learner.base.names and shapes.get(name) != list(getattr(tensor, "shape", ())):
            raise ConfigError(
                f"hydra.run.dir={path}: its checkpoints do not fit the model, whose {name} is {list(tensor.shape)} now "
                f"and was {shapes.get(name, 'absent')}: its code has changed. Restore it, or choose another directory."
            )
    rules, record = rules_of(composed.settings), Record(path / "metrics.jsonl")
    every = parts.plan.interval(composed.settings.eval_every)
    ended = adapt_state(state, parts.total_steps, rules, record, every)["progress"]["ended"] is not None
    if "record" in state and not record.holds(state["record"]):
        return ended, ["metrics.jsonl has been changed or removed: it goes on without the rows that are not there"]
    return ended, []


def has_checkpoint(path: Path) -> bool:
    """Whether something was saved in a run directory."""
    return any(any((path / "checkpoints").glob(name)) for name in ("step_*", ".replaced-step_*"))


def is_finished(path: Path) -> bool:
    """Whether the run in a directory came to its end, by its summary."""
    return bool(read_json(path / "summary.json").get("status") == "finished")


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
    old = filled(old)
    new = composed.as_begun(old).plain()
    lines = [line for line in differences(old, new) if not line.startswith("early_stopping.")]  # see adapt_state
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
            + f"\nUse the settings it was made with ({CONFIG}) to resume it, or another directory for a new run. "
            "What may differ on resume has a star in docs/settings.md."
        )
    if reasons:
        raise ConfigError(
            f"hydra.run.dir={path}: this is not the data that the run in it has learned from:\n  "
            + "\n  ".join(reasons)
            + "\nRestore it to resume the run, or use another directory for a new run."
        )
    return [f"moved {line}; by data.json these are the same samples" for line in moved]
