"""What the points of a grid are: their names, their composed configs, and what the grid's directory keeps of them."""

import fcntl
import json
import os
import pickle
import re
import shlex
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from launcher.config import composition
from launcher.config.checks import filled
from launcher.config.places import check_length, check_writable
from launcher.config.resume import differences
from launcher.config.schema import FREE_ON_RESUME
from launcher.config.tree import directory_override, key_of
from launcher.core.errors import ConfigError
from launcher.core.files import read_json, write_json, write_text
from launcher.run import run_directory
from launcher.run.command_line import config_options, started_words
from launcher.sweep.failure import FAILED

LOCK = "grid.lock"
LONGEST = 150  # characters of a point's directory name; file systems take 255 bytes


@dataclass
class Point:
    """One point of a grid.

    Attributes:
        index: Its place in the grid.
        overrides: Those of the command line that make it.
        label: What varies, for people.
        path: Its run directory.
        world: Its processes, one per device.
        kind: gpu, cpu, or slurm.
        threads: CPU threads of each process.
        timeout: Seconds without a sign of life after which it counts as hung.
        metric: Name of the metric that counts, and min or max.
        epochs: Of the whole run.
        packed: The composed config, pickled: a few KB, where an open one takes a hundred times that.
        state: new, interrupted, failed or finished; while the grid runs also running, waiting and stopped.
        reason: Why it failed.
    """

    index: int
    overrides: list[str]
    label: str
    path: Path
    world: int
    kind: str
    threads: int
    timeout: float
    metric: tuple[str | None, str]
    epochs: int
    packed: bytes
    state: str = "new"
    reason: str = ""

    def unpacked(self) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
        """The settings, Hydra's node and the overrides of its run."""
        unpacked: tuple[dict[str, Any], dict[str, Any], list[str]] = pickle.loads(self.packed)
        return unpacked


def name_of(overrides: Sequence[str], varying: frozenset[str], form: Any = None) -> str:
    """The directory name of a point: made from what it is.

    Args:
        overrides: `key=value` each. Those that do not change the result are left out, unless they vary in the grid.
        varying: Keys with more than one value in the grid.
        form: hydra.job.config.override_dirname: its exclude_keys are left out, kv_sep and item_sep stand in between.

    Returns:
        A name of letters, digits and `.,_=+-`. Where characters had to go, or the name would be too long, it ends in
        eight letters of a hash of the full text: different points never share a name.
    """
    left_out = set(form.exclude_keys) if form is not None else set()
    kept = [o for o in overrides if (key_of(o) in varying or not _is_free(key_of(o))) and key_of(o) not in left_out]
    text = ",".join(sorted(kept)) or "defaults"
    if form is not None and (form.kv_sep, form.item_sep) != ("=", ","):
        text = form.item_sep.join(sorted(kept)).replace("=", form.kv_sep) or "defaults"
    safe = re.sub(r"[^\w.,=+-]+", "", text, flags=re.ASCII).lstrip(".-")
    if safe == text and len(text) <= LONGEST:
        return text
    return f"{safe[: LONGEST - 9]}-{sha256(text.encode()).hexdigest()[:8]}"


def _is_free(key: str) -> bool:
    # A longer run is another point of a comparison, and so is one that goes back where another ends.
    lasting = key in ("epochs", "max_steps") or key.startswith("divergence.")
    return not lasting and any(key == free or key.startswith(free + ".") for free in FREE_ON_RESUME)


def state_of(path: Path) -> str:
    """What is in a run directory: new (nothing), finished, failed, stopped, interrupted (no word of how it ended)."""
    if not (path / run_directory.CONFIG).is_file():
        return "failed" if (path / FAILED).exists() else "new"
    status = read_json(path / "summary.json").get("status")
    if status == "finished":
        return "finished"
    if (path / FAILED).exists():
        return "failed"
    return "stopped" if status == "stopped" or (path / "stopped.json").exists() else "interrupted"


