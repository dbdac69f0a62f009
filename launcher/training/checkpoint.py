"""Checkpoints: complete or absent, verified before they are believed, written beside the training.

A checkpoint is a directory `step_00000042` with `model.safetensors` (alone enough for inference), `state.pt`
(optimizer, schedule and the rest, loaded with weights_only=True) and `manifest.json`, which holds the checksum of
every file and is written last. It is made under another name, flushed to the disk, and renamed.
"""

import hashlib
import json
import logging
import math
import os
import random
import re
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from launcher.core.errors import ConfigError
from launcher.core.files import flush
from launcher.distributed.process_group import Ranks, at_rank_0, sum_over_ranks
from launcher.distributed.watch import by_rank_0
from launcher.training.staging import Staging

if TYPE_CHECKING:
    from launcher.run.tracking import Record
    from launcher.training.engine import Trainer, Window

log = logging.getLogger("launcher")

NAME = re.compile(r"step_(\d{8,})")
MANIFEST = "manifest.json"


# What evaluations decide: keyword arguments of Progress.note (`best`) and of Progress.watch (`patience`).
Rules = Mapping[str, Mapping[str, Any]]


class DamagedCheckpoint(ValueError):
    """A checkpoint's files are not what its manifest says."""


def step_of(directory: Path) -> int:
    """The step in a checkpoint's name."""
    match = NAME.fullmatch(directory.name)
    assert match, directory
    return int(match[1])


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in a directory, oldest first; half-made ones have other names and are not among them."""
    if not directory.is_dir():
        return []
    return sorted((p for p in directory.iterdir() if NAME.fullmatch(p.name) and p.is_dir()), key=step_of)


def write_checkpoint(directory: Path, step: int, model: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Write a checkpoint, so that it is there whole or not at all whenever the process or the machine dies.

    Args:
        directory: Where checkpoints are; made where it is missing.
        step: Optimizer updates done.
        model: Weights and buffers by name, in host memory.
        state: Everything else: tensors and plain values, such as weights_only loading takes.

    Returns:
        The checkpoint's directory.
    """
    directory.mkdir(parents=True, exist_ok=True)
    final = directory / f"step_{step:08d}"
    making = directory / f".making-{final.name}"
    for stale in directory.glob(".making-*"):  # of a process that was killed while it saved
        shutil.rmtree(stale)
    making.mkdir()
    save_weights(making / "model.safetensors", model)
    torch.save(dict(state), making / "state.pt")
    files = {path.name: _flushed_digest(path) for path in sorted(making.iterdir())}
    manifest = making / MANIFEST
    manifest.write_text(json.dumps({"step": step, "files": files}, indent=1) + "\n")
    flush(manifest)
    flush(making)
    replaced = directory / f".replaced-{final.name}"
    if final.exists():  # the same step again: after a resume from an older one, or of one not evaluated yet
        os.rename(final, replaced)
    os.rename(making, final)
    flush(directory)
    shutil.rmtree(replaced, ignore_errors=True)
    return final


def save_weights(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file that those may read who may read the other files: safetensors lets the owner alone."""
    file.touch()
    mode = file.stat().st_mode
    save_file(dict(tensors), file)
    file.chmod(mode)


def put_back(directory: Path) -> None:
    """Give a checkpoint its name again whose successor did not come because the process was killed."""
    for replaced in directory.glob(".replaced-*"):
        final = replaced.with_name(replaced.name.removeprefix(".replaced-"))
        if final.exists():
            shutil.rmtree(replaced)
        else:
            os.rename(replaced, final)


def _flushed_digest(path: Path) -> dict[str, Any]:
    flush(path)
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def verify(checkpoint: Path) -> None:
    """Check every file of a checkpoint against its manifest.

    Raises:
        DamagedCheckpoint: A file is missing, has another length or other bytes, or the manifest cannot be read.
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        files = dict(manifest["files"])
        if manifest["step"] != step_of(checkpoint) or not {"model.safetensors", "state.pt"} <= files.keys():
            raise DamagedCheckpoint(f"{checkpoint / MANIFEST} belongs to another checkpoint")
        for name, expected in files.items():
            path = checkpoint / name
            if path.stat().st_size != expected["bytes"]:
                raise DamagedCheckpoint(f"{path} has {path.stat().st_size} bytes, not {expected['bytes']}")
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                    raise DamagedCheckpoint(f"{path} has other contents than were written")
    except DamagedCheckpoint:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"{checkpoint} cannot be read: {error}") from error


