"""What a run begins with: weights of another run or of a file, and parameters that stay as they are."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import MethodType

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from launcher import checkpoint
from launcher.errors import ConfigError

PREFIXES = ("module.", "model.", "_orig_mod.")  # what DDP, other trainers and torch.compile put before a name
INSIDE = ("state_dict", "model_state_dict", "model")  # where the files of other trainers keep the weights
SHOWN = 8  # names in a message


@dataclass(frozen=True)
class Loaded:
    """What became of the weights in a file.

    Attributes:
        file: That they were read from.
        matched: Names in the model that took a tensor.
        missing: Names in the model for which the file has none; they keep their initial values.
        unexpected: Names in the file that the model does not have.
        reshaped: Names in the model whose tensor in the file has another shape; they keep their initial values.
    """

    file: Path
    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]

    def __str__(self) -> str:
        """In one line, as it is logged."""
        parts = [f"{len(self.matched)} tensors from {self.file}"]
        for what in ("missing", "unexpected", "reshaped"):
            names = getattr(self, what)
            if names:
                parts.append(f"{len(names)} {'of another shape' if what == 'reshaped' else what}: {_shown(names)}")
        return "; ".join(parts)


def begin(model: nn.Module, source: str | None, patterns: Sequence[str]) -> list[str]:
    """Load weights and freeze parameters.

    Args:
        model: The bare model.
        source: As for `load_weights`; None keeps the initial weights, or those of the checkpoint that a run resumes.
        patterns: As for `freeze`.

    Returns:
        Lines for the log: what matched and what did not, what is frozen.
    """
    lines = [] if source is None else [f"weights    {load_weights(model, source)}"]
    if frozen := freeze(model, patterns):
        lines.append(f"frozen     {_shown(frozen)}")
    return lines


def load_weights(model: nn.Module, source: str) -> Loaded:
    """Begin with the weights of another run or of a file, wherever name and shape agree.

    Args:
        model: The bare model, freshly built; what the file does not fit keeps its initial values (a new head).
        source: A `.safetensors` file; any other file that torch.load reads with weights_only=True; a directory with a
            model.safetensors; or a run directory, which means its best checkpoint, else its newest.

    Raises:
        ConfigError: Nothing is there, it cannot be read, or not one tensor fits.
    """
    file = _find(Path(source).expanduser())
    given = _read(file)
    own = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    found: dict[str, Tensor] = {}
    unexpected = []
    for name, tensor in given.items():
        short = name
        while short not in own and (prefix := next((p for p in PREFIXES if short.startswith(p)), None)):
            short = short.removeprefix(prefix)
        if short not in own:
            unexpected.append(name)
        elif short == name or short not in given:  # a name as it stands counts more than one behind a prefix
            found[short] = tensor
    matched = {name: tensor for name, tensor in found.items() if tensor.shape == own[name].shape}
    reshaped = [
        f"{name} ({_shape(tensor)}, the model has {_shape(own[name])})"
        for name, tensor in found.items()
        if name not in matched
    ]
    missing = [name for name in own if name not in found]
    if not matched:
        raise ConfigError(
            f"init_from={source}: no tensor in {file} fits the model. The file has {_shown(list(given))}; "
            f"the model has {_shown([f'{name} ({_shape(tensor)})' for name, tensor in own.items()])}."
        )
    if not any(tensor.is_meta for tensor in own.values()):  # else they come from rank 0, as all weights do
        model.load_state_dict(matched, strict=False)
    return Loaded(file, list(matched), missing, unexpected, reshaped)


def freeze(model: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Keep parameters as they are: no gradient, no place in the optimizer, no weight decay.

    A BatchNorm whose running statistics a pattern matches too, as `layer1.*` does, stays in evaluation mode: it
    normalises by them and does not change them, as in Keras, and in timm's and torchvision's frozen BatchNorm. One
    whose weight and bias alone are matched goes on measuring its batches. Dropout stays as it is.

    Args:
        model: The bare model, before its optimizer is built.
        patterns: With the wildcards of a shell, of which `*` matches dots too: `layers.0.*`.

    Returns:
        Names of the frozen parameters.

    Raises:
        ConfigError: A pattern matches no parameter.
    """
    parameters, frozen = dict(model.named_parameters()), []
    for pattern in patterns:
        names = [name for name in parameters if fnmatchcase(name, pattern)]
        if not names:
            raise ConfigError(f"freeze: {pattern} matches no parameter. There are: {_shown(list(parameters))}.")
        frozen += names
        for name, module in model.named_modules():
            statistics = f"{name}.running_mean".lstrip(".")
            if isinstance(getattr(module, "running_mean", None), Tensor) and fnmatchcase(statistics, pattern):
                module.eval()
                module.train = MethodType(_stay_in_evaluation_mode, module)
    for name in frozen:
        parameters[name].requires_grad_(False)
    return sorted(set(frozen), key=list(parameters).index)


def _stay_in_evaluation_mode(module: nn.Module, mode: bool = True) -> nn.Module:
    """What a frozen normalisation does when the model is told to train."""
    return module


def _find(source: Path) -> Path:
    """The file with the weights."""
    if source.is_file():
        return source
    if (source / "model.safetensors").is_file():
        return source / "model.safetensors"
    try:
        best = checkpoint.best_good(source / "checkpoints") or checkpoint.newest_good(source / "checkpoints")
        if best is None:
            raise ConfigError(
                f"init_from={source}: no weights are there. Name a run directory with a checkpoint, a directory with a "
                "model.safetensors, or a file such as weights.safetensors or weights.pt."
            )
    except checkpoint.DamagedCheckpoint as error:
        raise ConfigError(f"init_from={source}: {error}") from error
    return best / "model.safetensors"


def _read(file: Path) -> Mapping[str, Tensor]:
    """Tensors by name; nothing in the file is executed."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise whatever a strange file leads them to
        why = str(error).partition("\n")[0].partition(". In PyTorch")[0]  # what follows advises to execute it
        raise ConfigError(
            f"init_from={file}: cannot be read as weights alone (a .safetensors file, or a state dict that torch.load "
            f"takes with weights_only=True): {why or type(error).__name__}"
        ) from error
    for key in INSIDE:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise ConfigError(f"init_from={file}: holds a {type(content).__name__}, not a state dict (tensors by name).")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _shape(tensor: Tensor) -> str:
    return "x".join(str(side) for side in tensor.shape) or "scalar"


def _shown(names: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "none") + more
