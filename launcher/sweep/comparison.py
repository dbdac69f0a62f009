"""The trials of one or several sweeps as their files tell, from the best to the worst.

A sweep that is not complete, or still running, is read as far as it has come.
"""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from launcher.config.checks import filled
from launcher.config.direction import direction
from launcher.config.migrations import migrated
from launcher.config.tree import key_of, leaves
from launcher.core.errors import ConfigError
from launcher.core.files import read_json
from launcher.run.pruning import SWEEP
from launcher.run.record import Record
from launcher.sweep import failure, pareto, seed_groups, statistics, variance
from launcher.sweep.inference import LEAST_SEEDS, LEVEL
from launcher.sweep.pareto import Point
from launcher.sweep.sampling_error import SamplingError
from launcher.sweep.seed_groups import Group, Pair
from launcher.sweep.statistics import SEED, Sample
from launcher.sweep.trial_state import State
from launcher.sweep.trials import SUBMISSIONS, in_queue, is_free, metric_of, state_of


@dataclass
class Entry:
    """One trial as its files tell."""

    name: str  # its directory within the sweep's; of several sweeps, within the directory that all are in
    path: Path
    state: State  # one of AT_REST, interrupted where it runs; of a job array also queued and running
    overrides: list[str]
    config: dict[str, Any]  # its settings by dotted name
    summary: dict[str, Any]
    reason: str  # why it failed
    started: list[str]  # the words that started its sweep, such as `launcher train`
    options: list[str]  # of that command line, that say where the config is
    value: float | None = None  # the metric that counts, as far as it is known; the state tells whether it is the last
    values: dict[str, float] = field(default_factory=dict)  # all metrics that are compared, as far as they are known
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
    def seed(self) -> str:
        """Its seed, as its overrides or its config have it."""
        return self.varied.get(SEED) or str(self.config.get(SEED, ""))

    @property
    def settings(self) -> dict[str, str]:
        """What makes it different from others but for its seed, and for how W&B names it."""
        return {key: value for key, value in self.varied.items() if key != SEED and not key.startswith("wandb.")}


@dataclass
class Comparison:
    """Sweeps, their trials from the best to the worst; those not finished, or without the metric, come last."""

    path: Path  # where the comparison is written, by default the directory of the first sweep
    sweeps: list[Path]
    metric: str  # the one that counts
    mode: str  # min or max
    modes: dict[str, str]  # of all metrics that are compared, the one that counts first
    entries: list[Entry]
    decides: list[dict[str, Any]]  # of sweeps that added seeds until they were decided: the level, and the most seeds

    @property
    def name(self) -> str:
        """For people."""
        return ", ".join(path.name for path in self.sweeps)

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

    @cached_property
    def groups(self) -> list[Group]:
        """The finished trials that differ by their seed alone, the best mean first."""
        return seed_groups.grouped(
            [(e.settings, e.seed, e.value) for e in self.measured if e.value is not None], self.mode
        )

    @property
    def repeated(self) -> list[Group]:
        """The groups, where any has several seeds."""
        return self.groups if any(group.n > 1 for group in self.groups) else []

    @cached_property
    def pairs(self) -> list[Pair]:
        """Each two groups compared by the seeds that both have."""
        looks = max((known["seeds"] - LEAST_SEEDS + 1 for known in self.decides), default=1)
        level = min((known["level"] for known in self.decides), default=LEVEL)
        paths: dict[Any, Path] = {}
        for entry in self.measured:
            paths.setdefault(seed_groups.trial_key(entry.settings, entry.seed), entry.path)
        return seed_groups.pairs_of(self.groups, looks, level, SamplingError(self.metric, paths))

    @property
    def verdict(self) -> str:
        """One sentence: how many pairs of settings differ."""
        return seed_groups.summary_of(self.pairs, self.groups)

    @cached_property
    def analysis(self) -> variance.Analysis | None:
        """What each setting explains of the spread between the trials."""
        results = [
            ({**group.settings, SEED: seed}, value) for group in self.groups for seed, value in group.values.items()
        ]
        names = list(self.groups[0].settings) if self.groups else []
        return variance.analysis_of(results, [*names, SEED])

    @cached_property
    def front(self) -> list[Point]:
        """Groups by all metrics that are compared, those on the Pareto front first; empty where only one counts."""
        if len(self.modes) < 2:
            return []
        results = [(e.settings, [e.values.get(name) for name in self.modes]) for e in self.measured]
        return pareto.points_of(results, list(self.modes.values()))

    @property
    def effects(self) -> dict[str, list[Sample]]:
        """The trials that have each value of a setting."""
        return statistics.by_setting(self.results, [name for name in self.varied if not name.startswith("wandb.")])

    @property
    def metrics(self) -> list[str]:
        """The names of all metrics that the trials have at their end."""
        return list(dict.fromkeys(name for entry in self.entries for name in entry.final))

    def report(self, entry: Entry) -> str | None:
        """The report of a trial, relative to where the comparison is written; None where there is none."""
        report = entry.path / "report.html"
        return os.path.relpath(report, self.path) if report.exists() else None

    def repeat(self, entry: Entry) -> str:
        """The command that runs a trial alone, in a new run directory."""
        own = [o for o in entry.overrides if not o.startswith("hydra.run.dir=")]
        world = entry.summary.get("world_size", 1)
        words = entry.started
        if world > 1:
            words = ["-m", *words] if words[0] == "launcher" else words[1:]
            words = ["torchrun", "--nproc_per_node", str(world), *words]
        return shlex.join([*words, *entry.options, *own])


