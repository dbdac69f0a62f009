"""The trials of a sweep: their names, their configs, and what the files of their run directories tell of them."""

import os
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from launcher.config import composition
from launcher.config.checks import filled
from launcher.config.composed import Composed
from launcher.config.migrations import migrated
from launcher.config.places import check_length
from launcher.config.resume import differences
from launcher.config.schema import FREE_ON_RESUME
from launcher.config.tree import directory_override, key_of
from launcher.core.errors import ConfigError
from launcher.core.files import numbers, read_json
from launcher.distributed import slurm_commands
from launcher.run.config_file import CONFIG, read_config
from launcher.sweep.failure import FAILED
from launcher.sweep.options import LauncherOptions
from launcher.sweep.trial_state import State, TrialState

LONGEST = 150  # characters of a trial's directory name; file systems take 255 bytes
SUBMISSIONS = "submissions"  # in the directory of a sweep; a directory for each job array that it was submitted as


@dataclass
class Trial:
    """One trial of a sweep."""

    index: int  # its place in the sweep
    overrides: list[str]  # those of the command line that make it
    label: str  # what varies, for people
    path: Path  # its run directory
    world: int  # its processes, one per device
    kind: str  # gpu, cpu, or slurm
    threads: int  # CPU threads of each process
    timeout: float  # seconds without a sign of life after which it counts as hung
    metric: str | None  # name of the one that counts
    epochs: int  # of the whole run
    packed: bytes  # settings, Hydra's node and overrides, pickled: open ones take a hundred times those few KB
    lifecycle: TrialState  # where it stands; only its transitions change that

    @property
    def state(self) -> State:
        """Where it stands."""
        return self.lifecycle.current

    @property
    def reason(self) -> str:
        """Why it failed."""
        return self.lifecycle.reason


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
    return State.STOPPED if status == "stopped" or (path / "stopped.json").exists() else State.INTERRUPTED


def metric_of(path: Path, metric: str | None) -> float | None:
    """A metric of a finished run: of its best evaluation where that is kept, else of its last."""
    summary = read_json(path / "summary.json")
    value = (numbers(summary.get("final")) | numbers(summary.get("best"))).get(str(metric))
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


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


