"""The trials of a sweep that are known before it starts: products of lists, lists in step, repeats, a file's lines."""

import itertools
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.config.checks import check_options
from launcher.config.tree import key_of
from launcher.core.errors import ConfigError
from launcher.sweep.inference import LEAST_SEEDS

Choice = tuple[str, ...]  # overrides that go together
CONDITION = re.compile(r"\s*(\S+)\s+if\s+([^\s=]+)=(\S+)\s*")


@dataclass
class GridOptions:
    """The settings of conf/hydra/sweeper/grid.yaml, beside what Hydra's own sweeper has."""

    max_batch_size: int | None
    zip: list[list[str]] | None
    seeds: int | None
    trials: str | None
    conditions: list[str] | None
    decide: float | None

    def check(self) -> None:
        """Check what needs no override; a ConfigError where a setting is wrong."""
        check_options(vars(self), "Grid", "hydra.sweeper")
        if self.decide is not None and (self.seeds is None or self.seeds < LEAST_SEEDS):
            raise ConfigError(
                f"hydra.sweeper.decide={self.decide:g}: adds seeds until the settings are told apart; "
                f"hydra.sweeper.seeds=20 is the most of them, at least {LEAST_SEEDS}."
            )


class Grid:
    """What varies, one dimension after the other; every combination of them is a trial.

    Args:
        overrides: As Hydra has parsed them; of one setting the last counts.
        options: How they go together.

    Raises:
        ConfigError: They do not.
    """

    def __init__(self, overrides: Sequence[Any], options: GridOptions) -> None:
        self.dimensions = _listed(overrides)
        for keys in options.zip or []:
            self._zip(keys)
        if options.trials is not None:
            lines = _lines(Path(options.trials))
            if twice := sorted({key_of(override) for line in lines for override in line} & self.varying):
                raise ConfigError(f"hydra.sweeper.trials={options.trials}: sets {twice[0]}, which is swept as well.")
            self.dimensions["hydra.sweeper.trials"] = lines
        if options.seeds is not None:
            if "seed" in self._given():
                raise ConfigError(
                    f"hydra.sweeper.seeds={options.seeds}: repeats each trial with seeds from 0 on; leave out seed."
                )
            if options.decide is None:
                self.dimensions["seed"] = [(f"seed={number}",) for number in range(options.seeds)]
        self.conditions = self._conditions(options.conditions or [])

    def __len__(self) -> int:
        """Most trials that it can have: of some that differ by what a condition leaves out, one is kept."""
        return math.prod(map(len, self.dimensions.values()))

    @property
    def varying(self) -> frozenset[str]:
        """Settings that have several values."""
        several = [choice for choices in self.dimensions.values() if len(choices) > 1 for choice in choices]
        return frozenset(key_of(override) for choice in several for override in choice)

    def trials(self) -> Iterator[list[str]]:
        """The overrides of each trial."""
        known = set()
        for combination in itertools.product(*self.dimensions.values()):
            overrides = [override for choice in combination for override in choice]
            overrides = self._allowed(overrides)
            if not self.conditions:
                yield overrides
            elif (trial := tuple(overrides)) not in known:
                known.add(trial)
                yield overrides

    def _zip(self, keys: Sequence[str]) -> None:
        """Let the values of some settings go in step, in the place of the first of them."""
        said = f"hydra.sweeper.zip: {', '.join(keys)}"
        if missing := [key for key in keys if key not in self.dimensions]:
            raise ConfigError(f"{said}: {missing[0]} is not swept, or in step with others already.")
        if len(set(keys)) < len(keys):
            raise ConfigError(f"{said}: names one setting twice.")
        counts = {key: len(self.dimensions[key]) for key in keys}
        if len(set(counts.values())) > 1:
            raise ConfigError(f"{said}: must have as many values each, and have {list(counts.values())}.")
        together = [
            tuple(itertools.chain.from_iterable(step))
            for step in zip(*(self.dimensions[key] for key in keys), strict=True)
        ]
        joined = {}
        for key, choices in self.dimensions.items():
            if key == keys[0]:
                joined[" ".join(keys)] = together
            elif key not in keys:
                joined[key] = choices
        self.dimensions = joined

    def _given(self) -> dict[str, set[str]]:
        """The values of each setting, by its name without a plus."""
        given: dict[str, set[str]] = {}
        for override in itertools.chain.from_iterable(itertools.chain.from_iterable(self.dimensions.values())):
            given.setdefault(key_of(override), set()).add(override.partition("=")[2])
        return given

    def _conditions(self, texts: Sequence[str]) -> list[tuple[str, str, set[str]]]:
        """For each condition the setting, the one that it depends on, and the values of that.

        Raises:
            ConfigError: It is none, or one of them is nowhere in the sweep: it would hold for no trial, or for each.
        """
        given, found = self._given(), []
        for text in texts:
            said = f"hydra.sweeper.conditions: {text!r}"
            if (match := CONDITION.fullmatch(text)) is None:
                raise ConfigError(
                    f"{said} must be such as 'optimizer.momentum if optimizer=sgd'; several values are separated by |."
                )
            key, other, values = match[1], match[2], set(match[3].split("|"))
            if missing := [name for name in (key, other) if name not in given]:
                raise ConfigError(f"{said}: {missing[0]} is not among the settings of the sweep, {', '.join(given)}.")
            if wrong := sorted(values - given[other]):
                raise ConfigError(f"{said}: {other} is nowhere {wrong[0]}, but {', '.join(sorted(given[other]))}.")
            found.append((key, other, values))
        return found

    def _allowed(self, overrides: Sequence[str]) -> list[str]:
        """Without those whose condition the others do not meet."""
        values = {key_of(override): override.partition("=")[2] for override in overrides}
        return [
            override
            for override in overrides
            if all(values.get(other) in allowed for key, other, allowed in self.conditions if key == key_of(override))
        ]


def _listed(overrides: Sequence[Any]) -> dict[str, list[Choice]]:
    """The values of each setting."""
    found: dict[str, list[Choice]] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            found[key] = [(f"{key}={override.get_value_element_as_str()}",)]
            continue
        if not override.is_discrete_sweep():
            raise ConfigError(
                f"{override.input_line}: hydra/sweeper=grid tries every value, of which an interval has no end; list "
                "them, or search it by hydra/sweeper=optuna."
            )
        found[key] = [(f"{key}={text}",) for text in override.sweep_string_iterator()]
        if not found[key]:
            raise ConfigError(f"{override.input_line}: there is nothing in it to sweep.")
    return found


def _lines(file: Path) -> list[Choice]:
    """The overrides in each line of a file; empty lines and those that begin with # are none."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()  # Windows puts a mark at the beginning
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"hydra.sweeper.trials={file}: cannot be read ({error}).") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise ConfigError(f"hydra.sweeper.trials={file}: line {number}: {error}.") from error
        if wrong := [word for word in words if "=" not in word and not word.startswith("~")]:
            raise ConfigError(f"hydra.sweeper.trials={file}: line {number}: {wrong[0]} is no override, as seed=1 is.")
        found.append(tuple(words))
    if not found:
        raise ConfigError(f"hydra.sweeper.trials={file}: there is no trial in it; each line is one, such as seed=1.")
    return found
