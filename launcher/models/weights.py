"""Weights in a file, as people have them: read without executing anything, matched by name and shape with a model."""

import collections
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from launcher.core.errors import ConfigError

# What a directory may hold, the first that is there.
NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# Where the files of other trainers keep the weights; of a moving average and what it was made of, the average.
INSIDE = (
    "state_dict_ema", "ema_state_dict", "model_ema", "ema", "state_dict", "model_state_dict", "model", "module", "net",
    "network", "model_state", "weights", "params",
)  # fmt: skip
# Of Lightning's hyperparameters.
ATTRIBUTES = (
    "lightning_fabric.utilities.data",
    "lightning.fabric.utilities.data",
    "pytorch_lightning.utilities.parsing",
)
# Settings, figures, random states and places that stand beside the weights: module to names.
BESIDE = {
    "argparse": "Namespace", "types": "SimpleNamespace", "typing": "Any", "_codecs": "encode",
    "builtins": "dict list tuple set int float str bool", "datetime": "datetime date timedelta",
    **dict.fromkeys(("pathlib", "pathlib._local"), "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath"),
    **dict.fromkeys(("numpy.core.multiarray", "numpy._core.multiarray"), "scalar _reconstruct"),
    "numpy": "dtype ndarray", "omegaconf.dictconfig": "DictConfig", "omegaconf.listconfig": "ListConfig",
    "omegaconf.base": "Metadata ContainerMetadata",
    "omegaconf.nodes": "AnyNode StringNode IntegerNode FloatNode BooleanNode PathNode",
}  # fmt: skip
SHOWN = 8  # names in a message


@dataclass(frozen=True)
class Found:
    """What is in a file."""

    tensors: dict[str, Tensor]  # by name
    inside: str = ""  # where in the file they are; empty for the top
    beside: list[str] = field(default_factory=list)  # what else is there, by name


@dataclass(frozen=True)
class Loaded:
    """What became of the weights in a file; what took no tensor keeps its initial values."""

    file: Path
    matched: list[str]  # names in the model that took a tensor
    missing: list[str]  # names in the model for which the file has none
    unexpected: list[str]  # names in the file that the model does not have
    reshaped: list[str]  # names in the model whose tensor in the file has another shape
    resampled: list[str] = field(default_factory=list)  # those whose tensor in the file was brought to their shape
    inside: str = ""  # as of Found
    beside: list[str] = field(default_factory=list)  # as of Found

    def __str__(self) -> str:
        """In one line, as it is logged."""
        place = f"{self.inside} in {self.file}" if self.inside else str(self.file)
        parts = [f"{len(self.matched)} tensors from {place}"]
        for what in ("missing", "unexpected", "reshaped", "resampled", "beside"):
            names = getattr(self, what)
            if names:
                words = {"reshaped": "of another shape", "beside": "left in the file"}.get(what, what)
                parts.append(f"{len(names)} {words}: {shown(names)}")
        return "; ".join(parts)