def directory_of(master: Any) -> Path:
    """The directory of a grid, by its own config.

    Raises:
        ConfigError: It is none, or cannot be made.
    """
    if not (name := str(master.hydra.sweep.dir)):
        raise ConfigError("hydra.sweep.dir: names no directory; hydra.sweep.dir=. is the one that you are in.")
    path = Path(name).resolve()
    check_writable(path, "hydra.sweep.dir")
    return path


def check_count(count: int, most: int) -> None:
    """Ask for consent where a grid is large.

    Raises:
        ConfigError: It has no point, or more than `most`.
    """
    if count == 0:
        raise ConfigError("The grid has no point: a list or range that is swept is empty.")
    if count > most:
        raise ConfigError(
            f"The grid has {count:,} points, more than hydra.launcher.max_points={most}. "
            f"If that is meant, add hydra.launcher.max_points={count}."
        )


def compose_points(
    task: composition.Task,
    master: Any,
    job_overrides: Sequence[Sequence[str]],
    first: int,
    options: Any,
    path: Path,
) -> Iterator[Point]:
    """Compose and check each point of a grid.

    Args:
        task: Composes a point.
        master: The grid's own config, as Hydra composed it.
        job_overrides: Of each point.
        first: Number of the first.
        options: Of a launcher: `world` processes a point, and `place` for kind and threads.
        path: Of the grid.

    Raises:
        ConfigError: A point is wrong, or there twice.
    """
    values: dict[str, set[str]] = {}
    for overrides in job_overrides:
        for override in overrides:
            values.setdefault(key_of(override), set()).add(override)
    everywhere = [set(map(key_of, overrides)) for overrides in job_overrides]
    varying = frozenset(
        key for key, found in values.items() if len(found) > 1 or not all(key in keys for keys in everywhere)
    )
    varying |= task.swept & values.keys()
    own = _hydra_overrides(master)
    names: dict[str, int] = {}
    for index, overrides in enumerate(job_overrides, first):
        try:
            form = master.hydra.job.config.override_dirname
            point = _point(task, own, list(overrides), index, varying, form, options, path)
            if (name := str(point.path.relative_to(path))) in names:
                twin = names[name]
                if sorted(job_overrides[twin - first]) == sorted(overrides):
                    raise ConfigError(f"it is the same as point {twin}.")
                raise ConfigError(
                    f"hydra.sweep.subdir gives it the directory of point {twin}, {name}. Let it name what varies, as "
                    "${hydra.job.override_dirname} and ${hydra.job.num} do."
                )
        except ConfigError as error:
            raise ConfigError(f"point {index} ({' '.join(overrides) or 'defaults'}): {error}") from error
        names[name] = index
        yield point


def _point(
    task: composition.Task,
    own: list[str],
    overrides: list[str],
    index: int,
    varying: frozenset[str],
    form: Any,
    options: Any,
    path: Path,
) -> Point:
    job = {"num": index, "id": str(index), "override_dirname": name_of(overrides, varying, form)}
    composed = task.compose([*own, *overrides], job)
    label = " ".join(o for o in overrides if key_of(o) in varying) or " ".join(overrides) or "defaults"
    subdirectory = str(composed.hydra.sweep.subdir)
    directory = path / subdirectory
    if directory == path or path not in directory.resolve().parents:
        raise ConfigError(f"hydra.sweep.subdir={subdirectory}: must name a directory inside of the grid's.")
    check_length(directory, "hydra.sweep.subdir")
    state = state_of(directory)
    if state != "new" and (directory / run_directory.CONFIG).is_file():
        before = run_directory.read_config(directory, "hydra.sweep.dir")
        composed = composed.as_begun(before)
        _refuse_mixing(path, before, composed.plain())
    settings, plain = composed.settings, composed.plain()
    words = [*overrides, directory_override(directory)]
    kind, threads = options.place(settings)
    if threads != settings.threads:
        words.append(f"threads={threads}")
    plain["threads"] = threads
    wandb = plain["wandb"]
    if wandb["mode"] != "disabled":
        names = {
            "group": ("WANDB_RUN_GROUP", "/".join(path.parts[-3:] if _is_clock(path) else path.parts[-1:])),
            "name": ("WANDB_NAME", label[:120]),
        }
        for key, (variable, name) in names.items():
            wandb[key] = wandb[key] or (None if os.environ.get(variable) else name)
        if (wandb["id"] and "wandb.id" not in varying) or os.environ.get("WANDB_RUN_ID"):
            given = "wandb.id" if wandb["id"] else "WANDB_RUN_ID"
            raise ConfigError(f"{given}: every trial of a sweep is a W&B run of its own. Leave it out.")
    hydra: Any = OmegaConf.to_container(composed.hydra, resolve=False, enum_to_str=True)
    hydra["run"]["dir"] = str(directory)
    return Point(
        index=index,
        overrides=overrides,
        label=label,
        path=directory,
        world=options.world,
        kind=kind,
        threads=1 if isinstance(threads, str) else threads,
        timeout=float(settings.timeout),
        metric=(settings.checkpoint.best, settings.checkpoint.best_mode),
        epochs=settings.epochs,
        packed=pickle.dumps((plain, hydra, words)),
        state=state,
    )