def read_sweep(path: Path, metric: str | None, mode: str | None) -> Comparison:
    """Read the run directories of one sweep; see `read_sweeps`."""
    return read_sweeps([path], metric, mode, path)


def read_sweeps(paths: Sequence[Path], metric: str | None, mode: str | None, output: Path) -> Comparison:
    """Read the run directories of one or several sweeps.

    Args:
        paths: The directories of the sweeps, at least one.
        metric: What counts, by default the checkpoint.best of the trials; several with commas between.
        mode: Min or max, with commas between for several; by default checkpoint.best_mode, and of another metric as
            its name tells.
        output: Where the comparison will be written.

    Raises:
        ConfigError: One is no sweep, or no trial has the metric.
    """
    paths = list({path.resolve(): path for path in paths}.values())
    entries = [entry for path in paths for entry in _read_entries(path)]
    if len(paths) > 1:
        common = os.path.commonpath([path.resolve() for path in paths])
        for entry in entries:
            entry.name = os.path.relpath(entry.path.resolve(), common)
    modes = _choose_metrics(entries, metric, mode)
    chosen, first_mode = next(iter(modes.items()))
    for entry in entries:
        _read_values(entry, list(modes))
    for name in modes if metric is not None else ():
        if all(name not in entry.values for entry in entries):
            names = sorted({other for entry in entries for other in entry.final})
            if names:
                raise ConfigError(f"metric={name}: no trial has it. There are: {', '.join(names)}.")
    _find_varied(entries, paths)
    rank = statistics.ranking(first_mode)
    entries.sort(key=lambda entry: (entry.state != State.FINISHED, *rank(entry.value), entry.name))
    decides = [known for path in paths if (known := read_json(path / SWEEP).get("decides"))]
    return Comparison(output, paths, chosen, first_mode, modes, entries, decides)


def _read_entries(path: Path) -> list[Entry]:
    """What is known of each trial, but for the metric: of those planned, and of those that are there beside them."""
    known = read_json(path / SWEEP)
    planned: Mapping[str, list[str]] = known.get("points") or {}
    started, options = known.get("started") or ["python", "launcher/train.py"], known.get("options") or []
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
        summary = read_json(place / "summary.json")
        entries.append(Entry(name, place, state, overrides, config, summary, reason, started, options))
    return entries


def _choose_metrics(entries: Sequence[Entry], metric: str | None, mode: str | None) -> dict[str, str]:
    """The metrics that count with their modes: those asked for, else that of the first trial with a config."""
    config = next((entry.config for entry in entries if entry.config), {})
    usual = config.get("checkpoint.best")
    if metric is None and usual is None:
        metric = next((name for entry in entries for name in entry.final if name.startswith("eval/")), "eval/loss")
    names = [name.strip() for name in metric.split(",")] if metric is not None else [str(usual)]
    given = mode.split(",") if mode is not None else []
    if len(given) > len(names) or not set(given) <= {"min", "max"}:
        raise ConfigError(f"mode={mode}: give min or max for each metric, in the order of metric={','.join(names)}.")
    modes = {}
    for place, name in enumerate(names):
        if place < len(given):
            modes[name] = given[place]
        else:
            modes[name] = config.get("checkpoint.best_mode", "min") if name == usual else direction(name) or "max"
    return modes


def _read_values(entry: Entry, names: Sequence[str]) -> None:
    """Note the metrics of a trial: of a finished one those of its summary, of others the last that their record has."""
    rows = Record(entry.path / "metrics.jsonl").rows()
    curves: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in names}
    for row in rows:
        for name in names:
            if name in row:
                curves[name][0].append(float(row["epoch"]))
                curves[name][1].append(float(row[name]))
    for name in names:
        value = metric_of(entry.path, name)
        if value is None and entry.state != State.FINISHED and curves[name][1]:
            value = curves[name][1][-1]
        if value is not None:
            entry.values[name] = value
    entry.value, entry.curve = entry.values.get(names[0]), curves[names[0]]


def _yaml(path: Path) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.load(path))
    except OSError:
        return {}


def _find_varied(entries: Sequence[Entry], sweeps: Sequence[Path]) -> None:
    """Note in each entry the overrides that not all have in common; where one is missing, the config's own value.

    What no override names, yet differs from sweep to sweep, counts too: another conf/ or a changed default makes other
    settings. What an override picks, as optimizer=adam picks optimizer.betas, does not.
    """
    chosen = [
        {key_of(o): o.partition("=")[2] for o in entry.overrides if not o.startswith("hydra.")} for entry in entries
    ]
    keys = list(dict.fromkeys(key for own in chosen for key in own))
    if len(sweeps) > 1 and "experiment" not in keys:
        own_keys = {key for entry in entries for key in entry.config}
        picked = tuple(f"{key}." for key in keys)
        keys += sorted(key for key in own_keys - set(keys) if not key.startswith(picked) and not is_free(key))
    for key in keys:
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
