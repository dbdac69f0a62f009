"""What a run directory may have this machine call: it may be somebody else's, and `_target_` names any function.

Hydra's own policy (`hydra._internal.target_policy`) refuses what runs commands. This one is narrower, for directories
alone: of general packages only what makes harmless values, of torch and the model libraries only modules, optimizers
and their like. A person's own package may do anything; where the directory belongs to another user, it is named.
"""

import importlib.util
import inspect
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from launcher.config.components import locate
from launcher.core.errors import ConfigError

log = logging.getLogger("launcher")

OURS = (
    "launcher.data.", "launcher.models.", "launcher.losses.", "launcher.optimizers.", "launcher.schedulers.",
    "launcher.metrics.", "launcher.tasks.",
)  # fmt: skip
LIBRARIES = ("torch", "torchvision", "timm", "transformers", "peft")
TRUSTED = "LAUNCHER_TRUST_REMOTE_CODE"  # of the environment: 1 where model.trust_remote_code of a run directory counts
# Of the standard library and other packages that can run or write anything: what makes a value and no more.
GENERAL = sys.stdlib_module_names | {
    "accelerate", "cloudpickle", "datasets", "dill", "fsspec", "huggingface_hub", "hydra", "hydra_plugins", "joblib",
    "numpy", "omegaconf", "pandas", "pip", "pkg_resources", "posix", "safetensors", "setuptools", "wandb", "yaml",
}  # fmt: skip
VALUES = {
    *(f"builtins.{name}" for name in ("bool", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "range",
                                      "set", "slice", "str", "tuple")),
    *(f"collections.{name}" for name in ("Counter", "OrderedDict", "deque")),
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta")),
    "decimal.Decimal", "fractions.Fraction", "functools.partial", "pathlib.Path", "pathlib.PurePath",
}  # fmt: skip


def targets(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every `_target_` in plain settings, at any depth, with the setting that holds it."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in items:
        inner = f"{key}.{name}" if key else str(name)
        if name == "_target_":
            yield inner, str(value)
        yield from targets(value, inner)


def check_names(settings: Any, run_dir: Path) -> None:
    """Refuse by their names what no run is made of, and warn of what a stranger brings; nothing is imported.

    Raises:
        ConfigError: A `_target_`, or a class in `trackers`, is nothing that a run is made of; or the model is code that
            stands beside its weights.
    """
    model = settings.get("model")
    if isinstance(model, dict) and model.get("trust_remote_code") and os.environ.get(TRUSTED) != "1":
        raise ConfigError(
            f"run_dir={run_dir}: its model.trust_remote_code={model['trust_remote_code']} runs the code in "
            f"{model.get('name')}, with all your rights. Set {TRUSTED}=1 in the environment where you trust it."
        )
    foreign = is_foreign(run_dir) and os.environ.get("RANK", "0") == "0"
    trackers = settings.get("trackers")
    named = [("trackers", str(one)) for one in trackers if "." in str(one)] if isinstance(trackers, list) else []
    for key, target in [*targets(settings), *named]:
        root = target.partition(".")[0]
        if not _is_fit(target):
            raise _refused(run_dir, key, target)
        if foreign and root not in (*GENERAL, *LIBRARIES, "launcher") and not _is_here(root):
            log.warning(
                "run_dir=%s belongs to another user (uid %s), and its %s=%s is code from outside of the working "
                "directory, torch and the model libraries: it runs with your rights.",
                run_dir, _owner(run_dir), key, target,
            )  # fmt: skip


def check_targets(settings: Any, run_dir: Path) -> None:
    """The same for what a `_target_` leads to, which may be another thing (`launcher.data.csv.os.system`): imported.

    Raises:
        ConfigError: A `_target_` is nothing that a run is made of, or cannot be imported.
    """
    check_names(settings, run_dir)
    for key, target in targets(settings):
        found = locate(target, key.removesuffix("._target_"))
        module = getattr(found, "__module__", None) or type(found).__module__
        identity = f"{module}.{getattr(found, '__qualname__', type(found).__qualname__)}"
        of_library = identity.partition(".")[0] in LIBRARIES
        if not (_is_part(found, identity) if of_library else _is_fit(identity)):
            raise _refused(run_dir, key, target)


def _is_fit(name: str) -> bool:
    """Whether something of the launcher or a general package may be called, by its dotted name."""
    root = name.partition(".")[0]
    return name in VALUES if root in GENERAL else root != "launcher" or name == "launcher.load" or name.startswith(OURS)


def _is_part(found: Any, identity: str) -> bool:
    """Whether something of torch or a model library is a part of a model or what trains it."""
    from torch import nn, optim

    if inspect.isclass(found):
        parts = nn.Module | optim.Optimizer | optim.lr_scheduler.LRScheduler
        return issubclass(found, parts) or any(base.__name__ == "PreTrainedConfig" for base in found.__mro__)
    name = identity.rpartition(".")[2]
    if identity.startswith(("torch.nn.functional.", "torch._C._nn.", "torch._VariableFunctionsClass.")):
        return name != "from_file"  # which can make one
    if identity.startswith("torchvision.models."):
        from torchvision import models

        return name == "get_model" or name in models.list_models()
    if identity.startswith("timm.models."):
        import timm

        return name == "create_model" or timm.is_model(name)
    return False


def _refused(run_dir: Path, key: str, target: str) -> ConfigError:
    return ConfigError(f"run_dir={run_dir}: its {key}={target} is nothing that a run is made of, and is not called.")


def is_foreign(run_dir: Path) -> bool:
    """Whether a run directory is another user's."""
    return _owner(run_dir) != os.geteuid()


def _owner(run_dir: Path) -> int:
    """Whose a run directory is: another user's, where it or one of the files that name targets is."""
    files = [run_dir / name for name in ("", ".hydra/config.yaml", "data.json")]
    return next((uid for file in files if file.exists() and (uid := file.stat().st_uid) != os.geteuid()), os.geteuid())


def _is_here(root: str) -> bool:
    """Whether a package or module is found in the working directory."""
    with suppress(ImportError, ValueError):
        if spec := importlib.util.find_spec(root):
            places = [spec.origin, *(spec.submodule_search_locations or ())]
            return any(place and Path.cwd() in Path(place).resolve().parents for place in places)
    return True  # what is not there will be said when it is built
