"""The trials of a sweep as their files tell, from the best to the worst.

A sweep that is not complete, or still running, is read as far as it has come.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from launcher.config.checks import filled
from launcher.config.direction import direction
from launcher.config.migrations import migrated
from launcher.config.tree import key_of, leaves
from launcher.core.errors import ConfigError
from launcher.core.files import read_json
from launcher.run.record import Record
from launcher.sweep import failure, statistics
from launcher.sweep.statistics import Sample
from launcher.sweep.trial_state import State
from launcher.sweep.trials import SUBMISSIONS, in_queue, metric_of, state_of


@dataclass
class Entry:
    """One trial as its files tell."""

    name: str  # its directory within the sweep's
    path: Path
    state: State  # one of AT_REST, interrupted where it runs; of a job array also queued and running
    overrides: list[str]
    config: dict[str, Any]  # its settings by dotted name
    summary: dict[str, Any]
    reason: str  # why it failed
    value: float | None = None  # the metric that counts, where it is known
    varied: dict[str, str] = field(default_factory=dict)  # value of each setting that differs between the trials
    curve: tuple[list[float], list[float]] = ([], [])  # epochs and values of the metric

    @property
    def label(self) -> str:
        """What makes it different, for people."""
        return ", ".join(f"{key}={value}" for key, value in self.varied.items()) or self.name

    @property
    def final(self) -> dict[str, Any]:
        """Its metrics at the end."""
        return self.summary.get("final") or {}

    @property
    def report(self) -> str | None:
        """Its report, within the directory of the sweep; None where there is none."""
        return f"{self.name}/report.html" if (self.path / "report.html").exists() else None


@dataclass
class Comparison:
    """A sweep, its trials from the best to the worst; those without the metric come last."""

    path: Path
    metric: str  # the one that counts
    mode: str  # min or max
    entries: list[Entry]
    started: list[str]  # the words that started it, such as `launcher train`
    options: list[str]  # of the command line, that say where the config is

    @property
    def varied(self) -> list[str]:
        """The settings that differ."""
        return list(self.entries[0].varied)

    @property
    def measured(self) -> list[Entry]:
        """Finished trials that have the metric."""
        return [entry for entry in self.entries if entry.state == State.FINISHED and entry.value is not None]

    @property
    def results(self) -> list[statistics.Result]:
        """What varied and the metric, of the finished trials that have it."""
        return [(entry.varied, entry.value) for entry in self.measured if entry.value is not None]

    @property
    def seeds(self) -> list[Sample]:
        """The trials that differ by their seed alone."""
        return statistics.by_seed(self.results, self.mode)

    @property
    def effects(self) -> dict[str, list[Sample]]:
        """The trials that have each value of a setting."""
        return statistics.by_setting(self.results, self.varied)

    @property
    def metrics(self) -> list[str]:
        """The names of all metrics that the trials have at their end."""
        return list(dict.fromkeys(name for entry in self.entries for name in entry.final))

    def repeat(self, entry: Entry) -> str:
        """The command that runs a trial alone, in a new run directory."""
        own = [o for o in entry.overrides if not o.startswith("hydra.run.dir=")]
        world = entry.summary.get("world_size", 1)
        words = self.started
        if world > 1:
            words = ["-m", *words] if words[0] == "launcher" else words[1:]
            words = ["torchrun", "--nproc_per_node", str(world), *words]
        return shlex.join([*words, *self.options, *own])


def read_sweep(path: Path, metric: str | None, mode: str | None) -> Comparison:
    """Read the run directories of a sweep.

    The metric that counts is by default the checkpoint.best of its trials, and its mode (min or max) their
    checkpoint.best_mode; that of another metric is as its name tells.

    Raises:
        ConfigError: It is no sweep, or no trial has the metric.
    """
    known = read_json(path / "grid.json")
    entries = _read_entries(path, dict(known.get("points") or {}))
    chosen, mode = _choose_metric(entries, metric, mode)
    for entry in entries:
        entry.value = metric_of(entry.path, chosen) if entry.state == State.FINISHED else None
        rows = [row for row in Record(entry.path / "metrics.jsonl").rows() if chosen in row]
        entry.curve = [float(row["epoch"]) for row in rows], [float(row[chosen]) for row in rows]
    if metric is not None and all(entry.value is None and not entry.curve[0] for entry in entries):
        names = sorted({name for entry in entries for name in entry.final})
        if names:
            raise ConfigError(f"metric={metric}: no trial has it. There are: {', '.join(names)}.")
    _find_varied(entries)
    rank = statistics.ranking(mode)
    entries.sort(key=lambda entry: (*rank(entry.value), entry.name))
    started, options = known.get("started") or ["python", "launcher/train.py"], known.get("options") or []
    return Comparison(path, chosen, mode, entries, started, options)


def _read_entries(path: Path, planned: Mapping[str, list[str]]) -> list[Entry]:
    """What is known of each trial, but for the metric: of those planned, and of those that are there beside them."""
    found = {str(file.parent.parent.relative_to(path)) for file in path.glob("**/.hydra/config.yaml")}
    found = {name for name in found if not name.startswith(f"{SUBMISSIONS}/")}  # copies of code
    active = in_queue(path)
    if not planned and not found:
        raise ConfigError(f"{path}: there is no sweep in it. Name the directory that hydra.sweep.dir named.")
    entries = []
    for name in [*planned, *sorted(found - planned.keys())]:
        place = path / name
        overrides, config = planned.get(name, []), {}
        if (place / ".hydra/config.yaml").is_file():
            config = leaves(filled(migrated(_yaml(place / ".hydra/config.yaml"), str(place))))
            overrides = list(_yaml(place / ".hydra/overrides.yaml") or overrides)
        state = state_of(place)
        state = active.get(name, state) if state != State.FINISHED else state
        reason = failure.reason_of(place) if state == State.FAILED else ""
        entries.append(Entry(name, place, state, overrides, config, read_json(place / "summary.json"), reason))
    return entries


def _choose_metric(entries: Sequence[Entry], metric: str | None, mode: str | None) -> tuple[str, str]:
    """The metric that counts and its mode: those asked for, else those of the first trial with a config."""
    config = next((entry.config for entry in entries if entry.config), {})
    usual = config.get("checkpoint.best")
    if metric is None and usual is None:
        metric = next((name for entry in entries for name in entry.final if name.startswith("eval/")), "eval/loss")
    chosen = metric or str(usual)
    if mode is None:
        mode = config.get("checkpoint.best_mode", "min") if chosen == usual else direction(chosen) or "max"
    return chosen, str(mode)


def _yaml(path: Path) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.load(path))
    except OSError:
        return {}


def _find_varied(entries: Sequence[Entry]) -> None:
    """Note in each entry the overrides that not all have in common; where one is missing, the config's own value."""
    chosen = [
        {key_of(o): o.partition("=")[2] for o in entry.overrides if not o.startswith("hydra.")} for entry in entries
    ]
    for key in dict.fromkeys(key for own in chosen for key in own):
        values = [own.get(key, _unnamed(entry, key)) for entry, own in zip(entries, chosen, strict=True)]
        if len(set(values) - {""}) > 1:
            for entry, value in zip(entries, values, strict=True):
                entry.varied[key] = value


def _unnamed(entry: Entry, key: str) -> str:
    """The value of a setting that no override names; empty where it is not known before the trial has started."""
    if key not in entry.config:
        return "(default)" if entry.config else ""
    value = entry.config[key]
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")
