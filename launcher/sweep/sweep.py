"""A sweep as its start handles it, on this machine or by SLURM: its trials, and what it remembers of them."""

import json
import os
import pickle
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from launcher.config.checks import filled
from launcher.config.composed import Composed
from launcher.config.differences import differences
from launcher.config.migrations import migrated, stamped
from launcher.config.places import check_length
from launcher.config.tree import directory_override, key_of
from launcher.core.errors import ConfigError
from launcher.core.files import read_json, write_json, write_text
from launcher.distributed.stop_request import StopRequest
from launcher.run.command_line import config_options, started_words
from launcher.run.config_file import CONFIG, read_config
from launcher.run.pruning import SWEEP
from launcher.sweep.multirun import Task
from launcher.sweep.options import LauncherOptions
from launcher.sweep.sweep_directory import SweepDirectory
from launcher.sweep.trial_state import TrialState
from launcher.sweep.trials import Trial, directory_name, state_of, varying_keys

SEARCH = "study.log"  # of a directory that holds a search


class Sweep(SweepDirectory):
    """A sweep that is about to start, or to go on; `master` is its own config, as Hydra composed it.

    Raises:
        ConfigError: An option is wrong, another start is in the directory, or it cannot be made.
    """

    def __init__(self, task: Task, master: Any, options: LauncherOptions) -> None:
        options.check()
        self.task, self.master = task, master
        self.names: list[str] = []  # of all that it has ever had, once it is remembered
        self.decides: dict[str, Any] | None = None  # level and most seeds, where it adds seeds until it is decided
        self.pruning: dict[str, Any] | None = None  # what of `Pruning` its trials have in common, in a search
        self._base: dict[str, Any] = {}
        super().__init__(str(master.hydra.sweep.dir), options)

    def compose(self, job_overrides: Sequence[Sequence[str]], first: int) -> Iterator[Trial]:
        """Compose and check the trials, one after the other; the number of the first is `first`.

        Raises:
            ConfigError: A trial is wrong, or there twice, or the sweep was begun with another config.
        """
        check_count(len(job_overrides), self.options.max_points)
        if (self.path / SEARCH).exists():
            raise ConfigError(
                f"hydra.sweep.dir={self.path}: holds a search. Go on with it by hydra/sweeper=optuna, or use another "
                "hydra.sweep.dir."
            )
        self.check_base([])
        varying = varying_keys(job_overrides) | self.task.swept
        numbers: dict[str, int] = {}
        for index, overrides in enumerate(job_overrides, first):
            try:
                trial = self.compose_trial(index, list(overrides), varying)
                if (twin := numbers.get(name := self.name_of(trial))) is not None:
                    if sorted(job_overrides[twin - first]) == sorted(overrides):
                        raise ConfigError(f"it is the same as trial {twin}.")
                    raise ConfigError(
                        f"hydra.sweep.subdir gives it the directory of trial {twin}, {name}. Let it name what varies, "
                        "as ${hydra.job.override_dirname} and ${hydra.job.num} do."
                    )
            except ConfigError as error:
                raise ConfigError(f"trial {index} ({' '.join(overrides) or 'defaults'}): {error}") from error
            numbers[name] = index
            self.trials.append(trial)
            yield trial

    def check_base(self, overrides: Sequence[str]) -> None:
        """Note the config under the trials, with some overrides; nothing where it is not complete with those.

        Raises:
            ConfigError: The sweep was begun with another.
        """
        words = [*self._own_overrides(), *overrides]
        try:
            composed = self.task.compose(words, {"num": 0, "id": "0", "override_dirname": "base"})  # which is not made
        except ConfigError:
            return
        if kept := read_json(self.path / SWEEP).get("base"):
            before = migrated(kept, f"hydra.sweep.dir={self.path}")
            composed = composed.as_begun(before)
            self._refuse_mixing(before, json.loads(json.dumps(composed.plain())))
        self._base = composed.plain()

    def _own_overrides(self) -> list[str]:
        """The overrides of Hydra's node that the sweep was started with."""
        given: Any = OmegaConf.to_container(self.master.hydra.overrides.hydra, resolve=False)
        return [word for word in given if not word.startswith("hydra.mode=")]

    def compose_trial(self, index: int, overrides: list[str], varying: frozenset[str]) -> Trial:
        """Compose and check one trial, of which the settings `varying` name the directory; see `compose`."""
        name = directory_name(overrides, varying, self.master.hydra.job.config.override_dirname)
        job = {"num": index, "id": str(index), "override_dirname": name}
        composed = self.task.compose([*self._own_overrides(), *overrides], job)
        label = " ".join(o for o in overrides if key_of(o) in varying) or " ".join(overrides) or "defaults"
        directory = self._directory(composed)
        if (directory / CONFIG).is_file():
            before = read_config(directory, "hydra.sweep.dir")
            composed = composed.as_begun(before)
            self._refuse_mixing(before, composed.plain())
        settings, plain = composed.settings, composed.plain()
        words = [*overrides, directory_override(directory)]
        kind, plain["threads"] = self.options.place(settings)
        if plain["threads"] != settings.threads:
            words.append(f"threads={plain['threads']}")
        self._name_for_wandb(plain["wandb"], label, varying)
        if self.pruning is not None:
            name = str(directory.relative_to(self.path))
            plain["pruning"] = self.pruning | {"sweep": str(self.path), "trial": name}
        hydra: Any = OmegaConf.to_container(composed.hydra, resolve=False, enum_to_str=True)
        hydra["run"]["dir"] = str(directory)
        return Trial(
            index=index,
            overrides=overrides,
            label=label,
            path=directory,
            world=(sizes := self.options.sizes(settings))[0],
            kind=kind,
            threads=1 if plain["threads"] == "auto" else plain["threads"],
            timeout=float(settings.timeout),
            metric=settings.checkpoint.best,
            epochs=settings.epochs,
            packed=pickle.dumps((plain, hydra, words)),
            lifecycle=TrialState(state_of(directory)),
            sizes=sizes,
            max_steps=settings.max_steps,
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

    def _refuse_mixing(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Refuse to go on with settings that differ in what changes a result, or in how long a run is."""
        lines = differences(before, now)
        old, new = filled(before), filled(now)
        lines += [f"{k}: {old.get(k)} -> {new.get(k)}" for k in ("epochs", "max_steps") if old.get(k) != new.get(k)]
        if lines:
            raise ConfigError(
                f"hydra.sweep.dir={self.path} was made with another config:\n  "
                + "\n  ".join(lines)
                + "\nUse the settings it was made with, or another hydra.sweep.dir."
            )

    def remember(self) -> None:
        """Write what the comparison and the next start need to know: the trials, and the config under them."""
        known, per_run = read_json(self.path / SWEEP), self.options.per_run
        named = dict(known.get("points") or {}) | {self.name_of(trial): trial.overrides for trial in self.trials}
        content = {
            "command": self.command(per_run if self.trials[0].kind != "slurm" else 1),
            "started": started_words(),
            "options": config_options(sys.argv[1:]),
            "devices_per_run": per_run,
            "base": known.get("base") or (stamped(self._base) if self._base else {}),
            "points": named,
        } | ({"decides": self.decides} if self.decides else {})
        write_json(self.path / SWEEP, content)
        self.names = list(named)
        write_text(self.path / "multirun.yaml", OmegaConf.to_yaml(self.master))

    def command(self, per_run: int | str = 1) -> str:
        """The command that goes on with this sweep of so many processes a trial, without what launched it."""
        here = os.path.relpath(self.path)
        words = [word for word in sys.argv[1:] if not word.startswith("hydra.sweep.dir=")]
        if per_run != 1 and not any(word.startswith("hydra.launcher.devices_per_run=") for word in words):
            words.append(f"hydra.launcher.devices_per_run={per_run}")
        named = directory_override(self.path if here.startswith("..") else here).replace("run.dir", "sweep.dir", 1)
        return shlex.join([*started_words(), *words, named])

    def refuse_after_stop(self) -> None:
        """Refuse to go on after a stop, of which a sweeper that hands over batches does not know."""
        if self.task.stop:
            raise SystemExit(int(bool(self.task.failed)))

    def take_stop_requests(self) -> StopRequest:
        """From now on Ctrl-C and the like are requests to stop, also for a sweeper that goes on in batches."""
        if self.task.stop is None:
            self.task.stop = StopRequest(None, 0)
        return self.task.stop


def check_count(count: int, most: int) -> None:
    """Refuse a sweep without a trial, and ask for consent where it has more than `most`."""
    if count == 0:
        raise ConfigError("The sweep has no trial: a list or range that is swept is empty.")
    if count > most:
        raise ConfigError(
            f"The sweep has {count:,} trials, more than hydra.launcher.max_points={most}. "
            f"If that is meant, add hydra.launcher.max_points={count}."
        )
