"""What the models of a library lack: GroupNorm for BatchNorm, weights from a file, a first look at the data."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from launcher.errors import ConfigError
from launcher.models import group_norm

NORMS = ("batch", "group")


def check_name(library: str, name: Any, known: Iterable[str], how: str) -> None:
    """Check that a library has a model of a name.

    Args:
        library: Its name, for the message.
        name: What the user asked for.
        known: The names that it has.
        how: Code that lists them.

    Raises:
        ConfigError: It has none; the message holds the nearest names.
    """
    names = list(known)
    if name not in names:
        near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
        hint = f"The nearest: {', '.join(near)}. " if near else ""
        raise ConfigError(
            f"model.name: {library} has no model {name!r} for classes of images. {hint}{how} lists all {len(names)}."
        )


def adapt(model: nn.Module, norm: Any, checkpoint: Any, input_shape: Sequence[int], num_outputs: int) -> nn.Module:
    """Do what the settings ask for, then show the model one image.

    Args:
        model: As the library made it.
        norm: `batch`: leave it as it is; `group`: GroupNorm in the place of each BatchNorm.
        checkpoint: File of weights; None for the initial ones.
        input_shape: (channels, height, width) of one image.
        num_outputs: Classes, or numbers to predict.

    Raises:
        ConfigError: A setting is wrong, the file does not fit, or the model does not take images of this shape.
    """
    if norm not in NORMS:
        raise ConfigError(f"model.norm: {norm!r} is unknown; pick batch (as the model has it) or group (GroupNorm).")
    if norm == "group":
        use_group_norm(model)
    if checkpoint is not None:
        take_weights(model, checkpoint, num_outputs)
    model.eval()
    try:
        with torch.no_grad():
            outputs = model(torch.zeros(1, *input_shape))
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise ConfigError(
            f"model.name: this model refuses images of {' x '.join(map(str, input_shape))}: {error} Pick another one, "
            "another data.image_size, or tell the model their size (of many in timm: +model.options.img_size)."
        ) from error
    finally:
        model.train()
    if not isinstance(outputs, Tensor) or outputs.shape != (1, num_outputs):
        found = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ConfigError(f"model.name: this model gives {found} for one image, not {[1, num_outputs]}; pick another.")
    return model


def use_group_norm(model: nn.Module) -> None:
    """Put GroupNorm in the place of each BatchNorm, with its initial scale and bias."""
    for name, module in list(model.named_children()):
        if not isinstance(module, _BatchNorm):
            use_group_norm(module)
            continue
        norm = group_norm(module.num_features)
        if module.affine:  # the last one of a residual block often starts at zero
            norm.load_state_dict({"weight": module.weight, "bias": module.bias})
        # Those of timm hold what comes after them.
        after = [getattr(module, part) for part in ("drop", "act") if hasattr(module, part)]
        setattr(model, name, nn.Sequential(norm, *after) if after else norm)


def take_weights(model: nn.Module, checkpoint: Any, num_outputs: int) -> None:
    """Load the weights in a file; a last layer for another number of classes keeps its initial ones.

    Args:
        model: What they are for.
        checkpoint: A safetensors file, or one of torch.save with nothing but tensors in it; the weights of the
            best or last checkpoint of another run are `checkpoints/step_.../model.safetensors` in its directory.
        num_outputs: Classes, or numbers to predict.

    Raises:
        ConfigError: There is no such file, it cannot be read, or its tensors are not those of the model.
    """
    path = Path(str(checkpoint)).expanduser()
    if not path.is_file():
        raise ConfigError(f"model.checkpoint: there is no file {path}; name one with weights, or null for none.")
    try:
        if path.suffix == ".safetensors":
            weights: Any = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader has errors of its own
        why = str(error).partition("\n")[0].partition(". In PyTorch")[0]  # what follows advises to execute it
        raise ConfigError(f"model.checkpoint: {path} holds no weights that can be read: {why}") from error
    for key in ("state_dict", "model"):
        if isinstance(weights, Mapping) and isinstance(weights.get(key), Mapping):
            weights = dict(weights[key])
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ConfigError(f"model.checkpoint: {path} does not hold tensors by name.")
    consume_prefix_in_state_dict_if_present(weights, "module.")
    own = model.state_dict()
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    foreign = [name for name in weights if name not in own]
    different = [name for name in own if name in weights and weights[name].shape != own[name].shape]
    last = [n for n in different if own[n].shape[0] == num_outputs and own[n].shape[1:] == weights[n].shape[1:]]
    wrong = [name for name in different if name not in last]
    for names, what in ((missing, "lacks"), (foreign, "has, but the model has not,"), (wrong, "has other shapes of")):
        if names:
            raise ConfigError(
                f"model.checkpoint: {path} {what} {len(names)} tensors, such as {', '.join(names[:3])}. It must be "
                "of the same model.name, norm and options."
            )
    if not any(tensor.is_meta for tensor in own.values()):  # else they come from rank 0: see strategy.meta_init
        model.load_state_dict({name: value for name, value in weights.items() if name not in last}, strict=False)
