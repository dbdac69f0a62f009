"""A search: trials one at a time, each chosen by what those before have shown, and the worse ones ended early."""

import pickle
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from launcher.config.checks import check_options
from launcher.config.direction import direction
from launcher.config.tree import key_of
from launcher.core.durations import parse_duration
from launcher.core.errors import ConfigError
from launcher.core.files import read_json
from launcher.run.pruning import SWEEP, Pruning, curve
from launcher.sweep.comparison import Entry, read_sweep
from launcher.sweep.space import Space
from launcher.sweep.study import UNFINISHED, Study
from launcher.sweep.sweep import SEARCH, Sweep
from launcher.sweep.trial_state import State
from launcher.sweep.trials import Trial, metric_of


@dataclass
class SearchOptions:
    """The settings of conf/hydra/sweeper/optuna.yaml."""

    n_trials: int
    timeout: str | float | None
    sampler: str
    sampler_options: dict[str, Any] | None
    seed: int
    pruner: str
    min_evaluations: int
    reduction_factor: int
    brackets: int
    metrics: list[str] | None
    from_sweeps: list[str]

    def check(self) -> None:
        """Check what needs no trial; a ConfigError where a setting is wrong."""
        check_options(vars(self), "Optuna", "hydra.sweeper")
        if "seed" in (self.sampler_options or {}):  # the same for each trial, which would then be the same
            raise ConfigError("hydra.sweeper.sampler_options: seed is a setting of its own, hydra.sweeper.seed.")
        if self.metrics and len(set(self.metrics)) < len(self.metrics):
            raise ConfigError(f"hydra.sweeper.metrics=[{','.join(self.metrics)}]: names one metric twice.")
        if self.metrics and len(self.metrics) > 1 and self.pruner != "none":
            raise ConfigError(
                f"hydra.sweeper.pruner={self.pruner}: compares trials by one metric, and hydra.sweeper.metrics has "
                f"{len(self.metrics)}. Use pruner=none, or one metric."
            )
        if self.metrics and len(self.metrics) > 1 and self.sampler == "cmaes":
            raise ConfigError("hydra.sweeper.sampler=cmaes: has one objective; use tpe, gp, qmc or random for several.")