def name_of(overrides: Sequence[str], varying: frozenset[str], form: Any = None) -> str:
    """The directory name of a trial, of letters, digits and `.,_=+-`: made from the overrides that it consists of.

    Those that do not change the result are left out, unless their keys are `varying` in the sweep. Where characters had
    to go, or the name would be too long, it ends in eight letters of a hash of the full text: different trials never
    share a name. `form` is hydra.job.config.override_dirname, which leaves out keys and says what stands in between.
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
    # A longer run is another trial of a comparison, and so is one that goes back where another ends.
    lasting = key in ("epochs", "max_steps") or key.startswith("divergence.")
    return not lasting and any(key == free or key.startswith(free + ".") for free in FREE_ON_RESUME)


# --- Configs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrialComposer:
    """Composes and checks the trials of a sweep."""

    task: composition.Task
    master: Any  # the sweep's own config, as Hydra composed it
    options: LauncherOptions
    path: Path  # directory of the sweep

    @property
    def own(self) -> list[str]:
        """The overrides of Hydra's node that the sweep was started with."""
        given: Any = OmegaConf.to_container(self.master.hydra.overrides.hydra, resolve=False)
        return [word for word in given if not word.startswith("hydra.mode=")]

    def compose(self, job_overrides: Sequence[Sequence[str]], first: int) -> Iterator[Trial]:
        """Compose and check each trial; the number of the first is `first`.

        Raises:
            ConfigError: A trial is wrong, or there twice.
        """
        varying = self._varying(job_overrides)
        names: dict[str, int] = {}
        for index, overrides in enumerate(job_overrides, first):
            try:
                trial = self._trial(index, list(overrides), varying)
                if (name := str(trial.path.relative_to(self.path))) in names:
                    twin = names[name]
                    if sorted(job_overrides[twin - first]) == sorted(overrides):
                        raise ConfigError(f"it is the same as trial {twin}.")
                    raise ConfigError(
                        f"hydra.sweep.subdir gives it the directory of trial {twin}, {name}. Let it name what varies, "
                        "as ${hydra.job.override_dirname} and ${hydra.job.num} do."
                    )
            except ConfigError as error:
                raise ConfigError(f"trial {index} ({' '.join(overrides) or 'defaults'}): {error}") from error
            names[name] = index
            yield trial

    def _varying(self, job_overrides: Sequence[Sequence[str]]) -> frozenset[str]:
        """The settings with several values, as far as these trials or the sweeper show."""
        values: dict[str, set[str]] = {}
        for overrides in job_overrides:
            for override in overrides:
                values.setdefault(key_of(override), set()).add(override)
        everywhere = [set(map(key_of, overrides)) for overrides in job_overrides]
        varying = {key for key, found in values.items() if len(found) > 1 or not all(key in own for own in everywhere)}
        return frozenset(varying | (self.task.swept & values.keys()))

    def _trial(self, index: int, overrides: list[str], varying: frozenset[str]) -> Trial:
        name = name_of(overrides, varying, self.master.hydra.job.config.override_dirname)
        job = {"num": index, "id": str(index), "override_dirname": name}
        composed = self.task.compose([*self.own, *overrides], job)
        label = " ".join(o for o in overrides if key_of(o) in varying) or " ".join(overrides) or "defaults"
        directory = self._directory(composed)
        if (directory / CONFIG).is_file():
            before = migrated(read_config(directory, "hydra.sweep.dir"), f"hydra.sweep.dir={self.path}")
            composed = composed.as_begun(before)
            refuse_mixing(self.path, before, composed.plain())
        settings, plain = composed.settings, composed.plain()
        words = [*overrides, directory_override(directory)]
        kind, plain["threads"] = self.options.place(settings)
        if plain["threads"] != settings.threads:
            words.append(f"threads={plain['threads']}")
        self._name_for_wandb(plain["wandb"], label, varying)
        hydra: Any = OmegaConf.to_container(composed.hydra, resolve=False, enum_to_str=True)
        hydra["run"]["dir"] = str(directory)
        return Trial(
            index=index,
            overrides=overrides,
            label=label,
            path=directory,
            world=self.options.world,
            kind=kind,
            threads=1 if plain["threads"] == "auto" else plain["threads"],
            timeout=float(settings.timeout),
            metric=settings.checkpoint.best,
            epochs=settings.epochs,
            packed=pickle.dumps((plain, hydra, words)),
            lifecycle=TrialState(state_of(directory)),
        )

    def _directory(self, composed: Composed) -> Path:
        """The run directory of a trial."""
        subdirectory = str(composed.hydra.sweep.subdir)
        directory = self.path / subdirectory
        if directory == self.path or self.path not in directory.resolve().parents:
            raise ConfigError(f"hydra.sweep.subdir={subdirectory}: must name a directory inside of the sweep's.")
        check_length(directory, "hydra.sweep.subdir")
        return directory

    def _name_for_wandb(self, wandb: dict[str, Any], label: str, varying: frozenset[str]) -> None:
        """Give a trial a group and a name at W&B, where a person did not."""
        if wandb["mode"] == "disabled":
            return
        is_clock = re.fullmatch(r"\d\d-\d\d-\d\d", self.path.name) is not None
        group = "/".join(self.path.parts[-3:] if is_clock else self.path.parts[-1:])
        for key, variable, name in (("group", "WANDB_RUN_GROUP", group), ("name", "WANDB_NAME", label[:120])):
            wandb[key] = wandb[key] or (None if os.environ.get(variable) else name)
        if (wandb["id"] and "wandb.id" not in varying) or os.environ.get("WANDB_RUN_ID"):
            given = "wandb.id" if wandb["id"] else "WANDB_RUN_ID"
            raise ConfigError(f"{given}: every trial of a sweep is a W&B run of its own. Leave it out.")


def refuse_mixing(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with a sweep by settings that differ in what changes a result, or in how long a run is."""
    lines = differences(before, now)
    old, new = filled(before), filled(now)
    lines += [f"{k}: {old.get(k)} -> {new.get(k)}" for k in ("epochs", "max_steps") if old.get(k) != new.get(k)]
    if lines:
        raise ConfigError(
            f"hydra.sweep.dir={path} was made with another config:\n  "
            + "\n  ".join(lines)
            + "\nUse the settings it was made with, or another hydra.sweep.dir."
        )