def _hydra_overrides(master: Any) -> list[str]:
    given: Any = OmegaConf.to_container(master.hydra.overrides.hydra, resolve=False)
    return [word for word in given if not word.startswith("hydra.mode=")]


def _is_clock(path: Path) -> bool:
    return re.fullmatch(r"\d\d-\d\d-\d\d", path.name) is not None


def _refuse_mixing(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    lines = differences(before, now)
    old, new = filled(before), filled(now)
    lines += [f"{k}: {old.get(k)} -> {new.get(k)}" for k in ("epochs", "max_steps") if old.get(k) != new.get(k)]
    if lines:
        raise ConfigError(
            f"hydra.sweep.dir={path} was made with another config:\n  "
            + "\n  ".join(lines)
            + "\nUse the settings it was made with, or another hydra.sweep.dir."
        )


def base_of(task: composition.Task, master: Any, path: Path) -> dict[str, Any]:
    """The config under the overrides; empty where it is not complete without them.

    Args:
        task: Composes it.
        master: The grid's own config, as Hydra composed it.
        path: Of the grid.

    Raises:
        ConfigError: The grid in this directory was made with another config under its points.
    """
    try:
        composed = task.compose(_hydra_overrides(master), {"override_dirname": "base"})  # its directory is not made
    except ConfigError:
        return {}
    if before := read_json(path / "grid.json").get("base"):
        composed = composed.as_begun(before)
        _refuse_mixing(path, before, json.loads(json.dumps(composed.plain())))
    return composed.plain()


def lock_grid(path: Path) -> int:
    """Keep other starts of a grid out of its directory for as long as the returned handle is open.

    Raises:
        ConfigError: Another one is in it.
    """
    handle = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(handle, 1000).decode(errors="replace").strip() or "an unknown process"
        raise ConfigError(
            f"hydra.sweep.dir={path}: a grid runs in it ({holder}). Stop it, or choose another."
        ) from error
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)
    return handle


def remember(path: Path, master: Any, points: Sequence[Point], base: Mapping[str, Any]) -> None:
    """What the comparison and the next start need to know: the points, and the config under them."""
    known = read_json(path / "grid.json")
    named = dict(known.get("points") or {}) | {str(p.path.relative_to(path)): p.overrides for p in points}
    content = {
        "command": again(path, points[0].world if points[0].kind != "slurm" else 1),
        "started": started_words(),
        "options": config_options(sys.argv[1:]),
        "devices_per_run": points[0].world,
        "base": known.get("base") or base,
        "points": named,
    }
    write_json(path / "grid.json", content)
    write_text(path / "multirun.yaml", OmegaConf.to_yaml(master))


def again(path: Path, world: int = 1) -> str:
    """The command that goes on with this grid of `world` processes a point, without what launched it."""
    here = os.path.relpath(path)
    words = [word for word in sys.argv[1:] if not word.startswith("hydra.sweep.dir=")]
    if world > 1 and not any(word.startswith("hydra.launcher.devices_per_run=") for word in words):
        words.append(f"hydra.launcher.devices_per_run={world}")
    start = started_words()
    named = directory_override(path if here.startswith("..") else here).replace("run.dir", "sweep.dir", 1)
    return shlex.join([*start, *words, named])