def newest_good(directory: Path) -> Path | None:
    """The newest checkpoint whose files are as they were written; a damaged one is named in a warning.

    Raises:
        DamagedCheckpoint: There are checkpoints, and every one of them is damaged.
    """
    found = checkpoints(directory)
    for checkpoint in reversed(found):
        try:
            verify(checkpoint)
            return checkpoint
        except DamagedCheckpoint as error:
            log.warning("DAMAGED CHECKPOINT: %s. Falling back to the one before it.", error)
    if found:
        raise DamagedCheckpoint(
            f"every checkpoint in {directory} is damaged. Restore one, or remove the directory to start over."
        )
    return None


def take_up(directory: Path) -> Path | None:
    """The checkpoint to go on from, for who writes new ones: `newest_good`, with the directory put in order.

    Damaged ones that are newer get another name: as the newest they would be kept, and the fresh ones be pruned. Not so
    those that a disk could not read now.

    Raises:
        DamagedCheckpoint: There are checkpoints, and every one of them is damaged.
    """
    put_back(directory)
    good = newest_good(directory)
    for damaged in checkpoints(directory)[::-1]:
        if damaged == good:
            break
        try:
            verify(damaged)
            continue
        except DamagedCheckpoint as error:
            if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
                continue
        aside = damaged.with_name(f".damaged-{damaged.name}")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(damaged, aside)
        log.warning("%s is kept as %s.", damaged, aside.name)
    return good


def best_good(directory: Path) -> Path | None:
    """The best checkpoint, verified, or the newest good one where that was not saved; None where none was measured so.

    Raises:
        DamagedCheckpoint: It is damaged, or all of them are.
    """
    newest = newest_good(directory)
    return None if newest is None else best_of(newest)


def best_of(newest: Path) -> Path | None:
    """The same, given the newest good one."""
    step = best_step(newest)
    if step is None:
        return None
    best = newest.with_name(f"step_{step:08d}")
    if not best.exists():
        log.warning("The best checkpoint, of step %d, was not saved: taking that of step %d.", step, step_of(newest))
        return newest
    verify(best)
    return best


