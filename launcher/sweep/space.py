"""What a search chooses from: Hydra's interval(), choice(), range() and tags as distributions of Optuna."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from launcher.config.tree import key_of
from launcher.core.errors import ConfigError

TAGS = {"log", "int"}


@dataclass(frozen=True)
class Dimension:
    """One setting that is searched: how its values are distributed, and the override that sets each."""

    key: str  # as it stands in the override: optimizer.lr, +model.own
    distribution: BaseDistribution
    text: Callable[[Any], str]

    def override(self, value: Any) -> str:
        """The override that sets a value."""
        return f"{self.key}={self.text(value)}"

    @property
    def ends(self) -> list[Any]:
        """Every choice, or the least and the greatest value."""
        known: Any = self.distribution
        return list(known.choices) if isinstance(known, CategoricalDistribution) else [known.low, known.high]

    def described(self) -> str:
        """What it was made from, to compare with that of another start."""
        return f"{self.key}={self.distribution!r}"


@dataclass(frozen=True)
class Space:
    """What varies between the trials of a search, and the overrides that all of them have."""

    dimensions: Sequence[Dimension]
    fixed: Sequence[str]

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """Those of the trial that has some values, by key."""
        return [*self.fixed, *(dimension.override(values[dimension.key]) for dimension in self.dimensions)]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """By key."""
        return {dimension.key: dimension.distribution for dimension in self.dimensions}

    def corners(self) -> list[dict[str, Any]]:
        """Values of trials such that each choice, and both ends of each interval, is in one of them."""
        first = {dimension.key: dimension.ends[0] for dimension in self.dimensions}
        others = [first | {one.key: value} for one in self.dimensions for value in one.ends[1:]]
        return [first, *others]


def space_of(overrides: Sequence[Any]) -> Space:
    """The space that overrides span, as Hydra has parsed them.

    Raises:
        ConfigError: A range is empty, a tag unknown, or nothing is left to choose.
    """
    dimensions, fixed = [], []
    for override in {
        key_of(override.get_key_element()): override for override in overrides
    }.values():  # the last counts
        if not override.is_sweep_override():
            fixed.append(override.input_line)
            continue
        key, sweep = override.get_key_element(), override.value()
        if unknown := sorted(set(sweep.tags) - TAGS):
            raise ConfigError(f"{override.input_line}: tag {unknown[0]} is not known; there are log and int.")
        try:
            if override.is_interval_sweep():
                dimensions.append(_interval(key, sweep))
                continue
            if override.is_range_sweep() and (whole := _whole_range(key, sweep)) is not None:
                dimensions.append(whole)
                continue
            texts = list(override.sweep_string_iterator())
            if not texts:
                raise ConfigError(f"{override.input_line}: there is nothing in it to choose from.")
            if len(texts) == 1:
                fixed.append(f"{key}={texts[0]}")
            elif override.is_range_sweep():
                dimensions.append(_range(key, texts, "log" in sweep.tags))
            elif sweep.tags:
                raise ConfigError(f"{override.input_line}: a tag says how interval() or range() is sampled.")
            else:
                dimensions.append(Dimension(key, CategoricalDistribution(list(dict.fromkeys(texts))), str))
        except ConfigError:
            raise
        except ValueError as error:  # of Optuna: an interval whose ends are in the wrong order, a logarithm of 0
            raise ConfigError(f"{override.input_line}: {error}") from error
    if not dimensions:
        raise ConfigError(
            "hydra/sweeper=optuna: there is nothing to search. Give a setting an interval, a range or choices, such as "
            "'optimizer.lr=tag(log,interval(0.0001,1))' or optimizer=sgd,adam."
        )
    return Space(dimensions, fixed)


def _interval(key: str, sweep: Any) -> Dimension:
    logarithmic, low, high = "log" in sweep.tags, sweep.start, sweep.end
    if "int" in sweep.tags and not (float(low).is_integer() and float(high).is_integer()):
        raise ConfigError(f"{key}: an interval of whole numbers has whole ends, not {low} and {high}.")
    if "int" in sweep.tags or (isinstance(low, int) and isinstance(high, int)):
        return Dimension(key, IntDistribution(int(low), int(high), log=logarithmic), str)
    return Dimension(key, FloatDistribution(float(low), float(high), log=logarithmic), repr)


def _whole_range(key: str, sweep: Any) -> Dimension | None:
    """The whole numbers of a range() of several, without a list of them: it may have billions, such as of seeds."""
    numbers = (sweep.start, sweep.stop, sweep.step)
    if not all(isinstance(number, int) for number in numbers) or sweep.step == 0:
        return None
    every = range(*numbers)
    if len(every) < 2:
        return None
    # A logarithm goes with steps of 1 alone: others are chosen from by their place.
    low, high = min(every[0], every[-1]), max(every[0], every[-1])
    return Dimension(key, IntDistribution(low, high, log="log" in sweep.tags, step=abs(sweep.step)), str)


def _range(key: str, texts: list[str], logarithmic: bool) -> Dimension:
    """The fractions of range(), which leaves out its end; as texts, such that 0.1 stays 0.1."""
    values = sorted((float(text), text) for text in texts)
    numbers = [value for value, _ in values]
    step = numbers[1] - numbers[0]

    def text(value: float) -> str:
        return values[min(range(len(numbers)), key=lambda index: abs(numbers[index] - value))][1]

    if logarithmic:
        raise ConfigError(f"{key}: range() with steps below 1 has no logarithm; use tag(log,interval(...)).")
    return Dimension(key, FloatDistribution(numbers[0], numbers[-1], step=step), text)
