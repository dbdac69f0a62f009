"""Components by name: from a config group with a `_target_` to the object it names."""

import errno
import inspect
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from launcher.config.messages import short
from launcher.config.tree import UNSTATED
from launcher.core.errors import ConfigError

# The groups, whose settings are those of a class.
COMPONENTS = ("data", "task", "model", "loss", "optimizer", "scheduler")
# The fact by which a model is built again although the files that first described it are gone.
KEPT = "kept_config"

logging.getLogger("hydra").addHandler(logging.NullHandler())  # it logs what it then raises: one message is enough


def locate(target: str, group: str) -> Callable[..., Any]:
    """Import what `_target_` names.

    Args:
        target: Dotted path of a class or function, such as `torch.optim.SGD`.
        group: Config group that holds the target, for the message.

    Raises:
        ConfigError: The path does not import, or is nothing that can be called.
    """
    try:
        found = get_object(target)
    except Exception as error:
        cause = error.__cause__ or error
        raise ConfigError(
            f"{group}._target_: cannot import {target!r}: {cause}. Give the dotted path of a class or function that "
            f"Python can import from the working directory.{_hidden(target)}"
        ) from error
    if not callable(found):
        raise ConfigError(f"{group}._target_: {target!r} is a {type(found).__name__}, not a class or function.")
    return found


def _hidden(target: str) -> str:
    """What to say of a file in the working directory that has the name of an installed module, which comes first."""
    name = target.partition(".")[0]
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    own = next((path for path in (f"{name}.py", f"{name}/") if os.path.exists(path)), None)
    if own is None or not file or os.path.abspath(file).startswith(os.path.abspath(name)):
        return ""
    return f" ({own} here is hidden by {file}: give it another name.)"


def accepted_names(function: Callable[..., Any]) -> set[str] | None:
    """Names of the keyword arguments that a callable takes; None where it takes any (`**kwargs`)."""
    parameters = _parameters(function)
    return None if parameters is None or any(p.kind is p.VAR_KEYWORD for p in parameters) else named(function)


def named(function: Callable[..., Any]) -> set[str]:
    """Names of the keyword arguments that a callable names, whatever else it takes.

    Those of a class include the ones that its bases name, as far as `**kwargs` hands arguments on to them.
    """
    names: set[str] = set()
    steps: list[Any] = [function]
    if isinstance(function, type):
        steps += [vars(base)["__init__"] for base in function.__mro__ if "__init__" in vars(base)]
    for step in steps:
        parameters = _parameters(step) or []
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names - {"self"}


def required_names(function: Callable[..., Any]) -> list[str]:
    """Names of the arguments that a callable must be given, in their order."""
    parameters = _parameters(function) or ()
    return [p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def default_of(function: Callable[..., Any], name: str) -> Any:
    """The default of an argument that a callable names; UNSTATED where it has none."""
    found = (p.default for p in _parameters(function) or () if p.name == name and p.default is not p.empty)
    return next(found, UNSTATED)


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(function).parameters.values())
    except ValueError:  # a builtin without a signature
        return None


def absent(key: str) -> Any:
    """What a config means that does not have a setting; UNSTATED where the schema does not say it."""
    from launcher.config.schema import SCHEMA

    return SCHEMA[key].absent if key in SCHEMA else UNSTATED


def build(group: str, settings: Mapping[str, Any], *arguments: Any, **facts: Any) -> Any:
    """Build the component that a group's settings describe.

    Args:
        group: Name of the config group, for messages.
        settings: The group: `_target_` and the constructor's keyword arguments; nested `_target_`s are built too.
        *arguments: Passed first, by position (the parameters for an optimizer, the optimizer for a scheduler).
        **facts: What only the run knows (the data's shape, the run's length). Each is passed where the
            constructor has an argument of that name and the settings leave it out or null.

    Raises:
        ConfigError: The target does not import, does not take a setting, or refuses a value.
    """
    target = settings.get("_target_")
    if not target:
        raise ConfigError(
            f"{group}._target_ is missing: name the class to build, as in {group}._target_=my.module.Name"
        )
    function = locate(target, group)
    names = accepted_names(function)
    given = {str(key): value for key, value in settings.items()}
    given = {k: v for k, v in given.items() if not (v is None and k in facts)}
    given |= {k: v for k, v in facts.items() if k not in given and k in named(function)}
    fixed = {k: v for k, v in given.items() if k not in facts}
    strange = [] if names is None else [key for key in fixed if not key.startswith("_") and key not in names]
    if names is not None and strange:
        known = ", ".join(sorted(names - {"self", "params", "optimizer"}))
        raise ConfigError(f"{group}.{strange[0]}: {target} has no argument {strange[0]!r}. It takes: {known}.")
    missing = [name for name in required_names(function)[len(arguments) :] if name not in given]
    if missing:  # of a run that was made before there was this argument
        then = {name: value for name in missing if (value := absent(f"{group}.{name}")) is not UNSTATED}
        given, fixed = given | then, fixed | then
        missing = [name for name in missing if name not in then]
    if missing and facts and "_args_" not in given:
        way = f"Set {group}.{missing[0]}, or pick another {group} or other data."
        if group not in COMPONENTS:  # one of a list
            way = f"Write `{missing[0]}: ...` beside its _target_."
        raise ConfigError(
            f"{group}: {target} needs {', '.join(missing)}, which the settings do not give and this run does not have "
            f"(it has {', '.join(facts)}). {way}"
        )
    try:
        partial = instantiate(OmegaConf.create(fixed), _partial_=True, _convert_="all")
        return partial(*arguments, **{k: v for k, v in given.items() if k in facts})
    except ConfigError:
        raise
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise ConfigError(f"{group}: {error.strerror}: {short(str(error.filename))}. Name a shorter one.") from error
    except (TypeError, ValueError, AssertionError, InstantiationException) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        if isinstance(cause, ConfigError):  # of a part that is built first
            raise ConfigError(f"{group}: {cause}") from error
        frame = traceback.extract_tb(cause.__traceback__)[-1]
        if isinstance(cause, InstantiationException) and frame.filename.endswith("target_policy.py"):
            refused = re.search(r"'([\w.]+)'", str(cause))
            raise ConfigError(
                f"{group}: Hydra does not call {refused[1] if refused else target} for a config, since it could do "
                f"anything. Name a class or a function that makes the {group}."
            ) from error
        values = ", ".join(f"{k}={v!r}" for k, v in fixed.items() if not k.startswith("_"))
        raise ConfigError(
            f"{group}: {target} refuses ({values}): {cause} [{frame.name}, line {frame.lineno} of {frame.filename}]"
        ) from error