def read_checkpoint(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and state of a checkpoint; nothing in the files is executed."""
    return load_weights(checkpoint), read_state(checkpoint)


def load_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The measured weights of a checkpoint by name: the file, mapped, of which who takes a part reads that part."""
    return load_file(checkpoint / "model.safetensors")


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The state of a checkpoint; nothing in the file is executed. Its tensors are those of the file, mapped.

    Ranks of a machine share its pages, and each reads those that it takes a part of. What stays has to be copied: a
    file that is changed or removed must not change or end a run.
    """
    state: dict[str, Any] = torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True, mmap=True)
    return state


def glance(directory: Path) -> tuple[dict[str, Any], dict[str, list[int]]] | None:
    """The state in the newest checkpoint and the shapes of its weights, within milliseconds, before it is believed.

    Returns:
        None where there is no checkpoint, or its files cannot be read, which `newest_good` will say.
    """
    try:
        newest = checkpoints(directory)[-1]
        with safe_open(newest / "model.safetensors", "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no dict)
        return read_state(newest), shapes
    except Exception:  # the readers raise whatever a damaged file leads them to
        return None


def prune(directory: Path, keep: int, best: Collection[int]) -> None:
    """Remove old checkpoints, but for the `keep` newest and those of the steps in `best`."""
    for checkpoint in checkpoints(directory)[:-keep]:
        if step_of(checkpoint) not in best:
            removed = checkpoint.with_name(f".removing-{checkpoint.name}")
            os.rename(checkpoint, removed)  # one that is removed half must not look damaged
            shutil.rmtree(removed)


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: Optimizer updates done.
        best_step: The step of the best evaluation; None before the first.
        best: The figures of that evaluation.
        seen: Whether the step was evaluated and logged; not where the run was stopped before.
        max_per_device: Most samples that a device sees at once, where the run found that out by itself.
        lowest: The best value of what early stopping watches so far, its sign turned where more is better.
        waited: Evaluations in a row that did not better it.
        ended: Why the run is over at this step, before its last one; None while it goes on.
    """

    step: int = 0
    best_step: int | None = None
    best: dict[str, float] = field(default_factory=dict)
    seen: bool = True
    max_per_device: int | None = None
    lowest: float = math.inf
    waited: int = 0
    ended: str | None = None

    @property
    def recorded(self) -> int:
        """The last step whose row, where it has one, is in the record; the rows after it come again."""
        return self.step if self.seen else self.step - 1

    def note(self, row: Mapping[str, float], metric: str | None, mode: str) -> None:
        """Keep an evaluation's figures where they are the best so far.

        Args:
            row: Metric name to number.
            metric: The one that counts; None counts none.
            mode: min or max.
        """
        if metric is None:
            return
        sign = 1 if mode == "max" else -1
        best = math.nan if self.best_step is None else self.best[metric]
        if math.isnan(best) or sign * row[metric] > sign * best:
            self.best_step = self.step
            self.best = {name: value for name, value in row.items() if name.startswith("eval/")}

    def watch(self, row: Mapping[str, float], metric: str | None, mode: str, patience: int, min_delta: float) -> None:
        """Early stopping (Prechelt 1998): end the run where evaluations do not get better any more.

        Args:
            row: Metric name to number.
            metric: The one that counts; None never ends the run.
            mode: min or max.
            patience: Evaluations in a row without improvement that end it, >= 1.
            min_delta: Smallest change that counts as an improvement must be more than this, >= 0.
        """
        if metric is None:
            return
        sign = -1 if mode == "max" else 1
        if sign * row[metric] < self.lowest - min_delta:
            self.lowest, self.waited = sign * row[metric], 0
        else:  # NaN is no improvement
            self.waited += 1
        if self.waited >= patience:
            best = f"no better than {sign * self.lowest:.6g}"
            self.ended = f"early stopping: {metric} was {best} in {self.waited} evaluations in a row"

    def judged(self, rows: Iterable[Mapping[str, Any]], rules: Rules) -> "Progress":
        """The same progress by other rules for its evaluations.

        Args:
            rows: Of the record, those of the evaluations so far.
            rules: See `Rules`.

        Raises:
            ConfigError: By these rules the run would have ended before.
        """
        fresh = replace(self, best_step=None, best={}, lowest=math.inf, waited=0, ended=None)
        for row in rows:
            fresh.step = row["step"]
            fresh.note(row, **rules["best"])
            fresh.watch(row, **rules["patience"])
            if fresh.ended is not None:
                break
        if fresh.ended is not None and fresh.step < self.step:
            raise ConfigError(
                f"early_stopping: with these settings the run would have ended at step {fresh.step}, and it has done "
                f"{self.step} updates already. Use a longer patience, or another directory."
            )
        return replace(fresh, step=self.step)


def best_step(path: Path) -> int | None:
    """The step of the best checkpoint so far, as a checkpoint has it; None where none was measured as such.

    Raises:
        DamagedCheckpoint: Its files are not what was written.
    """
    step: int | None = read_state(path)["progress"]["best_step"]
    return step


def look(trainer: "Trainer", progress: Progress) -> dict[str, Any]:
    """What an evaluation and a log line change, as it is before them; for `gather_state`."""
    now = trainer.window
    window = replace(now, steps=list(now.steps), losses=list(now.losses), weights=list(now.weights))
    return {
        "progress": asdict(replace(progress, seen=False)),
        "schedule": trainer.schedule.state_dict(),
        "window": window,
    }


def gather_state(
    trainer: "Trainer", progress: Progress, ranks: Ranks, before: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Everything but the measured weights that the next step depends on; whole on rank 0.

    The losses since the last log boundary are summed over the ranks, in the order in which the log would do it, and
    belong to rank 0 after a resume: the sum comes out the same, at any number of ranks.

    Args:
        trainer: Of this rank.
        progress: How far the run is.
        ranks: Which rank this is.
        before: What `look` gave where this step was evaluated or logged: a run that ends elsewhere goes on from there.

    Raises:
        Diverged: A loss, a weight or the state of the optimizer is NaN or infinite: nothing of the kind is ever saved.
    """
    trainer.check()
    trainer.settle()
    random_states = at_rank_0({"python": random.getstate(), "numpy": _numpy_state()}, ranks.world_size, ranks.rank)
    return {
        "model": trainer.weights(trainer.model) if trainer.measured is not trainer.model else None,
        "optimizer": trainer.optimizer_state(),
        "schedule": trainer.schedule.state_dict(),
        "scaler": trainer.scaler.state_dict() if trainer.scaler is not None else None,
        "progress": asdict(progress),
        "lr": trainer.lr,
        "window": _window_state(trainer.window, trainer, ranks),
        "random": random_states,
        "before": before and before | {"window": _window_state(before["window"], trainer, ranks)},
    }


def _window_state(window: "Window", trainer: "Trainer", ranks: Ranks) -> dict[str, Any]:
    losses, weights = sum_over_ranks(window.tensors(trainer.device), ranks.world_size)
    return {"steps": list(window.steps), "losses": losses, "weights": weights, "grad_norm": window.grad_norm}


def rules_of(settings: Any) -> Rules:
    """What a run's evaluations are judged by."""
    best = {"metric": settings.checkpoint.best, "mode": settings.checkpoint.best_mode}
    return {"best": best, "patience": dict(settings.early_stopping)}


def rejoin(state: Mapping[str, Any], total_steps: int, rules: Rules, record: "Record", every: int) -> dict[str, Any]:
    """What of a state is another where its run shall now end elsewhere, or be judged by other rules.

    The last update of a run is evaluated and logged whatever its number. A run that goes on from there does so from
    before that, as one of the full length that never had it; one that shall end here now has it still to come.

    Args:
        state: Of a checkpoint.
        total_steps: Updates that the run is to have.
        rules: By which its evaluations are judged now.
        record: Of the run: the evaluations so far.
        every: Updates from one of them to the next.

    Returns:
        Entries in the place of those in the state.

    Raises:
        ConfigError: By these rules the run would have ended before, or the record of its evaluations is not complete.
    """
    progress, before = Progress(**state["progress"]), state.get("before")
    changed = state.get("rules", rules) != rules
    rows: list[dict[str, Any]] = []
    if changed:
        if not record.holds(state["record"]):
            raise ConfigError(
                "early_stopping, checkpoint.best: to change them takes all evaluations so far, and "
                f"{record.path} has been changed or removed. Restore it, or use the settings as they were."
            )
        rows = [
            row for row in record.rows() if row["step"] <= progress.step and any(n.startswith("eval/") for n in row)
        ]
        rows = [row for row in rows if row["step"] % every == 0 or row["step"] == total_steps]
    now = progress.judged(rows, rules) if changed else progress
    over = progress.step == total_steps or now.ended is not None
    if not progress.seen or state.get("over", over) == over:
        return {"progress": asdict(now)}
    if before is None:  # nothing was due at this step
        return {"progress": asdict(replace(now, seen=False))}
    earlier = Progress(**before["progress"])
    if changed:
        earlier = earlier.judged([row for row in rows if row["step"] < progress.step], rules)
    return before | {"progress": asdict(earlier)}


def resume(
    found: Path, total_steps: int, rules: Rules, record: "Record", every: int, ranks: Ranks
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and state of a checkpoint, as a run goes on from them, on every rank; see `rejoin`."""
    weights, state = read_checkpoint(found)
    entries = partial(rejoin, state, total_steps, rules, record, every)
    return weights, state | by_rank_0("the record to be read", entries, ranks.world_size)


def best_beside(directory: Path, progress: Progress, ranks: Ranks) -> Path | None:
    """The checkpoint of the best evaluation where that was not the last update's, on every rank."""
    if progress.best_step in (None, progress.step):
        return None
    best = directory / f"step_{progress.best_step:08d}"

    def verified() -> Path | None:
        try:
            verify(best)
            return best
        except DamagedCheckpoint as error:
            why = error if best.exists() else "it was not saved"
            log.warning("The test part is measured by the last model alone, not by the best, of step %d: %s.",
                        progress.best_step, why)  # fmt: skip
            return None

    return by_rank_0("the best checkpoint to be verified", verified, ranks.world_size)


def restore(weights: Mapping[str, Tensor], state: Mapping[str, Any], trainer: "Trainer", ranks: Ranks) -> Progress:
    """Put a checkpoint's state into a run, at any number of ranks.

    Args:
        weights: Of the measured model.
        state: The rest, as gather_state made it.
        trainer: To put them into.
        ranks: Which rank this is.
    """
    trainer.load_weights(trainer.measured, weights)
    if state["model"] is not None:
        trainer.load_weights(trainer.model, state["model"])
    trainer.load_optimizer_state(state["optimizer"])
    trainer.schedule.load_state_dict(state["schedule"])
    if trainer.scaler is not None and state["scaler"] is not None:
        trainer.scaler.load_state_dict(state["scaler"])
    trainer.lr = state["lr"]
    window = state["window"]
    mine = torch.clone if ranks.rank == 0 else torch.zeros_like
    trainer.window.steps = list(window["steps"])
    trainer.window.losses = list(mine(window["losses"]).to(trainer.device).unbind())
    trainer.window.weights = list(mine(window["weights"]).to(trainer.device).unbind())
    trainer.window.grad_norm = None if window["grad_norm"] is None else torch.clone(window["grad_norm"])
    if state["random"] is not None and ranks.rank < len(state["random"]):
        of_rank = state["random"][ranks.rank]
        version, internal, gauss = of_rank["python"]
        random.setstate((version, tuple(internal), gauss))
        _set_numpy_state(of_rank["numpy"])
    return Progress(**state["progress"])


def go_back(directory: Path, trainer: "Trainer", ranks: Ranks) -> Progress:
    """Return to the newest good checkpoint, on every rank.

    Raises:
        DamagedCheckpoint: There is none.
    """
    found = by_rank_0("the checkpoints to be verified", partial(take_up, directory), ranks.world_size)
    if found is None:
        raise DamagedCheckpoint(f"there is no checkpoint in {directory} to go back to; save more often")
    trainer.window.clear()
    return restore(*read_checkpoint(found), trainer, ranks)


def _numpy_state() -> dict[str, Any]:
    """NumPy's legacy generator in plain values: its own arrays are refused by weights_only loading."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "name": name,
        "keys": np.asarray(keys).tolist(),
        "position": position,
        "has_gauss": has_gauss,
        "gauss": float(gauss),
    }


def _set_numpy_state(state: Mapping[str, Any]) -> None:
    keys = np.array(state["keys"], dtype=np.uint32)
    np.random.set_state((state["name"], keys, state["position"], state["has_gauss"], state["gauss"]))


class Saver:
    """Writes checkpoints in the background, one at a time.

    Args:
        directory: Where checkpoints are.
        keep: How many of the newest to keep, beside the best.
        max_failures: Saves in a row that may fail before `save` raises.
        staging: Where the state is copied to; None: as for a CPU.
    """

    def __init__(self, directory: Path, keep: int, max_failures: int, staging: Staging | None = None) -> None:
        self.directory, self.keep, self.max_failures = directory, keep, max_failures
        self.staging = staging or Staging()
        self.failures = 0
        self.seconds = 0.0  # the longest save so far, for who must stop in time
        self._thread: threading.Thread | None = None

    def save(
        self,
        step: int,
        model: Mapping[str, Tensor],
        state: Mapping[str, Any],
        best: Collection[int],
        sync: Callable[[], None] = lambda: None,
    ) -> None:
        """Copy the state out of device memory and write it in the background.

        Args:
            step: Updates done.
            model: The measured weights by name.
            state: Everything else.
            best: Steps of the checkpoints that are kept whatever their age.
            sync: Brings to the disk what the checkpoint counts on; where it raises OSError the save has failed.

        Raises:
            OSError: More saves in a row failed than max_failures allows.
        """
        self.wait()
        try:
            sync()
        except OSError as error:
            return self._failed(step, error)
        for stale in self.directory.glob(".removing-*"):
            shutil.rmtree(stale, ignore_errors=True)
        arguments = (step, *self.staging.copy((dict(model), dict(state))), best)
        self._thread = threading.Thread(target=self._write, args=arguments, name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            OSError: More saves in a row failed than max_failures allows.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self.failures > self.max_failures:
            raise OSError(f"{self.failures} saves in a row failed (checkpoint.max_failures={self.max_failures})")

    def close(self) -> None:
        """Wait for the last save, after which nothing else would make up for a failure.

        Raises:
            OSError: It failed.
        """
        self.wait()
        if self.failures:
            raise OSError("the last checkpoint could not be saved. The same command goes on from the one before it.")

    def _write(self, step: int, copied: Any, arrived: Callable[[], None], best: Collection[int]) -> None:
        begun = time.perf_counter()
        try:
            arrived()
            write_checkpoint(self.directory, step, *copied)
            prune(self.directory, self.keep, best)
            self.failures = 0
        except (OSError, RuntimeError, SafetensorError) as error:  # a full disk is any of them
            shutil.rmtree(self.directory / f".making-step_{step:08d}", ignore_errors=True)
            self._failed(step, error)
        except Exception as error:
            self.failures = self.max_failures + 1
            log.error("SAVING FAILED at step %d: %s: %s", step, type(error).__name__, error)
        self.seconds = max(self.seconds, time.perf_counter() - begun)

    def _failed(self, step: int, error: Exception) -> None:
        self.failures += 1
        log.error("SAVING FAILED at step %d: %s. The checkpoints before it are untouched.", step, error)