def read(file: Path, setting: str) -> Found:
    """Read tensors by name.

    Args:
        file: A `.safetensors` file; the index of several (`.index.json`); or any that torch.load reads as weights
            alone, with plain values and settings beside them.
        setting: That named it, for messages.

    Raises:
        ConfigError: It cannot be read so.
    """
    try:
        if file.suffix == ".json":
            return Found(dict(_of_shards(file, setting)))
        if file.suffix == ".safetensors":
            return Found(load_file(file))
        with torch.serialization.safe_globals(_harmless()):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except ConfigError:
        raise
    except Exception as error:  # the readers raise whatever a strange file leads them to
        why = str(error).partition("WeightsUnpickler error:")[2] or str(error) or type(error).__name__
        said = why.strip().partition("\n")[0].partition(" Please use")[0]  # what follows advises to execute it
        said = said.partition(". In PyTorch")[0]
        raise ConfigError(
            f"{setting}={file}: cannot be read as weights alone, and nothing in it is executed ({said.strip()}). Give "
            "a .safetensors file, or torch.save(model.state_dict(), ...)."
        ) from error
    inside, beside = [], []
    while isinstance(content, Mapping):
        key = next((key for key in INSIDE if key in content and _holds_tensors(content[key])), None)
        if key is None:
            break
        beside += [str(other) for other in content if other != key]
        inside.append(key)
        content = content[key]
    if not isinstance(content, Mapping):
        raise ConfigError(f"{setting}={file}: holds a {type(content).__name__}, not a state dict (tensors by name).")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    beside += [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    return Found({name: tensor.detach() for name, tensor in tensors.items()}, ".".join(inside), beside)


def _of_shards(index: Path, setting: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of all files that an index names."""
    names = json.loads(index.read_text()).get("weight_map", {})
    for name in sorted(set(names.values())):
        if Path(name).name != name or not (index.parent / name).is_file():
            raise ConfigError(f"{setting}={index}: it names the file {name}, which is not beside it.")
        wanted = {tensor for tensor, file in names.items() if file == name}
        found = read(index.parent / name, setting).tensors
        if absent := sorted(wanted - found.keys()):
            raise ConfigError(f"{setting}={index}: {name} lacks {shown(absent)}, which the index promises.")
        yield from ((tensor, found[tensor]) for tensor in wanted)


def _holds_tensors(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    return any(isinstance(one, Tensor) for one in value.values()) or any(
        key in value and _holds_tensors(value[key]) for key in INSIDE
    )


class _Nothing:
    """What becomes of a thing beside the weights: it takes whatever it is made of and keeps none of it."""

    def __new__(cls, *arguments: Any, **named: Any) -> "_Nothing":
        """Whatever it is made of."""
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Forget it."""


def _plain(factory: Any = None, items: Any = ()) -> dict[Any, Any]:
    """A defaultdict without its default, which weights alone may not hold."""
    return dict(items)


def _harmless() -> list[Any]:
    """The names of what stands beside weights in many files, and what takes their place: none of them is run."""
    named: dict[str, Any] = {"collections.defaultdict": _plain}
    named |= dict.fromkeys((f"{module}.AttributeDict" for module in ATTRIBUTES), dict)
    named |= dict.fromkeys((f"{module}.{name}" for module, names in BESIDE.items() for name in names.split()), _Nothing)
    return [(thing, name) for name, thing in named.items()]


def match(model: nn.Module, found: Found, file: Path) -> tuple[dict[str, Tensor], Loaded]:
    """Find the tensor of each parameter and buffer of a model, which is not changed.

    Names may differ by what stands before all of them: DDP, torch.compile, Lightning and people's own modules put
    something there. Models of timm and torchvision have their position embeddings brought to their size, by the
    libraries' own code.

    Returns:
        Tensors by the model's own names, and what became of all.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    given = found.tensors
    if not any("_orig_mod." in name for name in own):
        given = {name.replace("_orig_mod.", ""): tensor for name, tensor in given.items()}
    given, others = _named_alike(given, own)
    before, given = given, _resampled(model, given)
    shared = [name for name in own if name in given]
    tied: dict[int, list[str]] = {}  # names of one and the same parameter: one of them brings it
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tied.setdefault(id(parameter), []).append(name)
    brought = {name for names in tied.values() if any(name in given for name in names) for name in names}
    matched = {name: given[name] for name in shared if given[name].shape == own[name].shape}
    return matched, Loaded(
        file,
        matched=list(matched),
        missing=[name for name in own if name not in given and name not in brought],
        unexpected=[*(name for name in given if name not in own), *others],
        reshaped=[
            f"{name} ({shape(given[name])}, the model has {shape(own[name])})" for name in shared if name not in matched
        ],
        resampled=[
            f"{name} ({shape(before[name])} to {shape(own[name])})"
            for name in matched
            if name in before and before[name].shape != own[name].shape
        ],
        inside=found.inside,
        beside=found.beside,
    )


def _named_alike(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under the names of the model where these differ by a prefix, and the names of those without it."""
    taken: collections.Counter[str] = collections.Counter()  # how many names fit without this prefix
    put: collections.Counter[str] = collections.Counter()  # or with this one
    for names, others, counts in ((given, own, taken), (own, given, put)):
        for name in names:
            parts = name.split(".")
            for at in range(len(parts)):
                if ".".join(parts[at:]) in others:
                    counts[".".join(parts[:at]) + "." * (at > 0)] += 1
    best = max(taken, key=lambda prefix: (taken[prefix], -len(prefix)), default="")
    added = max(put, key=lambda prefix: (put[prefix], -len(prefix)), default="")
    if put[added] > taken[best]:
        return {added + name: tensor for name, tensor in given.items()}, []
    fitting = {name.removeprefix(best): tensor for name, tensor in given.items() if name.startswith(best)}
    return fitting, [name for name in given if not name.startswith(best)]


def _resampled(model: nn.Module, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a library makes of weights for a model of its own: names of old, and positions of other image sizes."""
    module = type(model).__module__
    change: Callable[..., Any] | None = None
    if module.startswith("timm."):
        change = getattr(sys.modules[module], "checkpoint_filter_fn", None)
    elif module == "torchvision.models.vision_transformer" and "encoder.pos_embedding" in given:
        interpolate: Any = getattr(sys.modules[module], "interpolate_embeddings")  # noqa: B009
        change = lambda state, vit: interpolate(vit.image_size, vit.patch_size, state)  # noqa: E731
    if change is None:
        return given
    try:
        changed = change(dict(given), model)
    except Exception:  # weights of something else: what fits by name is taken as it is
        return given
    return changed if isinstance(changed, dict) else given


def shape(tensor: Tensor) -> str:
    """Such as 3x4."""
    return "x".join(str(side) for side in tensor.shape) or "scalar"


def shown(names: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "none") + more
