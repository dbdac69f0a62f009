"""What a run begins with: weights of another run or of a file, and parameters that stay as they are."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from types import MethodType
from typing import Any

from torch import Tensor, nn

from launcher.core.errors import ConfigError
from launcher.models.build import files_of
from launcher.models.weights import NAMES, Loaded, match, read, shape, shown
from launcher.training import checkpoint

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")  # of files that hold weights


def sources_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that name a file of weights, for `begin`, each with what it names or None."""
    return {"init_from": settings["init_from"], **files_of(settings["model"])}


def begin(
    model: nn.Module,
    sources: Mapping[str, str | None],
    outputs: int,
    patterns: Sequence[str],
    put_adapters: Callable[[nn.Module], list[str]] = lambda model: [],
) -> list[str]:
    """Load weights, put adapters in, and freeze parameters; gives lines for the log.

    Args:
        model: The bare model.
        sources: Setting to what it names, as for `load_weights`, or None.
        outputs: That the model gives.
        patterns: As for `freeze`.
        put_adapters: Changes the model once it has its weights, and gives lines for the log.

    Raises:
        ConfigError: Two settings name weights; or as for `load_weights` and `freeze`.
    """
    named = {setting: source for setting, source in sources.items() if source is not None}
    if len(named) > 1:
        raise ConfigError(f"{' and '.join(named)}: both name weights to begin with. Set one of them to null.")
    lines = []
    for setting, source in named.items():
        loaded = load_weights(model, source, setting)
        if setting != "init_from":
            _check_whole(model, loaded, f"{setting}={source}", outputs)
        lines.append(f"weights    {loaded}")
    lines += put_adapters(model)
    if frozen := freeze(model, patterns):
        lines.append(f"frozen     {shown(frozen)}")
    return lines


def load_weights(model: nn.Module, source: str, setting: str = "init_from") -> Loaded:
    """Begin with the weights of another run or of a file, wherever name and shape agree.

    What it does not fit keeps its initial values (a new head). The source is a file as for `weights.read`; a directory
    with one; or a run directory, which means its best checkpoint, else its newest.

    Raises:
        ConfigError: Nothing is there, it cannot be read, not one tensor fits, or some belong to layers with adapters.
    """
    file = _find(Path(str(source)).expanduser(), setting)
    found = read(file, setting)
    own = model.state_dict()
    marks = (".base_layer.", ".lora_A.")
    if adapted := [name for name in found.tensors if any(mark in name for mark in marks) and name not in own]:
        raise ConfigError(
            f"{setting}={source}: {file} has adapters, such as {adapted[0]}. Add what they learned "
            f"to the weights, by launcher export run_dir=RUN output=MERGED, and set {setting}=MERGED."
        )
    matched, loaded = match(model, found, file)
    if not matched:
        raise ConfigError(
            f"{setting}={source}: no tensor in {file} fits the model. The file has {shown(list(found.tensors))}; "
            f"the model has {shown([f'{name} ({shape(tensor)})' for name, tensor in own.items()])}."
        )
    if not any(tensor.is_meta for tensor in own.values()):  # else they come from rank 0, as all weights do
        model.load_state_dict(matched, strict=False)
    noted: Any = model
    noted.read_names = frozenset(matched)  # for frozen_base.find_base
    return loaded


def _check_whole(model: nn.Module, loaded: Loaded, source: str, outputs: int) -> None:
    """Raise ConfigError unless weights are those of this very model, but for a last layer of other classes."""
    own = model.state_dict()
    last = [name for name in loaded.reshaped if own[name.split()[0]].shape[:1] == (outputs,)]
    missing = [name for name in loaded.missing if not name.endswith("num_batches_tracked")]
    for names, what in ((missing, "lacks"), ([n for n in loaded.reshaped if n not in last], "has other shapes of")):
        if names:
            raise ConfigError(
                f"{source}: {loaded.file} {what} {len(names)} tensors: {shown(names)}. It must be of "
                "the same model.name, norm and options; init_from takes whatever fits."
            )


def freeze(model: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Keep parameters as they are: no gradient, no place in the optimizer, no weight decay; gives their names.

    A BatchNorm whose running statistics a pattern matches too, as `layer1.*` does, stays in evaluation mode: it
    normalises by them and does not change them, as in Keras, and in timm's and torchvision's frozen BatchNorm. One
    whose weight and bias alone are matched goes on measuring its batches. Dropout stays as it is.

    Args:
        model: The bare model, before its optimizer is built.
        patterns: With the wildcards of a shell, of which `*` matches dots too: `layers.0.*`.

    Raises:
        ConfigError: A pattern matches no parameter.
    """
    parameters, frozen = dict(model.named_parameters()), []
    for pattern in patterns:
        names = [name for name in parameters if fnmatchcase(name, pattern)]
        if not names:
            raise ConfigError(f"freeze: {pattern} matches no parameter. There are: {shown(list(parameters))}.")
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


def _find(source: Path, setting: str) -> Path:
    """The file with the weights."""
    if source.is_file():
        return source
    for name in NAMES:
        if (source / name).is_file():
            return source / name
    if source.is_dir() and not (source / "checkpoints").is_dir():
        alone = [file for file in source.iterdir() if file.suffix in SUFFIXES]
        if len(alone) == 1:
            return alone[0]
        if alone:
            names = sorted(file.name for file in alone)
            raise ConfigError(f"{setting}={source}: several files of weights are there: {shown(names)}. Name one.")
    try:
        newest = checkpoint.newest_good(source / "checkpoints")
        if newest is None:
            raise ConfigError(
                f"{setting}={source}: no weights are there. Name a run directory with a checkpoint, a directory with a "
                f"{' or '.join(NAMES[:3])}, or a file such as weights.safetensors or weights.pt."
            )
        best = checkpoint.best_of(newest)
    except checkpoint.DamagedCheckpoint as error:
        raise ConfigError(f"{setting}={source}: {error}") from error
    return (best or newest) / "model.safetensors"
