"""Groups of parameters that a person names: a learning rate and a weight decay of their own, by patterns of names."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from launcher.config.components import accepted_names
from launcher.core.errors import ConfigError

SHOWN = 5  # names in a message


def split_off(groups: Sequence[Any], model: nn.Module, wanted: Sequence[Mapping[str, Any]], kind: Any) -> Sequence[Any]:
    """Take the parameters that `param_groups` names out of their groups, into groups of their own behind them.

    Args:
        groups: Parameters, or dicts of torch's with `params`; what a dict says else stays with a parameter, but for
            what its own group says.
        model: That has the parameters.
        wanted: Each with `match`, a pattern or several with the wildcards of a shell, of which `*` matches dots too,
            and `lr` or `weight_decay` or both. Of several that match a name the last counts.
        kind: Class of the optimizer.

    Raises:
        ConfigError: A pattern matches no parameter that is trained, or the optimizer has no such argument.
    """
    if not wanted:
        return groups
    names = accepted_names(kind) if kind is not None else None
    for key in ("lr", "weight_decay"):
        if names is not None and key not in names and any(one.get(key) is not None for one in wanted):
            raise ConfigError(f"param_groups: {kind.__name__} has no argument {key}, so a group has none of its own.")
    owner = _owners(model, wanted)
    dicts = list(groups) if isinstance(groups[0], dict) else [{"params": groups}]
    rest: list[dict[str, Any]] = []
    own: list[dict[str, Any]] = []
    for group in dicts:
        for number in (None, *range(len(wanted))):
            params: list[Tensor] = [one for one in group["params"] if owner.get(id(one)) == number]
            entry = {} if number is None else wanted[number]
            said = {key: entry[key] for key in ("lr", "weight_decay") if entry.get(key) is not None}
            if params:
                (rest if number is None else own).append({**group, **said, "params": params})
    return [*rest, *own]


def _owners(model: nn.Module, wanted: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Id of a parameter that is trained to the place of its group."""
    every = dict(model.named_parameters())
    trained = {name: parameter for name, parameter in every.items() if parameter.requires_grad}
    owner: dict[int, int] = {}
    for number, entry in enumerate(wanted):
        patterns = [entry["match"]] if isinstance(entry["match"], str) else list(entry["match"])
        for pattern in patterns:
            found = [name for name in trained if fnmatchcase(name, pattern)]
            if not found:
                frozen = any(fnmatchcase(name, pattern) for name in every)
                why = "frozen parameters alone (see freeze)" if frozen else "no parameter"
                near = get_close_matches(pattern, trained, SHOWN, 0.3) or list(trained)[:SHOWN]
                raise ConfigError(f"param_groups: {pattern} matches {why}. Trained are, such as {', '.join(near)}.")
            owner |= {id(trained[name]): number for name in found}
    return owner
