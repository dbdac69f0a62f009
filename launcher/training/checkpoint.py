"""Checkpoints: complete or absent, verified before they are believed, written beside the training.

A checkpoint is a directory `step_00000042` with `model.safetensors` (alone enough for inference), `state.pt`
(optimizer, schedule and the rest, loaded with weights_only=True) and `manifest.json`, which holds the checksum of
every file and is written last. It is made under another name, flushed to the disk, and renamed. Beside them `best` is a
relative symlink to the best of them.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from launcher.core.files import flush

log = logging.getLogger("launcher")

NAME = re.compile(r"step_(\d{8,})")
MANIFEST = "manifest.json"
BEST = "best"  # beside the checkpoints: a symlink, which `checkpoints` does not list


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

    The model is weights and buffers by name, in host memory; the state what weights_only loading takes.
    """
    directory.mkdir(parents=True, exist_ok=True)
    final = directory / f"step_{step:08d}"
    making = directory / f".making-{final.name}"
    for stale in directory.glob(".making-*"):  # of a process that was killed while it saved
        shutil.rmtree(stale)
    making.mkdir()
    save_weights(making / "model.safetensors", model)
    torch.save(dict(state), making / "state.pt")
    files = {}
    for path in sorted(making.iterdir()):
        flush(path)
        files[path.name] = {"sha256": _digest(path), "bytes": path.stat().st_size}
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


def restore_replaced(directory: Path) -> None:
    """Give a checkpoint its name again whose successor did not come because the process was killed."""
    for replaced in directory.glob(".replaced-*"):
        final = replaced.with_name(replaced.name.removeprefix(".replaced-"))
        if final.exists():
            shutil.rmtree(replaced)
        else:
            os.rename(replaced, final)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(checkpoint: Path) -> None:
    """Raise DamagedCheckpoint where a file is missing, or has not the length and bytes that the manifest says."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        files = dict(manifest["files"])
        if manifest["step"] != step_of(checkpoint) or not {"model.safetensors", "state.pt"} <= files.keys():
            raise DamagedCheckpoint(f"{checkpoint / MANIFEST} belongs to another checkpoint")
        for name, expected in files.items():
            path = checkpoint / name
            if path.stat().st_size != expected["bytes"]:
                raise DamagedCheckpoint(f"{path} has {path.stat().st_size} bytes, not {expected['bytes']}")
            if _digest(path) != expected["sha256"]:
                raise DamagedCheckpoint(f"{path} has other contents than were written")
    except DamagedCheckpoint:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"{checkpoint} cannot be read: {error}") from error


def newest_good(directory: Path, set_aside: bool = False) -> Path | None:
    """The newest checkpoint whose files are as they were written; a damaged one is named in a warning.

    With `set_aside`, for who writes new ones, damaged ones that are newer get another name: as the newest they would be
    kept, and the fresh ones be pruned. Not so those that a disk could not read now.

    Raises:
        DamagedCheckpoint: There are checkpoints, and every one of them is damaged.
    """
    found, damaged = checkpoints(directory), []
    for checkpoint in reversed(found):
        try:
            verify(checkpoint)
        except DamagedCheckpoint as error:
            log.warning("DAMAGED CHECKPOINT: %s. Falling back to the one before it.", error)
            if not isinstance(error.__cause__, OSError) or isinstance(error.__cause__, FileNotFoundError):
                damaged.append(checkpoint)
            continue
        for one in damaged if set_aside else ():
            aside = one.with_name(f".damaged-{one.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(one, aside)
            log.warning("%s is kept as %s.", one, aside.name)
        return checkpoint
    if found:
        raise DamagedCheckpoint(
            f"every checkpoint in {directory} is damaged. Restore one, or remove the directory to start over."
        )
    return None


def resolve_resume_checkpoint(directory: Path) -> Path | None:
    """The checkpoint to go on from, for who writes new ones: `newest_good`, with the directory put in order."""
    restore_replaced(directory)
    found = newest_good(directory, set_aside=True)
    link_best(directory, found, None if found is None else best_step(found))
    return found


def link_best(directory: Path, newest: Path | None, step: int | None) -> None:
    """Have the symlink `best` name the checkpoint that `best_of` takes, in one go; none where none was measured.

    For who writes checkpoints: after a new one is complete, and before old ones are pruned, so that the checkpoint of
    the link is always there. A file system without symlinks costs the link alone, and is named in a warning.

    Args:
        directory: Of the checkpoints.
        newest: The newest good one; None where there is none.
        step: Of the best, by the state of the newest; None where none was measured as such.
    """
    link, fresh = directory / BEST, directory / f".{BEST}.new"
    try:
        if newest is None or step is None:
            link.unlink(missing_ok=True)
            return
        best = newest.with_name(f"step_{step:08d}")
        target = best.name if best.exists() else newest.name
        with contextlib.suppress(OSError):
            if os.readlink(link) == target:
                return
        fresh.unlink(missing_ok=True)  # of a process that was killed in here
        if not link.is_symlink() and (link / MANIFEST).exists():  # a run that was copied with what its links named
            shutil.rmtree(link)
        fresh.symlink_to(target)
        os.replace(fresh, link)
    except OSError as error:
        log.warning("%s does not name the best checkpoint: %s", link, error.strerror)


def best_of(newest: Path) -> Path | None:
    """The best checkpoint, verified, given the newest good one, which it is where the best was not saved.

    None where none was measured as such. Raises DamagedCheckpoint as `verify`.
    """
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
    """The weights of the eval model by name: the file, mapped, of which who takes a part reads that part."""
    return load_file(checkpoint / "model.safetensors")


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The state of a checkpoint; nothing in the file is executed. Its tensors are those of the file, mapped.

    Ranks of a machine share its pages, and each reads those that it takes a part of. What stays has to be copied: a
    file that is changed or removed must not change or end a run.
    """
    state: dict[str, Any] = torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True, mmap=True)
    return state


def peek_newest(directory: Path) -> tuple[dict[str, Any], dict[str, list[int]]] | None:
    """State and shapes of weights in the newest checkpoint, in milliseconds; None where they cannot be read."""
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


def best_step(path: Path) -> int | None:
    """The step of the best checkpoint so far, as a checkpoint has it; None where none was measured as such."""
    step: int | None = read_state(path)["progress"]["best_step"]
    return step