class Search:
    """What a sweep starts next: a trial that is promoted, or a new one; see `launcher.run.pruning`.

    Args:
        sweep: The sweep whose trials these are.
        space: What is chosen from.
        options: How.
    """

    def __init__(self, sweep: Sweep, space: Space, options: SearchOptions) -> None:
        options.check()
        self.sweep, self.space, self.options = sweep, space, options
        self.varying = frozenset(key_of(dimension.key) for dimension in space.dimensions)
        self.like: Trial  # one of them, which tells what devices each takes
        self.trials: dict[int, Trial] = {}  # those that this start knows, by number
        self._curves: dict[str, list[float]] = {}  # by name; see Pruning.curve
        self._going_on: set[int] = set()  # pruned ones that are about to go on
        self._deadline: float | None = None
        self._nothing_new = False  # since it was last asked in vain
        self._may_promote: bool | None = None  # as it was found since a trial was handed out or has ended

    def __str__(self) -> str:
        done = len(self._own) - len(self.trials)
        goals = ", ".join(f"{mode} {name}" for name, mode in zip(self.metrics, self.modes, strict=True))
        pruned = "" if self.options.pruner == "none" else f", {self.options.pruner}"
        before = f"; {done} done, {len(self.trials)} under way before" if self._own else ""
        return f"{self.options.n_trials} trials by {self.options.sampler}{pruned}, {goals}{before}"

    # --- Before it starts --------------------------------------------------------------------------------------------

    def check(self) -> Trial:
        """Compose trials that have each choice and both ends of each interval; returns one of them.

        Raises:
            ConfigError: One of them is wrong; nothing has been started.
        """
        if (self.sweep.path / SWEEP).exists() and not (self.sweep.path / SEARCH).exists():
            raise ConfigError(
                f"hydra.sweep.dir={self.sweep.path}: holds a sweep that is no search. Use another hydra.sweep.dir; "
                f"hydra.sweeper.from_sweeps=[{self.sweep.path}] learns from this one."
            )
        first = None
        names: dict[str, list[str]] = {}
        for number, values in enumerate(self.space.corners(), start=1):
            overrides = self.space.overrides(values)
            try:
                trial = self.sweep.compose_trial(-number, overrides, self.varying)  # in no trial's directory
                if (other := names.setdefault(name := self.sweep.name_of(trial), overrides)) != overrides:
                    raise ConfigError(
                        f"hydra.sweep.subdir gives it the directory of {' '.join(other)}, {name}. Let it name what "
                        "varies, as ${hydra.job.override_dirname} and ${hydra.job.num} do."
                    )
                if self.options.pruner != "none" and settings_of(trial)["eval_every"] is None:
                    raise ConfigError(
                        f"eval_every=null: hydra.sweeper.pruner={self.options.pruner} compares trials as they are "
                        "evaluated."
                    )
            except ConfigError as error:
                raise ConfigError(f"{' '.join(overrides)}: {error}") from error
            first = first or trial
        assert first is not None, "a space has a corner"
        self._name_objectives(first)
        return first

    def _name_objectives(self, trial: Trial) -> None:
        """Note by which metrics trials are judged, and whether less or more of each is better."""
        launcher, checkpoint = self.sweep.options, settings_of(trial)["checkpoint"]
        names = self.options.metrics or [launcher.metric or trial.metric or "eval/loss"]
        self.metrics, self.modes = list(names), list[str]()
        for name in names:
            usual = checkpoint["best_mode"] if name == trial.metric else direction(name)
            mode = launcher.metric_mode if name == launcher.metric and launcher.metric_mode else usual
            if mode is None:
                raise ConfigError(
                    f"{name}: its name does not tell whether less or more of it is better; say it by "
                    f"hydra.launcher.metric={name} hydra.launcher.metric_mode=max."
                )
            self.modes.append(mode)
        if self.options.pruner != "none" and not self.metrics[0].startswith("eval/"):
            raise ConfigError(
                f"hydra.sweeper.pruner={self.options.pruner}: {self.metrics[0]} is not measured while a trial runs; "
                "compare by one of eval/, such as eval/loss."
            )

    def open(self) -> None:
        """Take up what an earlier start has left; the sweep's directory is there, and locked."""
        options = self.options
        described = {
            "space": sorted(dimension.described() for dimension in self.space.dimensions),
            "sampler": options.sampler,
            "sampler_options": options.sampler_options,
            "seed": options.seed,
            "pruner": [options.pruner, options.min_evaluations, options.reduction_factor, options.brackets],
            "objectives": [f"{name} {mode}" for name, mode in zip(self.metrics, self.modes, strict=True)],
        }
        self.study = Study(
            self.sweep.path,
            self.space,
            options.sampler,
            options.sampler_options or {},
            options.seed,
            self.modes,
            described,
        )
        self.sweep.check_base(self.space.overrides(self.space.corners()[0]))
        for path in options.from_sweeps:
            self._learn_from(Path(path))
        if options.pruner != "none":
            self.sweep.pruning = {
                "method": options.pruner,
                "first": options.min_evaluations,
                "factor": options.reduction_factor,
                "brackets": options.brackets if options.pruner == "hyperband" else 1,
                "metric": self.metrics[0],
                "mode": self.modes[0],
            }
            self._pruning = Pruning(sweep=str(self.sweep.path), trial="", **self.sweep.pruning)
        for frozen in self.study.trials:
            if frozen.state in UNFINISHED:
                self._take_up(frozen)
        seconds = parse_duration(options.timeout)
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def _learn_from(self, path: Path) -> None:
        """Add what a finished sweep has found to the study, once."""
        known = {trial.user_attrs.get("from") for trial in self.study.trials}
        if any(trial.user_attrs.get("from") is None for trial in self.study.trials):
            return  # it has begun
        taken = 0
        entries = read_sweep(path, self.metrics[0], self.modes[0]).measured
        for entry in entries:
            results = self._results(entry.path)
            values = self._values_in(entry)
            if results is None or values is None or str(entry.path) in known:
                continue
            taken += self.study.add(values, results, str(entry.path))
        print(f"search     {taken} of {len(entries)} trials of {path} are known to the study", flush=True)

    def _values_in(self, entry: Entry) -> dict[str, Any] | None:
        """The values that a trial has of what is searched; None where one of them is not in the space."""
        values, given = {}, {key_of(override): override.partition("=")[2] for override in entry.overrides}
        for dimension in self.space.dimensions:
            key = key_of(dimension.key)
            found = entry.config.get(key, given.get(key))  # what chooses from a group is in its overrides alone
            if isinstance(dimension.distribution, CategoricalDistribution):  # by what it means: [8, 8] is [8,8]
                alike = [text for text in dimension.distribution.choices if yaml.safe_load(str(text)) == found]
                found = given[key] if given.get(key) in dimension.distribution.choices else next(iter(alike), None)
            if found is None:
                return None
            values[dimension.key] = found
        return values

    # --- While it runs -----------------------------------------------------------------------------------------------

    @property
    def total(self) -> int:
        """Those of this start, and those to come; what was done before it is not shown."""
        return len(self.sweep.trials) + self.left

    @property
    def left(self) -> int:
        """New trials that it has still to ask for."""
        return 0 if self._late else max(0, self.options.n_trials - len(self._own))

    @property
    def coming(self) -> int:
        """See Feed: the new ones, else whether one is promoted."""
        if self._nothing_new or self.left:
            return 0 if self._nothing_new else self.left
        if self._may_promote is None:
            self._may_promote = self._promoted() is not None
        return int(self._may_promote)

    @property
    def _late(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    @property
    def over(self) -> bool:
        """Whether it has nothing to start, now or when what runs has ended."""
        return self.left == 0 and not self._under_way and self._promoted() is None and self._last() is None

    def waiting(self) -> list[Trial]:
        """Trials of an earlier start that are neither told nor pruned."""
        return [trial for trial in self.trials.values() if trial.state not in (State.PRUNED, State.FINISHED)]

    def next(self) -> Trial | None:
        """The trial to start now; None where there is none, or none before another has ended."""
        self._may_promote = None
        if self._nothing_new:
            return None
        if (promoted := self._promoted()) is not None:
            self._going_on.add(promoted.index)
            return promoted
        while self.left:
            frozen = self.study.ask(self._unfinished())
            if (trial := self._take_up(frozen)) is not None:
                return trial
        self._nothing_new = True
        if (last := self._last()) is not None:
            settings, *others = pickle.loads(last.packed)
            self._going_on.add(last.index)
            last.packed = pickle.dumps((settings | {"pruning": None}, *others))
        return last

    def ended(self, trial: Trial) -> None:
        """Tell the study how a trial ended; one that was pruned may still be promoted, and is told in the end."""
        number, self._nothing_new, self._may_promote = trial.index, False, None
        self._curves.pop(self.sweep.name_of(trial), None)
        self._going_on.discard(number)
        if trial.state == State.FINISHED:
            results = self._results(trial.path)
            if results is None:
                why = f"has no {' or no '.join(self.metrics)}"
                print(f"trial {number:<4} {why}: the search counts it as failed", flush=True)
                self.study.tell(number, None, self._curve(trial), why)
            else:
                self.study.tell(number, results, self._curve(trial))
        elif trial.state == State.FAILED:
            self.study.tell(number, None, self._curve(trial), trial.reason)
        else:
            return
        del self.trials[number]

    def close(self) -> None:
        """Tell the study which trials were pruned for good, where it has had all that it may ask for."""
        missing = self.options.n_trials - len(self._own)
        if self._late and missing > 0:
            print(f"timeout    {missing} trials were not begun; the same command goes on", flush=True)
        if not self.over or missing > 0:
            return
        for number, trial in list(self.trials.items()):
            if trial.state == State.PRUNED:
                self.study.tell(number, None, self._curve(trial), pruned=True)
                del self.trials[number]

    def _promoted(self) -> Trial | None:
        """A trial that waits and may go on by now: of those the one that has come furthest, and then the first."""
        if self.sweep.pruning is None or self.options.pruner == "median":
            return None
        waiting = self._pruned
        if not waiting:
            return None
        curves = {name: self._signed(name) for name in self.sweep.names}
        for trial in sorted(waiting, key=lambda trial: (-len(curves[self.sweep.name_of(trial)]), trial.index)):
            name = self.sweep.name_of(trial)
            if self._pruning.judge(name, curves, len(curves[name])):
                return trial
        return None

    @property
    def _pruned(self) -> list[Trial]:
        return [t for t in self.trials.values() if t.state == State.PRUNED and t.index not in self._going_on]

    def _last(self) -> Trial | None:
        """Where all are pruned, as few are, the best of those that have come furthest: it goes on to its end."""
        waiting = self._pruned
        finished = any(trial.state == TrialState.COMPLETE for trial in self._own)
        if self.left or self._under_way or finished or not waiting:
            return None
        curves = {trial.index: self._signed(self.sweep.name_of(trial)) for trial in waiting}
        return min(waiting, key=lambda trial: (-len(curves[trial.index]), curves[trial.index][-1:], trial.index))

    @property
    def compared_by(self) -> tuple[str | None, str | None]:
        """What its trials are compared by in the end, and its mode: hydra.sweeper.metrics goes first."""
        if self.options.metrics:
            return self.metrics[0], self.modes[0]
        return self.sweep.options.metric, self.sweep.options.metric_mode

    # --- Its parts ---------------------------------------------------------------------------------------------------

    @property
    def _own(self) -> list[FrozenTrial]:
        """The trials of the study that no other sweep has run."""
        return [trial for trial in self.study.trials if "from" not in trial.user_attrs]

    @property
    def _under_way(self) -> bool:
        return len(self._pruned) < len(self.trials)

    def _take_up(self, frozen: FrozenTrial) -> Trial | None:
        """The trial of the sweep for one of the study; None where there is nothing to run, of which it is told."""
        twin = self._twin(frozen)
        if twin is not None:  # the same settings are the same run, to the bit
            self.study.tell(frozen.number, twin.values, why=f"the same as trial {twin.number}")
            print(f"trial {frozen.number:<4} has the settings of trial {twin.number}, and is not run again", flush=True)
            return None
        try:
            trial = self.sweep.compose_trial(frozen.number, self.space.overrides(frozen.params), self.varying)
        except ConfigError as error:
            self.study.tell(frozen.number, None, why=str(error))
            print(f"trial {frozen.number:<4} cannot be: {error}", flush=True)
            return None
        self.trials[frozen.number] = trial
        self.sweep.trials.append(trial)
        self.sweep.remember()
        if trial.state in (State.FINISHED, State.FAILED):  # killed between its end and the telling
            trial.lifecycle.reason = str(read_json(trial.path / "failed.json").get("reason", ""))
            self.ended(trial)
            return None
        return trial

    def _twin(self, frozen: FrozenTrial) -> FrozenTrial | None:
        """The first trial with the same values that was not another sweep's; one that failed would fail again."""
        for other in self._own:
            if other.number < frozen.number and other.params == frozen.params:
                return other
        return None

    def _unfinished(self) -> dict[int, tuple[bool, list[float]]]:
        return {number: (trial.state == State.PRUNED, self._curve(trial)) for number, trial in self.trials.items()}

    def _results(self, path: Path) -> list[float] | None:
        """The objectives of a finished trial; None where it has not got all of them."""
        found = [metric_of(path, name) for name in self.metrics]
        return [value for value in found if value is not None] if None not in found else None

    def _curve(self, trial: Trial) -> list[float]:
        """The first objective, evaluation by evaluation."""
        return curve(trial.path, self.metrics[0])

    def _signed(self, name: str) -> list[float]:
        """See `Pruning.curve`; that of a trial which runs may grow."""
        running = any(
            self.sweep.name_of(trial) == name and trial.state != State.PRUNED for trial in self.trials.values()
        )
        if running or name not in self._curves:
            self._curves[name] = self._pruning.curve(name)
        return self._curves[name]


def settings_of(trial: Trial) -> dict[str, Any]:
    """The settings of a trial, as they were composed."""
    settings: dict[str, Any] = pickle.loads(trial.packed)[0]
    return settings
